"""The resident memory of processes, and settings of glibc's allocator for this one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache

#: Blocks of at least this many bytes get separate pages.
LARGE_BLOCK = 1 << 20
#: Parameters of mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_PERTURB = -6
_M_ARENA_MAX = -8


def resident_bytes(pid: int | None = None) -> int:
    """A process's resident memory in bytes, this process's by default; 0 if it has ended."""
    # Where /proc exists, this takes a tenth of psutil's time and needs no import.
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
    """Returns freed memory to the system; False if the C library cannot.

    glibc keeps freed memory in the arenas of the threads that allocated it; malloc_trim(3) returns it. This
    takes milliseconds, in which other threads may wait for memory, but releases the GIL: call it on a thread.
    """
    trimming = _malloc_trim()
    if trimming is None:
        return False
    trimming(0)
    return True


def return_large_blocks() -> bool:
    """Makes blocks of LARGE_BLOCK bytes or more return to the system when freed, from now on; False if the C
    library cannot.

    By default glibc raises this threshold to the largest block ever freed (mallopt(3), M_MMAP_THRESHOLD). The
    next model's weights then go into thread arenas, fragmented so that no trim returns them. The price: every
    large block starts with fresh pages. Applies to the whole process.
    """
    mallopt = _mallopt()
    # Setting one threshold disables the adaptation of both; the default trim threshold would then cost a
    # system call for every request above it.
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK) and mallopt(_M_TRIM_THRESHOLD, 4 * LARGE_BLOCK))


def share_arena() -> bool:
    """Makes all threads allocate from one arena from now on; False if the C library cannot.

    By default glibc gives threads separate arenas (mallopt(3), M_ARENA_MAX), and each thread that ever loaded
    a model retains some memory: after 50 loads of one model, resident memory was 6 % above that of the first
    load, and 0.3 % with one arena. Python threads seldom allocate at the same time, and runtimes bring their
    own allocators: more arenas gained nothing measurable.
    """
    return bool(_mallopt()(_M_ARENA_MAX, 1))


def fill_blocks(byte: int) -> bool:
    """Fills blocks with a value when they are allocated or freed, from now on; 0 ends that. False if the C
    library cannot.

    A program that reads memory which it has not written, or has freed, then reads this value instead of zeros
    or what was there before (mallopt(3), M_PERTURB). Applies to the whole process.
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
