"""The resident memory of processes, and what the C library keeps of this one's after it was freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache

#: Bytes of a block that is worth pages of its own.
LARGE_BLOCK = 1 << 20
#: Parameters of mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def resident_bytes(pid: int | None = None) -> int:
    """The resident memory of a process in bytes, of this one where none is named; 0 of one that is gone."""
    # A tenth of the time that psutil takes, and no module to load, where the system has it.
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


def trim() -> bool:
    """Gives freed memory back to the system; False where the C library cannot.

    glibc keeps freed memory in the arenas of the threads that allocated it; malloc_trim(3) returns it. Takes milliseconds, in which other
    threads may wait for memory but not for the interpreter: to be called on a thread.
    """
    trimming = _malloc_trim()
    if trimming is None:
        return False
    trimming(0)
    return True


def return_large_blocks() -> bool:
    """From now on blocks of LARGE_BLOCK bytes and more go back to the system when they are freed; False where the C library cannot.

    By default glibc raises the size from which it does so to the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD): the weights
    of the next model are then put into the arenas of threads, with holes between them that no trim gives back. The price is that every
    large block comes as fresh pages. For the whole process.
    """
    mallopt = _mallopt()
    # Setting the one fixes the other, too, at a size that costs a system call for every request of some size.
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK) and mallopt(_M_TRIM_THRESHOLD, 4 * LARGE_BLOCK))


def share_arena() -> bool:
    """From now on all threads allocate from one arena; False where the C library cannot.

    By default glibc gives each thread one of its own (mallopt(3), M_ARENA_MAX), and each thread that ever loaded a model keeps some: 50
    loads of one model left 6 % more resident memory than the first, and with one arena 0.3 %. Threads of Python seldom allocate at the same
    time, and runtimes have arenas of their own: more arenas won nothing that could be measured.
    """
    return bool(_mallopt()(_M_ARENA_MAX, 1))


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
