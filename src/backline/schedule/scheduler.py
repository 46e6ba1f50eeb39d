"""The driver of one model version: a bounded queue, its free instances, and the runs in between."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from time import monotonic, monotonic_ns

from backline.engine.errors import BacklineError, Unavailable
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.statistics import ModelStatistics
from backline.schedule.batching import BatchPolicy, take_batch, take_expired
from backline.workers.batch import Batch
from backline.workers.instance import Instance

log = logging.getLogger("backline.schedule")

#: Seconds that are waited at least for the next deadline: the loop's timers may be so much early.
_SHORTEST_WAIT = 0.001


class Scheduler:
    """Queues the requests of one model version and runs them on its instances. Lives on the event loop.

    A free instance takes what has queued by the end of the loop's current turn, so requests that arrive together run together. One batch
    is started a turn and instance, so that a model run inline lets the sockets have their turn between batches. A request whose deadline
    passes in the queue is refused then, also while all instances are busy; `default_timeout`, in seconds, is for requests without one.
    """

    __slots__ = (
        "_default_timeout",
        "_drained",
        "_expiry",
        "_expiry_timer",
        "_idle",
        "_idle_again",
        "_instances",
        "_items",
        "_loop",
        "_max_queue_size",
        "_name",
        "_policy",
        "_queue",
        "_running",
        "_scheduled",
        "_statistics",
        "_timer",
    )

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        instances: Sequence[Instance],
        statistics: ModelStatistics,
        *,
        max_queue_size: int,
        loop: asyncio.AbstractEventLoop,
        default_timeout: float | None = None,
    ) -> None:
        self._name = name
        self._policy = policy
        self._instances = tuple(instances)
        self._idle = list(instances)
        self._statistics = statistics
        self._max_queue_size = max_queue_size
        self._loop = loop
        self._default_timeout = default_timeout
        self._queue: deque[InferRequest] = deque()
        self._items = 0
        self._running = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        #: The moment for which the timer of deadlines is set.
        self._expiry = inf
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._idle_again: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """Requests that wait, without those that run."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that run."""
        return self._running

    def submit(self, request: InferRequest) -> None:
        """Queues a request that fits the model. Raises Unavailable when the queue is full."""
        queue = self._queue
        if len(queue) >= self._max_queue_size:
            raise Unavailable(
                f"Exceeds maximum queue size of {self._max_queue_size} for model '{self._name}', try again later", retry_after=1
            )
        deadline = request.deadline
        if deadline is None and self._default_timeout is not None:
            deadline = request.deadline = request.arrived_ns / 1e9 + self._default_timeout
        if deadline is not None and deadline < self._expiry:
            self._wait_for(deadline)
        queue.append(request)
        self._items += request.batch_size
        if not self._scheduled and self._idle:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def update(
        self, policy: BatchPolicy, *, max_queue_size: int, default_timeout: float | None, instances: Sequence[Instance] | None = None
    ) -> None:
        """Goes on with other settings, and on other instances if some are given; batches that run are finished where they are."""
        self._policy = policy
        self._max_queue_size = max_queue_size
        self._default_timeout = default_timeout
        if instances is not None:
            for instance in self._instances:
                instance.close()  # once its batch has ended
            self._instances = tuple(instances)
            self._idle = list(instances)
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    async def drain(self, limit: float) -> None:
        """Finishes what is queued and running, for at most `limit` seconds; then what still waits is refused. Ends as `close` does.

        Nothing may be submitted any more.
        """
        if self._queue or self._running:
            self._drained = self._loop.create_future()
            if self._timer is not None:  # nothing more comes that it would be worth waiting for
                self._timer.cancel()
                self._timer = None
            self._policy = replace(self._policy, delay_ns=0)
            self._dispatch()
            if self._queue or self._running:
                await asyncio.wait((self._drained,), timeout=limit)
        await self.close()

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs what comes next on other instances. None of the present ones may have a batch."""
        for instance in self._instances:
            instance.close()
        self._instances = tuple(instances)
        self._idle = list(instances)

    async def close(self) -> None:
        """Refuses what still waits, lets what runs end, and gives the instances back."""
        for timer in (self._timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()
        error = Unavailable(f"model '{self._name}' is being unloaded", retry_after=1)
        while self._queue:
            self._complete(self._queue.popleft(), None, error)
        self._items = 0
        if self._running:
            self._idle_again = self._loop.create_future()
            await self._idle_again
        for instance in self._instances:
            instance.close()

    def _dispatch(self) -> None:
        self._scheduled = False
        queue = self._queue
        if not queue or not self._idle:
            return
        started = monotonic_ns()
        waited = started - queue[0].arrived_ns
        limit = self._policy.items_to_take(self._items, waited)
        if not limit:
            if self._timer is None:
                self._timer = self._loop.call_later((self._policy.delay_ns - waited) / 1e9, self._delay_over)
            return
        taken = take_batch(queue, limit, started / 1e9)
        self._items -= taken.items
        if taken.expired or taken.cancelled:
            self._drop(taken.expired, taken.cancelled)
        if taken.requests:
            self._running += len(taken.requests)
            self._idle.pop().run(Batch(taken.requests, taken.items, started), self._finished)
        if queue and self._idle and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)
        if self._drained is not None:
            self._look_at_rest()

    def _delay_over(self) -> None:
        self._timer = None
        self._dispatch()

    def _wait_for(self, deadline: float) -> None:
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        self._expiry = deadline
        self._expiry_timer = self._loop.call_later(max(deadline - monotonic(), _SHORTEST_WAIT), self._expire)

    def _expire(self) -> None:
        self._expiry_timer = None
        self._expiry = inf
        expired, nearest = take_expired(self._queue, monotonic())
        if nearest < inf:
            self._wait_for(nearest)
        self._drop(expired, [])
        if self._drained is not None:
            self._look_at_rest()

    def _finished(self, instance: Instance, batch: Batch) -> None:
        if instance in self._instances:  # else it was replaced while it ran
            self._idle.append(instance)
        self._running -= len(batch.requests)
        if self._queue and not self._scheduled:
            if instance.beside_loop:  # it works on the next batch while the answers of this one are written
                self._dispatch()
            else:
                self._scheduled = True
                self._loop.call_soon(self._dispatch)
        if batch.parts is None:
            self._record(batch)
        else:
            for part in batch.parts:
                self._record(part)
        for request, outcome in zip(batch.requests, batch.outcomes, strict=True):
            if isinstance(outcome, InferResponse):
                self._complete(request, outcome, None)
            else:
                self._complete(request, None, outcome)
        if self._idle_again is not None and not self._running:
            self._idle_again.set_result(None)
        if self._drained is not None:
            self._look_at_rest()

    def _look_at_rest(self) -> None:
        if self._drained is not None and not self._drained.done() and not self._queue and not self._running:
            self._drained.set_result(None)

    def _record(self, batch: Batch) -> None:
        """Counts a run. All its requests have succeeded, or its only one has failed."""
        if isinstance(batch.outcomes[0], InferResponse):
            arrivals = [request.arrived_ns for request in batch.requests]
            self._statistics.record_batch(arrivals, batch.items, batch.started_ns, batch.gathered_ns, batch.ran_ns, batch.ended_ns)
        else:
            self._statistics.fail.add(1, batch.ended_ns - batch.requests[0].arrived_ns)

    def _drop(self, expired: list[InferRequest], cancelled: list[InferRequest]) -> None:
        self._items -= sum(request.batch_size for request in expired) + sum(request.batch_size for request in cancelled)
        self._statistics.expired += len(expired)
        self._statistics.cancelled += len(cancelled)
        for request in expired:
            waited = monotonic() - request.arrived_ns / 1e9
            self._complete(
                request, None, Unavailable(f"Request timeout expired after {waited * 1000:.0f} ms in the queue of model '{self._name}'")
            )

    def _complete(self, request: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
        if request.cancelled:
            return
        try:
            request.on_complete(request, response, error)
        except Exception:
            log.exception("the answer of model '%s' could not be delivered", self._name)
