"""Which layout is recognised, and which name a model gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.backends.registry import FORMATS
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundModel
from backline_client.values.errors import InvalidArgument
from support.repositories import put


def scan(path: Path, name: str = "") -> list[FoundModel]:
    return LocalRepository(path, formats=FORMATS, name=name).scan_now()


def summary(path: Path, name: str = "") -> dict[str, list[tuple[str, str | None]]]:
    """The models without a problem, with their versions and the versions' paths."""
    return {
        model.name: [(version.version, version.path) for version in model.versions]
        for model in scan(path, name)
        if not model.problem
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ["add/1/model.onnx", "mul/3/net.onnx"],
            {"add": [("1", "add/1/model.onnx")], "mul": [("3", "mul/3/net.onnx")]},
        ),
        (["1/model.onnx", "2/model.onnx"], {"place": [("1", "1/model.onnx"), ("2", "2/model.onnx")]}),
        (["2/saved_model.pb", "2/variables/variables.index"], {"place": [("2", "2")]}),
        (["tf/1/model.savedmodel/saved_model.pb"], {"tf": [("1", "tf/1/model.savedmodel")]}),
        (["1/model.savedmodel/saved_model.pb"], {"place": [("1", "1/model.savedmodel")]}),
        (["tf/5/saved_model.pb", "tf/5/assets/words.pkl"], {"tf": [("5", "tf/5")]}),
        (["1/saved_model.pb", "2/assets/words.pkl"], {"place": [("1", "1"), ("2", None)]}),
        (
            ["2026-11-24/model.onnx", "1.4.2/model.onnx"],
            {"place": [("1.4.2", "1.4.2/model.onnx"), ("2026-11-24", "2026-11-24/model.onnx")]},
        ),
        (["config.pbtxt", "git-3fa9c1/model.onnx"], {"place": [("git-3fa9c1", "git-3fa9c1/model.onnx")]}),
        (["model.toml", "rc1/model.onnx"], {"place": [("rc1", "rc1/model.onnx")]}),
        (["model.onnx"], {"place": [("1", "model.onnx")]}),
        (["net.onnx", "net.onnx.data", "README.md"], {"place": [("1", "net.onnx")]}),
        (["model.onnx", "config.pbtxt"], {"place": [("1", "model.onnx")]}),
        (["saved_model.pb", "variables/variables.index"], {"place": [("1", "")]}),
        (["2048/1/model.onnx"], {"2048": [("1", "2048/1/model.onnx")]}),
        (
            ["2048/1/model.onnx", "add/1/model.onnx"],
            {"2048": [("1", "2048/1/model.onnx")], "add": [("1", "add/1/model.onnx")]},
        ),
        (["add/1/model.onnx", "stray.onnx"], {"add": [("1", "add/1/model.onnx")]}),
        (["add/1/model.onnx", "1/model.onnx"], {"add": [("1", "add/1/model.onnx")]}),
        (["README.md"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_layout_is_recognised_by_the_files(
    files: list[str], expected: dict[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    for file in files:
        put(tmp_path / "place" / file, "" if file.startswith(("config", "model.toml")) else "model")

    assert summary(tmp_path / "place") == expected


def test_a_model_that_is_the_repository_can_be_given_a_name(tmp_path: Path) -> None:
    put(tmp_path / "models" / "7" / "model.onnx")

    assert summary(tmp_path / "models", name="add") == {"add": [("7", "7/model.onnx")]}


def test_a_name_for_several_models_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    put(tmp_path / "b" / "1" / "model.onnx")

    with pytest.raises(
        InvalidArgument,
        match=r"the name 'x' can be given only to a single model, but '.*' is a repository .* holds 'a', 'b'",
    ):
        scan(tmp_path, name="x")


def test_a_name_with_odd_characters_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path / "model.onnx")

    for name in ("../x", "a/b", "a\0b", "..", " a"):
        (model,) = LocalRepository(tmp_path, formats=FORMATS, name=name).scan_now()
        assert model.problem.startswith("the name of the model ")
        assert model.problem.isprintable()


def test_the_current_folder_has_its_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "resnet" / "1" / "model.onnx")
    monkeypatch.chdir(tmp_path / "resnet")

    assert list(summary(Path("."))) == ["resnet"]


def test_a_single_file_keeps_its_name_and_its_external_weights(tmp_path: Path) -> None:
    put(tmp_path / "net.onnx")
    put(tmp_path / "net.onnx.data")
    put(tmp_path / "other.onnx")
    put(tmp_path / "big" / "file")

    (model,) = scan(tmp_path / "net.onnx")

    assert (model.name, model.problem) == ("net", "")
    assert model.versions[0].path == "net.onnx"
    assert set(model.versions[0].files) == {"net.onnx", "net.onnx.data"}


def test_a_single_file_can_be_a_link_with_a_given_name(tmp_path: Path) -> None:
    put(tmp_path / "blobs" / "3fa9")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.onnx").symlink_to("../blobs/3fa9")

    (model,) = scan(tmp_path / "snapshot" / "model.onnx", name="bert")

    assert (model.name, model.versions[0].problem) == ("bert", "")


def test_the_error_for_a_file_that_is_not_a_model_lists_the_formats(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"is a file, not a folder .* it is neither a model file \(\*\.onnx, .*model_config_list",
    ):
        scan(put(tmp_path / "README.md"))


def test_the_configured_backend_decides_between_two_model_files(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "1" / "model.xml")
    put(tmp_path / "m" / "config.pbtxt", 'backend: "openvino"')

    assert summary(tmp_path) == {"m": [("1", "m/1/model.xml")]}


def test_files_of_other_formats_next_to_the_model_are_ignored(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "encoder.onnx")
    put(tmp_path / "m" / "1" / "scaler.pkl")

    assert summary(tmp_path) == {"m": [("1", "m/1/encoder.onnx")]}


def test_the_expected_file_depends_on_the_configured_backend(tmp_path: Path) -> None:
    (tmp_path / "any" / "1").mkdir(parents=True)
    (tmp_path / "forest" / "1").mkdir(parents=True)
    put(tmp_path / "forest" / "config.pbtxt", 'backend: "xgboost"')

    problems = [model.versions[0].problem for model in scan(tmp_path)]

    assert problems[0].endswith(
        "expected 'model.onnx' or 'model.pt' or 'model.tflite' or 'model.xml' or ... or one file *.onnx,"
        " *.pt, *.pt2, *.jit, ..."
    )
    assert problems[1].endswith("holds no model file; expected 'model.ubj' or one file *.ubj")


def test_a_folder_with_other_files_next_to_the_versions_is_not_a_version(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "1" / "scaler.pkl")
    put(tmp_path / "m" / "rc2" / "net.onnx")
    put(tmp_path / "m" / "rc3" / "model.pt")
    put(tmp_path / "m" / "tokenizer" / "words.pkl")
    put(tmp_path / "m" / "schema" / "input.xml")

    assert summary(tmp_path) == {
        "m": [("1", "m/1/model.onnx"), ("rc2", "m/rc2/net.onnx"), ("rc3", "m/rc3/model.pt")]
    }


def test_a_base_path_is_recognised_whatever_is_next_to_its_versions(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "tokenizer" / "words" / "common.pkl")

    assert summary(tmp_path / "m") == {"m": [("1", "1/model.onnx")]}


def test_a_folder_of_a_version_is_not_taken_for_a_model(tmp_path: Path) -> None:
    put(tmp_path / "add1" / "1" / "model.onnx")
    version = tmp_path / "add1" / "1"
    with pytest.raises(
        InvalidArgument,
        match=f"'{version}' .* is version 1 of a model.* '{tmp_path / 'add1'}', or .*--model-name",
    ):
        scan(version)
    (named,) = scan(version, name="add1")
    assert (named.name, [one.problem for one in named.versions]) == ("add1", [""])
