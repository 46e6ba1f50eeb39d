"""The claims of docs/security.md: each class of attacks names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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
    files = list((ROOT / "src").rglob("*.py"))
    assert len(files) > 300
    # It writes an object of the program that calls it, and reads nothing.
    files.remove(ROOT / "src/backline/background.py")
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
