"""Batches that run in workers, and jobs: the parts of a batch that each go to one worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.workers.batch import Batch
from backline.workers.instance import Finished
from backline_client.values.errors import BacklineError, Cancelled, Internal
from backline_client.values.messages import InferResponse, Rescheduled

if TYPE_CHECKING:
    from backline.workers.process.pool import ProcessInstance
    from backline.workers.process.seat import Seat

log = logging.getLogger("backline.workers")


class WorkerEnded(Internal):
    """Raised for a request that its worker process did not survive."""


class BatchRun:
    """A batch of the scheduler that runs in workers. The batch is finished once every request has an outcome.

    `statistics` counts the responses of a decoupled model; it is None for other models.
    """

    __slots__ = (
        "_failed",
        "_finished",
        "_given",
        "_instance",
        "_last_ns",
        "_statistics",
        "batch",
        "outcomes",
        "remaining",
    )

    def __init__(
        self,
        batch: Batch,
        instance: ProcessInstance | None,
        finished: Finished,
        statistics: ResponseStatistics | None = None,
    ) -> None:
        self.batch = batch
        self._statistics = statistics
        #: The number of responses that each request has had, by its position in the batch.
        self._given: dict[int, int] = {}
        #: The time of each request's last response, by its position in the batch.
        self._last_ns: dict[int, int] = {}
        self._instance = instance
        self._finished = finished
        #: Whether any request has failed.
        self._failed = False
        self.outcomes: list[InferResponse | BacklineError | None] = [None] * len(batch.tickets)
        self.remaining = len(batch.tickets)

    def has_responses(self, position: int) -> bool:
        """Returns whether the request at a position has had any response."""
        return position in self._given

    def respond(self, position: int, response: InferResponse) -> None:
        """Delivers a response of a decoupled model to its request, and then counts the response."""
        ticket = self.batch.tickets[position]
        now, cancelled = monotonic_ns(), ticket.cancelled
        ticket.respond(response)
        self._count(position, response, now, cancelled=cancelled)

    def _count(
        self, position: int, outcome: InferResponse | BacklineError, now: int, *, cancelled: bool
    ) -> None:
        index = self._given.get(position, 0)
        started = self._last_ns.get(position, self.batch.started_ns)
        self._given[position], self._last_ns[position] = index + 1, now
        statistics = self._statistics
        if statistics is None:
            return
        ticket = self.batch.tickets[position]
        if isinstance(outcome, Cancelled) or cancelled:
            statistics.cancelled(index, started, now)
        elif isinstance(outcome, BacklineError):
            statistics.failed(index, started, now)
        else:
            statistics.succeeded(
                index, ticket.request.arrived_ns, started, now, now, empty=not outcome.outputs
            )

    def vacate(self) -> None:
        """Frees the instance for the next batch, although some requests of this batch still have no
        outcome.
        """
        vacate, self.batch.on_vacated = self.batch.on_vacated, None
        if vacate is not None and self._instance is not None:
            vacate(self._instance, self.batch)

    def settle(self, position: int, outcome: InferResponse | BacklineError | None) -> None:
        """Sets the outcome of one request."""
        self.outcomes[position] = outcome
        if isinstance(outcome, BacklineError):
            self._failed = True
        counted = self._statistics is not None  # other models have no responses before the outcome
        if counted and outcome is not None and not isinstance(outcome, Rescheduled):
            cancelled = self.batch.tickets[position].cancelled
            self._count(position, outcome, monotonic_ns(), cancelled=cancelled)
        self.remaining -= 1
        if not self.remaining:
            self._finish()

    def settle_all(self, outcomes: Mapping[int, InferResponse]) -> None:
        """Sets the outcomes of several requests by position. The model must not be decoupled."""
        own = self.outcomes
        for position, outcome in outcomes.items():
            own[position] = outcome
        self.remaining -= len(outcomes)
        if not self.remaining:
            self._finish()

    def _finish(self) -> None:
        batch = self.batch
        batch.on_abandon = None
        batch.outcomes = self.outcomes
        batch.ended_ns = now = monotonic_ns()
        batch.ran_ns = batch.ran_ns or now
        batch.gathered_ns = batch.gathered_ns or batch.started_ns
        # The worker is not trusted: times before the start or in the future would corrupt the statistics.
        if not batch.started_ns <= batch.gathered_ns <= batch.ran_ns <= now:
            batch.gathered_ns, batch.ran_ns = batch.started_ns, now
        if self._failed and len(self.outcomes) > 1:
            batch.parts = [
                self._part(ticket, outcome)
                for ticket, outcome in zip(batch.tickets, self.outcomes, strict=True)
            ]
        self._finished(self._instance, batch)  # type: ignore[arg-type]  # None if WorkerPool.run waits

    def _part(self, ticket: Ticket, outcome: InferResponse | BacklineError | None) -> Batch:
        batch = self.batch
        part = Batch([ticket], ticket.batch_size, batch.started_ns)
        part.gathered_ns, part.ran_ns, part.ended_ns = batch.gathered_ns, batch.ran_ns, batch.ended_ns
        part.outcomes, part.executed, part.shared = [outcome], batch.executed, True
        return part


class Job:
    """Requests of a batch that go to one worker together, by their positions in the batch. `seat` is the seat
    of the batch's instance.
    """

    __slots__ = ("again", "open", "positions", "run", "seat")

    def __init__(self, run: BatchRun, positions: Sequence[int], seat: Seat, *, again: bool = False) -> None:
        self.run = run
        self.positions = positions
        self.seat = seat
        #: Whether this job is a retry, because a worker ended while it was running these requests.
        self.again = again
        #: The positions of the requests that have no outcome yet.
        self.open = set(positions)

    @property
    def turn(self) -> tuple[int, int]:
        """The sort key of waiting jobs: the time when the batch first started, and the job's first position
        in the batch. A retried job keeps that time, so it precedes the jobs of later batches.
        """
        return self.run.batch.started_ns, self.positions[0]

    @property
    def tickets(self) -> list[Ticket]:
        tickets = self.run.batch.tickets
        return [tickets[position] for position in self.positions]

    def settle(self, position: int, outcome: InferResponse | BacklineError | None) -> None:
        """Sets the outcome of one request."""
        self.open.discard(position)
        self.run.settle(position, outcome)

    def settle_all(self, outcomes: Mapping[int, InferResponse]) -> None:
        """Sets the outcomes of several requests; see BatchRun.settle_all."""
        self.open.difference_update(outcomes)
        self.run.settle_all(outcomes)

    def fail(self, error: BacklineError) -> None:
        """Fails all requests that have no outcome yet."""
        for position in sorted(self.open):
            self.settle(position, error)

    def drop_cancelled(self) -> bool:
        """Ends the job without a run if all its requests are cancelled. Returns whether it did so."""
        if not all(ticket.cancelled for ticket in self.tickets):
            return False
        self.fail(Cancelled("the request was cancelled"))
        return True

    def apart(self) -> Iterator[Job]:
        """Splits the job: yields one job for each request that has no outcome yet."""
        return (Job(self.run, (position,), self.seat, again=self.again) for position in sorted(self.open))

    def once_more(self, ended: str, *, idempotent: bool | None, hung: bool, remembers: bool) -> Iterator[Job]:
        """Yields a job for each request that may be retried, and fails the others.

        `ended` says how the worker ended. `idempotent` is None if it is not declared. `hung` means that the
        job exceeded the execution timeout. `remembers` means that the worker held the state of sequences,
        which is lost.
        """
        tickets = self.run.batch.tickets
        for position in sorted(self.open):
            error: BacklineError
            if tickets[position].cancelled:
                error = Cancelled("the request was cancelled")
            elif self.again:
                error = WorkerEnded(
                    f"{ended} while it ran this request; the previous worker also ended while running it"
                )
            elif hung and idempotent is None:
                why = "which is not tried again unless the model is declared idempotent"
                error = WorkerEnded(f"{ended} while it ran this request, {why}")
            elif idempotent is False:
                why = "which is not tried again: the model is not idempotent"
                error = WorkerEnded(f"{ended} while it ran this request, {why}")
            elif remembers:
                error = WorkerEnded(
                    f"{ended} while it ran this request, and the state of its sequence is lost"
                )
            elif self.run.has_responses(position):
                error = WorkerEnded(f"{ended} after the first responses")
            else:
                yield Job(self.run, (position,), self.seat, again=True)
                continue
            self.settle(position, error)
