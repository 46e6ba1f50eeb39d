"""The trace extension and trace file behave as Triton 2.51 did, with stock clients (record_triton.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from observe.tracing.cases import CASES, Ask, options
from observe.tracing.differences import DIFFERENCES
from observe.tracing.repository import write_repository
from support.server import serve

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_2_51.json").read_text())


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    folder = tmp_path_factory.mktemp("traces")
    file = folder / "trace.json"
    with serve(write_repository(folder / "models"), folder / "log", *options(file)) as server:
        asking = Ask(server.http_port, server.grpc_port, file)
        yield asking
        asking.close()


@pytest.mark.parametrize("name", CASES)
def test_responses_equal_tritons(ask: Ask, name: str) -> None:
    """Except for what `differences.py` lists."""
    expected, reason = DIFFERENCES.get(name, (RECORDED[name], ""))
    ask.reset()
    given = json.loads(json.dumps(CASES[name](ask)))
    assert given == expected, reason


def test_listed_differences_exist() -> None:
    for name, (expected, _) in DIFFERENCES.items():
        assert expected != RECORDED[name], name
