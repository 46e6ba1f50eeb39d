"""Which file systems count as remote."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from backline.repository import file_events
from backline.repository.file_events import is_remote


def test_mounts_are_those_that_psutil_lists() -> None:
    assert sorted(file_events.mounts()) == sorted(
        (mount.mountpoint, mount.fstype) for mount in psutil.disk_partitions(all=True)
    )


@pytest.mark.parametrize(("line", "path", "remote"), [
    ("server:/models /data nfs4 rw 0 0", "/data/models", True),
    ("server:/models /data nfs4 rw 0 0", "/database/models", False),
    ("server:/models /my\\040models cifs rw 0 0", "/my models", True),
    ("bucket /bucket fuse.s3fs rw 0 0", "/bucket", True),
    ("/dev/sda2 /data ext4 rw 0 0", "/data", False),
])  # fmt: skip
def test_a_path_is_remote_by_the_type_of_its_file_system(
    line: str, path: str, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "mounts"
    listed.write_text(f"/dev/sda1 / ext4 rw 0 0\n{line}\n")
    monkeypatch.setattr(file_events, "MOUNTS", listed)

    assert is_remote(Path(path)) == remote
