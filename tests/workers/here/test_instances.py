"""An inline instance reports runs that block the event loop for too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np

from backline.engine.ticket import Ticket
from backline.workers.batch import Batch
from backline.workers.here.instances import InlineInstance, ThreadInstance
from backline.workers.instance import Instance, runs_off_loop
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor


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


class LargeRuns:
    """An inline instance whose batches have one request of any number of elements, and where they ran."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.seconds = 0.0
        self.threads: list[threading.Thread] = []
        self.slow = 0
        self.instance = InlineInstance(
            self._execute, self._report, lambda run: ThreadInstance(run, self.loop, "large")
        )

    def _report(self) -> None:
        self.slow += 1

    def _execute(self, batch: Batch) -> None:
        self.threads.append(threading.current_thread())
        compute(self.seconds)
        batch.ended_ns = time.monotonic_ns()

    async def run(self, elements: int) -> bool:
        """Runs a batch. Returns whether it ran on the event loop."""
        tensor = Tensor("x", DataType.FP32, (elements,), np.zeros(elements, np.float32))
        tickets = [Ticket(InferRequest("m", {"x": tensor}), lambda *_: None)]
        off_loop = runs_off_loop(self.instance, tickets)
        ended: asyncio.Future[Instance] = self.loop.create_future()
        batch = Batch(tickets, 1, time.monotonic_ns(), off_loop=off_loop)
        self.instance.run(batch, lambda instance, _: ended.set_result(instance))
        assert await ended is self.instance
        on_loop = self.threads[-1] is threading.current_thread()
        assert on_loop is not off_loop
        return on_loop


async def test_a_batch_far_larger_than_any_fast_one_runs_on_a_thread_first() -> None:
    runs = LargeRuns()
    size = InlineInstance.FEW_ELEMENTS
    try:
        assert await runs.run(size)
        assert not await runs.run(2 * size)
        assert await runs.run(4 * size)
        assert not await runs.run(40 * size)
        assert await runs.run(100 * size)
    finally:
        runs.instance.close()


async def test_large_batches_that_are_slow_stay_on_the_thread_and_are_reported() -> None:
    runs = LargeRuns()
    runs.seconds = 0.006
    try:
        for _ in range(3):
            assert not await runs.run(InlineInstance.FEW_ELEMENTS + 1)
    finally:
        runs.instance.close()
    assert runs.slow == 1
