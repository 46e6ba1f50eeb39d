"""Finds the control groups of this process (cgroups(7), versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def group_folders(
    controller: str, groups: Path = GROUPS, own_groups: Path = OWN_GROUPS
) -> Iterator[tuple[Path, int]]:
    """Yields the folders of the groups that may limit this process, and the version of each: the process's
    own group, then the groups around it. A folder need not exist. Yields nothing on systems other than Linux.
    """
    lines = []
    with suppress(OSError):
        lines = own_groups.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, version = groups, 2
        elif controller in controllers.split(","):
            root, version = groups / controller, 1
        else:
            continue
        # In a container, the path may be the one on the host, of which only `root` exists here.
        folder = root / path.lstrip("/")
        for one in (folder, *folder.parents):
            yield one, version
            if one == root:
                break
