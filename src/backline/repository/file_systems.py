"""What kind of file system a path is on: over a network there are no events, and inodes may change by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

#: Types of file systems whose files others change: Linux' names, then those of macOS and of containers on desktops.
_REMOTE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p", "v9fs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs"),
        *("virtiofs", "vboxsf", "prl_fs", "vmhgfs", "fakeowner", "grpcfuse", "afpfs", "webdav"),
    }
)


def is_remote(path: Path) -> bool:
    """Whether the files at a path are another machine's, as far as the system tells; a path that does not exist is as its parent."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for mount in psutil.disk_partitions(all=True):
        point = mount.mountpoint
        # Of those mounted over each other the last is the one that is seen.
        if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
            best, kind = point, mount.fstype
    return kind in _REMOTE or kind.startswith(("fuse.", "osxfuse", "macfuse"))
