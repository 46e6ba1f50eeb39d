"""Schemes of repositories that an installed distribution adds: the plug-in of the page that explains them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.repository.plugin import REPOSITORIES, RepositoryPlugin
from docs.pages import blocks
from support import models
from support.distributions import install_project
from support.server import serve

PAGE = "docs/write-a-repository-scheme.md"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the page's plug-in, as pip would install it."""
    texts = {block.language: block.text for block in blocks(PAGE)}
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sqlite_models.py").write_text(texts["python"])
    install_project(folder, texts["toml"])
    return folder


def _database(path: Path, constant: float) -> str:
    """Writes a database with one version of the model "add". Returns its URL."""
    content = models.add1(path.parent / "built", constant=constant).read_bytes()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE files (path TEXT, content BLOB)")
        database.execute("INSERT INTO files VALUES ('add/1/model.onnx', ?)", [content])
    database.close()
    return f"sqlite://{path}"


def test_an_installed_scheme_is_served(installed: Path, tmp_path: Path) -> None:
    location = _database(tmp_path / "models.db", constant=4.0)
    options = ("--cache-dir", str(tmp_path / "cache"), "--state-dir", str(tmp_path / "state"))

    with (
        serve(location, tmp_path / "log", *options, environment={"PYTHONPATH": str(installed)}) as server,
        backline.connect(server.url) as client,
    ):
        outputs = client["add"](np.ones((1, 16), np.float32))

    assert np.array_equal(outputs["OUTPUT0"], np.full((1, 16), 5.0, np.float32))


def test_a_plugin_for_another_version_is_refused(installed: Path, tmp_path: Path) -> None:
    module = installed / "sqlite_models.py"
    module.write_text(module.read_text().replace("api_version=1", "api_version=2"))

    refused = _serve(installed, "sqlite:///srv/models.db")

    assert refused.returncode != 0
    assert (
        "the plug-in 'sqlite' of sqlite-models 1.0 is for version 2 of the plug-in interface, but this server"
        " has version 1"
    ) in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


def test_an_unknown_scheme_is_compared_with_the_installed_ones(installed: Path) -> None:
    refused = _serve(installed, "sqlit:///srv/models.db")

    assert "did you mean 'sqlite://'?" in " ".join(refused.stderr.split())


def _serve(installed: Path, location: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backline", "serve", location]
    environment = {"PYTHONPATH": str(installed), "PATH": "", "COLUMNS": "500"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=installed
    )


@pytest.mark.parametrize("plugin", REPOSITORIES.built_in, ids=lambda plugin: plugin.name)
def test_the_code_of_a_built_in_scheme_is_where_its_record_says(plugin: RepositoryPlugin) -> None:
    assert callable(plugin.load())
