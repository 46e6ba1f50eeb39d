"""Archives with too many members, or that unpack to too much, are refused before they are unpacked."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from backends.loading import load
from backline.system.archive_limits import UnpackLimits, check_zip
from backline_client.values.errors import BacklineError, InvalidArgument


def packed(path: Path, members: int, size: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for number in range(members):
            opened.writestr(f"folder/{number}", bytes(size))
    return path


def test_an_archive_within_the_limits_is_accepted(tmp_path: Path) -> None:
    check_zip(packed(tmp_path / "a.zip", 10, 100), UnpackLimits(files=10, harmless=1000))
    (tmp_path / "text").write_text("no archive at all")
    check_zip(tmp_path / "text", UnpackLimits(files=0))


def test_more_members_than_allowed_are_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", 11)

    with pytest.raises(InvalidArgument, match="has more than 10 files and folders; split it"):
        check_zip(archive, UnpackLimits(files=10))


def test_a_long_list_of_members_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(tmp_path / "a.zip", 300)
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: pytest.fail("it was listed"))

    with pytest.raises(InvalidArgument, match="has more than 10 files and folders"):
        check_zip(archive, UnpackLimits(files=10))


def test_a_size_that_only_the_64_bit_record_gives_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1 << 20, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 0, 0, 0)
    (tmp_path / "a.zip").write_bytes(record + locator + end)
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: pytest.fail("it was listed"))

    with pytest.raises(InvalidArgument, match="has more than 100 files and folders"):
        check_zip(tmp_path / "a.zip", UnpackLimits(files=100))


def test_members_that_unpack_to_more_than_the_size_allows_are_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", 10, 1 << 20)

    with pytest.raises(InvalidArgument, match=r"unpacks to more than the 2,000,000 bytes allowed"):
        check_zip(archive, UnpackLimits(harmless=2_000_000))


@pytest.mark.parametrize("filename", ["model.skops", "model.pt", "model.mar"])
def test_a_model_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, filename: str) -> None:
    if filename == "model.pt" and find_spec("torch") is None:
        pytest.skip("torch comes with make test BACKENDS=all")
    content = bytearray(packed(tmp_path / filename, 2).read_bytes())
    entry = content.find(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<L", 1 << 31)  # the size of the first member
    (tmp_path / filename).write_bytes(content)

    with pytest.raises(BacklineError, match="unpacks to more than the 1,073,741,824 bytes"):
        load(tmp_path / filename, may_run_code=True)


def test_a_model_archive_with_very_many_members_is_refused(tmp_path: Path) -> None:
    packed(tmp_path / "model.mar", 10_001)
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz", compresslevel=1) as opened:
        for number in range(10_001):
            opened.addfile(tarfile.TarInfo(str(number)), io.BytesIO())

    for name in ("model.mar", "model.tar.gz"):
        with pytest.raises(InvalidArgument, match=r"has more than 10,000 files and folders"):
            load(tmp_path / name, may_run_code=True)


def test_a_tar_file_is_not_unpacked_beyond_what_its_size_allows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz", compresslevel=1) as opened:
        large = tarfile.TarInfo("large")
        large.size = 1 << 31
        opened.fileobj.write(large.tobuf())  # type: ignore[union-attr]

    with pytest.raises(InvalidArgument, match="unpacks to more than the 1,073,741,824 bytes"):
        load(tmp_path / "model.tar.gz", may_run_code=True)
