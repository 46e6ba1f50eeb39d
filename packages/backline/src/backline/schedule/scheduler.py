"""The scheduler of a model version: takes batches from a bounded queue, and gives them to the version's
instances.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from time import monotonic, monotonic_ns

from msgspec import Struct, field

from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Owner, Ticket, release_all, start_all
from backline.schedule.batching import BatchPolicy, Formed, Gathering, form_batch
from backline.schedule.ordering import ResponseOrder
from backline.schedule.queues.priority import make_queue
from backline.schedule.queues.queue import (
    Queue,
    QueueSettings,
    QueueTotal,
    being_unloaded,
    expired_in_queue,
    queue_full,
)
from backline.schedule.tally import Tally
from backline.schedule.turn import LONGEST_NS, Alarm, Turn
from backline.workers.batch import Batch
from backline.workers.instance import Instance, makes_calls, runs_off_loop, waits_for_turn
from backline_client.values.errors import BacklineError, Unavailable
from backline_client.values.messages import InferResponse

#: The minimum delay, in seconds, before the next check for expired requests. Timers of the event loop may
#: fire up to this much too early.
_SHORTEST_WAIT = 0.001
#: The pause after a check for expired requests, as a multiple of the duration of the check. A check scans the
#: whole queue.
_SWEEP_PAUSE = 20


class Settings(Struct, frozen=True):
    """The settings for queueing and batching the requests to a model version. They can be replaced while
    requests are queued.
    """

    batch: BatchPolicy = field(default_factory=BatchPolicy)
    queue: QueueSettings = field(default_factory=QueueSettings)


class Scheduler(Owner):
    """Queues the requests to a model version, and runs them on the version's instances. All methods must be
    called on the event loop.

    A free instance takes the requests that have been queued by the end of the current turn of the loop, so
    that requests that arrive together run together. The next batch starts in the next turn, so that the loop
    serves sockets between the batches of an inline model. A nearly full batch, or one that follows a brief
    run outside the loop, may gather requests for a few more turns (see Gathering). A queued request is
    refused as soon as its deadline passes, even while all instances are busy. A request that is cancelled
    leaves the queue immediately. A running batch is abandoned once all its requests are cancelled. With
    `preserve_ordering`, responses are sent in the order in which requests started.
    """

    __slots__ = (
        "_busy",
        "_company",
        "_expiry",
        "_gathering",
        "_idle",
        "_instances",
        "_key",
        "_lacking",
        "_loop",
        "_name",
        "_order",
        "_policy",
        "_queue",
        "_rest",
        "_running",
        "_scheduled",
        "_settings",
        "_starting",
        "_statistics",
        "_sweep_after",
        "_total",
        "_turn",
        "tally",
    )

    def __init__(
        self,
        name: str,
        settings: Settings,
        instances: Sequence[Instance],
        statistics: ModelStatistics,
        *,
        loop: asyncio.AbstractEventLoop,
        preserve_ordering: bool = False,
        total: QueueTotal | None = None,
        turn: Turn | None = None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._policy = settings.batch
        self._queue = self._connected_queue(settings.queue)
        self._order = ResponseOrder() if preserve_ordering else None
        self._take_instances(instances)
        #: The batches that run outside the event loop.
        self._busy: set[Batch] = set()
        self._statistics = statistics
        self.tally = Tally(statistics)
        self._loop = loop
        self._turn = turn or Turn()
        self._total = total if total is not None and total.limit is not None else None
        self._running = 0
        self._scheduled = False
        #: Whether a batch is being handed to its instance, which may refuse the batch immediately.
        self._starting = False
        #: The number of further items for which the first requests in the queue wait before they run; 0 if
        #: they do not wait.
        self._lacking = 0
        #: The batch key of the requests that wait for a larger batch.
        self._key: object = None
        self._company = Alarm(self._dispatch, loop)
        self._expiry = Alarm(self._expire, loop, pause=_SHORTEST_WAIT)
        self._sweep_after = 0.0
        #: A future that exists once the scheduler drains or closes, and is resolved when no request is queued
        #: or running.
        self._rest: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """The number of queued requests, not counting requests that are running."""
        return self._queue.size

    @property
    def running(self) -> int:
        """The number of requests that are running."""
        return self._running

    def submit(self, ticket: Ticket) -> None:
        """Queues a request that fits the model.

        Raises Unavailable if the queue is full, or if the request would have to wait and the queues of all
        models together are full.
        """
        total = self._total
        if total is not None and total.full and not self._runs_at_once():
            self._statistics.rejected_total += 1
            raise total.refusal(self._name)
        if not self._queue.add(ticket):
            self._statistics.rejected_full += 1
            raise self._full(ticket)
        if total is not None:
            total.waiting += 1
        deadline = ticket.deadline
        if deadline is not None and deadline < self._expiry.moment:
            self._wait_for(deadline)
        if self._scheduled:
            group = self._gathering.group
            if group and self._queue.size >= group:
                self._dispatch()
        elif self._idle:
            if self._lacking > 0:
                self._lacking -= ticket.batch_size
                if self._lacking > 0 and ticket.batch_key == self._key:
                    return
            self._scheduled = True
            self._turn.soon(self._dispatch, self._loop)

    @property
    def most_at_once(self) -> int:
        """The maximum number of items that `run_at_once` can run now; 0 if no instance on the event loop is
        free, if a batch does not simply consist of the first requests, or if responses must be in order.
        """
        idle = self._idle
        if not idle or idle[-1].off_loop or not self._policy.takes_all or self._order is not None:
            return 0
        return self._policy.max_items

    def run_at_once(self, ticket: Ticket) -> Batch:
        """Runs a request that fits the model immediately, before those that are queued, and returns its
        batch. The request may have at most `most_at_once` items. It is neither completed nor counted.
        """
        batch = Batch([ticket], ticket.batch_size, monotonic_ns())
        self._idle.pop().run(batch, self._ran_at_once)
        return batch

    def _ran_at_once(self, instance: Instance, _: Batch) -> None:
        if instance in self._instances:
            self._idle.append(instance)

    def _runs_at_once(self) -> bool:
        """Returns whether the free instances would take a further request at the end of the current turn."""
        return self._queue.size < len(self._idle) * self._policy.max_items

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Switches to new settings and, if given, new instances. Batches that are running finish on their
        current instances.

        Queued requests remain queued even if there are more of them than the new limits allow. Requests that
        have already waited longer than the new timeout are refused.
        """
        if settings.queue != self._settings.queue:
            before, self._queue = self._queue, self._connected_queue(settings.queue)
            self._queue.expired = before.expired
            for ticket in before.clear():
                self._queue.add(ticket, anyway=True)
        if settings.batch != self._policy:
            self._gathering = Gathering(calls=makes_calls(self._instances))
        self._settings = settings
        self._policy = settings.batch
        if instances is not None:
            self.replace_instances(instances)
        self._expire()
        self._schedule()

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs all further batches on other instances. The current instances are closed after the batches
        that they are running.
        """
        for instance in self._instances:
            instance.close()
        self._take_instances(instances)
        self._schedule()

    def _take_instances(self, instances: Sequence[Instance]) -> None:
        self._instances = tuple(instances)
        self._idle = list(instances)
        self._gathering = Gathering(calls=makes_calls(instances))
        for instance in instances:
            if waits_for_turn(instance):
                instance.form_again = self._form_again

    async def drain(self, limit: float) -> None:
        """Runs queued requests for up to `limit` seconds, then refuses the requests that are still queued,
        ends streams, waits for running batches, and closes the instances.

        Nothing may be submitted after this call.
        """
        # No more requests will arrive, so waiting for a larger batch is pointless.
        self._policy = replace(self._policy, delay_ns=0)
        self._dispatch()
        await self._until_rest(limit)
        await self.close()

    async def close(self) -> None:
        """Refuses queued requests, ends streams, which may be endless, waits for running batches, and closes
        the instances.
        """
        self._company.stop()
        self._expiry.stop()
        self._refuse(self._queue.clear(), self._unloading)
        for instance in self._instances:
            if waits_for_turn(instance):
                instance.form_again = self._refuse_batch
                instance.look_again()
        if self._statistics.responses is not None:
            for ticket in [ticket for batch in self._busy for ticket in batch.tickets]:
                ticket.expire(being_unloaded(self._name))
        await self._until_rest(None)
        for instance in self._instances:
            instance.close()

    def _connected_queue(self, settings: QueueSettings) -> Queue:
        queue = self._make_queue(settings)
        queue.on_left, queue.on_displaced = self._left, self._displaced
        return queue

    def _make_queue(self, settings: QueueSettings) -> Queue:
        return make_queue(settings)

    async def _until_rest(self, limit: float | None) -> None:
        if self._queue.size or self._running:
            self._rest = self._loop.create_future()
            await asyncio.wait((self._rest,), timeout=limit)

    def _look_at_rest(self) -> None:
        if self._rest is not None and not self._rest.done() and not self._queue.size and not self._running:
            self._rest.set_result(None)

    # from the queue to the instances

    def _schedule(self) -> None:
        if not self._scheduled and self._idle and self._queue.size:
            self._scheduled = True
            self._turn.soon(self._dispatch, self._loop)

    def _dispatch(self) -> None:
        self._scheduled = False
        self._lacking = 0
        queue = self._queue
        if not self._idle:
            return
        now = monotonic_ns()
        if (self._gathering.last or queue.size > self._policy.nearly_full) and self._gathers(now):
            self._scheduled = True
            self._turn.soon(self._dispatch, self._loop)
            return
        formed = form_batch(queue, self._policy, now)
        if formed.tickets:
            alone = self._policy.max_items == 1 and self._idle[-1].off_loop
            self._start(formed, now)
            if alone:
                self._start_others(now)
            if self._idle and not self._scheduled and queue.size:
                self._scheduled = True
                self._turn.soon(self._dispatch, self._loop)
        elif formed.wait_until:
            self._lacking, self._key = formed.lacking, formed.key
            self._company.set(formed.wait_until / 1e9)
        if queue.expired:  # after the start, because completions may cancel other requests
            self._refuse_expired(now / 1e9)
        if self._rest is not None:
            self._look_at_rest()

    def _gathers(self, now: int) -> bool:
        """Returns whether the next batch waits for the requests of another turn."""
        policy = self._policy
        queued = self._queue.size
        if not self._idle[-1].off_loop:
            # The steps of an ensemble that follow a batch do not arrive one by one.
            return not self._turn.answering and self._gathering.fills(queued, policy.max_items)
        return (
            queued < policy.max_items
            and policy.gathers
            and self._gathering.goes_on(queued, len(self._busy), now)
        )

    def _start_others(self, began: int) -> None:
        """Starts requests on all other free instances, for at most LONGEST_NS nanoseconds.

        This is done only for requests that run alone and off the event loop. There is no advantage in
        starting such requests in the next turn, and a remote lane sends all requests that start in the same
        turn together.
        """
        now = began
        while self._idle and self._queue.size and now - began < LONGEST_NS:
            formed = form_batch(self._queue, self._policy, now)
            if not formed.tickets:
                return
            self._start(formed, now)
            now = monotonic_ns()

    def _start(self, formed: Formed, now: int) -> None:
        tickets = formed.tickets
        self._running += len(tickets)
        if self._total is not None:
            self._total.waiting -= len(tickets)
        if self._order is not None:
            self._order.start(tickets)
        instance = self._idle.pop()
        batch = Batch(tickets, formed.items, now)
        if runs_off_loop(instance, tickets):
            batch.off_loop = True
            batch.on_vacated = self._vacated
            self._busy.add(batch)
            start_all(tickets, self)
        else:
            start_all(tickets, None)  # no owner: nobody can cancel a request while its run blocks the loop
        self._starting = True
        try:
            instance.run(batch, self._finished)
        finally:
            self._starting = False

    def _form_again(self, batch: Batch) -> None:
        """Chooses again which requests are in a batch that waits for a permit. The batch may become empty."""
        now = monotonic_ns()
        before = batch.tickets
        live = [ticket for ticket in before if not ticket.cancelled]
        self.tally.gone([ticket for ticket in before if ticket.cancelled])
        if self._order is not None:
            # The order of responses already includes the requests of this batch, so no other requests may
            # join it.
            late = [ticket for ticket in live if ticket.deadline is not None and ticket.deadline <= now / 1e9]
            self._leave_out(batch, late, lambda ticket: ticket.expire(self._expiry_of(ticket, now / 1e9)))
            return
        self._queue.put_back(live, now / 1e9)
        formed = form_batch(self._queue, replace(self._policy, delay_ns=0), now)
        self._running += len(formed.tickets) - len(before)
        if self._total is not None:
            self._total.waiting += len(live) - len(formed.tickets)
        start_all(formed.tickets, self)
        batch.tickets, batch.items = formed.tickets, formed.items
        for ticket in live:  # some of these may have to wait in the queue again
            if ticket.deadline is not None and now / 1e9 < ticket.deadline < self._expiry.moment:
                self._wait_for(ticket.deadline)
        if self._queue.expired:
            self._refuse_expired(now / 1e9)

    def _refuse_batch(self, batch: Batch) -> None:
        """Refuses the requests of a batch that still waits for a permit when the model is unloaded."""
        self.tally.gone([ticket for ticket in batch.tickets if ticket.cancelled])
        self._leave_out(batch, [ticket for ticket in batch.tickets if not ticket.cancelled], self._unloading)

    def _leave_out(self, batch: Batch, leaving: list[Ticket], end: Callable[[Ticket], None]) -> None:
        """Removes cancelled requests, and the requests in `leaving`, from a batch that waits for a permit.

        `end` completes the requests in `leaving`.
        """
        before = batch.tickets
        batch.tickets = [ticket for ticket in before if not ticket.cancelled and ticket not in leaving]
        batch.items = sum([ticket.batch_size for ticket in batch.tickets])
        self._running -= len(before) - len(batch.tickets)
        release_all(leaving)
        if self._order is not None:
            for ticket in [ticket for ticket in before if ticket not in batch.tickets]:
                for answer in self._order.withdraw(ticket):
                    answer.ticket.complete(answer.response, answer.error)
        for ticket in leaving:
            self._end(ticket, end)

    # from the instances to the callers

    def _vacated(self, instance: Instance, batch: Batch) -> None:
        """Called when an instance can take its next batch although responses of this batch are still to
        come.
        """
        if instance in self._instances:
            self._idle.append(instance)
            self._schedule()

    def _finished(self, instance: Instance, batch: Batch) -> None:
        # The instance becomes idle, unless it was replaced during the run, or `_vacated` has already made the
        # instance idle.
        if instance in self._instances and (batch.on_vacated is not None or not batch.off_loop):
            self._idle.append(instance)
        tickets = batch.tickets
        self._running -= len(tickets)
        if batch.off_loop:
            self._busy.discard(batch)
            release_all(tickets)  # first, because each completion may cancel other requests of the batch
            if self._policy.gathers:
                share = (len(tickets) + self._running + self._queue.size) / (len(self._instances) + 1)
                run_ns = batch.ran_ns - batch.gathered_ns
                self._gathering.ran(len(tickets), run_ns, share, self._policy.max_items)
            # If the instance refused the batch immediately, this method runs within `_start`, whose caller
            # continues with the queue. A call of `_dispatch` here would nest as many calls as there are
            # queued batches.
            if self._queue.size and not self._scheduled and not self._starting:
                self._dispatch()  # the instance starts its next batch while these responses are written
        order = self._order
        # A single request is completed before it is counted, so that its caller gets the response sooner.
        # Only a caller that adds up the times of several runs could notice the order, because no other code
        # runs on the loop in between.
        answers_first = (
            len(tickets) == 1
            and order is None
            and tickets[0].compute is None
            and self.tally.settled
            and isinstance(batch.outcomes[0], InferResponse)
        )
        if not answers_first:
            self.tally.ran(batch)
        first = self._turn.begin_completions()
        for ticket, outcome in zip(tickets, batch.outcomes, strict=True):
            if ticket.trace is not None:
                ticket.trace.ran(batch)
            response, error = (outcome, None) if isinstance(outcome, InferResponse) else (None, outcome)
            if order is None:
                ticket.complete(response, error)
            else:
                for answer in order.finish(ticket, response, error):
                    answer.ticket.complete(answer.response, answer.error)
        if answers_first:
            self.tally.ran(batch)
        if first:
            self._turn.end_completions(self._loop)
        if self._rest is not None:
            self._look_at_rest()

    # requests that do not run: cancelled, expired, refused

    def _full(self, ticket: Ticket) -> Unavailable:
        settings = self._settings.queue
        level = f", priority level {ticket.level}" if settings.levels else ""
        return queue_full(self._name, settings.policy_of(ticket.level).max_size, level)

    def _left(self, ticket: Ticket) -> None:
        """Called when a queued request has been cancelled."""
        self.tally.cancelled(ticket)
        if self._total is not None:
            self._total.waiting -= 1
        self._look_at_rest()

    def _displaced(self, ticket: Ticket) -> None:
        """Called when a queued request has been displaced to make room for another caller's request."""
        self._statistics.rejected_full += 1
        if self._total is not None:
            self._total.waiting -= 1
        self._end(ticket, lambda _: ticket.complete(None, self._full(ticket)))

    def cancelled(self, ticket: Ticket) -> None:
        """Handles the cancellation of a ticket whose batch runs off the event loop; see Owner."""
        self.tally.cancelled_running(ticket)
        for batch in self._busy:
            if ticket in batch.tickets:
                if all(other.cancelled for other in batch.tickets):
                    batch.abandon()
                return

    def _refuse(self, tickets: Sequence[Ticket], end: Callable[[Ticket], None]) -> None:
        """Completes requests that have left the queue, by calling `end` for each. A completion may cancel
        other requests.
        """
        if self._total is not None:
            self._total.waiting -= len(tickets)
        for ticket in tickets:
            self._end(ticket, end)

    def _end(self, ticket: Ticket, end: Callable[[Ticket], None]) -> None:
        """Completes a request that will not run, or counts it as cancelled if it was cancelled in the
        meantime.
        """
        if ticket.cancelled:
            self.tally.cancelled(ticket)
        else:
            self.tally.take_back(ticket)
            end(ticket)

    def _unloading(self, ticket: Ticket) -> None:
        ticket.complete(None, being_unloaded(self._name))

    def _wait_for(self, deadline: float) -> None:
        self._expiry.set(deadline, self._sweep_after - monotonic())

    def _expire(self) -> None:
        began = monotonic()
        nearest = self._queue.sweep(began)
        ended = monotonic()
        self._sweep_after = ended + _SWEEP_PAUSE * (ended - began)
        if nearest < inf:
            self._wait_for(nearest)
        self._refuse_expired(began)
        self._look_at_rest()

    def _refuse_expired(self, now: float) -> None:
        expired, self._queue.expired = self._queue.expired, []
        self._refuse(expired, lambda ticket: ticket.expire(self._expiry_of(ticket, now)))

    def _expiry_of(self, ticket: Ticket, now: float) -> BacklineError:
        """Counts a request that expired in the queue, and returns the error for it."""
        self._statistics.record_expired(ticket)
        return expired_in_queue(ticket, now, self._name, by_policy=self._queue.timed_out(ticket, now))
