"""Each plug-in folder can be deleted: the core imports, serves and answers without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import backline
import backline_client

#: Imports every module of the core, lists the commands, and calls a model in Python over HTTP.
PROGRAM = """
import importlib, pkgutil, sys
from pathlib import Path

import backline
from backline.cli.main import command

assert str(Path(backline.__file__)).startswith(sys.argv[1]), backline.__file__
for module in pkgutil.walk_packages(backline.__path__, "backline."):
    if not module.name.startswith(("backline.plugins", "backline.__main__", "backline.cli.templates")):
        if ".torchserve" not in module.name and "child.start" not in module.name:
            importlib.import_module(module.name)
assert command.list_commands(None)

def double(x: int) -> int:
    return 2 * x

with backline.serve(double, port=0) as server, backline.connect(server.url) as client:
    print(client["double"](x=21)["output"].item())
"""


def folders() -> list[str]:
    root = Path(backline.__file__).parent / "plugins"
    groups = [root / name for name in ("runtimes", "dialects", "repositories", "tools")]
    found = [folder for group in groups for folder in group.iterdir()] + [
        root / name for name in ("fleet", "ray", "traffic")
    ]
    return sorted(str(path.relative_to(root)) for path in found if (path / "__init__.py").is_file())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in (backline, backline_client):
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(copy: Path, *command: str, timeout: float = 110) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_folders_are_those_of_all_doors() -> None:
    assert {"runtimes/onnx", "dialects/plain", "repositories/object_store", "tools/bench", "fleet"} < set(
        folders()
    )
    assert len(folders()) > 20


@pytest.mark.parametrize("folder", folders())
def test_the_core_serves_without_the_folder(copy: Path, folder: str) -> None:
    away = copy / "backline" / "plugins" / folder
    kept = away.with_name(f".{away.name}")
    away.rename(kept)
    try:
        assert run(copy, "-c", PROGRAM, str(copy)) == "42\n"
    finally:
        kept.rename(away)


def test_the_tests_of_the_core_pass_without_any_plug_in(copy: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    shutil.copytree(copy, without)
    for folder in folders():
        shutil.rmtree(without / "backline" / "plugins" / folder)
    tests = [f"tests/{name}" for name in ("engine", "access", "schedule", "model")]

    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    runtimes = (
        "scheduler_abandoned",
        "stacked_ensemble",
        "ensemble_statistics",
    )  # their tests need a runtime
    options += [f"--ignore=tests/schedule/test_{name}.py" for name in runtimes]

    shown = run(without, "-m", "pytest", *options, *tests, timeout=280)

    assert " passed" in shown
