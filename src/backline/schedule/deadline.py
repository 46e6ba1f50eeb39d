"""The queue of a model that gives a deadline to its requests."""

from __future__ import annotations

from backline.engine.deadline import unwatch, watch
from backline.engine.messages import InferRequest
from backline.engine.model import RequestQueue


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

    def submit(self, request: InferRequest) -> None:
        """Raises what the queue raises."""
        watch(request, request.arrived_ns / 1e9 + self._seconds)
        try:
            self._queue.submit(request)
        except BaseException:
            unwatch(request)
            raise


def with_deadline(queue: RequestQueue, seconds: float | None) -> RequestQueue:
    """The queue itself where the model gives no deadline."""
    return queue if seconds is None else DeadlineQueue(queue, seconds)
