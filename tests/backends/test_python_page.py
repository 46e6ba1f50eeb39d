"""docs/python-models.md: its models are served, and its requests get the answers that it shows."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from docs.pages import Block, blocks
from support.repositories import put
from support.server import ServerProcess, serve

PAGE = blocks("docs/python-models.md")
ASKED = [(block, PAGE[index + 1]) for index, block in enumerate(PAGE) if block.text.startswith("curl")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    for block in PAGE:
        if block.language == "python":
            place, _, text = block.text.removeprefix("# ").partition("\n")
            put(folder / place, text)
    with serve(folder / "models", folder / "log") as running:
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("asked", "shown"), ASKED, ids=[f"line {asked.line}" for asked, _ in ASKED])
def test_each_request_of_the_page_gets_its_answer(server: ServerProcess, asked: Block, shown: Block) -> None:
    command = asked.text.replace("localhost:8000", f"127.0.0.1:{server.http_port}")
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout

    if shown.language == "json":
        assert json.loads(answer) == json.loads(shown.text)
    else:
        assert answer == shown.text


def test_each_model_of_the_page_is_asked() -> None:
    models = {block.text.split("/")[1] for block in PAGE if block.language == "python"}

    assert models == {asked.text.split("/models/")[1].split("/")[0] for asked, _ in ASKED}
    assert len(models) == 6
