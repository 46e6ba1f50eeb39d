"""How runs with failed requests are counted."""

from __future__ import annotations

from backline.engine.errors import Internal
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.engine.values.messages import InferRequest, InferResponse
from backline.schedule.tally import record_failure, record_shared_execution
from backline.workers.batch import Batch


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
