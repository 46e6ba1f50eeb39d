"""How runs are counted of which not every request has succeeded: each is an execution, as of Triton."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.workers.batch import Batch


def record_failure(statistics: ModelStatistics, batch: Batch, tickets: Sequence[Ticket]) -> None:
    """Counts requests of a batch that have failed, and its execution if there was one."""
    for ticket in tickets:
        statistics.fail.add(1, batch.ended_ns - ticket.request.arrived_ns)
    if batch.executed and not batch.shared:
        statistics.record_execution(batch.items, *_moments(batch))


def record_shared_execution(statistics: ModelStatistics, parts: Iterable[Batch]) -> None:
    """Counts the execution that parts have had together, if they have: its batch size is that of all, also of those that failed."""
    together = [part for part in parts if part.shared and part.executed]
    if together:
        statistics.record_execution(sum(part.items for part in together), *_moments(together[0]))


def _moments(batch: Batch) -> tuple[int, int, int, int]:
    return batch.started_ns, batch.gathered_ns, batch.ran_ns, batch.ended_ns
