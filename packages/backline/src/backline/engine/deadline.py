"""Ends a request at its deadline, whether the request is in a queue, in a run, or in an ensemble."""

from __future__ import annotations

import asyncio
from time import monotonic

from backline.engine.ticket import Listener, Ticket
from backline_client.values.errors import BacklineError, DeadlineExceeded
from backline_client.values.messages import InferResponse


class Watch(Listener):
    """A listener that ends a ticket with DeadlineExceeded at `deadline` (a time of time.monotonic()), unless
    the ticket ends earlier.
    """

    __slots__ = ("_loop", "_timer", "deadline")

    def __init__(self, ticket: Ticket, deadline: float) -> None:
        self.deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(deadline - monotonic(), _expire, ticket)
        ticket.listen(self)

    def bring_forward(self, ticket: Ticket, deadline: float) -> None:
        """Makes the ticket end at an earlier deadline. Has no effect if `deadline` is not earlier than the
        current deadline.
        """
        if deadline < self.deadline:
            self.deadline = deadline
            self._timer.cancel()
            self._timer = self._loop.call_later(deadline - monotonic(), _expire, ticket)

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        self._timer.cancel()

    def abandoned(self, ticket: Ticket) -> None:
        self._timer.cancel()

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self._timer.cancel()


def _expire(ticket: Ticket) -> None:
    request = ticket.request
    took = (monotonic() - request.arrived_ns / 1e9) * 1000
    ticket.expire(
        DeadlineExceeded(
            f"The deadline of the request passed {took:.0f} ms after its arrival,"
            f" before model '{request.model_name}' responded"
        )
    )


def watch(ticket: Ticket, deadline: float) -> None:
    """Makes a ticket end at `deadline` (a time of time.monotonic()), or at the ticket's own deadline if that
    is earlier.

    Must be called before the ticket is submitted.
    """
    if ticket.deadline is None or ticket.deadline > deadline:
        ticket.deadline = deadline
    if ticket.waits_until is None or ticket.waits_until > deadline:
        ticket.waits_until = deadline
    for listener in ticket.listeners:
        if isinstance(listener, Watch):
            listener.bring_forward(ticket, deadline)
            return
    Watch(ticket, deadline)
