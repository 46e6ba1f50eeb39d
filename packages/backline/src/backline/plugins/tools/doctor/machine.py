"""Checks the machine or container: cores, memory, system limits and the clock."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from backline.engine.numbers import format_bytes
from backline.plugins.tools.doctor.finding import Finding, error, note, ok, warning

#: The number of file descriptors that `backline serve` reserves for models, worker processes and the log.
RESERVED_FILES = 256
#: A time before this program was written, in seconds since 1970: a clock that shows an earlier time is wrong.
EARLIEST = 1_767_225_600.0
#: Throttling is reported if it occurred in more than this share of the scheduling periods, because throttling
#: increases latency.
_THROTTLED = 0.05
_LITTLE_MEMORY = 512 << 20
_LITTLE_SHARED_MEMORY = 64 << 20
#: Environment variables that set the number of threads of numerical libraries.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources and limits of this process. Sizes are in bytes; None means unlimited or unknown."""

    #: The number of cores on which this process may run.
    cores: int
    #: The CPU quota of the container, in cores.
    quota: float | None
    #: The share of the scheduling periods in which the container was throttled.
    throttled: float
    threads: Mapping[str, str]
    memory_total: int
    memory_available: int
    memory_limit: int | None
    memory_used: int
    #: The soft and the hard limit on open files; -1 means unlimited.
    open_files: tuple[int, int]
    processes: int
    max_processes: int | None
    shared_memory: int | None
    #: The time that the clock shows, in seconds since 1970.
    now: float
    #: The frequency governors of the cores, such as "powersave".
    governors: frozenset[str] = frozenset()
    #: Values from the server's options.
    max_connections: int = 0
    compute_threads: int | None = None
    allow_client_shm: bool = False

    @property
    def usable_cores(self) -> int:
        """The number of cores that this process can use at the same time. The affinity of the process and the
        container's quota, rounded up, limit this number.
        """
        return self.cores if self.quota is None else max(1, min(self.cores, -int(-self.quota // 1)))


def cores(machine: Machine) -> Iterator[Finding]:
    quota = machine.quota
    if quota is None or quota >= machine.cores:
        yield ok(f"{machine.cores} cores")
    elif quota < 1:
        yield warning(
            f"The container's quota is {quota:g} cores",
            "Once the quota is used up, the kernel stops the whole server for the rest of each period of"
            " 0.1 s. Requests then wait for the next period.",
            "Give the container at least one core (docker --cpus 1, or resources.limits.cpu in Kubernetes).",
        )
    else:
        yield note(
            f"The container may use {quota:g} of {machine.cores} cores",
            "Libraries that count the machine's cores start more threads than can run. Backline itself"
            " respects the quota.",
            f"Set OMP_NUM_THREADS={machine.usable_cores} for models whose libraries start threads.",
        )


def throttling(machine: Machine) -> Iterator[Finding]:
    if machine.throttled > _THROTTLED:
        yield warning(
            f"The kernel stopped this container in {machine.throttled:.0%} of its scheduling periods so far",
            "Requests in flight wait up to 0.1 s each time, which shows in p99.",
            "Raise the container's CPU limit. In Kubernetes, you can also remove it and keep only"
            " resources.requests.cpu.",
        )
    else:
        yield ok("The container is not throttled")


def thread_variables(machine: Machine) -> Iterator[Finding]:
    wrong = False
    for name, text in machine.threads.items():
        count = int(text) if text.isdecimal() else 0
        if count < 1:
            wrong = True
            yield warning(
                f"{name} is '{text}', which is not a number of threads",
                "Libraries ignore it or fail.",
                f"Unset it, or set a number from 1 to {machine.usable_cores}.",
            )
        elif count > machine.usable_cores:
            wrong = True
            yield warning(
                f"{name} is {count}, but only {machine.usable_cores} cores may be used",
                "Each model whose library reads this variable starts that many threads, which take turns on"
                " the cores. Latency grows with each such model.",
                f"Unset it, or set it to at most {machine.usable_cores}.",
            )
    if not wrong:
        yield ok("No variable asks libraries for more threads than there are cores")


def compute_threads(machine: Machine) -> Iterator[Finding]:
    limit = machine.compute_threads
    if limit is not None and (limit == 0 or limit > machine.usable_cores):
        yield warning(
            f"--compute-threads is {limit}, with {machine.usable_cores} usable cores",
            "With more threads than cores, models that compute at the same time slow one another down.",
            "Leave it out: the default is the number of usable cores.",
        )
    else:
        yield ok("--compute-threads allows no more threads than there are cores")


def memory(machine: Machine) -> Iterator[Finding]:
    if machine.memory_available < _LITTLE_MEMORY:
        yield warning(
            f"Only {format_bytes(machine.memory_available)} of memory is free",
            "A load needs up to twice the size of the model's files. The kernel kills a process that runs"
            " out of memory.",
            "Free memory, use a larger machine, or set --memory-budget so that idle models are unloaded.",
        )
    else:
        yield ok(
            f"{format_bytes(machine.memory_available)} of {format_bytes(machine.memory_total)} of memory is"
            " free"
        )


def memory_limit(machine: Machine) -> Iterator[Finding]:
    limit = machine.memory_limit
    if limit is None or limit >= machine.memory_total:
        yield ok("There is no memory limit below the memory of the machine")
    elif machine.memory_used > 0.9 * limit:
        yield error(
            f"The container uses {format_bytes(machine.memory_used)} of its limit of {format_bytes(limit)}",
            "The next load or large request may make the kernel kill the server or a worker.",
            "Raise the limit, or serve with --memory-budget set to about 80 % of it.",
        )
    else:
        yield ok(f"The container may use {format_bytes(limit)} of memory")


def open_files(machine: Machine) -> Iterator[Finding]:
    hard = machine.open_files[1]
    needed = machine.max_connections + RESERVED_FILES
    if 0 <= hard < needed:
        yield warning(
            f"This process may have at most {hard:,} open files",
            f"Each connection needs one. The server then accepts fewer connections than the"
            f" {machine.max_connections:,} that --max-connections allows.",
            f"Raise the hard limit: ulimit -Hn {needed}, LimitNOFILE={needed} in a systemd unit, or"
            f" docker --ulimit nofile={needed}.",
        )
    else:
        yield ok(f"Open files: {'no limit' if hard < 0 else f'up to {hard:,}'}")


def processes(machine: Machine) -> Iterator[Finding]:
    limit = machine.max_processes
    if limit is not None and machine.processes > 0.8 * limit:
        yield warning(
            f"{machine.processes:,} of at most {limit:,} processes and threads are in use",
            "Python models need worker processes, and every runtime needs threads; starting them fails at the"
            " limit.",
            "Raise the limit: docker --pids-limit, or TasksMax in a systemd unit.",
        )
    else:
        yield ok("The limit on processes leaves room for workers")


def shared_memory(machine: Machine) -> Iterator[Finding]:
    free = machine.shared_memory
    if not machine.allow_client_shm:
        yield ok("Clients do not use shared memory; workers do not need /dev/shm")
    elif free is None:
        yield error(
            "--allow-client-shm is set, but this system has no /dev/shm",
            "Clients cannot register regions.",
            "Serve on Linux with /dev/shm mounted, or leave out --allow-client-shm.",
        )
    elif free < _LITTLE_SHARED_MEMORY:
        yield warning(
            f"/dev/shm has {format_bytes(free)} free",
            "A client that writes beyond that is killed by SIGBUS. Docker gives a container 64 MiB.",
            "Enlarge it: docker --shm-size 1g, or an emptyDir with medium Memory in Kubernetes.",
        )
    else:
        yield ok(f"/dev/shm has {format_bytes(free)} free")


def clock(machine: Machine) -> Iterator[Finding]:
    if machine.now < EARLIEST:
        yield error(
            f"The clock shows {time.strftime('%Y-%m-%d', time.gmtime(machine.now))}",
            "Certificates are not valid yet at that time, and keys and tokens do not expire in time.",
            "Set the clock, and keep it correct with NTP (timedatectl set-ntp true).",
        )
    else:
        yield ok("The clock is plausible")


def power(machine: Machine) -> Iterator[Finding]:
    if "powersave" in machine.governors:
        yield note(
            "The CPU frequency governor is 'powersave'",
            "A core takes milliseconds to speed up after a pause, which shows in the latency of rare"
            " requests.",
            "cpupower frequency-set --governor performance",
        )
    else:
        yield ok("No power setting slows the cores down")


MACHINE: Mapping[str, Callable[[Machine], Iterator[Finding]]] = {
    "cores": cores,
    "throttling": throttling,
    "thread-variables": thread_variables,
    "compute-threads": compute_threads,
    "memory": memory,
    "memory-limit": memory_limit,
    "open-files": open_files,
    "processes": processes,
    "shared-memory": shared_memory,
    "clock": clock,
    "power": power,
}


def read_machine(
    *,
    max_connections: int,
    compute_threads: int | None,
    allow_client_shm: bool,
    environment: Mapping[str, str] = os.environ,
    system: Path = Path("/sys"),
) -> Machine:
    """Returns the facts for the checks. `system` is the mount point of sysfs."""
    group = system / "fs" / "cgroup"
    memory = psutil.virtual_memory()
    limit = _number(group / "memory.max")
    used = _number(group / "memory.current") or 0
    available = int(memory.available) if limit is None else min(int(memory.available), limit - used)
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=_quota(group / "cpu.max"),
        throttled=_throttled(group / "cpu.stat"),
        threads={name: environment[name] for name in THREAD_VARIABLES if name in environment},
        memory_total=int(memory.total),
        memory_available=available,
        memory_limit=limit,
        memory_used=used,
        open_files=_open_files(),
        processes=_number(group / "pids.current") or 0,
        max_processes=_number(group / "pids.max"),
        shared_memory=shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
        now=time.time(),
        governors=frozenset(
            text
            for file in system.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
            if (text := _text(file).strip())
        ),
        max_connections=max_connections,
        compute_threads=compute_threads,
        allow_client_shm=allow_client_shm,
    )


def _text(file: Path) -> str:
    """Returns the content of a kernel file; empty if there is no such file."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> int | None:
    """Returns the number in a kernel file; None if there is no such file, or if the file says "max"."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _quota(file: Path) -> float | None:
    """Returns the CPU quota, in cores, from the file cpu.max of a cgroup; None if there is no quota."""
    allowed, _, period = _text(file).strip().partition(" ")
    if not allowed.isdecimal() or not period.isdecimal() or not int(period):
        return None
    return int(allowed) / int(period)


def _throttled(file: Path) -> float:
    """Returns the share of scheduling periods in which a cgroup was throttled, from its file cpu.stat."""
    counts = dict(line.split(" ", 1) for line in _text(file).splitlines() if " " in line)
    periods = int(counts.get("nr_periods", 0))
    return int(counts.get("nr_throttled", 0)) / periods if periods else 0.0


def _open_files() -> tuple[int, int]:
    if sys.platform == "win32":
        return -1, -1
    import resource

    infinite = resource.RLIM_INFINITY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return -1 if soft == infinite else soft, -1 if hard == infinite else hard
