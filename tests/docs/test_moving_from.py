"""The models of the pages in docs/moving-from give the answers that the pages show."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import ROOT, blocks, code, table
from support.repositories import put
from support.server import ServerProcess, serve

PAGES = {
    path.stem: blocks(f"docs/moving-from/{path.name}") for path in (ROOT / "docs/moving-from").glob("*.md")
}
#: Each request, and the answer printed below it. Blocks of the language `text` show the other server's code.
ASKED = [
    pytest.param(block.text, page[index + 1].text, id=f"{name}:{block.line}")
    for name, page in sorted(PAGES.items())
    for index, block in enumerate(page)
    if block.language == "sh"
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("moved")
    for block in (block for page in PAGES.values() for block in page if block.language == "python"):
        place, _, text = block.text.removeprefix("# ").partition("\n")
        put(folder / place, text)
    with serve(folder / "models", folder / "log") as running:
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("asked", "shown"), ASKED)
def test_each_request_gets_the_answer_on_its_page(server: ServerProcess, asked: str, shown: str) -> None:
    command = asked.replace("localhost:8000", f"127.0.0.1:{server.http_port}")
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout

    assert json.loads(answer) == json.loads(shown)


def test_every_page_has_a_model_that_is_asked() -> None:
    assert {str(asked.id).split(":")[0] for asked in ASKED} == set(PAGES)


def test_the_list_of_tensorflow_serving_is_read(tmp_path: Path) -> None:
    from support.repositories import scan

    (listed,) = (block for block in PAGES["tensorflow-serving"] if "config {" in block.text)
    for version in "12":
        put(tmp_path / "half" / version / "saved_model.pb")

    (model,) = scan(put(tmp_path / "models.config", listed.text))

    assert (model.name, model.problem) == ("half", "")
    assert dict(model.config.labels) == {"stable": "1"}


def test_the_options_named_for_tensorflow_serving_exist() -> None:
    from backline.cli import serve as command

    known = {name for param in command.command.params for name in param.opts}
    rows = table("docs/moving-from/tensorflow-serving.md", "option of tensorflow_model_server")
    named = {
        word
        for row in rows
        for span in code(row["in Backline"])
        for word in span.split()
        if word.startswith("--")
    }

    assert named <= known
