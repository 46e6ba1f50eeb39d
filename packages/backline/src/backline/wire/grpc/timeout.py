"""Deadlines of gRPC calls: the grpc-timeout field, and one timer for all calls of a connection."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class InvalidTimeout(ValueError):
    """Raised when the grpc-timeout field is malformed."""


def parse_timeout(value: bytes) -> float:
    """Returns the seconds in a grpc-timeout such as b"250m". Raises InvalidTimeout if it is malformed."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise InvalidTimeout(
            f"grpc-timeout {value[:40].decode('latin-1')!r} must be 1 to 8 digits and one of H, M, S, m, u, n"
        )
    return int(match[1]) * _SECONDS[match[2]]


class Expiring(Protocol):
    closed: bool
    answered: bool

    def expire(self) -> None: ...


class Deadlines:
    """A timer that calls `expire` on each entry that is neither closed nor answered at its deadline.

    Invariant: the size of the heap is proportional to the number of open entries, because closed entries are
    removed as the heap grows. `live` returns the number of open entries.
    """

    __slots__ = ("_count", "_heap", "_live", "_loop", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, live: Callable[[], int]) -> None:
        self._loop = loop
        self._live = live
        self._heap: list[tuple[float, int, Expiring]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        #: The time (time.monotonic()) at which the timer fires; infinity if there is no timer.
        self._timer_at = math.inf

    def add(self, deadline: float, entry: Expiring) -> None:
        """Adds an entry that expires at `deadline`, in seconds of time.monotonic()."""
        self._count += 1
        heap = self._heap
        heappush(heap, (deadline, self._count, entry))
        if len(heap) > 64 and len(heap) > 64 + 2 * self._live():
            self._heap = heap = [item for item in heap if not item[2].closed]
            heapify(heap)
        if deadline < self._timer_at:
            self._arm(deadline)

    def cancel(self) -> None:
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = time.monotonic()
        # `expire` may add entries, which may replace the heap and set the timer to a deadline that is later
        # than the deadlines of entries that are already in the heap.
        while (heap := self._heap) and (heap[0][2].closed or heap[0][0] <= now):
            entry = heappop(heap)[2]
            if not entry.closed and not entry.answered:
                entry.expire()
        if heap and heap[0][0] < self._timer_at:
            self._arm(heap[0][0])
