"""The response cache in front of a queue: what was answered before is answered again, and what is asked twice at once is run once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.tensor import Tensor
from backline.schedule import refusals
from backline.schedule.cache.cache import ResponseCache, read_only
from backline.schedule.cache.key import RequestKeys, input_bytes
from backline.schedule.delivery import deliver
from backline.schedule.queues.queue import QueueSettings, limit_wait, waited_too_long
from backline.schedule.version_queue import InstancesQueue, VersionQueue

if TYPE_CHECKING:
    from backline.schedule.scheduler import Settings
    from backline.workers.instance import Instance

log = logging.getLogger("backline.schedule")

#: Requests of more bytes are hashed on a thread: the loop would stand still for longer than a quick model runs.
LARGE = 512 * 1024


class _Flight:
    """Requests with one key on their way: looked up, and then run as one, `run`. `lookup_ns` is how long the look took."""

    __slots__ = ("began_ns", "key", "lookup_ns", "queued", "refusal", "run", "submitting", "timers", "waiting")

    def __init__(self, request: InferRequest) -> None:
        self.key = b""
        self.waiting = [request]
        self.began_ns = monotonic_ns()
        self.lookup_ns = 0
        self.run: InferRequest | None = None
        #: The run's `on_cancel` while it waits in the queue; another one tells that it has left it.
        self.queued: object = None
        #: Whether the request is still being submitted, and what it is refused with.
        self.submitting = True
        self.refusal: BacklineError | None = None
        self.timers: dict[InferRequest, asyncio.TimerHandle] = {}

    @property
    def waits(self) -> bool:
        """Whether it has not begun to run."""
        return self.run is None or (self.queued is not None and self.run.on_cancel is self.queued)


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
        self._flights: dict[bytes, _Flight] = {}
        #: Requests that are hashed or looked up.
        self._looking = 0
        self._looked: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        return self._queue.pending + self._looking

    @property
    def running(self) -> int:
        return self._queue.running

    def submit(self, request: InferRequest) -> None:
        """Answers a request, lets it join another, or queues it. Raises Unavailable when the queue is full."""
        if request.sequence is not None or request.on_response is not None:
            self._queue.submit(request)
            return
        flight = _Flight(request)
        if input_bytes(request) > LARGE:
            self._looking += 1
            request.on_cancel = partial(self._leave, flight)
            flight.submitting = False
            self._loop.run_in_executor(None, self._keys.of, request).add_done_callback(partial(self._hashed, flight))
            return
        flight.key = self._keys.of(request)
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

    def _hashed(self, flight: _Flight, hashed: asyncio.Future[bytes]) -> None:
        self._done_looking()
        if not flight.waiting:
            return
        try:
            flight.key = hashed.result()
            self._begin(flight)
        except Exception as error:
            log.exception("a request for model '%s' could not be looked up", self._name, exc_info=error)
            self._run(flight)

    def _begin(self, flight: _Flight) -> None:
        request = flight.waiting[0]
        other = self._flights.get(flight.key)
        if other is not None and self._may_join(request, other):
            self._join(request, other)
            return
        self._flights[flight.key] = flight
        request.on_cancel = partial(self._leave, flight)
        self._looking += 1
        self._cache.look_up(flight.key, partial(self._looked_up, flight))

    def _looked_up(self, flight: _Flight, outputs: Sequence[Tensor] | None) -> None:
        self._done_looking()
        flight.lookup_ns = monotonic_ns() - flight.began_ns
        if not flight.waiting:
            return
        if outputs is None:
            self._run(flight)
            return
        self._forget(flight)
        for request in flight.waiting:
            request.on_cancel = None
            if flight.submitting:  # who asks is told when it has done asking
                self._loop.call_soon(self._answer_from_cache, flight, request, outputs)
            else:
                self._answer_from_cache(flight, request, outputs)

    def _done_looking(self) -> None:
        self._looking -= 1
        if self._looked is not None and not self._looking and not self._looked.done():
            # At the end of the turn: what was not found is submitted before.
            self._loop.call_soon(_resolve, self._looked)

    def _answer_from_cache(self, flight: _Flight, request: InferRequest, outputs: Sequence[Tensor]) -> None:
        if request.cancelled:
            self._statistics.record_cancelled(request)
            return
        self._statistics.record_cache_hit(request.arrived_ns, flight.began_ns, flight.lookup_ns, monotonic_ns())
        deliver(request, self._response(request, outputs), None)

    # from the request to a run

    def _may_join(self, request: InferRequest, flight: _Flight) -> bool:
        settings = self._settings
        if not settings.levels or not flight.waits or flight.run is None:
            return True
        return settings.level_of(request) >= settings.level_of(flight.run)

    def _policy_of(self, request: InferRequest) -> QueuePolicy:
        return self._settings.policy_of(self._settings.level_of(request))

    def _join(self, request: InferRequest, flight: _Flight) -> None:
        policy = self._policy_of(request)
        if not policy.delay:
            limit_wait(request, policy)
        run = flight.run
        if flight.waits:
            if run is not None and run.deadline is not None:
                first = flight.waiting[0]
                if first.deadline is None:  # the queue has set one for the run
                    first.deadline = run.deadline
                run.deadline = _latest((run.deadline, request.deadline))
            if run is not None:
                run.waits_until = _latest((run.waits_until, request.waits_until))
            for waiting in (*flight.waiting, request):
                if waiting.deadline is not None and waiting not in flight.timers:
                    pause = max(0.0, waiting.deadline - monotonic())
                    flight.timers[waiting] = self._loop.call_later(pause, self._too_late, flight, waiting)
        flight.waiting.append(request)
        request.on_cancel = partial(self._leave, flight)

    def _run(self, flight: _Flight) -> None:
        """Queues one request for all that wait: the first one's inputs, the highest priority, the most patient deadline."""
        first = flight.waiting[0]
        run = first.stand_in(first.inputs, partial(self._ran, flight))
        run.deadline = run.waits_until = _latest([request.deadline for request in flight.waiting])
        if self._settings.levels:
            run.priority = min(map(self._settings.level_of, flight.waiting))
        try:
            self._queue.submit(run)
        except BacklineError as error:
            if flight.submitting:
                self._forget(flight)
                first.on_cancel = None
                flight.refusal = error
            else:
                self._fail(flight, error)
            return
        flight.run = run
        flight.queued = run.on_cancel

    # from the run to those who wait

    def _ran(self, flight: _Flight, run: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
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
        for number, request in enumerate(waiting):
            request.on_cancel = None
            if number:
                statistics.record_cache_hit(request.arrived_ns, now, 0, now)
            deliver(request, self._response(request, shared, response), None)

    def _fail(self, flight: _Flight, error: BacklineError | None) -> None:
        self._forget(flight)
        for request in flight.waiting:
            request.on_cancel = None
            deliver(request, None, error)

    def _response(self, request: InferRequest, outputs: Sequence[Tensor], run: InferResponse | None = None) -> InferResponse:
        return InferResponse(self._name, self._version, request.id, list(outputs), None if run is None else run.parameters)

    # those who leave

    def _leave(self, flight: _Flight, request: InferRequest) -> None:
        """A request was cancelled; when it was the last one its run is cancelled too, and counted there."""
        flight.waiting.remove(request)
        timer = flight.timers.pop(request, None)
        if timer is not None:
            timer.cancel()
        if flight.waiting or flight.run is None:
            self._statistics.record_cancelled(request)
        if not flight.waiting:
            self._forget(flight)
            if flight.run is not None:
                flight.run.cancel()

    def _too_late(self, flight: _Flight, request: InferRequest) -> None:
        flight.timers.pop(request, None)
        if not flight.waits or (flight.run is None and len(flight.waiting) == 1):  # what runs is answered, and what is to run is looked at
            return
        flight.waiting.remove(request)
        request.on_cancel = None
        if flight.waiting:
            self._statistics.record_expired(request)
        elif flight.run is not None:
            self._forget(flight)
            flight.run.waits_until = request.deadline  # by which its queue counts it as expired
            flight.run.cancel()
        now = monotonic()
        late = waited_too_long(request, self._policy_of(request), now)
        deliver(request, None, refusals.expired(request, now, f"the queue of model '{self._name}'", by_policy=late))

    def _forget(self, flight: _Flight) -> None:
        """From now on nobody joins it."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        for timer in flight.timers.values():
            timer.cancel()
        flight.timers.clear()


def _latest(deadlines: Sequence[float | None]) -> float | None:
    """The deadline of the most patient one, None if somebody waits for any time."""
    return None if None in deadlines else max(deadline for deadline in deadlines if deadline is not None)


class CachedInstances(CachedQueue):
    """The response cache in front of the queue of instances, which may change."""

    _queue: InstancesQueue

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        self._settings = settings.queue
        waiting = [flight for flight in self._flights.values() if flight.run is not None and flight.waits]
        self._queue.update(settings, instances=instances)
        for flight in waiting:  # perhaps in another queue now
            flight.queued = None if flight.run is None else flight.run.on_cancel

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        self._queue.replace_instances(instances)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
