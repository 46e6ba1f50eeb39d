"""Requests for tests of policies: plain data without tensors."""

from __future__ import annotations

from backline.engine.messages import InferRequest


def request(
    size: int = 1,
    key: object = None,
    *,
    deadline: float | None = None,
    timeout: float | None = None,
    priority: int = 0,
    arrived: float = 0.0,
    cancelled: bool = False,
) -> InferRequest:
    """Times are in seconds; `arrived` is the moment of its arrival."""
    made = InferRequest("m", {}, lambda *_: None, deadline=deadline, timeout=timeout, priority=priority)
    made.batch_size = size
    made.batch_key = key
    made.arrived_ns = round(arrived * 1e9)
    made.cancelled = cancelled
    return made
