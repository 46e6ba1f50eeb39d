"""How much memory a load takes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backline.system.memory import resident_bytes

#: A load that imports at least this many modules has imported its runtime, which is not the model's memory.
_MODULES_OF_A_RUNTIME = 8
#: The ratio of memory to file size before any measurement.
_FIRST_RATIO = 1.2
#: The weight of a new measurement in the ratio.
_WEIGHT = 0.2


class LoadMemory:
    """One measurement: `memory` in bytes once the block has ended, 0 if it raised."""

    __slots__ = ("memory",)

    def __init__(self) -> None:
        self.memory = 0


class LoadMeter:
    """Measures loads, on any thread.

    A load that overlapped no other took the growth of resident memory, but at least the size of its files:
    reused memory does not show as growth. One that overlapped others, or imported its runtime, is estimated
    from its files and the ratio seen so far.
    """

    def __init__(self, resident: Callable[[], int] = resident_bytes) -> None:
        self._resident = resident
        self._lock = threading.Lock()
        self._running = 0
        #: Loads begun so far, to detect overlaps.
        self._begun = 0
        self._ratio = _FIRST_RATIO

    def estimate(self, file_bytes: int) -> int:
        """The memory that a model with files of this size probably needs."""
        return int(file_bytes * self._ratio)

    @contextmanager
    def measure(self, file_bytes: int) -> Iterator[LoadMemory]:
        """Measures the load in the block."""
        measured = LoadMemory()
        with self._lock:
            alone = not self._running
            self._running += 1
            self._begun += 1
            begun = self._begun
            before = self._resident()
        modules = len(sys.modules)
        try:
            yield measured
        except BaseException:
            with self._lock:
                self._running -= 1
            raise
        imported = len(sys.modules) - modules >= _MODULES_OF_A_RUNTIME
        with self._lock:
            self._running -= 1
            if not alone or begun != self._begun or imported:
                measured.memory = self.estimate(file_bytes)
                return
            measured.memory = max(self._resident() - before, file_bytes)
            if file_bytes:
                # the overhead of a small model says nothing about large ones
                ratio = min(measured.memory / file_bytes, 4.0)
                self._ratio += (ratio - self._ratio) * _WEIGHT
