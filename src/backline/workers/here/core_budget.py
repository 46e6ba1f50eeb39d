"""The cores that the runs of all models on threads share, so that many busy models do not take them from each other all the time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns

from backline.workers.batch import Batch

#: Seconds after which a run that waits begins although no core is free: behind long runs the system shares the cores better than a queue.
PATIENCE = 0.02


class _WaitingRun:
    """A run that waits for its cores."""

    __slots__ = ("cores", "granted")

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.granted = threading.Lock()
        self.granted.acquire()


class CoreBudget:
    """Lets at most so many cores be computed on at once, in the order in which runs ask. Called on the threads of the runs.

    A run that has waited for PATIENCE begins in any case: a model with long runs does not keep the others from running.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        self._lock = threading.Lock()
        self._waiting: deque[_WaitingRun] = deque()

    def take(self, cores: int) -> bool:
        """Waits until there are so many cores for the caller; whether it had to. More than all are all."""
        with self._lock:
            if self._free >= cores and not self._waiting:
                self._free -= cores
                return False
            waiting = _WaitingRun(cores)
            self._waiting.append(waiting)
        if not waiting.granted.acquire(timeout=PATIENCE):
            with self._lock:
                if waiting in self._waiting:  # else it was granted just now
                    self._waiting.remove(waiting)
                    self._free -= cores
        return True

    def give(self, cores: int) -> None:
        """The caller does not compute any more."""
        with self._lock:
            self._free += cores
            waiting = self._waiting
            while waiting and self._free >= waiting[0].cores:
                self._free -= waiting[0].cores
                waiting.popleft().granted.release()


class BudgetedExecution:
    """Runs batches within a budget. A run on `threads`, 0 for one a core, counts as half as many cores: they are rarely all busy."""

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
        """The batch is over, or its thread is left alone in it: its cores are for others. Called on any thread, perhaps twice."""
        if self._held.pop(batch, batch) is None:
            self._budget.give(self._cores)
