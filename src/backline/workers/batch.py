"""Requests that run together, with the moments of their run."""

from __future__ import annotations

from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse


class Batch:
    """Requests that an instance runs as one, and what came of each.

    `items` is the sum of their batch sizes. `outcomes` has one entry a request, in order, once the batch has run. The moments are of
    time.monotonic_ns(): taken from the queue, inputs gathered, run ended, outputs split. `parts` are the batches of one request each that
    were run instead, with moments of their own, when the whole had failed.
    """

    __slots__ = ("ended_ns", "gathered_ns", "items", "outcomes", "parts", "ran_ns", "requests", "started_ns")

    def __init__(self, requests: list[InferRequest], items: int, started_ns: int) -> None:
        self.requests = requests
        self.items = items
        self.started_ns = started_ns
        self.gathered_ns = 0
        self.ran_ns = 0
        self.ended_ns = 0
        self.outcomes: list[InferResponse | BacklineError] = []
        self.parts: list[Batch] | None = None
