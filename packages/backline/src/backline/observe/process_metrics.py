"""Writes the metrics of the server's process, of Python and of the machine."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from math import inf
from pathlib import Path
from typing import NamedTuple

from backline.observe.exposition import comment, label_text, number

PROC = Path("/proc")


class Readings(NamedTuple):
    """What the system reports: memory in bytes, `started` in seconds since 1970, the number of open `files`.
    `busy` and `total` are seconds of all cores since the machine was started; only `total` includes the idle
    time.
    """

    busy: float
    total: float
    memory: int
    available: int
    virtual: int
    resident: int
    started: float
    files: int


def read_system(proc: Path = PROC) -> Readings:
    """Reads the files of Linux, because importing psutil would interrupt the requests of a busy server for
    milliseconds. Uses psutil where these files do not exist.
    """
    try:
        stat = (proc / "stat").read_text()
        memory = (proc / "meminfo").read_text()
        sizes = (proc / "self/statm").read_text().split()
        own = (proc / "self/stat").read_text()
        files = len(os.listdir(proc / "self/fd"))
    except OSError:
        return _read_psutil()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    # The times of guests are part of the first two times (proc_stat(5)).
    times = [int(time) / ticks for time in stat.split("\n", 1)[0].split()[1:9]]
    booted = next(int(line.split()[1]) for line in stat.splitlines() if line.startswith("btime"))
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in memory.splitlines()}
    return Readings(
        busy=sum(times) - times[3] - times[4],
        total=sum(times),
        memory=kilobytes["MemTotal"] * 1024,
        available=kilobytes["MemAvailable"] * 1024,
        virtual=int(sizes[0]) * page,
        resident=int(sizes[1]) * page,
        # The name of the program, in parentheses, may contain spaces.
        started=booted + int(own.rpartition(")")[2].split()[19]) / ticks,
        files=files,
    )


def _read_psutil() -> Readings:
    import psutil

    process, memory, times = psutil.Process(), psutil.virtual_memory(), psutil.cpu_times()
    own, total = process.memory_info(), sum(times)
    return Readings(
        busy=total - times.idle,
        total=total,
        memory=memory.total,
        available=memory.available,
        virtual=own.vms,
        resident=own.rss,
        started=process.create_time(),
        files=process.num_fds(),
    )


class ProcessMetrics:
    """Triton's metrics of the machine, and the metrics of a process and of Python that the Prometheus client
    for Python exports.
    """

    def __init__(self) -> None:
        self._before: Readings | None = None
        version = sys.version_info
        self._python = label_text(
            (
                ("implementation", platform.python_implementation()),
                ("major", str(version.major)),
                ("minor", str(version.minor)),
                ("patchlevel", str(version.micro)),
                ("version", platform.python_version()),
            )
        )

    def text(self) -> bytes:
        """Returns the metrics as text in Prometheus' format. Reads files, so it must be called on a thread,
        and only on one thread at a time.
        """
        now = read_system()
        before, self._before = self._before or now, now
        spent = now.total - before.total
        share = (now.busy - before.busy) / spent if spent > 0 else 0.0
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = "Share of the machine's CPU time used since the last scrape"
        metrics = (
            ("nv_cpu_utilization", used, min(max(share, 0.0), 1.0)),
            ("nv_cpu_memory_total_bytes", "Memory of the machine", now.memory),
            ("nv_cpu_memory_used_bytes", "Memory of the machine in use", now.memory - now.available),
            ("process_virtual_memory_bytes", "Virtual memory of the process", now.virtual),
            ("process_resident_memory_bytes", "Resident memory of the process", now.resident),
            ("process_start_time_seconds", "Start of the process, in seconds since 1970", now.started),
            ("process_cpu_seconds_total", "CPU time of the process", time.process_time()),
            ("process_open_fds", "Open file descriptors", now.files),
            ("process_max_fds", "Limit on open files", inf if limit == resource.RLIM_INFINITY else limit),
        )
        lines = [f"{_comment(name, text)}{name} {number(value)}\n" for name, text, value in metrics]
        lines.append(f"{_comment('python_info', 'Version of Python')}python_info{{{self._python}}} 1\n")
        return "".join(lines).encode()


def _comment(name: str, text: str) -> str:
    return comment(name, "counter" if name.endswith("_total") else "gauge", text)
