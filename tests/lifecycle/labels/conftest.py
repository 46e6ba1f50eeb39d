"""Places where servers can share their labels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.object_stores import Store, s3
from support.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3(tmp_path_factory.mktemp("s3") / "log") as running:
        running.make_bucket(running.bucket)
        yield running
