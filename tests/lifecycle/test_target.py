"""Which versions of a model should be served, by its policy and by request."""

from __future__ import annotations

from pathlib import Path

from backline.engine.model import NO_VERSION
from backline.lifecycle.wanted import Source, Target
from backline.repository.local import LocalRepository
from support.repositories import ONNX, put


def source(repository: Path) -> Source:
    opened = LocalRepository(repository, formats=[ONNX])
    (found,) = opened.scan_now()
    return Source(found.name, found, opened)


def test_a_policy_of_missing_versions_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "version_policy { specific { versions: [4, 5] } }")

    (version,) = Target(source(tmp_path)).versions()

    assert version.version == NO_VERSION
    assert version.problem == (
        "at least one version must be available under the version policy of model 'm':"
        f" '{tmp_path / 'm'}' holds none of the versions that version_policy names: 4, 5 (it holds 1)"
    )


def test_a_policy_that_names_no_version_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "version_policy { specific { } }")

    (version,) = Target(source(tmp_path)).versions()

    assert version.problem.endswith(
        "holds none of the versions that version_policy names: it names none (it holds 1)"
    )


def test_a_version_outside_the_policy_is_served_without_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "version_policy { specific { versions: [4] } }")

    (version,) = Target(source(tmp_path), added=frozenset({"1"})).versions()

    assert (version.version, version.problem) == ("1", "")
