"""Files whose replacement survives a power failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from backline.cli import keys
from backline.lifecycle.labels.document import FileDocument
from backline_client.system.private_file import replacement

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the descriptors are looked up in /proc")


def replace(file: Path) -> None:
    with replacement(file, durable=True) as new:
        new.write_text("data")


def write_document(file: Path) -> None:
    FileDocument(file).replace(b"data", "")


def create_key(file: Path) -> None:
    assert CliRunner().invoke(keys.command, ["create", "app", "--auth", str(file)]).exit_code == 0


@pytest.mark.parametrize("write", [replace, write_document, create_key])
def test_the_contents_are_on_disk_before_the_rename_and_the_name_after_it(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        sync(descriptor)
        found = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("folder" if found == tmp_path else "contents")

    def note_rename(new: Path, target: Path) -> Path:
        done.append("rename")
        return rename(new, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)

    write(tmp_path / "file")

    assert done == ["contents", "rename", "folder"]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == tmp_path:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    replace(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "data"


@pytest.mark.parametrize("write", [replace, write_document, create_key])
def test_the_new_file_of_a_killed_process_is_removed(write: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / "file"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from backline_client.system.private_file import replacement\n"
        "with replacement(Path(sys.argv[1])) as new: print(new, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True
    ) as writing:
        assert writing.stdout is not None
        new = Path(writing.stdout.readline().strip())
        try:
            write(file)
            assert new.exists()  # its process is alive
        finally:
            writing.kill()
    assert new.exists()
    file.unlink()
    write(file)
    assert list(tmp_path.iterdir()) == [file] or {path.name for path in tmp_path.iterdir()} == {
        "file",
        ".file.lock",
    }


def test_a_document_that_servers_of_several_users_share_follows_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    FileDocument(file).replace(b"data", "")
    umask = os.umask(0o022)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    private = tmp_path / "private.json"
    FileDocument(private, private=True).replace(b"data", "")
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_a_left_over_file_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / ".file.01234567.new").symlink_to(elsewhere)
    replace(tmp_path / "file")
    assert not elsewhere.exists()
