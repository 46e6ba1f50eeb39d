"""The models of docs/python-models.md and docs/pipelines.md give the answers shown on those pages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from docs.pages import Block, blocks
from support.repositories import put
from support.server import ServerProcess, serve

PAGES = {page: blocks(f"docs/{page}.md") for page in ("python-models", "pipelines")}
ASKED = [
    pytest.param(block, page[index + 1], id=f"{name}:{block.line}")
    for name, page in PAGES.items()
    for index, block in enumerate(page)
    if block.text.startswith("curl")
]
MODELS = [block for page in PAGES.values() for block in page if block.text.startswith("# models/")]
#: Commands that need a running server.
(NOTEBOOK,) = (block for block in PAGES["pipelines"] if block.language == "python" and block not in MODELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for block in MODELS:
        place, _, text = block.text.removeprefix("# ").partition("\n")
        put(folder / place, text)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with serve(folder / "models", folder / "log") as running:
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("asked", "shown"), ASKED)
def test_each_request_of_the_page_gets_its_answer(server: ServerProcess, asked: Block, shown: Block) -> None:
    command = asked.text.replace("localhost:8000", f"127.0.0.1:{server.http_port}")
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout

    if shown.language == "json":
        assert json.loads(answer) == json.loads(shown.text)
    else:
        assert answer == shown.text


def test_each_model_of_the_pages_is_asked() -> None:
    models = {block.text.split("/")[1] for block in MODELS}
    called = {"loudness", "peak", "syllables"}

    assert models == called | {asked.values[0].text.split("/models/")[1].split("/")[0] for asked in ASKED}
    assert len(models) == 15


def test_the_pipeline_runs_in_a_notebook(server: ServerProcess, folder: Path) -> None:
    code = NOTEBOOK.text.replace("http://localhost:8000", server.url)
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout

    assert [printed.strip()] == re.findall(r"print\(.*\)  # (.*)", code)


def test_the_calls_are_shown_as_on_the_page(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        client["crest"](np.ones(4, np.float32))
    command = [sys.executable, "-m", "backline", "models", "show", "crest", "--url", server.url]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (shown,) = (block for block in PAGES["pipelines"] if block.text.startswith("version"))

    assert [line.split()[:2] for line in lines[-3:]] == [line.split()[:2] for line in shown.text.splitlines()]
