"""The scheduler for a latency objective. It learns how long batches take, and refuses requests that would be
late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic

from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.batching import Formed
from backline.schedule.objective.policy import Outlook, item_size
from backline.schedule.objective.queue import ObjectiveQueue
from backline.schedule.queues.queue import Queue, QueueSettings, QueueTotal
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.turn import Turn
from backline.workers.batch import Batch
from backline.workers.instance import Instance
from backline_client.values.errors import BacklineError, Unavailable
from backline_client.values.messages import InferResponse

#: The fraction of the objective that the server uses for its plan. The remainder is reserved for the network
#: between client and server.
_PLANNED = 0.95


class ObjectiveScheduler(Scheduler):
    """A Scheduler that refuses a request immediately if it expects that the request will not complete within
    `objective` seconds, unless an instance is idle and no request is queued.

    `seconds` maps batch sizes to run times, measured during the load with items of `size` elements. `size` is
    0 if all items have the same number of elements.
    """

    __slots__ = ("_objective", "_outlook")

    def __init__(
        self,
        name: str,
        settings: Settings,
        instances: Sequence[Instance],
        statistics: ModelStatistics,
        *,
        objective: float,
        seconds: Mapping[int, float],
        size: int = 0,
        loop: asyncio.AbstractEventLoop,
        preserve_ordering: bool = False,
        total: QueueTotal | None = None,
        turn: Turn | None = None,
    ) -> None:
        self._objective = objective
        self._outlook = Outlook(seconds, size)
        super().__init__(
            name,
            settings,
            instances,
            statistics,
            loop=loop,
            preserve_ordering=preserve_ordering,
            total=total,
            turn=turn,
        )

    @property
    def most_at_once(self) -> int:
        """Always 0, because the scheduler must see each request to tell whether it will be late."""
        return 0

    def submit(self, ticket: Ticket) -> None:
        """Queues a request. Raises Unavailable if the queue is full, or if the request would be late."""
        queue: ObjectiveQueue = self._queue  # type: ignore[assignment]  # see `_make_queue`
        idle = len(self._idle)
        late = queue.lateness(ticket, self._outlook.free(monotonic(), idle), self._policy.max_items)
        if late > 0 and (queue.size or not idle):
            self._statistics.rejected_late += 1
            raise self._too_late(ticket, late)
        super().submit(ticket)
        due = queue.due(ticket)
        if due < self._expiry.moment:
            self._wait_for(due)

    def _make_queue(self, settings: QueueSettings) -> Queue:
        return ObjectiveQueue(settings, _PLANNED * self._objective, self._outlook)

    def _gathers(self, now: int) -> bool:
        """Returns False, because the predictions assume that requests start as soon as an instance is
        free.
        """
        return False

    def _start(self, formed: Formed, now: int) -> None:
        self._outlook.started(self._idle[-1], now / 1e9, _size(formed.tickets), formed.items)
        super()._start(formed, now)

    def _vacated(self, instance: Instance, batch: Batch) -> None:
        # The time of later responses says nothing about how long the instance was occupied.
        self._outlook.ended(instance)
        super()._vacated(instance, batch)

    def _finished(self, instance: Instance, batch: Batch) -> None:
        vacated = batch.off_loop and batch.on_vacated is None
        expected = None if vacated else self._outlook.ended(instance)
        learns = (
            expected is not None
            and batch.parts is None
            and all(isinstance(outcome, InferResponse) for outcome in batch.outcomes)
        )
        now = monotonic()
        if learns:
            self._outlook.latency.learn(_size(batch.tickets), batch.items, now - batch.started_ns / 1e9)
        super()._finished(instance, batch)
        if learns:
            # If the event loop was late in handling the end of the run, it was also late in reading new
            # requests. Their arrival times do not include this delay, so it is added here.
            late = now - batch.ended_ns / 1e9
            self._outlook.slipped(monotonic() - expected + late)  # type: ignore[operator]  # see `learns`

    def _expiry_of(self, ticket: Ticket, now: float) -> BacklineError:
        if (ticket.deadline is not None and ticket.deadline <= now) or self._queue.timed_out(ticket, now):
            return super()._expiry_of(ticket, now)
        self._statistics.rejected_late += 1
        return self._too_late(ticket, 0.0)

    def _too_late(self, ticket: Ticket, late: float) -> Unavailable:
        """Returns the error for a request that would be `late` seconds late."""
        bound = f"its objective of {self._objective * 1000:g} ms"
        due = ticket.request.arrived_ns / 1e9 + self._objective
        if ticket.deadline is not None and ticket.deadline < due:
            bound = "the deadline of the request"
        late = max(late, 0.001)
        message = f"model '{self._name}' is too busy to respond within {bound}, try again in {late:.2g} s"
        return Unavailable(message, retry_after=late)


def _size(tickets: Sequence[Ticket]) -> int:
    """Returns the size of the largest item in the requests of a batch, in elements; 0 if the model's items do
    not vary in size.
    """
    if tickets[0].batch_key is None:
        return 0
    return max(map(item_size, tickets))
