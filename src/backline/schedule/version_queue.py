"""What takes the requests of one version: the drivers, and what stands in front of them, which hands on what is not its own business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from backline.engine.deadline import watch
from backline.engine.model import RequestQueue
from backline.engine.ticket import Ticket

if TYPE_CHECKING:
    from backline.schedule.scheduler import Settings
    from backline.workers.instance import Instance


class VersionQueue(RequestQueue, Protocol):
    """The queue of a version, with instances or, of an ensemble, without."""

    @property
    def running(self) -> int:
        """Requests that run."""

    async def drain(self, limit: float) -> None:
        """Finishes what it has, for at most `limit` seconds, refuses the rest, and closes the instances. Nothing is submitted any more."""


class InstancesQueue(VersionQueue, Protocol):
    """The queue in front of instances, which may change."""

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Goes on with other settings, and on other instances if some are given; batches that run are finished where they are."""

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs what comes next on other instances."""


class DeadlineQueue:
    """Hands requests on to `queue`, and ends those that are not answered `seconds` after they came, or at an earlier deadline.

    Lives on the event loop.
    """

    def __init__(self, queue: RequestQueue, seconds: float) -> None:
        self._queue = queue
        self._seconds = seconds

    @property
    def pending(self) -> int:
        return self._queue.pending

    def submit(self, ticket: Ticket) -> None:
        """Raises what the queue raises."""
        watch(ticket, ticket.request.arrived_ns / 1e9 + self._seconds)
        self._queue.submit(ticket)


def with_deadline(queue: RequestQueue, seconds: float | None) -> RequestQueue:
    """The queue itself where the model gives no deadline."""
    return queue if seconds is None else DeadlineQueue(queue, seconds)
