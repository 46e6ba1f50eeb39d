"""Reads how much memory processes hold, as Linux counts it (a process's private pages, and mapped files), and
suspends processes that take too much.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import Struct, field

from backline.system.memory import resident_bytes

#: Mapped files with fewer resident bytes than this are not listed individually.
_SMALL_FILE = 1 << 20
_MAPPING = rb"(?m)^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) *(.*)\n((?:[A-Z]\w*: .*\n)+)"
_SIZE = rb"(?m)^(\w+):\s+(\d+) kB"


class PageCounts(Struct, frozen=True):
    """The resident bytes of a process. Several processes may map the same `files` and `shared` memory."""

    anonymous: int = 0
    files: int = 0
    shared: int = 0

    @property
    def total(self) -> int:
        return self.anonymous + self.files + self.shared


def count_pages(pid: int | None = None) -> PageCounts:
    """Returns the resident bytes of a process, by default this one; zeros if the process has ended.

    The kernel maintains these counters (proc_pid_status(5)), so the call takes microseconds. Where there is
    no /proc, all resident memory counts as anonymous.
    """
    status = _read(pid, "status")
    if status is None:
        return PageCounts(0 if os.path.isdir("/proc/self") else resident_bytes(pid))
    return PageCounts(*(_size(status, name) for name in (b"RssAnon", b"RssFile", b"RssShmem")))


def proportional_bytes(pid: int | None = None) -> int:
    """Returns the proportional set size, in which a page that n processes map counts as 1/n of a page; 0 if
    the process has ended.

    The kernel walks all pages of the process, which takes about 8 ms per GiB: call this on a thread. Where
    there is no smaps_rollup, returns the resident memory.
    """
    rollup = _read(pid, "smaps_rollup")
    return resident_bytes(pid) if rollup is None else _sizes(rollup).get("Pss", 0)


def mapped_files(pid: int | None = None) -> Mapping[str, int]:
    """Returns the files that a process maps, such as shared libraries, with the resident bytes of each.

    Leaves out files with less than 1 MiB in memory, and pages that were copied on write, which count as
    anonymous. Takes as long as `proportional_bytes`. Returns an empty mapping where there is no smaps.
    """
    text = _read(pid, "smaps")
    files: dict[str, int] = {}
    for found in re.finditer(_MAPPING, text or b""):
        inode, path, lines = found.groups()
        if inode == b"0" or not path.startswith(b"/") or path.startswith((b"/memfd:", b"/dev/")):
            continue
        sizes = _sizes(lines)
        name = os.fsdecode(path)
        files[name] = files.get(name, 0) + sizes.get("Rss", 0) - sizes.get("Anonymous", 0)
    return {name: size for name, size in files.items() if size >= _SMALL_FILE}


def restart_peak() -> bool:
    """Resets the peak that `peak_bytes` returns for this process. Returns False if the system cannot do
    that.
    """
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
        return True
    return False


def peak_bytes(pid: int | None = None) -> int:
    """Returns the peak resident memory of a process in bytes; 0 if the process has ended or the peak is
    unknown.
    """
    return _size(_read(pid, "status") or b"", b"VmHWM")


def sessions(leaders: Iterable[int]) -> dict[int, list[int]]:
    """Returns the ids of the processes in the session of each leader, including the leader; an empty list if
    the leader has ended.

    A process that a worker starts belongs to the session of the worker, unless it begins a new one.
    """
    found: dict[int, list[int]] = {leader: [] for leader in leaders}
    if not found:
        return found
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        pids = list(found)
    for pid in pids:
        with suppress(OSError):
            leader = os.getsid(pid)
            if leader in found:
                found[leader].append(pid)
    return found


class Footprint(Struct, frozen=True):
    """Memory in bytes: `own` memory of a process, and the mapped `files`, which other processes may share."""

    own: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    #: The part of `own` that another process maps too: the blocks in which a worker receives tensors.
    shared: int = 0


class Footprints:
    """Reads the footprints of processes. Lists the files of a process again only if their resident size has
    changed by at least _SMALL_FILE bytes in total.

    Only one thread may use it at a time.
    """

    def __init__(self) -> None:
        #: For each process, the total size of its files in bytes, and the list of files, both as of the last
        #: listing.
        self._files: dict[int, tuple[int, Mapping[str, int]]] = {}

    def read(self, pids: Iterable[int]) -> dict[int, Footprint]:
        """Returns the footprint of each of these processes, including all other processes in its session.

        A forked process shares pages with its parent until one of them writes, so for a session of several
        processes the footprint is the sum of their proportional set sizes.
        """
        found: dict[int, Footprint] = {}
        for leader, members in sessions(pids).items():
            if len(members) > 1:
                found[leader] = Footprint(sum(map(proportional_bytes, members)))
            elif members:
                found[leader] = self.read_one(leader)
        return found

    def forget_others(self, pids: Iterable[int]) -> None:
        """Discards the stored lists of files of all processes except this one and `pids`."""
        for gone in self._files.keys() - {os.getpid(), *pids}:
            del self._files[gone]

    def read_one(self, pid: int | None = None) -> Footprint:
        """Returns the footprint of one process, by default this one."""
        pid = os.getpid() if pid is None else pid
        counts = count_pages(pid)
        before, files = self._files.get(pid, (0, {}))
        if abs(counts.files - before) >= _SMALL_FILE:
            files = mapped_files(pid)
            self._files[pid] = counts.files, files
        return Footprint(counts.anonymous + counts.shared, files, counts.shared)


def pause(pids: Iterable[int]) -> None:
    """Suspends all processes in the process groups of these leaders, so that they take no more memory, until
    `resume` is called.
    """
    _signal(pids, signal.SIGSTOP)


def resume(pids: Iterable[int]) -> None:
    """Continues the process groups that `pause` suspended."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


def _read(pid: int | None, name: str) -> bytes | None:
    with suppress(OSError), open(f"/proc/{'self' if pid is None else pid}/{name}", "rb") as file:
        return file.read()
    return None


def _size(status: bytes, name: bytes) -> int:
    """Returns the size in the line `name` of /proc/PID/status, in bytes; 0 if the line is missing. Parsing
    all lines would take ten times as long.
    """
    _, found, rest = status.partition(b"\n" + name + b":")
    return int(rest.split(None, 1)[0]) * 1024 if found else 0


def _sizes(lines: bytes) -> dict[str, int]:
    return {name.decode(): int(size) * 1024 for name, size in re.findall(_SIZE, lines)}
