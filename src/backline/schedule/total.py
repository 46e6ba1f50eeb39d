"""A limit for the requests that wait in the queues of all models together."""

from __future__ import annotations

from backline.engine.errors import Unavailable


class QueueTotal:
    """How many wait: whoever queues a request adds it, and takes it off when it runs or is done. `limit` None limits nothing."""

    __slots__ = ("limit", "waiting")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether no more requests may queue."""
        return self.limit is not None and self.waiting >= self.limit

    def refusal(self, model: str) -> Unavailable:
        """The error of a request that would be one too many."""
        return Unavailable(
            f"Exceeds maximum queue size of {self.limit} requests of all models; the request is for model '{model}', try again later",
            retry_after=1,
        )
