"""The cores that this process may use, pinning of threads to them (sched_setaffinity(2)), and CPU time."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from backline.engine.errors import InvalidArgument

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SCHEDULER_STATISTICS = Path("/proc/thread-self/schedstat")


def usable_cores(quota: Path = _CGROUP_QUOTA) -> int:
    """The number of cores that this process may use: its affinity, limited by its container's quota (cgroup
    v2, rounded up).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        limit = ceil(int(allowed) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no quota: the file is missing or says "max"
        return affinity
    return max(1, min(affinity, limit))


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used, in seconds (proc_pid_stat(5)); 0 if it has ended or there is no
    /proc.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program, which may contain spaces, ends with the last parenthesis.
            used = file.read().rpartition(b")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def seconds_without_core() -> float:
    """For how many seconds the calling thread has waited for a core, although it could have computed.

    The number comes from Linux (schedstat in proc(5)) and is 0 elsewhere.
    """
    try:
        return int(_SCHEDULER_STATISTICS.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def check_cores(model: str, cores: Collection[int]) -> None:
    """Raises InvalidArgument if threads of a model cannot be pinned to these cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InvalidArgument(
            f"model '{model}': cpus needs a system that pins threads to cores, which {sys.platform} cannot:"
            " remove cpus from the configuration"
        )
    usable = os.sched_getaffinity(os.getpid())
    missing = sorted(set(cores) - usable)
    if missing:
        names = ", ".join(map(str, missing))
        raise InvalidArgument(
            f"model '{model}': cpus names {names},"
            f" but this process may only use the cores {format_cores(usable)}"
        )


def pin(cores: Collection[int]) -> None:
    """Pins the calling thread, and threads that it starts from now on, to these cores; does nothing if
    there are none.
    """
    if cores:
        os.sched_setaffinity(0, cores)


@contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Pins the calling thread to these cores within the context; processes started there inherit them."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    pin(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def format_cores(cores: Collection[int]) -> str:
    """Formats core numbers for messages, as "0-3, 6"."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
