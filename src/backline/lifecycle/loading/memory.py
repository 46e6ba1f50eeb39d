"""What a load takes of the process' memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backline.system.memory import resident_bytes

#: The first load of a backend imports its runtime, by so many modules at least: their memory is not the model's.
_MODULES_OF_A_RUNTIME = 8
#: Until a load was measured, a model is taken to need so much memory for each byte of its file.
_FIRST_RATIO = 1.2
#: How much the latest measurement counts in the ratio.
_WEIGHT = 0.2


class LoadMemory:
    """The result of one measurement: `memory` in bytes once the block has ended, 0 when it was left by an exception."""

    __slots__ = ("memory",)

    def __init__(self) -> None:
        self.memory = 0


class LoadMeter:
    """Measures loads, from any thread.

    A load that no other overlapped took what the resident memory grew by, but never less than its files have: memory that was freed before
    and is used again does not show as growth. A load beside others, or the first of a runtime, is taken to need its files' size times the
    ratio of memory to file size that the loads before had.
    """

    def __init__(self, resident: Callable[[], int] = resident_bytes) -> None:
        self._resident = resident
        self._lock = threading.Lock()
        self._running = 0
        #: Loads begun so far: by it a load knows whether another began meanwhile.
        self._begun = 0
        self._ratio = _FIRST_RATIO

    def estimate(self, file_bytes: int) -> int:
        """The memory that a model with files of this size is likely to need."""
        return int(file_bytes * self._ratio)

    @contextmanager
    def measure(self, file_bytes: int) -> Iterator[LoadMemory]:
        """Measures the load that the block does."""
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
                # A small model's overhead says nothing about a large one's.
                ratio = min(measured.memory / file_bytes, 4.0)
                self._ratio += (ratio - self._ratio) * _WEIGHT
