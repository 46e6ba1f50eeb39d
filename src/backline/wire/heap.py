"""Memory that large requests took and the C library keeps: given back to the system when the server is idle again."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

from backline.wire.connection import Wire

#: Seconds between two looks.
INTERVAL = 0.5
#: The growth that is worth the milliseconds of a trim, in bytes.
WORTH_TRIMMING = 16 * 1024 * 1024
#: The server counts as idle up to so many bytes of bodies in flight.
IDLE_BYTES = 1024 * 1024


class Heap:
    """Watches the resident memory of the process while a server runs.

    glibc keeps freed memory in the arenas of the threads that allocated it; `malloc_trim` returns it. Elsewhere this does nothing.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._trim = _find_trim()
        self._lowest = resident_bytes()
        self._timer: asyncio.TimerHandle | None = None
        if self._trim is not None and self._lowest:
            self._timer = wire.loop.call_later(INTERVAL, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._wire.loop.call_later(INTERVAL, self._look)
        resident = resident_bytes()
        self._lowest = min(self._lowest, resident)
        if resident > self._lowest + WORTH_TRIMMING and self._wire.buffered_bytes < IDLE_BYTES:
            self._wire.loop.run_in_executor(None, self._give_back)

    def _give_back(self) -> None:
        """On a thread: the C library is held for a moment, the interpreter is not."""
        assert self._trim is not None
        self._trim(0)
        # What could not be returned is in use; only growth from here on is looked at again.
        self._lowest = resident_bytes()


def resident_bytes() -> int:
    """The resident memory of this process; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _find_trim() -> Callable[[int], int] | None:
    with suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes = [ctypes.c_size_t]
        return trim
    return None
