"""Sends a batch of a remote lane as one call, and reports its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.ticket import Ticket
from backline.workers.batch import Batch
from backline.workers.here.execution import failed_together
from backline.workers.instance import Finished, Instance
from backline_client.client.transport import Sending
from backline_client.values.errors import (
    BacklineError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PayloadTooLarge,
)
from backline_client.values.messages import InferResponse

if TYPE_CHECKING:
    from backline.plugins.fleet.lane import RemoteLane

#: Errors that a single request in a shared call may have caused. After such an error, each request of the
#: call is sent again alone, if the model is idempotent.
_ABOUT_REQUESTS = (InvalidArgument, PayloadTooLarge, Internal)
_ENDED = Batch([], 0, 0)


class SentBatch:
    """A batch whose requests are in flight to other servers, normally as one call.

    If a call with several requests fails, and one of them may be the cause, the requests are sent again one
    after the other, each in a separate call, unless the model is not idempotent. So only the invalid request
    fails, as in a batch that runs in this process (`Execution`).

    The call lasts at most until the latest deadline among its requests. A request with an earlier deadline
    expires while the call continues.
    """

    #: `Deadlines` reads `closed` and `answered`.
    __slots__ = (
        "_batch",
        "_finished",
        "_instance",
        "_lane",
        "_sending",
        "answered",
        "closed",
    )

    def __init__(self, lane: RemoteLane, instance: Instance, batch: Batch, finished: Finished) -> None:
        self._lane = lane
        self._instance = instance
        self._batch = batch
        self._finished = finished
        self._sending: Sending | None = None
        self.closed = self.answered = False

    def send(self) -> None:
        """Sends the batch as one call."""
        batch, lane = self._batch, self._lane
        tickets = batch.tickets
        if len(tickets) > 1:
            self._expire_at(earliest(tickets))
        try:
            call = lane.call(tickets)
            batch.gathered_ns = monotonic_ns()
            batch.executed = True
            self._sending = lane.transport.start_infer(call, call.timeout, self._answered)
        except BacklineError as error:
            self._not_sent(lane.explain(error))
            return
        except Exception as error:
            # A value of a request does not fit the wire format, such as an integer of more than 64 bits.
            self._not_sent(lane.unsent(error))
            return
        lane.poll.awaited += 1
        batch.on_abandon = self._abandon

    def _not_sent(self, error: BacklineError) -> None:
        """Handles a failure to send the call.

        The failure is handled in a later turn of the event loop. Otherwise, the scheduler would start the
        next batch within this call, and batches that cannot be sent would nest one call in another.
        """
        batch = self._batch
        batch.gathered_ns = batch.gathered_ns or monotonic_ns()
        batch.on_abandon = self._abandon
        self._lane.poll.awaited += 1
        self._lane.loop.call_soon(self._answered, None, error)

    def _answered(self, answer: InferResponse | None, error: BaseException | None) -> None:
        lane, tickets = self._lane, self._batch.tickets
        self._sending = None
        lane.poll.awaited -= 1
        if answer is not None:
            try:
                self.end(lane.responses_to(tickets, answer))
            except BacklineError as wrong:
                self.end([wrong] * len(tickets))
        elif len(tickets) > 1 and isinstance(error, _ABOUT_REQUESTS):
            if lane.idempotent:
                self._send_each_alone()
            else:
                self.end([failed_together(lane.explain(error), len(tickets))] * len(tickets))
        else:
            self.end([lane.explain(error or asyncio.CancelledError())] * len(tickets))

    def end(self, outcomes: Sequence[InferResponse | BacklineError | None]) -> None:
        """Reports the outcome of each request, and makes the instance free for another batch."""
        # `Deadlines` may refer to this object for a while longer, but must not keep the tensors in memory.
        batch, self._batch = self._batch, _ENDED
        self.closed = self.answered = True
        batch.outcomes = [*outcomes]
        batch.on_abandon = None
        batch.ran_ns = batch.ended_ns = monotonic_ns()
        self._finished(self._instance, batch)

    def _send_each_alone(self) -> None:
        """Sends each request in a separate call, one after the other: an instance has at most one call in
        flight, so that all instances together keep to `max_in_flight`.
        """
        self._batch.parts = []
        self._send_next()

    def _send_next(self) -> None:
        batch = self._batch
        parts = batch.parts
        assert parts is not None, "the requests are sent alone"
        for ticket in batch.tickets[len(parts) :]:
            now = monotonic_ns()
            part = Batch([ticket], ticket.batch_size, now, off_loop=True)
            parts.append(part)
            if not ticket.cancelled:
                SentBatch(self._lane, self._instance, part, self._part_ended).send()
                return
            part.outcomes = [Cancelled(f"the request to model '{self._lane.name}' was cancelled")]
            part.gathered_ns = part.ran_ns = part.ended_ns = now
        self.end([part.outcomes[0] for part in parts])

    def _part_ended(self, _: Instance, __: Batch) -> None:
        self._send_next()

    def _abandon(self) -> None:
        """Withdraws the batch, because all its requests are cancelled."""
        batch = self._batch
        batch.on_abandon = None
        if self._sending is not None:
            self._sending.abandon()
            # `_answered` runs later, because the scheduler that calls this method is still in the middle of
            # the cancellation.
            self._lane.loop.call_soon(self._answered, None, asyncio.CancelledError())
        for part in batch.parts or ():
            part.abandon()

    # deadlines of requests that share a call

    def _expire_at(self, deadline: float | None) -> None:
        if deadline is not None:
            self._lane.deadlines.add(deadline, self)

    def expire(self) -> None:
        """Ends the requests whose deadlines have passed. The call continues for the other requests."""
        now = monotonic()
        left = []
        for ticket in self._batch.tickets:
            if ticket.waits_until is None or ticket.cancelled:
                continue
            if ticket.waits_until <= now:
                ticket.expire(
                    DeadlineExceeded(
                        f"{self._lane.urls} did not answer the request to model '{self._lane.name}'"
                        " before its deadline"
                    )
                )
            else:
                left.append(ticket)
        if not self.closed and left:
            self._expire_at(earliest(left))


def earliest(tickets: Sequence[Ticket]) -> float | None:
    """Returns the earliest deadline of the requests, in seconds of time.monotonic(); None if no request has a
    deadline.
    """
    deadlines = [ticket.waits_until for ticket in tickets if ticket.waits_until is not None]
    return min(deadlines, default=None)


def latest(tickets: Sequence[Ticket]) -> float | None:
    """Returns the latest deadline of the requests, in seconds of time.monotonic(); None if any request has no
    deadline.
    """
    found = 0.0
    for ticket in tickets:
        if ticket.waits_until is None:
            return None
        found = max(found, ticket.waits_until)
    return found
