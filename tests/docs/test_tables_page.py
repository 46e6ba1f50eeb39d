"""docs/tables.md, followed from top to bottom."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import blocks
from support.server import ServerProcess, serve

pytest.importorskip("pandas")
pytest.importorskip("sklearn")

PAGE = "docs/tables.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("tables")
    recipe = next(block.text for block in blocks(PAGE) if block.language == "python")
    subprocess.run([sys.executable, "-c", recipe], check=True, cwd=folder, timeout=100)
    options = ("--trust-pickle-model", "churn")
    with serve(folder / "models", folder / "log", *options, ready=False) as running:
        running.wait_ready(120)
        yield running


def ask(server: ServerProcess, command: str) -> str:
    command = command.replace("localhost:8000", f"127.0.0.1:{server.http_port}")
    return subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def commands() -> list[str]:
    return [
        line for block in blocks(PAGE) if block.language == "sh" for line in block.text.splitlines() if line
    ]


def test_rows_are_answered_as_printed(server: ServerProcess) -> None:
    printed = json.loads(next(block.text for block in blocks(PAGE) if block.language == "json"))

    answer = json.loads(ask(server, commands()[0]))

    assert [row["predict"] for row in answer] == [row["predict"] for row in printed]
    for got, shown in zip(answer, printed, strict=True):
        assert got["predict_proba"] == pytest.approx(shown["predict_proba"], abs=0.005)


@pytest.mark.parametrize("command", commands()[1:], ids=range(1, len(commands())))
def test_every_other_request_is_answered(command: str, server: ServerProcess) -> None:
    answer = json.loads(ask(server, command))

    assert "error" not in answer
    assert answer["outputs" if "/v2/" in command else "predict"]


def test_the_configuration_of_types_is_accepted(server: ServerProcess, tmp_path: Path) -> None:
    text = next(
        block.text for block in blocks(PAGE) if block.language == "text" and block.text.startswith("input [")
    )
    folder = Path(server.log).parent / "models" / "churn"
    shutil.copytree(folder, tmp_path / "churn")
    (tmp_path / "churn" / "config.pbtxt").write_text(text)

    with serve(tmp_path, tmp_path / "log", "--trust-pickle", ready=False) as typed:
        typed.wait_ready(120)
        answer = ask(typed, f"curl -s localhost:8000/models/churn -d '{json.dumps([ROW])}'")
        metadata = json.loads(ask(typed, "curl -s localhost:8000/v2/models/churn"))

    assert json.loads(answer)[0]["predict"] in ("yes", "no")
    assert {one["name"]: one["datatype"] for one in metadata["inputs"]}["member"] == "BOOL"


ROW = {"age": 35, "city": "Rome", "member": True}
