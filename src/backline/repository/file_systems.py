"""What kind of file system a path is on: over a network there are no events, and inodes may change by themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

#: What is mounted, as Linux tells it (proc(5)).
MOUNTS = Path("/proc/self/mounts")
#: Types of file systems whose files others change: Linux' names, then those of macOS and of containers on desktops.
_REMOTE = frozenset(
    {
        *(
            "nfs",
            "nfs4",
            "cifs",
            "smb2",
            "smb3",
            "smbfs",
            "ncpfs",
            "afs",
            "9p",
            "v9fs",
            "ceph",
            "glusterfs",
            "lustre",
            "gpfs",
            "beegfs",
        ),
        *("virtiofs", "vboxsf", "prl_fs", "vmhgfs", "fakeowner", "grpcfuse", "afpfs", "webdav"),
    }
)


def is_remote(path: Path) -> bool:
    """Whether the files at a path are another machine's, as far as the system tells; a path that does not exist is as its parent."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for point, mounted in mounts():
        # Of those mounted over each other the last is the one that is seen.
        if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
            best, kind = point, mounted
    return kind in _REMOTE or kind.startswith(("fuse.", "osxfuse", "macfuse"))


def mounts() -> Iterator[tuple[str, str]]:
    """Where file systems are mounted, and their types."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # it is not Linux
        import psutil

        yield from ((mount.mountpoint, mount.fstype) for mount in psutil.disk_partitions(all=True))
        return
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        yield (
            re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), point),
            kind,
        )  # white space is written as in C
