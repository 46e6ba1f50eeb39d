"""Runs a request on one target after the other, until one responds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from backline.engine.ticket import Owner, Ticket
from backline.plugins.traffic.counts import Target
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse


class FallbackRun(Owner):
    """Owns a request and submits stand-ins: to the first target and, if that fails or does not respond within
    `timeout` seconds (0: no limit), to the next. The error of the last target is the caller's.

    Only failures of the server lead to the next target, not errors in the request. Once a decoupled model has
    sent a response, its request stays where it is.
    """

    __slots__ = ("_attempt", "_responded", "_submit", "_targets", "_ticket", "_timeout", "_timer")

    def __init__(
        self, submit: Callable[[Ticket], None], ticket: Ticket, targets: Sequence[Target], timeout: float
    ) -> None:
        self._submit = submit
        self._ticket = ticket
        self._targets = list(targets)
        self._timeout = timeout
        self._attempt: Ticket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._responded = False

    def start(self) -> None:
        """Raises BacklineError if the targets refuse the request immediately."""
        self._ticket.enqueue(self)
        try:
            self._next()
        except BacklineError:
            self._ticket.release()
            raise

    def _next(self) -> None:
        """Submits the request to the next target that does not refuse it."""
        while True:
            target = self._targets.pop(0)
            ticket = self._ticket
            attempt = ticket.stand_in(
                self._completed,
                self._respond if ticket.takes_many else None,
                ticket.flow,
                model_name=target.model,
                model_version=target.version,
            )
            attempt.context = target
            target.follow(attempt)
            self._attempt = attempt
            try:
                self._submit(attempt)
            except BacklineError as error:
                self._attempt = None
                if not self._goes_on(error):
                    raise
                target.counts.fell_back()
                continue
            if self._timeout and self._targets and self._attempt is attempt:
                self._timer = asyncio.get_running_loop().call_later(self._timeout, self._too_slow, attempt)
            return

    def _goes_on(self, error: BacklineError) -> bool:
        return bool(self._targets) and error.http_status >= 500 and not self._responded

    def _advance(self) -> None:
        try:
            self._next()
        except BacklineError as error:
            self._ticket.complete(None, error)

    def _too_slow(self, attempt: Ticket) -> None:
        self._timer = None
        if self._attempt is not attempt or self._ticket.cancelled:
            return
        attempt.context.counts.fell_back()
        attempt.cancel()
        self._advance()

    def _respond(self, attempt: Ticket, response: InferResponse) -> None:
        self._stop_timer()
        self._responded = True
        self._ticket.respond(response)

    def _completed(
        self, attempt: Ticket, response: InferResponse | None, error: BacklineError | None
    ) -> None:
        if self._attempt is not attempt:
            return
        self._attempt = None
        self._stop_timer()
        if error is not None and self._goes_on(error) and not self._ticket.cancelled:
            attempt.context.counts.fell_back()
            self._advance()
        else:
            self._ticket.complete(response, error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cancelled(self, ticket: Ticket) -> None:
        self._stop_timer()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()

    def postponed(self, ticket: Ticket) -> None:
        if self._attempt is not None:
            self._attempt.postpone(ticket.deadline)
