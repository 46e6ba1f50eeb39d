"""Reads the resident memory of processes and the memory limit of this process, and controls how this process
allocates and returns memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from backline.system.control_groups import GROUPS, OWN_GROUPS, group_folders

#: Blocks of at least this many bytes get separate pages.
LARGE_BLOCK = 1 << 20
#: Parameters of mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_PERTURB = -6
_M_ARENA_MAX = -8


def resident_bytes(pid: int | None = None) -> int:
    """Returns the resident memory of a process in bytes, by default of this process; 0 if the process has
    ended.
    """
    # Where /proc exists, this takes a tenth of the time that psutil takes, and needs no import.
    with (
        suppress(OSError, ValueError, IndexError),
        open(f"/proc/{'self' if pid is None else pid}/statm", "rb") as file,
    ):
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def memory_limit(groups: Path = GROUPS, own_groups: Path = OWN_GROUPS) -> int | None:
    """Returns the maximum number of bytes of memory that this process can use: the memory of the machine, or
    the lowest limit of the process's control groups (cgroups(7), versions 1 and 2) if it is lower. Returns
    None if the system reports neither.
    """
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder, version in group_folders("memory", groups, own_groups):
        with suppress(OSError, ValueError):  # "max" means no limit
            found.append(
                int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())
            )
    return min(found, default=None)


def trim() -> bool:
    """Returns freed memory to the system. Returns False if the C library does not support this.

    glibc keeps freed memory in the arenas of the threads that allocated it; malloc_trim(3) returns this
    memory to the system. The call takes milliseconds, so make it on a thread. It releases the GIL, but
    threads that allocate memory may have to wait.
    """
    trimming = _malloc_trim()
    if trimming is None:
        return False
    trimming(0)
    return True


def return_large_blocks() -> bool:
    """Makes freed blocks of at least LARGE_BLOCK bytes return to the system immediately from now on. Returns
    False if the C library does not support this.

    glibc maps blocks above a threshold separately, and unmaps them when they are freed (mallopt(3),
    M_MMAP_THRESHOLD). By default, freeing a larger mapped block raises the threshold to its size, up to
    32 MiB. Smaller blocks, such as weights of the next model, are then allocated in the arenas of threads,
    which become so fragmented that no trim can return the memory. A fixed threshold avoids this; its cost is
    that each large block needs new pages from the kernel. The setting applies to the whole process.
    """
    mallopt = _mallopt()
    # Setting one threshold turns off the adaptation of both. With the default trim threshold of 128 KiB, each
    # request that frees more memory than this would then cost a system call.
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK) and mallopt(_M_TRIM_THRESHOLD, 4 * LARGE_BLOCK))


def share_arena() -> bool:
    """Makes threads that start from now on share the existing arenas: the main one, if no thread has started
    yet. Returns False if the C library does not support this.

    By default glibc gives threads separate arenas (mallopt(3), M_ARENA_MAX), and each thread that ever loaded
    a model retains some memory. After 50 loads of one model, resident memory had grown by 6 % since the first
    load; with one arena, by 0.3 %. Python threads seldom allocate at the same time, and runtimes have their
    own allocators, so more arenas gained nothing measurable.
    """
    return bool(_mallopt()(_M_ARENA_MAX, 1))


def fill_blocks(byte: int) -> bool:
    """From now on, fills blocks with `byte` when they are freed, and with its complement when they are
    allocated; 0 turns this off. Returns False if the C library does not support this.

    A program that reads memory before writing to it, or after freeing it, then reads these values instead of
    zeros or the earlier contents (mallopt(3), M_PERTURB). The setting applies to the whole process.
    """
    return bool(_mallopt()(_M_PERTURB, byte))


@cache
def _mallopt() -> Callable[[int, int], int]:
    try:
        found = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return lambda parameter, value: 0
    found.argtypes = [ctypes.c_int, ctypes.c_int]
    return found


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    with suppress(OSError, AttributeError):
        found = ctypes.CDLL(None).malloc_trim
        found.argtypes = [ctypes.c_size_t]
        return found
    return None
