"""The interfaces of the queues that receive the requests of a version, and a wrapper that sets a deadline for
each request.
"""

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
    """The queue of a version. It passes requests on to instances, or, for an ensemble, to other models."""

    @property
    def running(self) -> int:
        """The number of requests that are running."""

    async def drain(self, limit: float) -> None:
        """Continues to run requests for up to `limit` seconds, then refuses the requests that are still
        queued, and closes the instances once they are free.

        Nothing may be submitted after this call.
        """


class InstancesQueue(VersionQueue, Protocol):
    """A queue whose requests run on instances. The instances can be replaced."""

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Switches to new settings and, if given, new instances. Batches that are running finish on their
        current instances.
        """

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs all further batches on other instances."""


class DeadlineQueue:
    """A queue that passes requests on to `queue`, and ends each request that has no response `seconds` after
    its arrival, or at its own deadline if that is earlier.

    All methods must be called on the event loop.
    """

    def __init__(self, queue: RequestQueue, seconds: float) -> None:
        self._queue = queue
        self._seconds = seconds

    @property
    def pending(self) -> int:
        return self._queue.pending

    def submit(self, ticket: Ticket) -> None:
        """Queues a request. Raises the errors that the wrapped queue raises."""
        watch(ticket, ticket.request.arrived_ns / 1e9 + self._seconds)
        self._queue.submit(ticket)


def with_deadline(queue: RequestQueue, seconds: float | None) -> RequestQueue:
    """Returns a queue that passes requests on to `queue` and ends them after `seconds`, or `queue` itself if
    `seconds` is None.
    """
    return queue if seconds is None else DeadlineQueue(queue, seconds)
