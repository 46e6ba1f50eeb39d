"""The claims of docs/security.md: the first section works as printed, each class of attacks names tests."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.conftest import Workspace, commands, wait_until_loaded
from docs.pages import Block, blocks
from support.server import free_ports

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
#: Modules whose loaders execute code from their input.
RUNS_CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def rows() -> list[tuple[str, str]]:
    """The class and the tests of each row."""
    table = PAGE.partition("## Attacks on servers of this kind")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [(row[0], row[3]) for row in cells]


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """All test functions of the suite."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    return found


def test_the_page_has_every_class() -> None:
    assert len(rows()) == 21


@pytest.mark.parametrize(("name", "named"), rows(), ids=[name for name, _ in rows()])
def test_every_class_names_tests_that_exist(tests: set[str], name: str, named: str) -> None:
    listed = re.findall(r"`([^`]+)`", named)
    assert listed
    for entry in listed:
        assert entry in tests or (ROOT / entry).is_file(), entry


def test_no_module_imports_a_deserialiser_that_runs_code() -> None:
    files = list((ROOT / "packages").glob("*/src/**/*.py"))
    assert len(files) > 300
    # They write objects, and read nothing.
    files.remove(ROOT / "packages/backline/src/backline/background.py")
    files.remove(ROOT / "packages/oip-conformance/src/oip_conformance/models/writer.py")
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if called == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
                    names = [str(node.args[0].value)]
            assert not {name.partition(".")[0] for name in names} & RUNS_CODE, f"{path}:{node}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who follows the page's first section on one machine, with the keys that it had them create."""

    workspace: Workspace
    keys: dict[str, str]

    def run(self, block: Block, key: str) -> str:
        """The output of a block; the page's ellipsis stands for a key."""
        here = self.workspace.here(_on_this_machine(block.text))
        if block.language == "python":
            command = f"export BACKLINE_KEY={self.keys[key]}\n{sys.executable} - <<'END'\n{here}END\n"
        else:
            # grpcurl is rarely installed; tests/dialects/test_stock_clients.py asks with grpcio.
            lines = [line for line in commands(Block("sh", here, 0)) if not line.startswith("grpcurl ")]
            command = "\n".join(lines).replace("bk_...", self.keys[key])
        return self.workspace.run_shell(command)


def _on_this_machine(text: str) -> str:
    return text.replace("models.example.org", "localhost")


def _section() -> list[Block]:
    """The blocks of the section "A server for other machines": set up, call in three ways, change models."""
    page = blocks("docs/security.md")
    end = next(number for number, block in enumerate(page) if "backline models load" in block.text)
    return page[: end + 1]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    workspace = Workspace(tmp_path_factory.mktemp("secured"), *free_ports(3))
    install, *made, serve = commands(Block("sh", _section()[0].text.replace("\\\n", ""), 0))
    assert install.startswith("pip install ")
    keys = {}
    for line in made:
        printed = workspace.run_shell(_on_this_machine(line))
        if line.startswith("backline keys create "):
            keys[line.split()[3]] = printed.strip()
    with workspace.serving(serve) as server:
        wait_until_loaded(server)
        yield Reader(workspace, keys)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_first_section_reach_the_server(reader: Reader) -> None:
    _, called, *_ = _section()

    printed = reader.run(called, "app")

    assert "READY" in printed
    assert "noun" in printed


def test_clients_reach_the_server_as_the_first_section_says(reader: Reader) -> None:
    ours, tritons = (block for block in _section() if block.language == "python")

    assert reader.run(ours, "app").count("noun") == 2
    assert reader.run(tritons, "app").count("noun") == 2


def test_the_second_key_of_the_first_section_may_change_what_is_served(reader: Reader) -> None:
    *_, changed = _section()

    assert "tagger" in reader.run(changed, "deploy")
