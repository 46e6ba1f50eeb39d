"""Requests that run together, with the moments of their run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from backline.engine.errors import BacklineError
from backline.engine.messages import InferResponse
from backline.engine.ticket import Ticket

if TYPE_CHECKING:
    from backline.workers.instance import Instance


class Batch:
    """Requests that an instance runs as one, and what came of each.

    `items` is the sum of their batch sizes. `outcomes` has one entry a request, in order, once the batch has run;
    None where the responses were given one by one. The moments are of
    time.monotonic_ns(): taken from the queue, inputs gathered, run ended, outputs split. `parts` are batches of one request each: those
    that were run instead, with moments of their own, when the whole had failed; or the `shared` run's, where some requests failed.
    """

    __slots__ = (
        "abandoned",
        "beside_loop",
        "ended_ns",
        "executed",
        "gathered_ns",
        "items",
        "on_abandon",
        "on_vacated",
        "outcomes",
        "parts",
        "ran_ns",
        "shared",
        "started_ns",
        "tickets",
    )

    def __init__(
        self, tickets: list[Ticket], items: int, started_ns: int, *, beside_loop: bool = False
    ) -> None:
        self.tickets = tickets
        self.items = items
        self.started_ns = started_ns
        #: Whether it runs while the event loop does other things, so that it may be abandoned meanwhile.
        self.beside_loop = beside_loop
        self.gathered_ns = 0
        self.ran_ns = 0
        self.ended_ns = 0
        self.outcomes: list[InferResponse | BacklineError | None] = []
        self.parts: list[Batch] | None = None
        #: Whether the model was asked to run it, with whatever outcome.
        self.executed = False
        #: Whether it is a part that has not run by itself: the parts of one run count as one execution.
        self.shared = False
        #: Nobody waits for any of the answers.
        self.abandoned = False
        #: Ends the run early; set by whoever runs the batch, on its thread, where the runtime can do it.
        self.on_abandon: Callable[[], None] | None = None
        #: Says that the instance can take another batch before this one has all outcomes; None when that was said, or must not be.
        self.on_vacated: Callable[[Instance, Batch], None] | None = None

    def abandon(self) -> None:
        """Nobody waits for any of the answers: the run need not be finished. Called on the event loop."""
        self.abandoned = True
        # Whoever runs it sets `on_abandon` before looking at `abandoned`, so one of the two sees the other.
        if self.on_abandon is not None:
            self.on_abandon()
