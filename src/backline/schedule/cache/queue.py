"""The response cache in front of a queue: what was answered before is answered again, and what is asked twice at once is run once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.errors import BacklineError
from backline.engine.messages import InferResponse
from backline.engine.statistics import ModelStatistics
from backline.engine.tensor import Tensor
from backline.engine.ticket import Ticket
from backline.schedule.cache.cache import ResponseCache, read_only
from backline.schedule.cache.flight import Flight, RequestKeys, input_bytes
from backline.schedule.queues.queue import QueueSettings, expired_in_queue, waited_too_long
from backline.schedule.version_queue import InstancesQueue, VersionQueue

if TYPE_CHECKING:
    from backline.schedule.scheduler import Settings
    from backline.workers.instance import Instance

log = logging.getLogger("backline.schedule")

#: Requests of more bytes are hashed on a thread: the loop would stand still for longer than a quick model runs.
LARGE = 512 * 1024


class CachedQueue:
    """Answers requests from a cache, and hands the others on to `queue`. Lives on the event loop.

    Identical requests that are under way share one run: each keeps its id and its deadline and may be cancelled by itself; the run is
    given up when nobody waits for it any more, and waits as long as the most patient of them. A request of a higher priority than the one
    that waits has a run of its own. Errors are not kept.
    """

    def __init__(
        self,
        queue: VersionQueue,
        cache: ResponseCache,
        keys: RequestKeys,
        settings: QueueSettings,
        statistics: ModelStatistics,
        *,
        name: str,
        version: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._keys = keys
        self._settings = settings
        self._statistics = statistics
        self._name = name
        self._version = version
        self._loop = loop
        self._flights: dict[bytes, Flight] = {}
        #: Those in whose place another one is that is more important, and which nobody joins any more.
        self._passed: set[Flight] = set()
        #: Requests that are hashed or looked up.
        self._looking = 0
        self._looked: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        return self._queue.pending + self._looking

    @property
    def running(self) -> int:
        return self._queue.running

    def submit(self, ticket: Ticket) -> None:
        """Answers a request, lets it join another, or queues it. Raises Unavailable when the queue is full."""
        if ticket.request.sequence is not None or ticket.takes_many:
            self._queue.submit(ticket)
            return
        flight = Flight(ticket, monotonic_ns(), self._leave)
        if input_bytes(ticket) > LARGE:
            self._looking += 1
            ticket.enqueue(flight)
            flight.submitting = False
            self._loop.run_in_executor(None, self._keys.of, ticket).add_done_callback(
                partial(self._hashed, flight)
            )
            return
        flight.key = self._keys.of(ticket)
        self._begin(flight)
        flight.submitting = False
        if flight.refusal is not None:
            raise flight.refusal

    def answer_for(self, keys: RequestKeys) -> None:
        """From now on what was answered before is not: it was for other keys."""
        self._keys = keys

    async def drain(self, limit: float) -> None:
        """As the queue's, once nothing is looked up any more: that takes no longer than a cache may."""
        began = monotonic()
        if self._looking:
            self._looked = self._loop.create_future()
            await asyncio.wait((self._looked,), timeout=limit)
        await self._queue.drain(max(0.0, limit - (monotonic() - began)))

    # from the request to the cache

    def _hashed(self, flight: Flight, hashed: asyncio.Future[bytes]) -> None:
        self._done_looking()
        if not flight.waiting:
            return
        try:
            flight.key = hashed.result()
            self._begin(flight)
        except Exception as error:
            log.exception("a request for model '%s' could not be looked up", self._name, exc_info=error)
            self._run(flight)

    def _begin(self, flight: Flight) -> None:
        ticket = flight.waiting[0]
        other = self._flights.get(flight.key)
        if other is not None:
            if other.admits(ticket, self._settings):
                self._join(ticket, other)
                return
            self._passed.add(other)
        self._flights[flight.key] = flight
        ticket.enqueue(flight)
        self._looking += 1
        self._cache.look_up(flight.key, partial(self._looked_up, flight))

    def _looked_up(self, flight: Flight, outputs: Sequence[Tensor] | None) -> None:
        self._done_looking()
        flight.lookup_ns = monotonic_ns() - flight.began_ns
        if not flight.waiting:
            return
        if outputs is None:
            self._run(flight)
            return
        self._forget(flight)
        for ticket in flight.waiting:
            if flight.submitting:  # who asks is told when it has done asking
                self._loop.call_soon(self._answer_from_cache, flight, ticket, outputs)
            else:
                self._answer_from_cache(flight, ticket, outputs)

    def _done_looking(self) -> None:
        self._looking -= 1
        if self._looked is not None and not self._looking and not self._looked.done():
            # At the end of the turn: what was not found is submitted before.
            self._loop.call_soon(_resolve, self._looked)

    def _answer_from_cache(self, flight: Flight, ticket: Ticket, outputs: Sequence[Tensor]) -> None:
        if ticket.cancelled:
            return
        self._statistics.record_cache_hit(
            ticket.request.arrived_ns, flight.began_ns, flight.lookup_ns, monotonic_ns()
        )
        ticket.complete(self._response(ticket, outputs), None)

    # from the request to a run

    def _join(self, ticket: Ticket, flight: Flight) -> None:
        flight.join(ticket, self._settings)
        ticket.enqueue(flight)
        if not flight.waits:
            return
        for waiting in flight.waiting:
            if waiting.deadline is not None and waiting not in flight.timers:
                pause = max(0.0, waiting.deadline - monotonic())
                flight.timers[waiting] = self._loop.call_later(pause, self._too_late, flight, waiting)

    def _run(self, flight: Flight) -> None:
        """Queues one request for all that wait."""
        run = flight.make_run(self._settings, partial(self._ran, flight))
        try:
            self._queue.submit(run)
        except BacklineError as error:
            if flight.submitting:
                self._forget(flight)
                flight.refusal = error
            else:
                self._fail(flight, error)
            return
        flight.run = run

    # from the run to those who wait

    def _ran(
        self, flight: Flight, run: Ticket, response: InferResponse | None, error: BacklineError | None
    ) -> None:
        if response is None:
            self._fail(flight, error)
            return
        self._forget(flight)
        began = monotonic_ns()
        if flight.key and not response.parameters:  # parameters are of the run, and are not kept
            self._cache.insert(flight.key, response.outputs)
        now = monotonic_ns()
        statistics = self._statistics
        statistics.record_cache_miss(flight.lookup_ns + now - began)
        waiting = flight.waiting
        shared = response.outputs if len(waiting) == 1 else [read_only(tensor) for tensor in response.outputs]
        for number, ticket in enumerate(waiting):
            if number:
                statistics.record_cache_hit(ticket.request.arrived_ns, now, 0, now)
            ticket.complete(self._response(ticket, shared, response), None)

    def _fail(self, flight: Flight, error: BacklineError | None) -> None:
        self._forget(flight)
        for ticket in flight.waiting:
            ticket.complete(None, error)

    def _response(
        self, ticket: Ticket, outputs: Sequence[Tensor], run: InferResponse | None = None
    ) -> InferResponse:
        return InferResponse(
            self._name,
            self._version,
            ticket.request.id,
            list(outputs),
            None if run is None else run.parameters,
        )

    # those who leave

    def _leave(self, flight: Flight, ticket: Ticket) -> None:
        """A request was cancelled; when it was the last one its run is cancelled too, and counted there."""
        flight.waiting.remove(ticket)
        timer = flight.timers.pop(ticket, None)
        if timer is not None:
            timer.cancel()
        if flight.waiting or flight.run is None:
            self._statistics.record_cancelled(ticket)
        if not flight.waiting:
            self._forget(flight)
            if flight.run is not None:
                flight.run.cancel()

    def _too_late(self, flight: Flight, ticket: Ticket) -> None:
        flight.timers.pop(ticket, None)
        if not flight.waits or (
            flight.run is None and len(flight.waiting) == 1
        ):  # what runs is answered, and what is to run is looked at
            return
        flight.waiting.remove(ticket)
        ticket.release()
        if flight.waiting:
            self._statistics.record_expired(ticket)
        elif flight.run is not None:
            self._forget(flight)
            flight.run.waits_until = ticket.deadline  # by which its queue counts it as expired
            flight.run.cancel()
        now = monotonic()
        late = waited_too_long(ticket, self._settings.policy_of(self._settings.level_of(ticket)), now)
        ticket.expire(expired_in_queue(ticket, now, self._name, by_policy=late))

    def _forget(self, flight: Flight) -> None:
        """From now on nobody joins it."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        else:
            self._passed.discard(flight)
        for timer in flight.timers.values():
            timer.cancel()
        flight.timers.clear()


class CachedInstances(CachedQueue):
    """The response cache in front of the queue of instances, which may change."""

    _queue: InstancesQueue

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        self._settings = settings.queue
        self._queue.update(settings, instances=instances)

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        self._queue.replace_instances(instances)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
