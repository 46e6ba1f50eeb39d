"""What a request is told that leaves a queue without a run."""

from __future__ import annotations

from backline.engine.errors import BacklineError, DeadlineExceeded, Unavailable
from backline.engine.ticket import Ticket


def full(model: str, limit: int | None, where: str = "") -> Unavailable:
    """The queue is full, which holds `limit` requests."""
    return Unavailable(
        f"Exceeds maximum queue size of {limit} for model '{model}'{where}, try again later", retry_after=1
    )


def unloading(model: str) -> Unavailable:
    """The model goes away."""
    return Unavailable(f"model '{model}' is being unloaded", retry_after=1)


def expired(ticket: Ticket, now: float, where: str, *, by_policy: bool) -> BacklineError:
    """Its time was over at `now`, of time.monotonic(): that which the queue's policy gives, or its caller."""
    waited = f"after {(now - ticket.request.arrived_ns / 1e9) * 1000:.0f} ms in {where}"
    if by_policy:
        return Unavailable(f"Request timeout expired {waited}")
    return DeadlineExceeded(f"The deadline of the request passed {waited}")
