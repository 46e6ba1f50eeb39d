"""TensorFlow Serving's list of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline_client.values.errors import InvalidArgument
from support.repositories import put, scan, served


def test_models_are_read_from_the_paths_in_the_list(tmp_path: Path) -> None:
    put(tmp_path / "far" / "away" / "3" / "model.onnx")
    put(tmp_path / "near" / "1" / "model.onnx")
    models = put(
        tmp_path / "models.config",
        f"""
        model_config_list {{
          config {{ name: "half_plus_two" base_path: "{tmp_path}/far/away" model_platform: "tensorflow" }}
          config {{ name: "add" base_path: "near" }}
        }}
        """,
    )

    add, half = scan(models)

    assert (add.name, add.problem, add.versions[0].path) == ("add", "", f"{tmp_path}/near/1/model.onnx")
    assert (half.name, half.problem, half.versions[0].path) == (
        "half_plus_two",
        "",
        f"{tmp_path}/far/away/3/model.onnx",
    )
    assert half.config.backend == ""
    assert half.namespace == str(models)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", ["3"]),
        ("model_version_policy { latest { num_versions: 2 } }", ["2", "3"]),
        ("model_version_policy { all {} }", ["1", "2", "3"]),
        ("model_version_policy { specific { versions: 1 versions: 3 } }", ["1", "3"]),
    ],
)
def test_the_list_sets_the_version_policy(policy: str, expected: list[str], tmp_path: Path) -> None:
    for version in "123":
        put(tmp_path / "m" / version / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "max_batch_size: 8 version_policy { specific { versions: 2 } }")
    models = put(
        tmp_path / "models.config", f'model_config_list {{ config {{ name: "m" base_path: "m" {policy} }} }}'
    )

    (model,) = scan(models)

    assert served(model) == expected
    assert model.config.max_batch_size == 8


def test_the_list_sets_labels(tmp_path: Path) -> None:
    put(tmp_path / "m" / "42" / "model.onnx")
    labels = 'version_labels { key: "stable" value: 42 } version_labels { key: "canary" value: 43 }'
    models = put(
        tmp_path / "models.config", f'model_config_list {{ config {{ name: "m" base_path: "m" {labels} }} }}'
    )

    (model,) = scan(models)

    assert dict(model.config.labels) == {"stable": "42", "canary": "43"}


def test_a_logging_config_causes_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    logging = "logging_config { sampling_config { sampling_rate: 0.1 } }"
    models = put(
        tmp_path / "models.config", f'model_config_list {{ config {{ name: "m" base_path: "m" {logging} }} }}'
    )

    (model,) = scan(models)

    assert model.warnings == (f"{models}: logging_config of 'm' is not supported and has no effect",)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            'name: "m" base_path: "missing"',
            "base_path '{folder}/missing' of model 'm' does not exist or is not a folder",
        ),
        ('name: "m"', "model 'm' must have a base_path, the folder that holds its versions"),
        (
            'name: "m" base_path: "s3://bucket/m"',
            "base_path 's3://bucket/m' of model 'm' is not a path on local disk",
        ),
        ('name: "m" base_path: "\\000"', "model 'm' must have a base_path"),
        ('name: "a/b" base_path: "good"', "the name of the model"),
        ('name: ".." base_path: "good"', "the name of the model"),
        (
            'name: "m" base_path: "empty"',
            (
                "at least one version must be available under the version policy of model 'm':"
                " '{folder}/empty' has no version; expected a model file such as"
                " '{folder}/empty/1/model.onnx'"
            ),
        ),
    ],
)
def test_a_fault_in_one_model_does_not_affect_the_others(config: str, reason: str, tmp_path: Path) -> None:
    put(tmp_path / "good" / "1" / "model.onnx")
    (tmp_path / "empty").mkdir()
    models = put(
        tmp_path / "models.config",
        f'model_config_list {{ config {{ {config} }} config {{ name: "good" base_path: "good" }} }}',
    )

    found = {model.name: model.problem for model in scan(models)}

    assert found.pop("good") == ""
    (problem,) = found.values()
    assert reason.format(folder=tmp_path) in problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "model_config_list {\n  config { name: 'm' base_pth: 'm' }\n}",
            r"models.config:2:22: unknown field 'base_pth', did you mean 'base_path'\?",
        ),
        ("model_config_list { config { base_path: 'm' } }", "every config must have a name"),
        (
            "model_config_list { config { name: 'm' base_path: 'a' } config { name: 'm' base_path: 'b' } }",
            "model 'm' is listed more than once",
        ),
        (
            "model_config_list { config { name: 'm' base_path: 'm' model_version_policy { specific {} } } }",
            "model_version_policy.specific of 'm' names no version",
        ),
    ],
)
def test_an_invalid_list_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        scan(put(tmp_path / "models.config", text))


def test_a_link_out_of_a_base_path_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "outside" / "model.onnx")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "1").symlink_to(tmp_path / "outside")
    models = put(tmp_path / "models.config", 'model_config_list { config { name: "m" base_path: "m" } }')

    (model,) = scan(models)

    assert "points outside the model repository" in model.versions[0].problem


def test_a_name_for_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"the name 'x' can be given only to a single model, but '.*' is a list"
    ):
        scan(put(tmp_path / "models.config", "model_config_list {}"), name="x")
