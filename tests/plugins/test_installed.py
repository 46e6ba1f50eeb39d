"""A wheel from outside the tree: what it adds works as what is built in does."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import numpy as np
import pytest

import backline
from support.server import serve

#: The plug-ins of the wheel by the template that they are made from.
TOYS = {
    "backend": "toyformat",
    "dialect": "toyroutes",
    "repository": "toystore",
    "command": "toycommand",
}
Run: TypeAlias = Callable[..., "CompletedProcess[str]"]


def _run(*command: object, site: Path | None = None) -> CompletedProcess[str]:
    environment = os.environ if site is None else {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        capture_output=True, text=True, check=False, timeout=240, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project for each template."""
    folder = tmp_path_factory.mktemp("projects")
    for template, name in TOYS.items():
        done = _run("backline", "new", folder / name, "--template", template)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def site(projects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed one wheel with all four plug-ins."""
    toy = tmp_path_factory.mktemp("toy")
    points = {}
    for name in TOYS.values():
        project = tomllib.loads((projects / name / "pyproject.toml").read_text())["project"]
        points.update(project["entry-points"])
        shutil.copytree(projects / name / name, toy / name)
    lines = [
        f'[project.entry-points."{group}"]\n'
        + "".join(f'{name} = "{target}"\n' for name, target in one.items())
        for group, one in points.items()
    ]
    (toy / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n'
        '[project]\nname = "toy"\nversion = "1.2.3"\ndependencies = ["backline"]\n\n'
        f"{''.join(lines)}\n[tool.hatch.build.targets.wheel]\npackages = {json.dumps([*TOYS.values()])}\n"
    )
    built = _run("build", "--wheel", "--no-isolation", "--outdir", toy / "dist", toy)
    assert built.returncode == 0, built.stdout + built.stderr
    return _install(next((toy / "dist").glob("*.whl")), toy / "site")


def _install(what: Path, target: Path) -> Path:
    done = _run("pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
                "--target", target, what)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def _copy(site: Path, to: Path) -> None:
    # A compiled module would be taken for current if its source changes within a second, to the same size.
    shutil.copytree(site, to, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def old_site(site: Path, tmp_path: Path) -> Path:
    """The same, with plug-ins that were written for another version of the interface."""
    _copy(site, tmp_path / "site")
    for name in TOYS.values():
        record = tmp_path / "site" / name / "__init__.py"
        record.write_text(record.read_text().replace("api_version=1", "api_version=7"))
    return tmp_path / "site"


def _put_model(repository: Path) -> Path:
    version = repository / "scaled" / "1"
    version.mkdir(parents=True)
    (version / "model.toyformat").write_text('{"scale": 3.0}')
    return repository


def _call(url: str) -> list[float]:
    with backline.connect(url) as client:
        answer: list[float] = client["scaled"](np.arange(4, dtype=np.float32).reshape(1, 4))["y"][0].tolist()
        return answer


@pytest.mark.parametrize("template", TOYS)
def test_a_new_plug_in_is_installed_and_passes_its_own_tests(
    template: str, projects: Path, tmp_path: Path
) -> None:
    project = projects / TOYS[template]
    site = _install(project, tmp_path / "site")

    done = _run("pytest", "-q", "-p", "no:cacheprovider", "--rootdir", project, project / "tests", site=site)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_models_in_its_format_are_served_and_its_routes_answer(site: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(site)}
    with serve(_put_model(tmp_path / "models"), tmp_path / "log", environment=environment) as server:
        assert _call(server.url) == _call(server.grpc_url) == [0.0, 3.0, 6.0, 9.0]
        with urllib.request.urlopen(f"{server.url}/toyroutes/scaled", timeout=10) as answer:
            assert json.load(answer) == {"inputs": ["x FP32[-1, 4]"]}
        printed = _run("backline", "toycommand", "--url", server.url, site=site)

    assert (printed.returncode, printed.stdout) == (0, "scaled\n"), printed.stderr


def test_a_worker_process_loads_the_plug_in_that_its_model_needs(site: Path, tmp_path: Path) -> None:
    repository = _put_model(tmp_path / "models")
    (repository / "scaled" / "model.toml").write_text('lane = "process"\n')

    with serve(repository, tmp_path / "log", environment={"PYTHONPATH": str(site)}) as server:
        assert _call(server.url) == [0.0, 3.0, 6.0, 9.0]
        with backline.connect(server.url) as client:
            config = client["scaled"].config(explained=True)

    assert config["parameters"]["backline.lane"]["string_value"] == "process"


def test_models_at_its_scheme_are_served(site: Path, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "models.db")
    with database:
        database.execute("CREATE TABLE files (path TEXT, content BLOB)")
        file = ("scaled/1/model.toyformat", b'{"scale": 3.0}')
        database.execute("INSERT INTO files VALUES (?, ?)", file)
    database.close()
    options = ("--cache-dir", str(tmp_path / "cache"), "--state-dir", str(tmp_path / "state"))
    environment = {"PYTHONPATH": str(site)}

    with serve(
        f"toystore://{tmp_path}/models.db", tmp_path / "log", *options, environment=environment
    ) as server:
        assert _call(server.url) == [0.0, 3.0, 6.0, 9.0]


def test_the_list_names_them_and_their_distribution(site: Path) -> None:
    done = _run("backline", "plugins", "list", "--json", site=site)
    found = {one["name"]: one for one in json.loads(done.stdout)}

    assert done.returncode == 0, done.stderr
    assert {found[name]["source"] for name in TOYS.values()} == {"toy 1.2.3"}
    assert found["toyformat"]["serves"] == ["model.toyformat", "*.toyformat"]
    assert found["toyroutes"]["serves"] == ["GET /toyroutes/{}"]
    assert found["toystore"]["serves"] == ["toystore://"]
    assert found["toycommand"]["serves"] == ["backline toycommand"]
    assert found["onnxruntime"]["source"] == "built in"
    assert found["onnxruntime"]["needs"] == "backline[onnx]"


def test_a_misspelt_command_is_suggested_from_what_is_installed(site: Path) -> None:
    done = _run("backline", "toycomand", site=site)

    assert done.returncode == 2
    assert "Did you mean 'toycommand'?" in done.stderr


def test_a_record_that_does_not_say_its_version_is_refused(site: Path, tmp_path: Path) -> None:
    _copy(site, tmp_path / "site")
    for name in TOYS.values():
        record = tmp_path / "site" / name / "__init__.py"
        record.write_text(record.read_text().replace("    api_version=1,\n", ""))

    listed = _run("backline", "plugins", "list", site=tmp_path / "site")

    assert listed.returncode == 1
    assert listed.stderr.count("set api_version in its record, to 1 for this server") == len(TOYS)


def test_another_version_of_the_interface_is_refused_with_one_sentence(
    old_site: Path, tmp_path: Path
) -> None:
    def refusal(name: str) -> str:
        return (
            f"the plug-in '{name}' of toy 1.2.3 is for version 7 of the plug-in interface, but this server"
            " has version 1: install releases of both that fit"
        )

    listed = _run("backline", "plugins", "list", site=old_site)
    command = _run("backline", "toycommand", site=old_site)
    scheme = _run("backline", "serve", "toystore:///models.db", site=old_site)
    examined = _run("backline", "doctor", "--json", "--state-dir", tmp_path, site=old_site)
    repository = _put_model(tmp_path / "models")
    (repository / "scaled" / "model.toml").write_text('backend = "toyformat"\n')
    checked = _run("backline", "config", "validate", repository, site=old_site)

    assert listed.returncode == 1
    assert sorted(listed.stderr.splitlines()) == sorted(f"not used: {refusal(one)}" for one in TOYS.values())
    assert (command.returncode, command.stderr) == (1, f"Error: {refusal('toycommand')}\n")
    assert (scheme.returncode, scheme.stderr) == (1, f"Error: {refusal('toystore')}\n")
    assert checked.returncode == 1
    assert refusal("toyformat") in checked.stdout + checked.stderr
    found = [one for one in json.loads(examined.stdout)["findings"] if one["check"] == "plugins"]
    assert [one["severity"] for one in found] == ["error"] * 4
