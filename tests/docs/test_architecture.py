"""ARCHITECTURE.md names only files and names that exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache

import pytest

from docs.pages import CLIENT, ROOT, SERVER, code, prose, table

PACKAGE = SERVER / "src/backline"
PACKAGES = (PACKAGE, CLIENT / "src/backline_client")
PAGE = "ARCHITECTURE.md"
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|toml|md))").fullmatch
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)?").fullmatch
#: Methods of the protocol, served by the package but not defined in it.
_RPC = {"ModelInfer", "ModelStreamInfer"}
#: Code spans that are neither names nor files of the package.
_OTHER = {"POST /v2/models/add1/infer", "grpc-timeout", "make lint"}


@cache
def defined() -> tuple[set[str], dict[str, set[str]]]:
    """The names that the package defines, and the members of its classes, including inherited ones."""
    names: set[str] = set()
    members: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
                bases[node.name] |= {base.id for base in node.bases if isinstance(base, ast.Name)}
                for child in ast.walk(node):
                    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                        members[node.name].add(child.name)
                    elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                        members[node.name].add(child.target.id)
                    elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                        members[node.name].add(child.attr)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    for _ in bases:
        for name, above in bases.items():
            for base in above:
                members[name] |= members.get(base, set())
    attributes = set().union(*members.values())
    return names | attributes, members


def listed() -> list[str]:
    return sorted(set(code(prose(PAGE))))


PATHS = [text for text in listed() if _PATH(text) and text not in _OTHER]
NAMES = [text for text in listed() if _NAME(text) and not _PATH(text) and text not in _OTHER | _RPC]
#: Names that are followed by the file that defines them.
PLACES = sorted(set(re.findall(r"`(\w+)`\s\(`([\w/]+\.py)`", prose(PAGE))))


def test_every_code_span_is_tested() -> None:
    assert len(PATHS) > 30
    assert len(NAMES) > 90
    assert len(PLACES) > 20
    assert set(listed()) - set(PATHS) - set(NAMES) == _OTHER | _RPC


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name: str) -> None:
    names, members = defined()
    owner, _, member = name.rpartition(".")

    assert name in names if not owner else member in members.get(owner, set())


@pytest.mark.parametrize("name", sorted(_RPC))
def test_every_method_is_in_the_protocol(name: str) -> None:
    assert f"rpc {name}(" in (CLIENT / "src/backline_client/protos/inference.proto").read_text("utf-8")


@pytest.mark.parametrize("path", PATHS)
def test_every_file_exists(path: str) -> None:
    assert any((folder / path).exists() for folder in (*PACKAGES, ROOT))


@pytest.mark.parametrize(("name", "path"), PLACES)
def test_every_name_is_defined_in_the_file_that_follows_it(name: str, path: str) -> None:
    text = next(file for package in PACKAGES if (file := package / path).is_file()).read_text("utf-8")

    assert re.search(rf"^ *(class|def|async def) {name}\b|^{name}\b", text, re.MULTILINE)


def test_the_rooms_are_the_folders_of_the_package() -> None:
    rooms = {code(row["room"])[0].rstrip("/") for row in table(PAGE, "room")}

    assert rooms == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_every_subfolder_is_listed() -> None:
    listed = {path.rstrip("/") for row in table(PAGE, "folder") for path in code(row["folder"])}
    within = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/*/__init__.py")}

    assert listed == {path for path in within if not path.startswith("cli/")}
