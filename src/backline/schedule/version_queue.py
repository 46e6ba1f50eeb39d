"""The interfaces of the queues that receive the requests of a version, and a wrapper that adds a deadline."""

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
    """The queue of a version, which sends requests to instances or, for an ensemble, to other models."""

    @property
    def running(self) -> int:
        """The number of requests that are running."""

    async def drain(self, limit: float) -> None:
        """Finishes the queue's requests within `limit` seconds, refuses the rest, and closes the instances.

        Nothing may be submitted after this call.
        """


class InstancesQueue(VersionQueue, Protocol):
    """A queue whose requests run on instances, which can be replaced."""

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Switches to new settings and, if given, new instances. Running batches finish on their present
        instances.
        """

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs all further batches on other instances."""


class DeadlineQueue:
    """Passes requests on to `queue`. Ends requests without a response `seconds` after their arrival, or at an
    earlier deadline.

    All methods must be called on the event loop.
    """

    def __init__(self, queue: RequestQueue, seconds: float) -> None:
        self._queue = queue
        self._seconds = seconds

    @property
    def pending(self) -> int:
        return self._queue.pending

    def submit(self, ticket: Ticket) -> None:
        """Queues a request. Raises what the wrapped queue raises."""
        watch(ticket, ticket.request.arrived_ns / 1e9 + self._seconds)
        self._queue.submit(ticket)


def with_deadline(queue: RequestQueue, seconds: float | None) -> RequestQueue:
    """Returns `queue` with a deadline of `seconds` per request, or `queue` itself if `seconds` is None."""
    return queue if seconds is None else DeadlineQueue(queue, seconds)
