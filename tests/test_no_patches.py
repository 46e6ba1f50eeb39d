"""Nothing of the standard library or of another package is changed, in the source or in a running server."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
import backline_client
from support import models
from support.server import ServerProcess, free_ports

SOURCES = [Path(package.__file__).parent for package in (backline, backline_client)]
#: The only places that change the tables of modules and finders, and why they must.
MODULE_TABLES = {
    # the name of a module that the user wrote, which importlib's documentation says to enter or remove
    "workers/child/model_code.py": "import a model's file under its own name",
    "plugins/runtimes/torchserve/model.py": "import a handler's modules from another archive",
    "workers/debugged.py": "import a changed model again",
    "workers/child/start.py": "import Backline from its own folder, without the packages beside it",
    # None makes an import of an optional module fail, as the documentation of the import system says
    "plugins/runtimes/openvino/runtime.py": "keep OpenVINO's telemetry from sending reports",
    "plugins/runtimes/pytorch/programs.py": "keep two copies of LLVM out of one process",
}
#: Settings of the process to which a program may assign, as their documentation says.
SETTINGS = {"sys.dont_write_bytecode", "sys.stderr", "sys.stdout"}
#: Functions that change an object in place, if the object is a table of modules or finders.
CHANGES = {"append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update", "__setitem__"}
TABLES = {"sys.modules", "sys.meta_path", "sys.path_hooks", "sys.path_importer_cache"}


class Patches(ast.NodeVisitor):
    """Finds the assignments to attributes of what a module imports from other packages."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[str] = []
        self.tables: list[str] = []
        #: The names of imported modules, classes and functions that are not Backline's, and aliases of them.
        self._foreign: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._foreign |= {
                    (alias.asname or alias.name).partition(".")[0]
                    for alias in node.names
                    if not alias.name.startswith("backline")
                }
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("backline"):
                self._foreign |= {alias.asname or alias.name for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and self._is_foreign(node.value):
                self._foreign |= {one.id for one in node.targets if isinstance(one, ast.Name)}
        self.visit(tree)

    def _is_foreign(self, node: ast.expr) -> bool:
        """Returns whether an expression is a foreign object itself, rather than one that a call has made."""
        while isinstance(node, ast.Attribute):
            node = node.value
        if isinstance(node, ast.Call):
            return ast.unparse(node.func).rpartition(".")[2] in ("import_module", "import_runtime")
        return isinstance(node, ast.Name) and node.id in self._foreign

    def _check_target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for one in target.elts:
                self._check_target(one)
        elif isinstance(target, ast.Attribute):
            if self._is_foreign(target.value) and ast.unparse(target) not in SETTINGS:
                self.found.append(ast.unparse(target))
        elif isinstance(target, ast.Subscript):
            self._check_table(target.value)
            owner: ast.expr | None = (
                None  # whose names are in the dictionary `vars(owner)` or `owner.__dict__`
            )
            match target.value:
                case ast.Call(func=ast.Name("vars"), args=[found]) | ast.Attribute(found, "__dict__"):
                    owner = found
            if owner is not None and self._is_foreign(owner):
                self.found.append(ast.unparse(target))

    def _check_table(self, table: ast.expr) -> None:
        if ast.unparse(table) in TABLES:
            self.tables.append(ast.unparse(table))

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._check_target(target)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._check_target(node.target)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._check_target(node.target)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._check_target(target)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Name) and called.id in ("setattr", "delattr") and node.args:
            if self._is_foreign(node.args[0]):
                self.found.append(ast.unparse(node))
        elif isinstance(called, ast.Attribute) and called.attr in CHANGES:
            self._check_table(called.value)
        self.generic_visit(node)


