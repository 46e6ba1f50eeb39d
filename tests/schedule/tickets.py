"""Requests for tests of policies: plain data without tensors."""

from __future__ import annotations

from backline.engine.ticket import Completion, Ticket
from backline_client.values.messages import InferRequest


def ticket(
    size: int = 1,
    key: object = None,
    *,
    deadline: float | None = None,
    timeout: float | None = None,
    priority: int = 0,
    arrived: float = 0.0,
    complete: Completion = lambda *_: None,
) -> Ticket:
    """Times are in seconds; `arrived` is its arrival."""
    arrived_ns = round(arrived * 1e9)
    request = InferRequest(
        "m", {}, deadline=deadline, timeout=timeout, priority=priority, arrived_ns=arrived_ns
    )
    made = Ticket(request, complete)
    made.batch_size = size
    made.batch_key = key
    return made
