"""The listing of a folder on disk: what is followed and what is left out, and its limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.repository import walk as walking
from backline.repository.walk import walk
from backline_client.values.errors import InvalidArgument, NotFound
from support.repositories import put, unprivileged_folder


def test_files_and_folders_are_listed_with_their_sizes(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "file", "12345")
    (tmp_path / "empty").mkdir()
    put(tmp_path / ".hidden" / "file")
    put(tmp_path / "a" / ".part")

    listing = walk(tmp_path)

    assert {path: entry.size for path, entry in listing.files.items()} == {"a/b/file": 5}
    assert listing.folders == {"a", "a/b", "empty"}
    assert listing.location == str(tmp_path)


def test_folders_that_file_systems_create_are_skipped() -> None:
    with unprivileged_folder() as folder:
        put(folder / "m" / "1" / "model.onnx")
        (folder / "lost+found").mkdir(mode=0)

        assert set(walk(folder).files) == {"m/1/model.onnx"}


def test_files_are_read_by_their_path(tmp_path: Path) -> None:
    put(tmp_path / "a" / "config.pbtxt", "name: 'a'")

    listing = walk(tmp_path)

    assert listing.read("a/config.pbtxt") == b"name: 'a'"
    assert listing.below("a").read("config.pbtxt") == b"name: 'a'"
    with pytest.raises(NotFound, match=f"'{tmp_path}/a/other' does not exist"):
        listing.read("a/other")
    with pytest.raises(NotFound):
        listing.read("../" + tmp_path.name + "/a/config.pbtxt")


def test_a_file_too_large_for_a_configuration_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.pbtxt").open("wb") as file:
        file.truncate(walking.MAX_READ + 1)

    with pytest.raises(InvalidArgument, match=r"is too large \(16777217 bytes\); at most 16777216 are read"):
        walk(tmp_path).read("config.pbtxt")


def test_a_file_that_vanishes_after_the_listing_is_reported(tmp_path: Path) -> None:
    file = put(tmp_path / "config.pbtxt")
    listing = walk(tmp_path)
    file.unlink()

    with pytest.raises(InvalidArgument, match=r"config.pbtxt' cannot be read: No such file or directory"):
        listing.read("config.pbtxt")


def test_nested_folders_are_read_to_a_maximum_depth(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(walking.MAX_DEPTH + 2):
        deep = deep / "d"
    put(deep / "file")

    listing = walk(tmp_path)

    (entry,) = listing.files.values()
    assert entry.problem.endswith("is more than 16 folders deep, and is not searched: move it up")


def test_links_into_each_other_do_not_loop(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "link").symlink_to(tmp_path / other)

    problems = {path: entry.problem for path, entry in walk(tmp_path).files.items()}

    assert sorted(problems) == ["a/link/link", "b/link/link"]
    assert all("is a link to a folder that contains it" in problem for problem in problems.values())


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "MAX_ENTRIES", 10)
    for number in range(12):
        put(tmp_path / "folder" / str(number))

    with pytest.raises(
        InvalidArgument,
        match="holds more than 10 files and folders; name a folder that holds nothing but models",
    ):
        walk(tmp_path)


def test_a_link_may_lead_to_another_model_of_the_repository(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    (tmp_path / "b").symlink_to("a")

    listing = walk(tmp_path)

    assert listing.files["b/1/model.onnx"] == listing.files["a/1/model.onnx"]


def test_the_hidden_file_with_the_python_version_is_listed(tmp_path: Path) -> None:
    put(tmp_path / "m" / ".python-version", "3.13")
    put(tmp_path / "m" / ".hidden", "")

    assert set(walk(tmp_path).files) == {"m/.python-version"}
