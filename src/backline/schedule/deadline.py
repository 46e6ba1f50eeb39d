"""The queue of a model that gives a deadline to its requests."""

from __future__ import annotations

from backline.engine.deadline import watch
from backline.engine.model import RequestQueue
from backline.engine.ticket import Ticket


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
