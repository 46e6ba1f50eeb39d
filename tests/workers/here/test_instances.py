"""An inline instance reports runs that block the event loop for too long."""

from __future__ import annotations

import time
from collections.abc import Callable

from backline.workers.batch import Batch
from backline.workers.here.instances import InlineInstance
from backline.workers.instance import Instance


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Runs:
    """An inline instance whose runs call `work`, and what it reported."""

    def __init__(self) -> None:
        self.finished = 0
        self.slow: list[int] = []
        self.work: Callable[[], None] = lambda: None
        self.instance = InlineInstance(self._execute, lambda: self.slow.append(self.finished))

    def _execute(self, batch: Batch) -> None:
        self.work()
        batch.ended_ns = time.monotonic_ns()

    def _finish(self, instance: Instance, batch: Batch) -> None:
        self.finished += 1

    def run(self, work: Callable[[], None], times: int = 1) -> None:
        self.work = work
        for _ in range(times):
            self.instance.run(Batch([], 0, time.monotonic_ns()), self._finish)


def test_repeated_long_runs_are_reported_once_between_batches() -> None:
    runs = Runs()
    runs.run(lambda: compute(0.006), times=6)
    assert runs.slow == [3]


def test_runs_that_only_wait_for_a_processor_are_not_reported() -> None:
    runs = Runs()
    runs.run(lambda: time.sleep(0.006), times=6)
    assert runs.slow == []


def test_long_runs_among_short_ones_are_reported() -> None:
    runs = Runs()
    for _ in range(3):
        runs.run(lambda: compute(0.006))
        runs.run(lambda: None, times=100)
    assert len(runs.slow) == 1


def test_long_runs_far_apart_are_not_reported() -> None:
    runs = Runs()
    for _ in range(4):
        runs.run(lambda: compute(0.006))
        runs.run(lambda: None, times=2000)
    assert runs.slow == []
