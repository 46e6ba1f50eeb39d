"""Determines the cores that this process may use, pins threads to cores (sched_setaffinity(2)), and reads CPU
time.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from time import monotonic

from backline.system.control_groups import GROUPS, OWN_GROUPS, group_folders
from backline_client.values.errors import InvalidArgument

_LOAD = "/proc/loadavg"
#: The number of threads that run or are ready to run (proc_loadavg(5)), and of the periods in which a
#: control group has used up its quota.
_RUNNING, _THROTTLED = rb"(?:\S+ ){3}(\d+)/", rb"nr_throttled (\d+)"
#: Seconds for which a control group has no core to spare after it has used up its quota, which stopped it
#: for up to 0.1 s.
THROTTLED_REST = 10.0
_SCHEDULER_STATISTICS = Path("/proc/thread-self/schedstat")
_THREADS = Path("/proc/self/task")


def usable_cores(groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> int:
    """Returns the number of cores that this process may use: the cores of its affinity mask, but no more than
    the lowest CPU quota of its control groups, rounded up.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min((affinity, *_read_quotas(groups, own_groups, int(monotonic())).values())))


class SpareCore:
    """Tells whether the machine and the CPU quotas of this process's control groups leave a core for work
    that can be left out. Quotas that are set later are not seen.
    """

    def __init__(self, load: str = _LOAD, groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> None:
        self._load = load
        limited = _read_quotas(groups, own_groups, int(monotonic()))
        self._statistics = [str(folder / "cpu.stat") for folder in limited]
        self._throttled, self._not_before = self._times_throttled(), 0.0

    def __call__(self, now: float) -> bool:
        """`now` is a time in seconds."""
        if self._throttled != (throttled := self._times_throttled()):
            self._throttled, self._not_before = throttled, now + THROTTLED_REST
        # If one thread more than there are cores is ready to run, it is probably a client that a response has
        # just woken up.
        return now >= self._not_before and _number(_RUNNING, self._load) <= (os.cpu_count() or 1) + 1

    def _times_throttled(self) -> int:
        return sum(_number(_THROTTLED, file) for file in self._statistics)


def _number(pattern: bytes, file: str) -> int:
    with suppress(OSError):  # not Linux, or the code of a model has closed the file
        found = re.search(pattern, os.pread(_opened(file), 1024, 0))
        return int(found[1]) if found else 0
    return 0


@cache
def _opened(file: str) -> int:
    """Opens a file that stays open, because opening it takes longer than the gap between two requests."""
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC)


@lru_cache(maxsize=1)
def _read_quotas(groups: Path, own_groups: Path, second: int) -> Mapping[Path, int]:
    """Returns the control groups that have a CPU quota, and each quota in cores.

    Reads the files at most once in each `second`, because each load of a model needs the quota several times,
    and a server may load a thousand models in a second.
    """
    quotas = {}
    for folder, version in group_folders("cpu", groups, own_groups):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with suppress(OSError, ValueError, ZeroDivisionError):  # no quota: no such file, or it says "max"
            allowed, period = (int(word) for name in files for word in (folder / name).read_text().split())
            if allowed > 0:  # version 1 says -1 if there is no quota
                quotas[folder] = ceil(allowed / period)
    return quotas


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that a process has used, in seconds (proc_pid_stat(5)); 0 if the process has ended
    or there is no /proc.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program, which may contain spaces, ends with the last parenthesis.
            used = file.read().rpartition(b")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def seconds_without_core() -> float:
    """Returns the time, in seconds, for which the calling thread was ready to run but had to wait for a core.

    Linux reports this time in /proc/thread-self/schedstat (sched-stats in the kernel's documentation).
    Returns 0 on other systems.
    """
    return _waited(_SCHEDULER_STATISTICS)


def seconds_of_threads_without_core() -> float:
    """Returns the sum of `seconds_without_core` over all current threads of this process."""
    try:
        return sum(_waited(thread / "schedstat") for thread in _THREADS.iterdir())
    except OSError:
        return 0.0


def _waited(statistics: Path) -> float:
    try:
        return int(statistics.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def check_cores(model: str, cores: Collection[int]) -> None:
    """Raises InvalidArgument if the threads of `model` cannot be pinned to these cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InvalidArgument(
            f"model '{model}': cpus needs a system that can pin threads to cores, unlike {sys.platform}:"
            " remove cpus from the configuration"
        )
    usable = os.sched_getaffinity(os.getpid())
    missing = sorted(set(cores) - usable)
    if missing:
        names = ", ".join(map(str, missing))
        raise InvalidArgument(
            f"model '{model}': cpus names {names},"
            f" but this process may only use the cores {format_cores(usable)}: correct cpus in the"
            " configuration"
        )


def pin(cores: Collection[int]) -> None:
    """Pins the calling thread, and any thread that it starts later, to these cores; does nothing if `cores`
    is empty.
    """
    if cores:
        os.sched_setaffinity(0, cores)


@contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Pins the calling thread to these cores in a `with` block. Processes that the block starts inherit
    the cores.
    """
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
    """Formats core numbers for messages, such as "0-3, 6"."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
