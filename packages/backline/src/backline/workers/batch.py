"""A batch: the requests that run together, with their outcomes and timestamps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from backline.engine.ticket import Ticket
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse

if TYPE_CHECKING:
    from backline.workers.instance import Instance


class Batch:
    """Requests that an instance runs together, and their outcomes.

    `items` is the sum of the requests' batch sizes. `outcomes` has one entry per request, in order, once the
    batch has run. An entry is None if the responses to the request were sent one by one. The timestamps,
    which come from time.monotonic_ns(), are `started_ns` when the batch was taken from the queue or, if it
    then waited for a permit or for cores, when this wait ended, `gathered_ns` when its inputs had been
    gathered, `ran_ns` when the run had ended, and `ended_ns` when the outputs had been split. If the batch
    failed and its requests then ran one by one, or if only some of its requests failed, `parts` has a batch
    for each request; otherwise it is None.
    """

    __slots__ = (
        "abandoned",
        "ended_ns",
        "executed",
        "gathered_ns",
        "items",
        "off_loop",
        "on_abandon",
        "on_vacated",
        "outcomes",
        "parts",
        "ran_ns",
        "shared",
        "started_ns",
        "tickets",
    )

    def __init__(self, tickets: list[Ticket], items: int, started_ns: int, *, off_loop: bool = False) -> None:
        self.tickets = tickets
        self.items = items
        self.started_ns = started_ns
        #: Whether the batch runs outside the event loop, so that it can be abandoned while it runs.
        self.off_loop = off_loop
        self.gathered_ns = 0
        self.ran_ns = 0
        self.ended_ns = 0
        self.outcomes: list[InferResponse | BacklineError | None] = []
        self.parts: list[Batch] | None = None
        #: Whether the model was called, successfully or not.
        self.executed = False
        #: Whether the batch is part of a larger run, which is counted as one execution elsewhere.
        self.shared = False
        #: Whether all requests of the batch are cancelled.
        self.abandoned = False
        #: A function that interrupts the run. If the runtime can interrupt a run, the instance sets this on
        #: the thread that runs the batch.
        self.on_abandon: Callable[[], object] | None = None
        #: Called, and set to None, when the instance can take another batch although some requests of this
        #: batch still have no outcome.
        self.on_vacated: Callable[[Instance, Batch], None] | None = None

    def abandon(self) -> None:
        """Stops the run if possible, because all requests are cancelled. Called on the event loop."""
        self.abandoned = True
        # No lock is needed: the running thread sets `on_abandon` before it reads `abandoned`, and this method
        # writes `abandoned` before it reads `on_abandon`, so at least one side sees the other's write.
        if self.on_abandon is not None:
            self.on_abandon()
