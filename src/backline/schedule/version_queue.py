"""The interfaces of the queues that take a version's requests, and a wrapper that adds a deadline."""

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
    """The queue of a version: for instances or, in the case of an ensemble, for requests to other models."""

    @property
    def running(self) -> int:
        """The number of requests that run."""

    async def drain(self, limit: float) -> None:
        """Finishes its requests within `limit` seconds, refuses the rest, and closes the instances.

        Nothing may be submitted after this call.
        """


class InstancesQueue(VersionQueue, Protocol):
    """A queue whose requests run on instances, which can be replaced."""

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Switches to new settings and, if given, new instances. Running batches finish where they are."""

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs all further batches on other instances."""


class DeadlineQueue:
    """Passes requests on to `queue`, and ends those without a response `seconds` after arrival, or at an
    earlier deadline.

    Lives on the event loop.
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
    """`queue` with a deadline of `seconds` per request; `queue` itself if `seconds` is None."""
    return queue if seconds is None else DeadlineQueue(queue, seconds)
