"""The cores that the runs of all models on threads share, so that busy models do not oversubscribe them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns

from backline.workers.batch import Batch

#: Seconds after which a waiting run starts although no core is free: the operating system shares cores with
#: long runs better than a queue does.
PATIENCE = 0.02


class _WaitingRun:
    """A run that waits for its cores."""

    __slots__ = ("cores", "granted")

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.granted = threading.Lock()
        self.granted.acquire()


class CoreBudget:
    """Limits the cores that compute at once, in the order in which runs ask. Called on the threads of the
    runs.

    A run that has waited for PATIENCE starts anyway, so that a model with long runs does not block the
    others.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        self._lock = threading.Lock()
        self._waiting: deque[_WaitingRun] = deque()

    def take(self, cores: int) -> bool:
        """Waits for this many cores, at most all of them; returns whether it had to wait."""
        with self._lock:
            if self._free >= cores and not self._waiting:
                self._free -= cores
                return False
            waiting = _WaitingRun(cores)
            self._waiting.append(waiting)
        if not waiting.granted.acquire(timeout=PATIENCE):
            with self._lock:
                if waiting in self._waiting:  # or it was granted in between
                    self._waiting.remove(waiting)
                    self._free -= cores
        return True

    def give(self, cores: int) -> None:
        """The caller no longer computes."""
        with self._lock:
            self._free += cores
            waiting = self._waiting
            while waiting and self._free >= waiting[0].cores:
                self._free -= waiting[0].cores
                waiting.popleft().granted.release()


class BudgetedExecution:
    """Runs batches within a budget. A run on `threads` threads (0 for one per core) counts as half as many
    cores, because they are rarely all busy.
    """

    def __init__(self, execute: Callable[[Batch], None], budget: CoreBudget, threads: int) -> None:
        self._execute = execute
        self._budget = budget
        self._cores = (min(threads or budget.cores, budget.cores) + 1) // 2
        self._held: dict[Batch, None] = {}

    def __call__(self, batch: Batch) -> None:
        """See Execution. The time that it waits counts as time in the queue."""
        if self._budget.take(self._cores):
            batch.started_ns = monotonic_ns()
        self._held[batch] = None
        try:
            self._execute(batch)
        finally:
            self.release(batch)

    def release(self, batch: Batch) -> None:
        """The batch is over, or its thread was abandoned: frees its cores. Called on any thread, possibly
        twice.
        """
        if self._held.pop(batch, batch) is None:
            self._budget.give(self._cores)
