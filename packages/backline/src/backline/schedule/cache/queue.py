"""Puts a response cache in front of a queue, so that repeated requests are not run again, and identical
requests in flight are run only once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.cache.cache import ResponseCache, read_only
from backline.schedule.cache.flight import Flight, RequestKeys, input_bytes
from backline.schedule.queues.queue import QueueSettings, expired_in_queue, waited_too_long
from backline.schedule.version_queue import InstancesQueue, VersionQueue
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.schedule.scheduler import Settings
    from backline.workers.instance import Instance

log = logging.getLogger("backline.schedule")

#: Requests with more bytes than this are hashed on a thread, because hashing them would block the event loop
#: for longer than a run of a fast model takes.
LARGE = 512 * 1024


class CachedQueue:
    """A queue that completes requests from a cache, and passes requests that are not in the cache on to
    `queue`. All methods must be called on the event loop.

    Identical requests in flight share one run; requests of sequences and requests to decoupled models do not,
    nor are they looked up in the cache. Each request keeps its own id and deadline, and can be cancelled
    separately. The shared run expires at the latest deadline of its requests, and is cancelled once all its
    requests are cancelled. While the run is queued, a request with a higher priority starts another run.
    Errors are not cached.
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
        #: Whether the model is decoupled, in which case no request is looked up.
        self._decoupled = False
        self._flights: dict[bytes, Flight] = {}
        #: The flights that were replaced by a flight with a higher priority. They accept no more requests.
        self._passed: set[Flight] = set()
        #: The number of requests that are being hashed or looked up.
        self._looking = 0
        self._looked: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        return self._queue.pending + self._looking

    @property
    def running(self) -> int:
        return self._queue.running

    def submit(self, ticket: Ticket) -> None:
        """Completes a request from the cache, adds it to a flight, or queues it.

        Raises the errors of the queue if the queue refuses the request immediately.
        """
        if ticket.request.sequence is not None or self._decoupled:
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

    def answer_for(self, keys: RequestKeys, *, decoupled: bool) -> None:
        """Switches to the keys of another load of the version, so that the responses of earlier loads are no
        longer found.

        `decoupled` says whether the model of the new load is decoupled. If so, the cache is not used, because
        it can store only one response per request.
        """
        self._keys = keys
        self._decoupled = decoupled

    async def drain(self, limit: float) -> None:
        """Waits for pending lookups, which take no longer than the timeouts of the cache, then drains the
        queue.
        """
        began = monotonic()
        if self._looking:
            self._looked = self._loop.create_future()
            await asyncio.wait((self._looked,), timeout=limit)
        await self._queue.drain(max(0.0, limit - (monotonic() - began)))

    # looking requests up in the cache

    def _hashed(self, flight: Flight, hashed: asyncio.Future[bytes]) -> None:
        self._done_looking()
        if not flight.waiting:  # the request was cancelled while its key was computed
            return
        try:
            flight.key = hashed.result()
            self._begin(flight)
        except Exception as error:
            log.exception(
                "looking up a request for model '%s' in the response cache failed", self._name, exc_info=error
            )
            self._run(flight)

    def _begin(self, flight: Flight) -> None:
        ticket = flight.waiting[0]
        other = self._flights.get(flight.key)
        if other is not None:
            if other.admits(ticket, self._settings):
                self._join(ticket, other)
                return
            self._passed.add(other)
        # The flight is registered first, because `look_up` may call `_looked_up` before it returns.
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
            if flight.submitting:  # the caller may rely on a completion only after `submit` has returned
                self._loop.call_soon(self._answer_from_cache, flight, ticket, outputs)
            else:
                self._answer_from_cache(flight, ticket, outputs)

    def _done_looking(self) -> None:
        self._looking -= 1
        if self._looked is not None and not self._looking and not self._looked.done():
            # The future is resolved in the next iteration of the loop, because a request that was not found
            # in the cache must be submitted to `queue` first.
            self._loop.call_soon(_resolve, self._looked)

    def _answer_from_cache(self, flight: Flight, ticket: Ticket, outputs: Sequence[Tensor]) -> None:
        if ticket.cancelled:
            return
        self._statistics.record_cache_hit(
            ticket.request.arrived_ns, flight.began_ns, flight.lookup_ns, monotonic_ns()
        )
        ticket.complete(self._response(ticket, outputs), None)

    # running requests that the cache does not have

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
        """Queues a stand-in that runs for all requests of a flight."""
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

    # passing the outcome of a run to its callers

    def _ran(
        self, flight: Flight, run: Ticket, response: InferResponse | None, error: BacklineError | None
    ) -> None:
        if response is None:
            self._fail(flight, error)
            return
        # A completion below may submit an identical request, which must not join this flight any more.
        self._forget(flight)
        began = monotonic_ns()
        # Responses with parameters are not cached, because the parameters may be specific to the run.
        if flight.key and not response.parameters:
            self._cache.insert(flight.key, response.outputs)
        now = monotonic_ns()
        statistics = self._statistics
        statistics.record_cache_miss(flight.lookup_ns + now - began)
        waiting = flight.waiting
        # Callers that share the outputs must not be able to change the outputs for each other.
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
        parameters = None if run is None else run.parameters
        return InferResponse(self._name, self._version, ticket.request.id, list(outputs), parameters)

    # cancelled and expired requests

    def _leave(self, flight: Flight, ticket: Ticket) -> None:
        """Removes a cancelled request from its flight. If no request is left, cancels the run, which the
        queue then counts as cancelled.
        """
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
        # Nothing is done if the run has started, because it will complete the request, or if the request has
        # not been queued yet, because the queue will check its deadline.
        if not flight.waits or (flight.run is None and len(flight.waiting) == 1):
            return
        flight.waiting.remove(ticket)
        ticket.release()
        if flight.waiting:
            self._statistics.record_expired(ticket)
        elif flight.run is not None:
            self._forget(flight)
            flight.run.waits_until = ticket.deadline  # so that the run counts as expired
            flight.run.cancel()
        now = monotonic()
        late = waited_too_long(ticket, self._settings.policy_of(self._settings.level_of(ticket)), now)
        ticket.expire(expired_in_queue(ticket, now, self._name, by_policy=late))

    def _forget(self, flight: Flight) -> None:
        """Stops further requests from joining a flight."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        else:
            self._passed.discard(flight)
        for timer in flight.timers.values():
            timer.cancel()
        flight.timers.clear()


class CachedInstances(CachedQueue):
    """Puts the response cache in front of a queue whose instances can be replaced."""

    _queue: InstancesQueue

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        self._settings = settings.queue
        self._queue.update(settings, instances=instances)

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        self._queue.replace_instances(instances)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
