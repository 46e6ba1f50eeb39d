"""Models of Triton's Python backend give stock clients the responses of Triton 2.51, see record_triton.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.server import serve
from workers.process.triton.asking import Ask
from workers.process.triton.cases import CASES
from workers.process.triton.differences import DIFFERENCES, expect
from workers.process.triton.repository import write_repository

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_2_51.json").read_text())


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    folder = tmp_path_factory.mktemp("triton")
    repository = write_repository(folder)
    with serve(
        repository, folder / "log", "--model-control-mode", "explicit", "--log-level", "debug"
    ) as server:
        asking = Ask(server.http_port, server.grpc_port, server.metrics_port)
        asking.log = lambda: server.output
        yield asking
        asking.close()


@pytest.mark.parametrize("name", CASES)
def test_the_response_equals_tritons(ask: Ask, name: str) -> None:
    """Or differs as listed in `differences.py`."""
    expected, reason = expect(name, RECORDED[name])
    given = json.loads(json.dumps(CASES[name](ask)))
    assert given == expected, reason


def test_listed_differences_do_differ() -> None:
    for name in DIFFERENCES:
        assert expect(name, RECORDED[name])[0] != RECORDED[name], name


def test_a_models_log_lines_have_file_line_and_level(ask: Ask) -> None:
    CASES["logged"](ask)

    logged = re.findall(
        r"(\w+) backline.model: model 'metrics' version 1: model.py:\d+: told (.*)", ask.log()
    )
    levels = {"as info": "INFO", "as warning": "WARNING", "as error": "ERROR", "as verbose": "DEBUG"}
    levels |= {"as it is": "INFO", "at a level": "ERROR"}
    assert {text: level for level, text in logged} == levels
