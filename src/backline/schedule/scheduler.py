"""The driver of one model version: a bounded queue, its free instances, and the runs in between."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic, monotonic_ns

from backline.engine.errors import BacklineError, Unavailable
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.statistics import ModelStatistics
from backline.schedule.batching import BatchPolicy, take_batch
from backline.workers.batch import Batch
from backline.workers.instance import Instance

log = logging.getLogger("backline.schedule")


class Scheduler:
    """Queues the requests of one model version and runs them on its instances. Lives on the event loop.

    A free instance takes what has queued by the end of the loop's current turn, so requests that arrive together run together. One batch
    is started a turn and instance, so that a model run inline lets the sockets have their turn between batches.
    """

    __slots__ = (
        "_dispatch_soon",
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
    ) -> None:
        self._name = name
        self._policy = policy
        self._instances = tuple(instances)
        self._idle = list(instances)
        self._statistics = statistics
        self._max_queue_size = max_queue_size
        self._loop = loop
        self._queue: deque[InferRequest] = deque()
        self._items = 0
        self._running = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle_again: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """Requests that wait, without those that run."""
        return len(self._queue)

    def submit(self, request: InferRequest) -> None:
        """Queues a request that fits the model. Raises Unavailable when the queue is full."""
        queue = self._queue
        if len(queue) >= self._max_queue_size:
            raise Unavailable(
                f"Exceeds maximum queue size of {self._max_queue_size} for model '{self._name}', try again later", retry_after=1
            )
        queue.append(request)
        self._items += request.batch_size
        if not self._scheduled and self._idle:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    async def close(self) -> None:
        """Refuses what still waits, lets what runs end, and gives the instances back."""
        if self._timer is not None:
            self._timer.cancel()
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

    def _delay_over(self) -> None:
        self._timer = None
        self._dispatch()

    def _finished(self, instance: Instance, batch: Batch) -> None:
        self._idle.append(instance)
        self._running -= len(batch.requests)
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)
        arrivals: list[int] = []
        failed = 0
        for request, outcome in zip(batch.requests, batch.outcomes, strict=True):
            if isinstance(outcome, InferResponse):
                arrivals.append(request.arrived_ns)
            else:
                failed += 1
                self._statistics.fail.add(1, batch.ended_ns - request.arrived_ns)
        if arrivals:
            self._statistics.record_batch(arrivals, batch.items, batch.started_ns, batch.gathered_ns, batch.ran_ns, batch.ended_ns)
        for request, outcome in zip(batch.requests, batch.outcomes, strict=True):
            if isinstance(outcome, InferResponse):
                self._complete(request, outcome, None)
            else:
                self._complete(request, None, outcome)
        if self._idle_again is not None and not self._running:
            self._idle_again.set_result(None)

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
