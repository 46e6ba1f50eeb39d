"""`backline env`, on models of two kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.repositories import put

MODEL = "class Model:\n    def predict(self, x: str) -> str:\n        return x\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two", "plain"):
        put(folder / name / "1" / "model.py", MODEL)
    for name in ("one", "two"):
        put(folder / name / "requirements.txt", "tinydb==4.8.0\n")
    return folder


def test_environments_are_built_once_listed_and_pruned_when_unused(
    backline: Any, models: Path, tmp_path: Path
) -> None:
    def env(*arguments: object) -> str:
        run = backline("env", *arguments, "--cache-dir", tmp_path)
        assert run.returncode == 0, run.stderr
        return str(run.stdout)

    assert "No environments in" in env("list")
    built = env("build", models)
    assert "one: built" in built
    assert "two:" in built
    assert "already exists" in built
    assert "plain" not in built

    (listed,) = json.loads(env("list", "--json"))["environments"]
    assert sorted(user["model"] for user in listed["models"]) == ["one", "two"]
    assert "tinydb==4.8.0" in listed["packages"]
    assert "requirements.txt" in env("list")

    assert json.loads(env("prune", "--json"))["removed"] == []
    for name in ("one", "two"):
        put(models / name / "requirements.txt", "tinydb==4.7.0\n")
    assert "would remove" in env("prune", "--dry-run")
    assert "1 environment" in env("prune")
    assert json.loads(env("list", "--json"))["environments"] == []


def test_a_failed_build_is_reported_with_status_1(backline: Any, tmp_path: Path) -> None:
    put(tmp_path / "models" / "m" / "1" / "model.py", MODEL)
    put(tmp_path / "models" / "m" / "requirements.txt", "numpy==1.26.4\nnumpy==2.1.3\n")

    run = backline("env", "build", tmp_path / "models", "--cache-dir", tmp_path / "cache")

    assert run.returncode == 1
    assert "m: FAILED: the environment of model 'm' cannot be built from requirements.txt" in run.stdout


def test_a_repository_with_an_ensemble_gets_its_environments(backline: Any, tmp_path: Path) -> None:
    tensor = '[{ name: "%s" data_type: TYPE_STRING dims: [ 1 ] }]'
    put(tmp_path / "models" / "plain" / "1" / "model.py", MODEL)
    put(
        tmp_path / "models" / "all" / "config.pbtxt",
        f'platform: "ensemble" input {tensor % "a"} output {tensor % "b"}'
        'ensemble_scheduling { step [{ model_name: "plain" model_version: -1'
        ' input_map { key: "x" value: "a" } output_map { key: "output" value: "b" } }] }',
    )

    run = backline("env", "build", tmp_path / "models", "--cache-dir", tmp_path / "cache")

    assert (run.returncode, run.stdout) == (0, "No model needs an environment\n"), run.stderr
