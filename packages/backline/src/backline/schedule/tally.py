"""Counts the requests and runs of a scheduler in its model's statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.workers.batch import Batch
from backline_client.values.errors import Cancelled
from backline_client.values.messages import InferResponse


class Tally:
    """Counts each request once, either when its run ends or when it is cancelled."""

    __slots__ = ("_aside", "_gone", "_statistics")

    def __init__(self, statistics: ModelStatistics) -> None:
        self._statistics = statistics
        #: Requests that are counted elsewhere, and the callbacks that receive their batches.
        self._aside: dict[Ticket, Callable[[Batch], None]] = {}
        #: Requests that were cancelled during their run, and have already been counted.
        self._gone: set[Ticket] = set()

    @property
    def settled(self) -> bool:
        """Whether no requests are tracked. This must be the case whenever nothing is queued or running."""
        return not self._aside and not self._gone

    def set_aside(self, ticket: Ticket, ran: Callable[[Batch], None]) -> None:
        """Makes the caller responsible for counting a request. `ran` is called with the request's batch
        once the batch has run.
        """
        self._aside[ticket] = ran

    def take_back(self, ticket: Ticket) -> None:
        """Stops tracking a request that will not run. Has no effect unless the request was set aside."""
        self._aside.pop(ticket, None)

    def cancelled(self, ticket: Ticket) -> None:
        """Counts a request that was cancelled before its run."""
        if self._aside.pop(ticket, None) is None:
            self._statistics.record_cancelled(ticket)

    def cancelled_running(self, ticket: Ticket) -> None:
        """Counts a request that was cancelled during its run. The run continues."""
        if ticket not in self._aside:
            self._statistics.record_cancelled(ticket)
            self._gone.add(ticket)

    def gone(self, tickets: Iterable[Ticket]) -> None:
        """Stops tracking cancelled requests that are no longer part of their batch."""
        for ticket in tickets:
            self._gone.discard(ticket)
            self._aside.pop(ticket, None)

    def ran(self, batch: Batch) -> None:
        """Counts a batch that has run."""
        if batch.parts is None:
            self._record(batch)
            return
        for part in batch.parts:
            self._record(part)
        record_shared_execution(self._statistics, batch.parts)

    def _record(self, batch: Batch) -> None:
        """Counts a run, or a part of a run, whose requests have all succeeded, all failed, or all been
        cancelled.
        """
        outcome = batch.outcomes[0]
        tickets = batch.tickets
        if self._aside:
            tickets = self._counted_here(batch)
        if self._gone:
            tickets = [ticket for ticket in tickets if ticket not in self._gone]
            self._gone.difference_update(batch.tickets)
        if isinstance(outcome, InferResponse) or outcome is None:
            record = self._statistics.record_answers if batch.shared else self._statistics.record_batch
            record(tickets, batch.items, batch.started_ns, batch.gathered_ns, batch.ran_ns, batch.ended_ns)
        elif isinstance(outcome, Cancelled) and all(ticket.cancelled for ticket in batch.tickets):
            for ticket in tickets:
                self._statistics.record_cancelled(ticket)
        else:
            record_failure(self._statistics, batch, tickets)

    def _counted_here(self, batch: Batch) -> list[Ticket]:
        counted = []
        for ticket in batch.tickets:
            ran = self._aside.pop(ticket, None)
            if ran is None:
                counted.append(ticket)
            else:
                ran(batch)
        return counted


def record_failure(statistics: ModelStatistics, batch: Batch, tickets: Sequence[Ticket]) -> None:
    """Counts the failed requests of a batch. Also counts the execution of the batch if the model was
    called.
    """
    for ticket in tickets:
        statistics.fail.add(1, batch.ended_ns - ticket.request.arrived_ns)
    if batch.executed and not batch.shared:
        statistics.record_execution(batch.items, *_moments(batch))


def record_shared_execution(statistics: ModelStatistics, parts: Iterable[Batch]) -> None:
    """Counts the execution that the `parts` shared, if there was one. As in Triton, the recorded batch size
    includes failed requests.
    """
    together = [part for part in parts if part.shared and part.executed]
    if together:
        statistics.record_execution(sum(part.items for part in together), *_moments(together[0]))


def _moments(batch: Batch) -> tuple[int, int, int, int]:
    return batch.started_ns, batch.gathered_ns, batch.ran_ns, batch.ended_ns
