"""A model's requirements, read from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.environments.requirements import (
    OWN_PYTHON,
    Requirements,
    find_requirements,
    python_choices,
)
from backline_client.values.errors import InvalidArgument
from support.repositories import put

PROJECT = '[project]\nname = "model"\nversion = "0"\nrequires-python = ">=3.12"\ndependencies = ["tinydb"]\n'


def asked(model: Path, python: str = "") -> Requirements:
    found = find_requirements(model / "1", model, python)
    assert found is not None
    return found


def test_a_model_without_requirement_files_has_no_requirements(tmp_path: Path) -> None:
    put(tmp_path / "1" / "model.py")

    assert find_requirements(tmp_path / "1", tmp_path) is None


def test_the_versions_folder_overrides_the_models(tmp_path: Path) -> None:
    put(tmp_path / "requirements.txt", "numpy==1.26.4")
    assert asked(tmp_path).folder == tmp_path

    put(tmp_path / "1" / "requirements.txt", "numpy==2.1.3")
    assert asked(tmp_path).folder == tmp_path / "1"


def test_models_with_equal_requirements_share_an_environment(tmp_path: Path) -> None:
    put(tmp_path / "a" / "requirements.txt", "numpy==1.26.4")
    put(tmp_path / "b" / "1" / "requirements.txt", "numpy==1.26.4")

    assert asked(tmp_path / "a").digest == asked(tmp_path / "b").digest


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("requirements.txt", "numpy==2.1.3"),
        ("more.txt", "tinydb==4.8.0"),
        ("limits.txt", "tinydb<4.8"),
        ("wheels/own.whl", "another wheel"),
        ("own/package.py", "another = 1"),
        (".python-version", "3.13"),
    ],
)
def test_a_change_to_any_source_of_the_packages_changes_the_environment(
    tmp_path: Path, file: str, text: str
) -> None:
    put(tmp_path / "requirements.txt", "-r more.txt\n-c limits.txt\n./wheels/own.whl  # ours\n-e ./own\n")
    for name in ("more.txt", "limits.txt", "wheels/own.whl", "own/package.py"):
        put(tmp_path / name, "")
    before = asked(tmp_path).digest

    put(tmp_path / "unnamed.txt", "no requirements file names it")
    assert asked(tmp_path).digest == before
    put(tmp_path / file, text)
    assert asked(tmp_path).digest != before


def test_a_lock_overrides_a_project_and_a_project_overrides_requirements_txt(tmp_path: Path) -> None:
    put(tmp_path / "requirements.txt", "tinydb")
    put(tmp_path / "pyproject.toml", PROJECT)
    assert (asked(tmp_path).file, asked(tmp_path).ignored) == ("pyproject.toml", ("requirements.txt",))

    put(tmp_path / "uv.lock", "version = 1")
    assert (asked(tmp_path).file, asked(tmp_path).ignored) == ("uv.lock", ("requirements.txt",))


def test_a_pyproject_that_only_configures_tools_has_no_requirements(tmp_path: Path) -> None:
    put(tmp_path / "pyproject.toml", "[tool.ruff]\nline-length = 100\n")

    assert find_requirements(tmp_path / "1", tmp_path) is None


def test_a_malformed_pyproject_is_an_error_that_names_it(tmp_path: Path) -> None:
    put(tmp_path / "pyproject.toml", "[project\n")

    with pytest.raises(InvalidArgument, match=r"pyproject.toml' is not valid TOML: .*line 1"):
        asked(tmp_path)


def test_the_configured_python_overrides_the_files(tmp_path: Path) -> None:
    put(tmp_path / ".python-version", "# ours\n3.12\n")
    assert asked(tmp_path).python == "3.12"

    assert asked(tmp_path, "3.13").python == "3.13"


def test_the_servers_python_is_used_if_the_project_allows_it(tmp_path: Path) -> None:
    put(tmp_path / "pyproject.toml", PROJECT)

    assert python_choices(asked(tmp_path)) == (f">=3.12,=={OWN_PYTHON}.*", ">=3.12")


@pytest.mark.parametrize("text", ["/bin/true", "../python", "~/python", "3.*", "any", "--help", "\0"])
def test_a_python_version_file_must_contain_a_version(tmp_path: Path, text: str) -> None:
    put(tmp_path / ".python-version", text)

    with pytest.raises(InvalidArgument, match=r"expected a version of Python such as 3\.13"):
        find_requirements(tmp_path / "1", tmp_path)
