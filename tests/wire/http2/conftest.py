from __future__ import annotations

from collections.abc import Iterator

import pytest

from wire.http2.served import FrameClient, Served, serve


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[FrameClient]:
    with FrameClient(served.port) as connected:
        yield connected
