"""A model repository in Triton's layout: what a scan finds, and the problems that it reports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backline_client.values.errors import InvalidArgument, NotFound
from support.repositories import only, put, scan, served, unprivileged_folder


def test_models_are_found_by_name_with_their_file(tmp_path: Path) -> None:
    put(tmp_path / "b" / "1" / "model.onnx")
    put(tmp_path / "a" / "7" / "model.onnx")

    found = scan(tmp_path)

    assert [model.name for model in found] == ["a", "b"]
    assert found[1].versions[0].path == "b/1/model.onnx"
    assert found[1].folder == "b"
    assert found[1].namespace == str(tmp_path)
    assert [model.problem for model in found] == ["", ""]


def test_the_newest_version_is_chosen_in_natural_order(tmp_path: Path) -> None:
    for version in ("9", "10", "2"):
        put(tmp_path / "m" / version / "model.onnx")

    assert served(only(tmp_path)) == ["10"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest { num_versions: 2 }", ["2", "10"]),
        ("all {}", ["1", "2", "10", "rc1"]),
        ("specific { versions: [1, 10] }", ["1", "10"]),
    ],
)
def test_the_version_policy_selects(policy: str, expected: list[str], tmp_path: Path) -> None:
    for version in ("10", "1", "2", *(["rc1"] if "all" in policy else [])):
        put(tmp_path / "m" / version / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", f"version_policy {{ {policy} }}")

    assert served(only(tmp_path)) == expected


def test_versions_may_have_any_name_but_other_folders_are_not_versions(tmp_path: Path) -> None:
    put(tmp_path / "m" / "config.pbtxt", "version_policy { all {} }")
    put(tmp_path / "m" / "2026-11-rc.1" / "model.onnx")
    for other in (".hidden", "configs", "warmup", "initial_state", "examples"):
        put(tmp_path / "m" / other / "model.onnx")
    put(tmp_path / "m" / "assets" / "picture.png")
    put(tmp_path / "m" / "labels.txt")

    assert served(only(tmp_path)) == ["2026-11-rc.1"]


def test_examples_next_to_the_versions_are_fetched_and_cause_no_load(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    before = only(tmp_path).versions[0]
    put(tmp_path / "m" / "examples" / "b.wav")
    put(tmp_path / "m" / "examples" / "a.json")
    put(tmp_path / "m" / "examples" / "deeper" / "c.json")
    after = only(tmp_path).versions[0]

    assert (before.examples, after.examples) == ((), ("a.json", "b.wav"))
    assert set(after.files) - set(before.files) == {"m/examples/a.json", "m/examples/b.wav"}
    assert after.fingerprint == before.fingerprint


def test_a_number_with_leading_zero_is_ignored_with_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "m" / "007" / "model.onnx")
    put(tmp_path / "m" / "0" / "model.onnx")

    model = only(tmp_path)

    assert served(model) == ["0"]
    assert "007' is ignored" in model.warnings[0]


def test_the_only_model_file_needs_no_particular_name(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "nmp.onnx")
    put(tmp_path / "m" / "1" / "weights.bin")

    (version,) = only(tmp_path).versions

    assert version.path == "m/1/nmp.onnx"
    assert set(version.files) == {"m/1/nmp.onnx", "m/1/weights.bin"}


def test_several_candidates_are_a_problem_of_the_version(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "a.onnx")
    put(tmp_path / "m" / "1" / "b.onnx")

    (version,) = only(tmp_path).versions

    assert version.path is None
    assert "holds several model files: 'a.onnx', 'b.onnx'" in version.problem


def test_default_model_filename_names_the_file(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "a.onnx")
    put(tmp_path / "m" / "1" / "b.onnx")
    put(tmp_path / "m" / "config.pbtxt", 'default_model_filename: "b.onnx"')

    assert only(tmp_path).versions[0].path == "m/1/b.onnx"


def test_a_plan_of_tensorrt_is_no_model_here(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.plan")

    (version,) = only(tmp_path).versions

    assert "model.plan, a TensorRT plan, for which there is no backend: export" in version.problem


def test_a_numbered_version_without_model_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "m" / "3").mkdir(parents=True)

    (version,) = only(tmp_path).versions

    assert str(tmp_path / "m" / "3") in version.problem
    assert "holds no model file; expected 'model.onnx' or one file *.onnx" in version.problem


def test_an_unknown_backend_is_reported_before_missing_files(tmp_path: Path) -> None:
    put(tmp_path / "trt" / "1" / "model.plan")
    put(tmp_path / "trt" / "config.pbtxt", 'platform: "tensorrt_plan"')
    put(tmp_path / "onnx" / "1" / "model.plan")
    put(tmp_path / "onnx" / "config.pbtxt", 'platform: "onnxruntime_onnx"')

    onnx, trt = scan(tmp_path)

    assert trt.versions[0].problem.endswith(
        "is for the backend 'tensorrt_plan', which does not exist; expected one of 'onnxruntime'"
    )
    assert onnx.versions[0].problem.endswith("holds no model file; expected 'model.onnx' or one file *.onnx")


def test_the_error_for_a_model_without_version_says_where_to_put_its_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "loose" / "net.onnx")

    empty, loose = scan(tmp_path)

    assert "has no version; expected a model file such as" in empty.problem
    assert (
        f"move 'net.onnx' into a version's folder: '{tmp_path / 'loose' / '1' / 'net.onnx'}'" in loose.problem
    )


def test_a_repository_inside_a_repository_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "models" / "some" / "1" / "model.onnx")
    put(tmp_path / "models" / "other" / "config.pbtxt", "")

    assert only(tmp_path).problem == (
        f"'{tmp_path / 'models'}' has no version, but contains models: it is a repository; give its location"
        " instead of the location of the folder above it"
    )


def test_missing_versions_in_the_policy_cause_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "some" / "1" / "model.onnx")
    put(tmp_path / "some" / "config.pbtxt", "version_policy { specific { versions: [1, 4] } }")
    put(tmp_path / "none" / "1" / "model.onnx")
    put(tmp_path / "none" / "config.pbtxt", "version_policy { specific { versions: [4] } }")

    none, some = scan(tmp_path)

    assert served(none) == []
    assert "names version 4" in none.warnings[0]
    assert served(some) == ["1"]
    assert f"names version 4, which '{tmp_path / 'some'}' does not hold" in some.warnings[0]


def test_a_bad_configuration_affects_only_its_model(tmp_path: Path) -> None:
    put(tmp_path / "bad" / "1" / "model.onnx")
    put(tmp_path / "bad" / "config.pbtxt", "max_batch_sise: 8")
    put(tmp_path / "good" / "1" / "model.onnx")

    bad, good = scan(tmp_path)

    assert "config.pbtxt:1:1: failed to read text proto: unknown field 'max_batch_sise'" in bad.problem
    assert bad.versions == ()
    assert good.problem == ""


def test_a_link_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "1" / "model.onnx")
    repository = tmp_path / "repository"
    put(repository / "file" / "2" / "other.txt")
    (repository / "file" / "2" / "model.onnx").symlink_to(outside)
    (repository / "model").symlink_to(tmp_path / "outside")
    (repository / "version").mkdir()
    (repository / "version" / "1").symlink_to(tmp_path / "outside" / "1")

    file, model, version = scan(repository)

    for problem in (file.versions[0].problem, model.problem, version.versions[0].problem):
        assert "points outside the model repository" in problem
        assert str(tmp_path / "outside") in problem


def test_links_within_the_repository_and_to_it_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "real" / "m" / "..data" / "model.onnx")
    (tmp_path / "real" / "m" / "1").symlink_to("..data")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    model = only(tmp_path / "link")

    assert served(model) == ["1"]
    assert model.versions[0].problem == ""


def test_dangling_and_circular_links_are_reported(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")

    circle, nowhere = scan(tmp_path)

    assert str(tmp_path / "circle") in circle.problem
    assert "is a link to something that does not exist" in nowhere.problem


@pytest.mark.parametrize(
    "name", ["a b\n", "a?b", "a#b", "50%", "\x1b[31mred", " m", b"\xff\xfe".decode(errors="surrogateescape")]
)
def test_odd_names_are_refused_and_printed_safely(name: str, tmp_path: Path) -> None:
    put(tmp_path / name / "1" / "model.onnx")

    model = only(tmp_path)

    assert model.problem.startswith("the name of the model ")
    assert model.problem.isprintable()


def test_names_in_any_language_are_accepted(tmp_path: Path) -> None:
    put(tmp_path / "Größe-音" / "1" / "model.onnx")

    assert only(tmp_path).problem == ""


def test_files_and_hidden_folders_next_to_the_models_are_ignored(tmp_path: Path) -> None:
    put(tmp_path / "README.md")
    put(tmp_path / ".git" / "config")

    assert scan(tmp_path) == []


def test_an_invalid_repository_is_named(tmp_path: Path) -> None:
    file = put(tmp_path / "file")
    put(tmp_path / "model" / "config.pbtxt", "")

    with pytest.raises(NotFound, match=f"model repository '{tmp_path / 'missing'}' does not exist"):
        scan(tmp_path / "missing")
    with pytest.raises(InvalidArgument, match=f"model repository '{file}' is a file"):
        scan(file)
    with pytest.raises(InvalidArgument, match=r"is a model, not a repository .*; name the folder above it"):
        scan(tmp_path / "model")


def test_unreadable_files_are_reported() -> None:
    with unprivileged_folder() as repository:
        put(repository / "model" / "1" / "model.onnx")
        put(repository / "version" / "1" / "model.onnx")
        put(repository / "file" / "1" / "model.onnx").chmod(0)
        (repository / "model").chmod(0)
        (repository / "version" / "1").chmod(0)
        try:
            file, model, version = scan(repository)
        finally:
            (repository / "model").chmod(0o700)
            (repository / "version" / "1").chmod(0o700)

    assert model.problem == f"'{repository / 'model'}' cannot be read: Permission denied"
    assert (
        version.versions[0].problem == f"'{repository / 'version' / '1'}' cannot be read: Permission denied"
    )
    assert (
        file.versions[0].problem
        == f"'{repository / 'file' / '1' / 'model.onnx'}' cannot be read: Permission denied"
    )


def test_an_unreadable_repository_is_reported() -> None:
    with unprivileged_folder() as folder:
        repository = folder / "models"
        repository.mkdir(mode=0)

        with pytest.raises(
            InvalidArgument, match=f"model repository '{repository}' cannot be read: Permission denied"
        ):
            scan(repository)


def test_every_file_of_a_version_must_be_usable(tmp_path: Path) -> None:
    put(tmp_path / "secret.bin")
    put(tmp_path / "repository" / "m" / "1" / "model.onnx")
    (tmp_path / "repository" / "m" / "1" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    put(tmp_path / "repository" / "n" / "1" / "model.onnx")
    put(tmp_path / "repository" / "n" / "1" / "a\x1b[31m.bin")

    linked, odd = scan(tmp_path / "repository")

    assert "weights.bin' points outside the model repository" in linked.versions[0].problem
    assert "has characters that cannot be printed; rename it" in odd.versions[0].problem
    assert odd.versions[0].problem.isprintable()


def test_a_pipe_in_place_of_a_model_is_refused_without_blocking(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "m" / "1" / "model.onnx")

    (version,) = only(tmp_path).versions

    assert version.problem == f"'{tmp_path / 'm' / '1' / 'model.onnx'}' is not a regular file"


def test_a_link_to_an_enclosing_folder_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "2").symlink_to(tmp_path / "m")

    broken = only(tmp_path).versions[1]

    assert "is a link to a folder that contains it" in broken.problem


def test_a_broken_configuration_link_is_a_problem_of_the_model(tmp_path: Path) -> None:
    put(tmp_path / "outside.pbtxt", "")
    put(tmp_path / "repository" / "m" / "1" / "model.onnx")
    (tmp_path / "repository" / "m" / "config.pbtxt").symlink_to(tmp_path / "outside.pbtxt")

    assert "config.pbtxt' points outside the model repository" in only(tmp_path / "repository").problem


def test_a_named_configuration_replaces_the_usual_one(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "max_batch_size: 4")
    put(tmp_path / "m" / "configs" / "big.pbtxt", "max_batch_size: 64")

    assert only(tmp_path).config.max_batch_size == 4
    assert only(tmp_path, config_name="big").config.max_batch_size == 64
    assert only(tmp_path, config_name="other").config.max_batch_size == 4


def test_a_name_may_end_with_the_backend_of_a_model_without_files(tmp_path: Path) -> None:
    (tmp_path / "copy.identity" / "1").mkdir(parents=True)
    put(tmp_path / "copy.identity" / "config.pbtxt", "max_batch_size: 4")
    put(tmp_path / "add.identity" / "1" / "model.onnx")

    add, copy = scan(tmp_path)

    assert (copy.config.backend, served(copy)) == ("identity", ["1"])
    assert (add.config.backend, add.versions[0].path) == ("", "add.identity/1/model.onnx")
