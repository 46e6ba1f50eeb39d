"""Lanes, each of which runs sequences on one instance. With Triton's strategy `direct`, each sequence has a
fixed slot in the batches; with the strategy `oldest`, requests of sequences are batched like other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Protocol

from backline.engine.config.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Owner, Ticket, start_all
from backline.schedule.queues.queue import being_unloaded, expired_in_queue
from backline.schedule.scheduler import Scheduler
from backline.schedule.sequences.table import LiveSequence
from backline.schedule.tally import record_failure, record_shared_execution
from backline.schedule.turn import Alarm
from backline.workers.batch import Batch
from backline.workers.instance import Instance, Remembers, runs_off_loop, waits_for_turn
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor

#: The time, in seconds, from a deadline to the check for expired requests. It is above 0 because timers of
#: the event loop may fire early.
_LATER = 0.0001
#: The queue policy of lanes. It has no timeouts: as in Triton, timeouts apply only while a sequence waits for
#: a place.
UNTIMED = QueuePolicy(timed=False)
#: The context of a ticket that fills an empty slot.
_FILLER = object()


class Lane(Protocol):
    """Runs the requests of the sequences that have a place on one instance.

    Not to be confused with the lane of an instance, which is where the instance runs: on a thread, in a
    worker process, and so on.
    """

    @property
    def pending(self) -> int:
        """The number of queued requests, not counting requests that are running."""

    def submit(self, ticket: Ticket) -> None:
        """Queues a request. A sequence has at most one request in the lane at a time."""

    async def drain(self, limit: float) -> None:
        """Runs queued requests for at most `limit` seconds, then refuses the others, ends streams, which may
        be endless, and closes the instance once its running batch has ended.
        """


@dataclass(slots=True, eq=False)
class Passage:
    """The link from a stand-in that runs on an instance to the original ticket and its sequence.

    `instance` is set only if the model itself keeps the state of the sequence, because such a state can be
    lost. `stored` is a future that is done once the store has the last state that the request left; it is
    None if the response need not wait for the store.
    """

    sequence: LiveSequence
    ticket: Ticket
    instance: Remembers | None
    stored: asyncio.Future[None] | None = None

    def is_remembered(self, *, begins: bool) -> bool:
        """Returns whether the model still has the state of the sequence. If the request `begins` the
        sequence, no earlier state is needed: records which memory will have the state, and returns True.
        """
        if self.instance is None:
            return True
        memory = self.instance.memory
        if begins:
            self.sequence.memory = memory
        return self.sequence.memory is memory


def passage_of(ticket: Ticket) -> Passage:
    """Returns the Passage of a stand-in that was handed to an instance."""
    passage: Passage = ticket.context
    return passage


def slot_of(ticket: Ticket) -> int:
    """Returns the slot of a stand-in that was handed to an instance."""
    place = passage_of(ticket).sequence.place
    assert place is not None, "a running request has a place"
    return place[0]


class SequenceLane(Scheduler):
    """A Scheduler that forms its next batch only after the requests of the current batch have been completed,
    because these completions submit the next requests of the same sequences.
    """

    __slots__ = ()

    def _finished(self, instance: Instance, batch: Batch) -> None:
        self._scheduled = True
        super()._finished(instance, batch)
        self._loop.call_soon(self._dispatch)


@dataclass(frozen=True, slots=True)
class SlotPolicy:
    """Decides when the slots of an instance run: as soon as at least the fraction `minimum` of the `slots`
    have a request, or once the oldest request has waited for `delay_ns` nanoseconds. Without a delay, the
    slots run immediately.
    """

    slots: int = 1
    minimum: float = 0.0
    delay_ns: int = 0

    def wait_until(self, ready: int, oldest_ns: int, now_ns: int) -> int:
        """Returns the time until which `ready` requests wait for other requests; 0 if they do not wait. The
        oldest of the `ready` requests arrived at `oldest_ns`.
        """
        if not self.delay_ns or ready / self.slots >= self.minimum or now_ns - oldest_ns >= self.delay_ns:
            return 0
        return oldest_ns + self.delay_ns


def choose(ready: list[Ticket | None]) -> list[Ticket | None]:
    """Returns the slots of the next batch, with the requests that have the same batch key as the oldest
    request. Slots of other requests are empty in this batch. Empty slots at the end are left out.
    """
    first = min(
        (ticket for ticket in ready if ticket is not None), key=lambda ticket: ticket.request.arrived_ns
    )
    chosen = [
        ticket if ticket is not None and ticket.batch_key == first.batch_key else None for ticket in ready
    ]
    while chosen[-1] is None:
        chosen.pop()
    return chosen


class SlotLane(Owner):
    """A lane that runs the slots of an instance. A slot takes one request at a time. All methods must be
    called on the event loop.

    `empty` creates the inputs of an empty slot from the inputs of another request in the batch.
    """

    def __init__(
        self,
        name: str,
        policy: SlotPolicy,
        instance: Instance,
        statistics: ModelStatistics,
        empty: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._name = name
        self._policy = policy
        self._instance = instance
        self._statistics = statistics
        self._empty = empty
        self._loop = loop
        self._ready: list[Ticket | None] = [None] * policy.slots
        self._batch: Batch | None = None
        self._scheduled = False
        self._alarm = Alarm(self._dispatch, loop)
        self._rest: asyncio.Future[None] | None = None
        if waits_for_turn(instance):
            instance.form_again = self._form_again

    @property
    def pending(self) -> int:
        """The number of requests that wait for the instance."""
        return sum(ticket is not None for ticket in self._ready)

    def submit(self, ticket: Ticket) -> None:
        """Queues a request in its slot, which must be free."""
        ticket.enqueue(self)
        self._ready[slot_of(ticket)] = ticket
        self._schedule()

    def cancelled(self, ticket: Ticket) -> None:
        """Does nothing. A cancelled request in a slot still runs, because later requests of its sequence
        need the state that it leaves.
        """

    async def drain(self, limit: float) -> None:
        """Runs queued requests for at most `limit` seconds, then refuses the others, ends streams, which may
        be endless, and closes the instance once its running batch has ended.
        """
        self._policy = SlotPolicy(self._policy.slots)
        self._schedule()
        if self._batch is not None or self.pending:
            self._rest = self._loop.create_future()
            await asyncio.wait((self._rest,), timeout=limit)
        self._refuse_all()
        if waits_for_turn(self._instance):
            self._instance.form_again = self._refuse_batch
            self._instance.look_again()
        if self._batch is not None:
            self._rest = self._loop.create_future()
            if self._statistics.responses is not None:
                for ticket in self._batch.tickets:
                    ticket.expire(being_unloaded(self._name))
                self._batch.abandon()
            await self._rest
        self._instance.close()

    def _schedule(self) -> None:
        if not self._scheduled and self._batch is None:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        self._alarm.stop()
        if self._batch is not None:
            return
        now = monotonic_ns()
        self._refuse_late(now / 1e9)
        waiting = [ticket for ticket in self._ready if ticket is not None]
        if not waiting:
            self._look_at_rest()
            return
        until = self._policy.wait_until(
            len(waiting), min(ticket.request.arrived_ns for ticket in waiting), now
        )
        if until:
            deadlines = [ticket.deadline for ticket in waiting if ticket.deadline is not None]
            self._alarm.set(min([until / 1e9, *deadlines]) + _LATER)
            return
        tickets = self._take()
        self._batch = Batch(tickets, len(tickets), now, off_loop=runs_off_loop(self._instance, tickets))
        self._instance.run(self._batch, self._finished)

    def _refuse_all(self) -> None:
        ready, self._ready = self._ready, [None] * self._policy.slots
        for ticket in ready:
            if ticket is not None:
                ticket.complete(None, being_unloaded(self._name))

    def _refuse_batch(self, batch: Batch) -> None:
        """Refuses the requests of a batch that still waits for a permit when the model is unloaded."""
        self._put_back(batch)
        self._refuse_all()
        batch.items = 0

    def _put_back(self, batch: Batch) -> None:
        for slot, ticket in enumerate(batch.tickets):
            if ticket.context is not _FILLER:
                ticket.enqueue(self)
                self._ready[slot] = ticket
        batch.tickets = []

    def _form_again(self, batch: Batch) -> None:
        """Replaces the requests of a batch that waits for a permit with the requests that are in the slots
        now. The batch may become empty.
        """
        self._put_back(batch)
        self._refuse_late(monotonic_ns() / 1e9)
        if self.pending:
            batch.tickets = self._take()
        batch.items = len(batch.tickets)

    def _take(self) -> list[Ticket]:
        """Takes the requests of the next batch, and fills the empty slots between them."""
        chosen = choose(self._ready)
        tickets: list[Ticket] = []
        like = next(ticket for ticket in chosen if ticket is not None)
        for slot, ticket in enumerate(chosen):
            if ticket is None:
                request = InferRequest(
                    like.request.model_name, self._empty(like.request.inputs), outputs=like.request.outputs
                )
                ticket = Ticket(request, _ignore, context=_FILLER)
            else:
                self._ready[slot] = None
            tickets.append(ticket)
        start_all(tickets, None)
        return tickets

    def _refuse_late(self, now: float) -> None:
        while late := [
            ticket
            for ticket in self._ready
            if ticket and ticket.deadline is not None and ticket.deadline <= now
        ]:
            self._ready = [None if ticket in late else ticket for ticket in self._ready]
            # The slots are emptied first, because completing a late request may put the next request of its
            # sequence into the slot. That request may be late too, so this is repeated.
            for ticket in late:
                self._statistics.record_expired(ticket)
                ticket.expire(expired_in_queue(ticket, now, self._name, by_policy=False))

    def _finished(self, instance: Instance, batch: Batch) -> None:
        self._batch = None
        if self.pending:
            self._schedule()
        self._record(batch)
        for ticket, outcome in zip(batch.tickets, batch.outcomes, strict=True):
            if ticket.trace is not None:
                ticket.trace.ran(batch)
            if outcome is None or isinstance(outcome, InferResponse):
                ticket.complete(outcome, None)
            else:
                ticket.complete(None, outcome)
        self._look_at_rest()

    def _look_at_rest(self) -> None:
        if self._rest is not None and not self._rest.done() and self._batch is None and not self.pending:
            self._rest.set_result(None)

    def _record(self, batch: Batch) -> None:
        """Counts a run. The recorded batch size includes empty slots."""
        for part in batch.parts or (batch,):
            asked = [ticket for ticket in part.tickets if ticket.context is not _FILLER]
            if not asked:
                continue
            if part.outcomes[0] is None or isinstance(part.outcomes[0], InferResponse):
                moments = part.started_ns, part.gathered_ns, part.ran_ns, part.ended_ns
                self._statistics.record_answers(asked, len(asked), *moments)
                if not part.shared:
                    self._statistics.record_execution(part.items, *moments)
            else:
                record_failure(self._statistics, part, asked)
        record_shared_execution(self._statistics, batch.parts or ())


def _ignore(ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
    """Ignores the completion of a ticket that filled an empty slot, because nobody waits for its response."""