@pytest.mark.parametrize(
    "code",
    [
        "import re\nre.compile = print",
        "import numpy as np\nnp.core.f.g = 1",
        "from dataclasses import dataclass\ndataclass.x: int = 1",
        "import typing\nvars(typing)['compile'] = str",
        "import typing\ndel typing.x",
        "import typing\ntyping.__dict__['x'] += 1",
        "from importlib import import_module\nimport_module('torch').x = 1",
        "import ctypes\nf = ctypes.pythonapi.F\nf.restype, other = 1, 2",
        "from click import Command\nsetattr(Command, 'x', 1)",
    ],
)
def test_the_scan_finds_a_patch(code: str) -> None:
    assert len(Patches(ast.parse(code)).found) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.modules['x'] = None",
        "import sys\nsys.modules.setdefault('x', None)",
        "import sys\ndel sys.modules['x']",
        "import sys\nsys.meta_path.insert(0, finder)",
    ],
)
def test_the_scan_finds_a_change_of_the_tables_of_modules(code: str) -> None:
    assert len(Patches(ast.parse(code)).tables) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from backline.x import Y\nY.z = 1",
        "from socket import socket\ns = socket()\ns.x = 1",
        "import ctypes\nf = ctypes.CDLL(None).mallopt\nf.argtypes = []",
    ],
)
def test_the_scan_accepts_an_object_of_ones_own(code: str) -> None:
    assert not Patches(ast.parse(code)).found


def scanned() -> Iterator[tuple[str, Patches]]:
    for source in SOURCES:
        for path in sorted(source.rglob("*.py")):
            yield str(path.relative_to(source)), Patches(ast.parse(path.read_text()))


def test_no_module_assigns_to_an_attribute_of_another_package() -> None:
    assert {name: patches.found for name, patches in scanned() if patches.found} == {}


def test_only_a_few_modules_change_the_table_of_modules() -> None:
    changed = {name: set(patches.tables) for name, patches in scanned() if patches.tables}

    assert changed.keys() == MODULE_TABLES.keys()
    assert set().union(*changed.values()) == {"sys.modules"}


#: A program that serves until SIGTERM, and one that only imports the same modules. For each module of the
#: packages that a server uses, and for each class in it, both write where its functions are defined.
DESCRIBE = """
import json, sys

def described(names):
    found = {}
    for name in names:
        module = sys.modules[name]
        owners = {name: module}
        for attribute, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                owners[f"{name}.{attribute}"] = value
        for owner, it in owners.items():
            for attribute, value in list(vars(it).items()):
                if callable(value):
                    code = getattr(value, "__code__", None)
                    found[f"{owner}.{attribute}"] = [
                        type(value).__name__, repr(getattr(value, "__module__", None)),
                        repr(getattr(value, "__qualname__", None)), getattr(code, "co_filename", ""),
                    ]
    return found
"""
SERVE = (
    DESCRIBE
    + """
import atexit

from backline.cli.main import main

def write():
    packages = {"click", "httptools", "msgspec", "numpy", "onnxruntime", "orjson", "uvloop"}
    packages |= sys.stdlib_module_names
    names = [
        name for name, module in sys.modules.items()
        if name.partition(".")[0] in packages and getattr(module, "__spec__", None) is not None
    ]
    finders = [getattr(it, "__name__", type(it).__name__) for it in sys.meta_path]
    with open(sys.argv[1], "w") as file:
        json.dump([names, described(names), finders], file)

atexit.register(write)
main(sys.argv[2:])
"""
)
IMPORT = (
    DESCRIBE
    + """
from importlib import import_module

with open(sys.argv[1]) as file:
    names, _, _ = json.load(file)
for name in names:
    import_module(name)
finders = [getattr(it, "__name__", type(it).__name__) for it in sys.meta_path]
print(json.dumps([names, described(names), finders]))
"""
)


def test_a_server_leaves_the_modules_of_other_packages_as_they_are(tmp_path: Path) -> None:
    models.add1(tmp_path / "repository")
    file = tmp_path / "served.json"
    http, grpc, metrics = map(str, free_ports(3))
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(file), "serve", str(tmp_path / "repository"), *ports],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BACKLINE_ISOLATE": "never"},
        )
    server = ServerProcess(process, int(http), int(grpc), int(metrics), tmp_path / "log")
    try:
        server.wait_ready()
        with backline.connect(server.url) as client:
            client["add1"](INPUT0=np.zeros((1, 16), np.float32))
        assert server.stop() == 0, server.output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(file)], capture_output=True, text=True, timeout=60, check=True
    )

    names, served, finders = json.loads(file.read_text())
    _, fresh, own_finders = json.loads(done.stdout)
    assert {"numpy", "msgspec", "click", "asyncio", "re", "typing", "dataclasses", "onnxruntime"} <= {*names}
    assert {key: value for key, value in served.items() if fresh.get(key) != value} == {}
    assert fresh.keys() == served.keys()
    assert finders == own_finders
