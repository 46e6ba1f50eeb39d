"""What is counted of the requests of one scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from backline.engine.errors import Cancelled
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.statistics import ModelStatistics
from backline.schedule.failed_runs import record_failure, record_shared_execution
from backline.workers.batch import Batch


class Tally:
    """Counts each request once: with its run, or when nobody waits for it any more."""

    __slots__ = ("_aside", "_gone", "_statistics")

    def __init__(self, statistics: ModelStatistics) -> None:
        self._statistics = statistics
        #: Requests that others count, who are told of their runs.
        self._aside: dict[InferRequest, Callable[[Batch], None]] = {}
        #: Requests that run although nobody waits for them any more; they are counted.
        self._gone: set[InferRequest] = set()

    @property
    def settled(self) -> bool:
        """Whether nothing is kept in mind, as it is when nothing waits or runs."""
        return not self._aside and not self._gone

    def set_aside(self, request: InferRequest, ran: Callable[[Batch], None]) -> None:
        """Leaves it to others to count a request; `ran` is called with its batch when that has run."""
        self._aside[request] = ran

    def take_back(self, request: InferRequest) -> None:
        """A request does not run that may have been set aside."""
        self._aside.pop(request, None)

    def cancelled(self, request: InferRequest) -> None:
        """A request was cancelled before its run."""
        if self._aside.pop(request, None) is None:
            self._statistics.record_cancelled(request)

    def cancelled_running(self, request: InferRequest) -> None:
        """A request was cancelled in its run, which goes on."""
        if request not in self._aside:
            self._statistics.record_cancelled(request)
            self._gone.add(request)

    def gone(self, requests: Iterable[InferRequest]) -> None:
        """They were cancelled in a batch, and it does not run them after all."""
        for request in requests:
            self._gone.discard(request)
            self._aside.pop(request, None)

    def ran(self, batch: Batch) -> None:
        """A batch has run."""
        if batch.parts is None:
            self._record(batch)
            return
        for part in batch.parts:
            self._record(part)
        record_shared_execution(self._statistics, batch.parts)

    def _record(self, batch: Batch) -> None:
        """Counts a run, or a part of one. All its requests have succeeded, or all have failed, or nobody waited for it."""
        outcome = batch.outcomes[0]
        requests = batch.requests
        if self._aside:
            requests = self._counted_here(batch)
        if self._gone:
            requests = [request for request in requests if request not in self._gone]
            self._gone.difference_update(batch.requests)
        if isinstance(outcome, InferResponse) or outcome is None:
            record = self._statistics.record_answers if batch.shared else self._statistics.record_batch
            record(requests, batch.items, batch.started_ns, batch.gathered_ns, batch.ran_ns, batch.ended_ns)
        elif isinstance(outcome, Cancelled) and all(request.cancelled for request in batch.requests):
            for request in requests:
                self._statistics.record_cancelled(request)
        else:
            record_failure(self._statistics, batch, requests)

    def _counted_here(self, batch: Batch) -> list[InferRequest]:
        counted = []
        for request in batch.requests:
            ran = self._aside.pop(request, None)
            if ran is None:
                counted.append(request)
            else:
                ran(batch)
        return counted
