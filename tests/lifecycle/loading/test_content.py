"""Digests of a version's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backline.lifecycle.loading.measurement_file import read_file
from backline.lifecycle.loading.version_load import VersionContent


def put(root: Path, **files: str) -> Path:
    root.mkdir()
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def test_equal_files_in_another_folder_have_the_same_digest(tmp_path: Path) -> None:
    one, two = (put(tmp_path / name, a="1", b="2") for name in ("one", "two"))

    assert VersionContent(one, ["a", "b"]).digest == VersionContent(two, ["b", "a"]).digest


@pytest.mark.parametrize(
    "files",
    [{"a": "1", "b": "3"}, {"a": "2", "b": "1"}, {"a": "12", "b": ""}, {"a": "1"}, {"a": "1", "c": "2"}],
)
def test_other_files_have_another_digest(files: dict[str, str], tmp_path: Path) -> None:
    one, two = put(tmp_path / "one", a="1", b="2"), put(tmp_path / "two", **files)

    assert VersionContent(one, ["a", "b"]).digest != VersionContent(two, files).digest


def test_a_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    folder = put(tmp_path / "one", a="1")
    content = VersionContent(folder, ["a"])
    assert content.unchanged

    times = (folder / "a").stat()
    (folder / "new").write_text("2")
    os.utime(folder / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "new").replace(folder / "a")

    assert not content.unchanged


def test_files_are_recognised_without_reading_them_unless_they_were_written_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path / "one", a="1", b="2")
    assert VersionContent(folder, ["a", "b"]).identity == ""

    monkeypatch.setattr("backline.lifecycle.loading.version_load._SETTLED_NS", 0)
    known = VersionContent(folder, ["a", "b"]).identity
    assert known
    assert VersionContent(folder, ["b", "a"]).identity == known
    assert VersionContent(folder, ["a"]).identity != known
    times = (folder / "a").stat()
    (folder / "a").write_text("3")
    os.utime(folder / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert VersionContent(folder, ["a", "b"]).identity != known


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        VersionContent(tmp_path, ["a"])


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 35])
def test_a_file_of_any_length_is_read_to_its_end(length: int, tmp_path: Path) -> None:
    content = bytes(range(length))
    (tmp_path / "a").write_bytes(content)

    assert read_file(str(tmp_path / "a"), 10) == content


def test_a_small_file_is_read_with_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "one", a="1")
    sizes: list[int] = []
    read = os.read

    def counted(file: int, size: int) -> bytes:
        sizes.append(size)
        return read(file, size)

    monkeypatch.setattr(os, "read", counted)
    assert VersionContent(folder, ["a"]).digest
    assert sizes == [2]


def test_files_above_the_size_that_is_read_at_once_have_digests_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path / "one", a="1" * 100)
    at_once = VersionContent(folder, ["a"]).digest
    monkeypatch.setattr("backline.lifecycle.loading.version_load._READ_WHOLE", 10)

    assert VersionContent(folder, ["a"]).digest == at_once
