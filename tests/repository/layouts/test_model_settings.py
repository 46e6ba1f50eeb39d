"""Folders with MLServer's model-settings.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.repositories import only, put, scan


def settings(folder: Path, **fields: Any) -> Path:
    return put(folder / "model-settings.json", json.dumps(fields))


def test_the_settings_name_model_version_and_file(tmp_path: Path) -> None:
    settings(tmp_path / "any" / "where", name="iris", parameters={"uri": "./net.onnx", "version": "v0.1.0"})
    put(tmp_path / "any" / "where" / "net.onnx")
    put(tmp_path / "any" / "where" / "other.onnx")

    model = only(tmp_path)

    (version,) = model.versions
    assert (model.name, model.problem, version.version) == ("iris", "", "v0.1.0")
    assert version.path == "any/where/net.onnx"


def test_name_and_uri_default_to_the_folder_and_its_file(tmp_path: Path) -> None:
    settings(tmp_path / "iris", implementation="mlserver_sklearn.SKLearnModel")
    put(tmp_path / "iris" / "model.onnx")

    model = only(tmp_path)

    assert (model.name, model.config.backend) == ("iris", "sklearn")
    assert [(version.version, version.path) for version in model.versions] == [("1", "iris/model.onnx")]


def test_the_root_may_be_the_model(tmp_path: Path) -> None:
    settings(tmp_path, name="iris", parameters={"uri": "weights"})
    put(tmp_path / "weights" / "model.onnx")

    model = only(tmp_path)

    assert (model.name, model.folder) == ("iris", "weights")
    assert model.versions[0].path == "weights/model.onnx"


def test_folders_with_the_same_model_name_are_versions_of_one_model(tmp_path: Path) -> None:
    for version in ("1.10", "1.9"):
        settings(tmp_path / f"sum-{version}", name="sum", parameters={"version": version})
        put(tmp_path / f"sum-{version}" / "model.onnx")

    model = only(tmp_path)

    assert [version.version for version in model.versions] == ["1.9", "1.10"]
    assert [version.path for version in model.versions] == ["sum-1.9/model.onnx", "sum-1.10/model.onnx"]


def test_one_version_in_two_folders_is_a_problem(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        settings(tmp_path / folder, name="sum")
        put(tmp_path / folder / "model.onnx")

    problem = only(tmp_path).problem

    assert problem == (
        f"version '1' of model 'sum' is in more than one folder: '{tmp_path}/a', '{tmp_path}/b'; set"
        " parameters.version"
    )


def test_models_with_and_without_settings_can_be_mixed(tmp_path: Path) -> None:
    settings(tmp_path / "iris", name="iris")
    put(tmp_path / "iris" / "model.onnx")
    put(tmp_path / "add" / "1" / "model.onnx")
    put(tmp_path / "data" / "table.csv")

    assert [(model.name, model.problem) for model in scan(tmp_path)] == [("add", ""), ("iris", "")]


def test_a_configuration_takes_precedence_over_the_settings(tmp_path: Path) -> None:
    settings(tmp_path / "iris", name="other")
    put(tmp_path / "iris" / "config.pbtxt", "max_batch_size: 8")
    put(tmp_path / "iris" / "1" / "model.onnx")

    model = only(tmp_path)

    assert (model.name, model.config.max_batch_size) == ("iris", 8)


def test_settings_without_effect_cause_a_warning(tmp_path: Path) -> None:
    settings(
        tmp_path / "m",
        implementation="mine.Model",
        max_batch_size=5,
        parameters={"content_type": "np", "extra": {}},
    )
    put(tmp_path / "m" / "model.onnx")

    implementation, unused = only(tmp_path).warnings

    assert "implementation 'mine.Model' has no effect: the model's file selects the backend" in implementation
    assert (
        "max_batch_size, parameters.content_type, parameters.extra is not supported and has no effect"
        in unused
    )


@pytest.mark.parametrize("uri", ["../x.onnx", "/etc/passwd", "s3://bucket/m", "a/../../x", "x\x00y"])
def test_a_uri_stays_in_its_folder(uri: str, tmp_path: Path) -> None:
    settings(tmp_path / "m", parameters={"uri": uri})

    problem = only(tmp_path).problem

    assert problem.startswith(f"{tmp_path / 'm' / 'model-settings.json'}: parameters.uri '")
    assert problem.endswith(f"must be the path of a file or folder below '{tmp_path / 'm'}'")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON: Input data was truncated"),
        ("[]", "the file must hold an object, such as"),
        ('{"name": 5}', "'name' must be a string, not 5"),
        ('{"parameters": []}', "'parameters' must be an object"),
        ('{"parameters": {"uri": "missing.onnx"}}', "parameters.uri 'missing.onnx' does not exist below"),
        ('{"parameters": {"version": "a/b"}}', "the name of the version"),
        ('{"name": "a/b"}', "the name of the model"),
    ],
)
def test_invalid_settings_are_a_problem_of_their_model(text: str, reason: str, tmp_path: Path) -> None:
    put(tmp_path / "bad" / "model-settings.json", text)
    put(tmp_path / "bad" / "model.onnx")
    put(tmp_path / "good" / "1" / "model.onnx")

    problems = {model.problem for model in scan(tmp_path)}

    assert "" in problems
    (problem,) = problems - {""}
    assert reason in problem
    assert str(tmp_path / "bad") in problem
