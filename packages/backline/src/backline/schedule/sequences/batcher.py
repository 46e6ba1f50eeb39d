"""The queue of a model with sequences. Keeps the requests of each sequence in order, assigns places on
instances to sequences, and passes states from one request to the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from math import inf
from time import monotonic, monotonic_ns
from typing import Any

from msgspec.structs import replace as derive

from backline.engine.config.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Owner, Ticket, release_all
from backline.schedule.queues.queue import (
    QueueTotal,
    being_unloaded,
    expired_in_queue,
    limit_wait,
    queue_full,
    waited_too_long,
)
from backline.schedule.scheduler import Settings
from backline.schedule.sequences.lanes import Lane, Passage, passage_of
from backline.schedule.sequences.state_store import StateStore
from backline.schedule.sequences.table import LiveSequence, SequenceTable, begun_by_another, step_of
from backline.schedule.sequences.tensors import SequenceStates, SequenceTensors
from backline.schedule.turn import Alarm
from backline.workers.instance import Instance, Remembers, remembers
from backline_client.values.errors import (
    BacklineError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)
from backline_client.values.messages import InferRequest, InferResponse, Rescheduled, SequenceStep

log = logging.getLogger("backline.schedule")

#: The minimum delay, in seconds, before the next check for passed deadlines and idle sequences, so that a
#: single check can handle many of them.
_SHORTEST_WAIT = 0.002


class _SequenceBacklog(Owner):
    """The owner of the waiting tickets of one sequence. They wait for a place, or for the previous request of
    the sequence to complete.
    """

    __slots__ = ("_batcher", "_sequence")

    def __init__(self, batcher: SequenceBatcher, sequence: LiveSequence) -> None:
        self._batcher = batcher
        self._sequence = sequence

    def cancelled(self, ticket: Ticket) -> None:
        self._batcher.cancelled_waiting(self._sequence, ticket)


class SequenceBatcher:
    """Queues the requests to a model version by sequence. All methods must be called on the event loop.

    A sequence has a place on an instance from its first request to its last, and runs one request at a time,
    in order. Once a request has been handed to an instance, it runs even if it is cancelled, because the
    following requests need the state that it leaves. A failed request leaves the state unchanged. If the
    model itself keeps the state, the state may be lost when the model's process ends. Then the sequences in
    that process end, and the next request of each gets an error. `make_lane` creates the lane of an instance,
    with `slots` places. `advice` is appended to the error of a request whose sequence is unknown to this
    server.

    While a version drains, its open sequences continue until the time limit of the drain. Their states remain
    in `store`, under this `version`, so that the next load of the same version can continue these sequences.
    """

    def __init__(
        self,
        name: str,
        version: str,
        tensors: SequenceTensors,
        statistics: ModelStatistics,
        instances: Sequence[Instance],
        make_lane: Callable[[Instance], Lane],
        *,
        slots: int,
        batched: bool,
        idle_seconds: float,
        store: StateStore,
        policy: QueuePolicy,
        loop: asyncio.AbstractEventLoop,
        total: QueueTotal | None = None,
        advice: str = "",
    ) -> None:
        self._name = name
        self._advice = f"; {advice}" if advice else ""
        self._tensors = tensors
        self._statistics = statistics
        self._make_lane = make_lane
        self._take_instances(instances)
        self._slots = slots
        self._batched = batched
        self._idle_seconds = idle_seconds
        self._policy = policy
        self._limit = policy.max_size or inf
        self._loop = loop
        self._total = total if total is not None and total.limit is not None else None
        self._table = SequenceTable(len(instances), slots, int(idle_seconds * 1e9), self._works)
        self._states = SequenceStates(name, version, tensors, self._table, store, seconds=idle_seconds)
        self._alarm = Alarm(self._look, loop, pause=_SHORTEST_WAIT)
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        #: The ids of sequences that consist of a single request.
        self._ids = count(1)
        #: The tasks that drain replaced lanes, fetch states or store them.
        self._tasks: set[asyncio.Future[Any]] = set()

    @property
    def pending(self) -> int:
        """The number of requests that wait for a place, for the previous request of their sequence, or in a
        lane.
        """
        return self._table.waiting + sum(lane.pending for lane in self._lanes.values())

    @property
    def running(self) -> int:
        """The number of requests that have been handed to the instances."""
        return self._table.running

    @property
    def open_sequences(self) -> int:
        """The number of sequences that have begun and not yet ended."""
        return len(self._table.open)

    def holds(self, request: InferRequest) -> bool:
        """Returns whether the sequence of a request is open in this batcher."""
        return not self._closed and request.sequence is not None and request.sequence.id in self._table.open

    # submitting and running requests

    def submit(self, ticket: Ticket) -> None:
        """Queues a request that fits the model.

        Raises InvalidArgument in these cases: the request has no sequence id (unless the model is iterative),
        or an id that the model's input cannot represent; the model takes batches, and the request does not
        have exactly one item; or the sequence is unknown, the request lacks the START flag, and the model
        keeps no states in the store. Raises Forbidden if another caller has begun the sequence, and
        Unavailable if too many requests are waiting.
        """
        step = ticket.request.sequence
        if (step is None or not step.id) and self._tensors.iterative:
            unused = next(number for number in self._ids if number not in self._table.open)
            step = SequenceStep(unused, start=True, end=False)
            ticket.request = derive(ticket.request, sequence=step)
        if step is None or not step.id:
            raise InvalidArgument(
                f"inference request to model '{self._name}' must specify a non-zero or non-empty"
                " correlation ID"
            )
        if self._batched and ticket.batch_size != 1:
            raise InvalidArgument(
                f"inference request to model '{self._name}' must specify batch-size 1"
                " due to requirements of sequence batcher"
            )
        self._tensors.check_id(step)
        if self._table.is_foreign(ticket):
            raise begun_by_another(self._name, step.id)
        self._check_room(step)
        table = self._table
        now = monotonic_ns()
        sequence = table.accept(ticket, now)
        if sequence is None:
            if not self._tensors.has_states:
                raise self._no_start(ticket)
            sequence = table.adopt(ticket, now)
            self._in_background(self._adopt(sequence))
        elif step.start:
            self._states.forget(sequence)
        if sequence.place is None:
            limit_wait(ticket, self._policy)
            sequence.timed = True
        if self._total is not None:
            self._total.waiting += 1
        self._run_next(sequence)
        if ticket is not sequence.running:
            self._wait(sequence, ticket)
        self._look_at(now / 1e9 + self._idle_seconds)

    async def _adopt(self, sequence: LiveSequence) -> None:
        """Continues a sequence that another load of this version, or another server, has begun."""
        error: BacklineError | None = None
        try:
            await self._states.take_over(sequence)
        except BacklineError as failure:
            error = failure
        sequence.arriving = False
        if sequence.state is None:
            self._lose_beginning(sequence, error)
        self._run_next(sequence)
        self._look_at_rest()

    def _wait(self, sequence: LiveSequence, ticket: Ticket) -> None:
        """Queues a request that waits for a place, or for the previous request of its sequence."""
        ticket.enqueue(_SequenceBacklog(self, sequence))
        if ticket.deadline is not None:
            self._look_at(ticket.deadline)

    def _check_room(self, step: SequenceStep) -> None:
        if self._total is not None and self._total.full and not self._table.runs_at_once(step):
            self._statistics.rejected_total += 1
            raise self._total.refusal(self._name)
        if self._table.waiting >= self._limit and not self._table.runs_at_once(step):
            self._statistics.rejected_full += 1
            raise queue_full(self._name, self._policy.max_size)

    def _no_start(self, ticket: Ticket) -> InvalidArgument:
        return InvalidArgument(
            f"inference request for sequence {step_of(ticket).id} to model '{self._name}'"
            f" must specify the START flag on the first request of the sequence{self._advice}"
        )

    def _run_next(self, sequence: LiveSequence) -> None:
        if sequence.timed and sequence.place is not None:
            sequence.timed = False
            for waiting in sequence.waiting:
                waiting.deadline = waiting.waits_until
        ticket = self._table.take(sequence)
        if ticket is None:
            return
        self._leave(1)
        ticket.start(None)
        self._hand_on(sequence, ticket, step_of(ticket))

    def _hand_on(self, sequence: LiveSequence, ticket: Ticket, step: SequenceStep) -> None:
        """Submits a stand-in for a request to the lane of the request's sequence. `step` is the sequence
        step of the stand-in.
        """
        on_response = self._responded if ticket.takes_many else None
        inputs = dict(ticket.request.inputs)
        self._tensors.add(inputs, step, sequence.state)
        outputs = self._tensors.outputs(ticket.request.outputs)
        inner = ticket.stand_in(
            self._answered, on_response, ticket.flow, inputs=inputs, outputs=outputs, sequence=step
        )
        inner.batch_key = self._tensors.batch_key(inner.batch_key, inputs)
        assert sequence.place is not None, "a running request has a place"
        lane = sequence.place[1]
        passage = Passage(sequence, ticket, self._keepers[lane])
        inner.context = passage
        try:
            if not passage.is_remembered(begins=step.start):
                self._count_failed([ticket])
                raise self._lost(sequence)
            self._lanes[lane].submit(inner)
        except BacklineError as error:
            self._answered(inner, None, error)

    def _answered(self, inner: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        passage = passage_of(inner)
        sequence, ticket = passage.sequence, passage.ticket
        refused: list[Ticket] = []
        # If the model's process was replaced before the run, the state is lost, unless this request started
        # the sequence, because it did so in the new process.
        begun_here = error is None and step_of(inner).start
        if not passage.is_remembered(begins=begun_here):
            response, error = None, error or self._lost(sequence)
            refused, _ = self._table.lose_beginning(sequence)
        if isinstance(response, Rescheduled):
            if not ticket.cancelled and not self._closed:
                self._run_again(sequence, ticket)
                return
            response = None
            error = being_unloaded(self._name) if self._closed else Cancelled("the request was cancelled")
        if response is not None:
            try:
                self._take_out(passage, response)
            except Internal as failure:
                response, error = None, failure
        stored = passage.stored
        if stored is None or stored.done():
            self._finish(sequence, ticket, response, error, refused)
            return
        # The sequence counts as running until its state is stored, so that its responses stay in order.
        stored.add_done_callback(lambda _: self._finish(sequence, ticket, response, error, refused))

    def _take_out(self, passage: Passage, response: InferResponse) -> None:
        """Moves the state from a response into the sequence, and stores it. Raises Internal if the
        response lacks the state.
        """
        sequence = passage.sequence
        stored = self._states.take_out(sequence, response, passage.ticket.request.outputs)
        if stored is not None:
            passage.stored = stored
            self._tasks.add(stored)
            stored.add_done_callback(self._tasks.discard)
            stored.add_done_callback(partial(self._written, sequence))

    def _written(self, sequence: LiveSequence, stored: asyncio.Future[None]) -> None:
        error = None if stored.cancelled() else stored.exception()
        if error is not None:
            log.warning(
                "the state of sequence %s of model '%s' was not stored, so no other server can continue the"
                " sequence: %s",
                sequence.id,
                self._name,
                error,
            )

    def _finish(
        self,
        sequence: LiveSequence,
        ticket: Ticket,
        response: InferResponse | None,
        error: BacklineError | None,
        refused: list[Ticket],
    ) -> None:
        # Each request to an iterative model is a complete sequence.
        if self._tensors.iterative and not sequence.waiting:
            self._table.end(sequence)
        runnable = self._table.finish(sequence, monotonic_ns())
        # With these errors, the first request of the sequence has not run.
        if step_of(ticket).start and response is None and isinstance(error, (Unavailable, DeadlineExceeded)):
            self._lose_beginning(sequence)
        self._states.forget_if_over(sequence)
        self._run_all(runnable)
        ticket.complete(response, error)
        if refused:
            self._count_failed(refused)
            self._refuse(refused, lambda _: self._lost(sequence))
        self._look_at_rest()

    def _run_again(self, sequence: LiveSequence, ticket: Ticket) -> None:
        step = SequenceStep(step_of(ticket).id, end=step_of(ticket).end)
        ticket.deadline = ticket.waits_until  # the timeout applied only to the first run
        ticket.request = derive(ticket.request, timeout=None)
        if sequence.place is not None:
            self._hand_on(sequence, ticket, step)
            return
        # The sequence has lost its place, because there are fewer places now.
        ticket.request = derive(ticket.request, sequence=step)
        self._table.put_back(sequence)
        if self._total is not None:
            self._total.waiting += 1
        self._wait(sequence, ticket)

    def _responded(self, inner: Ticket, response: InferResponse) -> None:
        """Passes a response of a decoupled model on to the caller. The sequence keeps the state from the
        latest response that contains a state. The request ends once that state is stored.
        """
        passage = passage_of(inner)
        ticket = passage.ticket
        with suppress(Internal):
            self._take_out(passage, response)
        ticket.respond(response)

    def _lose_beginning(self, sequence: LiveSequence, error: BacklineError | None = None) -> None:
        """Refuses the requests of a sequence whose first request did not run or is unknown here. The requests
        fail with `error`, or, if `error` is None, with an error that asks for a first request.
        """
        self._refuse_orphans(*self._table.lose_beginning(sequence), error)

    def _refuse_orphans(
        self, orphans: list[Ticket], runnable: list[LiveSequence], error: BacklineError | None = None
    ) -> None:
        def why(ticket: Ticket) -> BacklineError:
            self._statistics.rejected_invalid += 1
            return error or self._no_start(ticket)

        self._refuse(orphans, why)
        self._run_all(runnable)

    # states kept inside the model

    def _works(self, lane: int) -> bool:
        keeper = self._keepers[lane]
        return keeper is None or keeper.memory is not None

    def _lost(self, sequence: LiveSequence) -> Internal:
        return Internal(
            f"the state of sequence {sequence.id} of model '{self._name}' was lost with its worker process,"
            " so the sequence has ended; start a new one"
        )

    def _count_failed(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            self._statistics.fail.add(1, monotonic_ns() - ticket.request.arrived_ns)

    # requests that do not run: cancelled, expired, refused

    def _leave(self, count: int) -> None:
        if self._total is not None:
            self._total.waiting -= count

    def _refuse(self, tickets: Sequence[Ticket], why: Callable[[Ticket], BacklineError]) -> None:
        """Completes waiting requests with an error. Each completion may cancel other requests in `tickets`,
        which are then counted as cancelled instead.
        """
        self._leave(len(tickets))
        release_all(tickets)
        for ticket in tickets:
            if ticket.cancelled:
                self._statistics.record_cancelled(ticket)
            else:
                ticket.complete(None, why(ticket))

    def cancelled_waiting(self, sequence: LiveSequence, ticket: Ticket) -> None:
        """Counts and removes a waiting request that has been cancelled."""
        self._statistics.record_cancelled(ticket)
        self._drop(sequence, ticket)

    def _drop(self, sequence: LiveSequence, ticket: Ticket) -> None:
        self._leave(1)
        ticket.release()
        orphans, runnable = self._table.drop(sequence, ticket)
        self._states.forget_if_over(sequence)
        self._refuse_orphans(orphans, runnable)
        self._look_at_rest()

    def _run_all(self, sequences: Iterable[LiveSequence]) -> None:
        for sequence in sequences:
            self._run_next(sequence)

    # expired requests and idle sequences

    def _look_at(self, moment: float) -> None:
        """Schedules a check for expired requests and idle sequences at `moment` (in seconds of
        time.monotonic()), or earlier.
        """
        if not self._closed:
            self._alarm.set(moment)

    def _look(self) -> None:
        now = monotonic()
        expired, nearest = self._table.expired(now)
        for sequence, ticket in expired:
            if ticket not in sequence.waiting:
                continue  # it was refused above, together with the first request of its sequence
            if sequence.timed and waited_too_long(ticket, self._policy, now):
                self._reject(sequence, ticket, now)
                continue
            self._drop(sequence, ticket)
            self._statistics.record_expired(ticket)
            ticket.expire(expired_in_queue(ticket, now, self._name, by_policy=False))
        ended, runnable = self._table.end_idle(monotonic_ns())
        for sequence in ended:
            text = "sequence %s of model '%s' has ended after %g seconds without a request"
            log.info(text, sequence.id, self._name, self._idle_seconds)
            self._states.forget(sequence)
        self._run_all(runnable)
        self._look_at(min(nearest, self._table.next_idle_ns() / 1e9))
        self._look_at_rest()

    def _reject(self, sequence: LiveSequence, late: Ticket, now: float) -> None:
        """Refuses all requests of a sequence, because the request `late` has waited too long for the sequence
        to get a place.
        """
        waited = f"{(now - late.request.arrived_ns / 1e9) * 1000:.0f} ms"

        def why(ticket: Ticket) -> BacklineError:
            self._statistics.record_expired(ticket)
            return Unavailable(
                f"timeout of the corresponding sequence has been expired after {waited} of waiting for a"
                f" place on model '{self._name}'"
            )

        tickets = self._table.reject(sequence)
        self._states.forget_if_over(sequence)
        self._refuse(tickets, why)

    # replacing instances, and draining

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Switches to new queue limits and, if given, new instances. Running requests are not affected."""
        self._policy = settings.queue.policy
        self._limit = self._policy.max_size or inf
        if instances is not None:
            self.replace_instances(instances)

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs all further requests on other instances. The current instances are closed once they are
        drained.

        A sequence whose state is in the memory of a current instance continues on the new instance with the
        same memory or, if there is none, on the current instance, which then gets no other sequences.
        """
        lanes, keepers = self._lanes, self._keepers
        self._take_instances(instances)
        kept = _same_memories(keepers, self._keepers)
        for number, lane in lanes.items():
            keeper = keepers[number]
            stays = number not in kept and keeper is not None and keeper.memory is not None
            if stays and self._table.uses(number):
                kept[number] = len(self._lanes)
                self._leaving.add(len(self._lanes))
                self._keepers[len(self._lanes)] = keeper
                self._lanes[len(self._lanes)] = lane
            else:
                self._in_background(lane.drain(inf))
        self._run_all(self._table.resize(len(instances), self._slots, kept))

    def _take_instances(self, instances: Sequence[Instance]) -> None:
        #: The lanes by number.
        self._lanes = {number: self._make_lane(instance) for number, instance in enumerate(instances)}
        #: The numbers of the lanes that get no further sequences.
        self._leaving: set[int] = set()
        keeps = not self._tensors.has_states  # otherwise, each request contains the state
        self._keepers = {
            number: instance if keeps and remembers(instance) else None
            for number, instance in enumerate(instances)
        }

    def _in_background(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, limit: float) -> None:
        """Continues to run requests until all sequences have ended, but for at most `limit` seconds. Then
        refuses the waiting requests and closes the instances.

        The states of sequences that have not ended remain in the store.
        """
        end = self._loop.time() + limit
        if not self._table.empty and limit > 0:
            self._ended = self._loop.create_future()
            await asyncio.wait((self._ended,), timeout=limit)
        self._closed = True
        self._alarm.stop()
        for sequence in list(self._table.backlogged):
            self._refuse(self._table.clear(sequence), lambda ticket: being_unloaded(self._name))
        for lane in list(self._lanes.values()):
            await lane.drain(max(end - self._loop.time(), 0))
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def _look_at_rest(self) -> None:
        for number in [number for number in self._leaving if not self._table.uses(number)]:
            self._leaving.remove(number)
            self._in_background(self._lanes.pop(number).drain(inf))
        if self._ended is not None and not self._ended.done() and self._table.empty:
            self._ended.set_result(None)


def _same_memories(
    before: Mapping[int, Remembers | None], now: Mapping[int, Remembers | None]
) -> dict[int, int]:
    """Maps the numbers of lanes before a change to the numbers of the lanes whose instances have the same
    memory now.
    """
    free: defaultdict[int, list[int]] = defaultdict(list)
    for number, keeper in now.items():
        if keeper is not None and keeper.memory is not None:
            free[id(keeper.memory)].append(number)
    same: dict[int, int] = {}
    for number, keeper in before.items():
        if keeper is not None and free.get(id(keeper.memory)):
            same[number] = free[id(keeper.memory)].pop(0)
    return same
