"""How runs with failed requests are counted."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import ClassVar

import pytest

from backline.engine.config.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.tally import record_failure, record_shared_execution
from backline.workers.batch import Batch
from backline.workers.instance import Finished
from backline_client.values.errors import BacklineError, Internal, Unavailable
from backline_client.values.messages import InferRequest, InferResponse


def batch(items: int, *, failed: bool, executed: bool = True, shared: bool = False) -> Batch:
    """A batch of one request that arrived at 0, was taken at 10, ran from 20 to 30 and ended at 40 ns."""
    ticket = Ticket(InferRequest("model", {}, arrived_ns=0), lambda *_: None)
    made = Batch([ticket], items, 10)
    made.gathered_ns, made.ran_ns, made.ended_ns = 20, 30, 40
    made.executed, made.shared = executed, shared
    made.outcomes = [Internal("no") if failed else InferResponse("model", "1", "", [])]
    return made


def sizes(statistics: ModelStatistics) -> dict[int, int]:
    return {size: one.compute_infer.count for size, one in statistics.batches.items()}


def test_a_run_that_fails_is_an_execution_without_inferences() -> None:
    statistics = ModelStatistics()
    failed = batch(3, failed=True)

    record_failure(statistics, failed, failed.tickets)

    assert (statistics.execution_count, statistics.inference_count, sizes(statistics)) == (1, 0, {3: 1})
    assert (statistics.fail.count, statistics.fail.ns) == (1, 40)


def test_a_batch_that_never_reached_the_model_is_not_an_execution() -> None:
    statistics = ModelStatistics()
    failed = batch(3, failed=True, executed=False)

    record_failure(statistics, failed, failed.tickets)

    assert (statistics.execution_count, sizes(statistics), statistics.fail.count) == (0, {}, 1)


def test_parts_of_a_shared_run_count_as_one_execution() -> None:
    statistics = ModelStatistics()
    parts = [batch(2, failed=False, shared=True), batch(3, failed=True, shared=True)]

    for part in parts:
        if isinstance(part.outcomes[0], Internal):
            record_failure(statistics, part, part.tickets)
    record_shared_execution(statistics, parts)

    assert (statistics.execution_count, sizes(statistics), statistics.fail.count) == (1, {5: 1}, 1)


def test_parts_that_ran_separately_count_separately() -> None:
    statistics = ModelStatistics()

    record_shared_execution(statistics, [batch(1, failed=False), batch(2, failed=False)])

    assert statistics.execution_count == 0


class Refusing:
    """Refuses every batch at once, as an instance does whose worker processes have ended."""

    off_loop: ClassVar[bool] = True

    def run(self, batch: Batch, finished: Finished) -> None:
        batch.gathered_ns = batch.ran_ns = batch.ended_ns = monotonic_ns()
        batch.outcomes = [Unavailable("no worker")] * len(batch.tickets)
        finished(self, batch)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("most", [1, 8])
async def test_all_requests_in_a_long_queue_fail_if_their_instance_refuses_them_at_once(most: int) -> None:
    errors: list[BacklineError | None] = []
    ended = asyncio.Event()

    def failed(ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        errors.append(error)
        if len(errors) == 3000:
            ended.set()

    settings = Settings(BatchPolicy(most), QueueSettings(QueuePolicy()))
    loop = asyncio.get_running_loop()
    scheduler = Scheduler("m", settings, [Refusing()], ModelStatistics(), loop=loop)
    for _ in range(3000):
        scheduler.submit(Ticket(InferRequest("m", {}, arrived_ns=monotonic_ns()), failed))
    await asyncio.wait_for(ended.wait(), 10)

    assert {type(error) for error in errors} == {Unavailable}
    assert (scheduler.pending, scheduler.running) == (0, 0)
