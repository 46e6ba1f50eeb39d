"""A call to one of several servers: the attempts to send it, and the attempt whose response counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from backline.balance.balancer import Verdict
from backline.balance.endpoint import Endpoint, RequestAttempt
from backline.client.errors import (
    BacklineError,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    Internal,
    ProtocolError,
    Unavailable,
)
from backline.client.sending import OnOutcome, Sending
from backline.client.transport import Transport

if TYPE_CHECKING:
    from backline.client.balanced_transport import BalancedTransport

T = TypeVar("T")


def verdict_of(error: BaseException | None) -> Verdict:
    """Returns what the outcome of an attempt says about its server."""
    if isinstance(error, asyncio.CancelledError):
        return Verdict.ABANDONED
    if isinstance(error, ConnectionFailed):
        return Verdict.LOST
    if isinstance(error, Unavailable):
        return Verdict.BUSY
    if isinstance(error, (DeadlineExceeded, Internal, ProtocolError)):
        return Verdict.FAILED
    return Verdict.ANSWERED


def may_try_again(error: BaseException, *, idempotent: bool) -> bool:
    """Returns whether a request that got this error may be sent to another server.

    Any request may be sent again if it has certainly not run: no connection was opened, or the server refused
    it because it is busy, loading or draining. An idempotent request may also be sent again if the connection
    broke.
    """
    if isinstance(error, ConnectionLost):
        return idempotent
    return isinstance(error, Unavailable)


class BalancedCall(Generic[T]):
    """Sends a call to one server, then to another if the first attempt fails, or to a second server in
    parallel if the first is slow to respond.

    `send` starts an attempt over a transport, with a limit in seconds. The first response wins, and the other
    attempts are abandoned. If all attempts fail, the error of the last one counts. `on_outcome` is called
    once, with the response or the error, unless the call is abandoned.
    """

    def __init__(
        self,
        group: BalancedTransport,
        send: Callable[[Transport, float, OnOutcome[T]], Sending],
        timeout: float,
        on_outcome: OnOutcome[T],
        *,
        idempotent: bool,
        pinned: Endpoint | None = None,
    ) -> None:
        """If `pinned` is given, the call is sent once, to that server only."""
        self._group = group
        self._send = send
        self._timeout = timeout
        self._end = monotonic() + timeout
        self._idempotent = idempotent
        self._pinned = pinned
        self._loop = asyncio.get_running_loop()
        self._on_outcome = on_outcome
        self._running: dict[RequestAttempt, Sending] = {}
        self._tried: list[Endpoint] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Sends the call. Raises Unavailable if there is no server to send it to."""
        group = self._group
        group.balancer.arrived()
        if not self._attempt():
            raise Unavailable(f"{group.url} names no server at the moment")
        late_after = group.balancer.late_after
        if self._idempotent and self._pinned is None and late_after is not None:
            self._timer = self._loop.call_later(late_after, self._hedge)
        group.calls.add(self)

    def abandon(self) -> None:
        """Abandons all attempts, because nothing waits for the outcome any more.

        Has no effect after the outcome.
        """
        self._end_attempts()

    def _attempt(self) -> bool:
        """Sends the call to one more server. Returns False if there is none, or no time is left."""
        now, group = monotonic(), self._group
        left = self._end - now
        endpoint = self._pinned if not self._tried else None
        if self._pinned is None:
            endpoint = group.balancer.choose(now, self._tried)
        if endpoint is None or left <= 0:
            return False
        self._tried.append(endpoint)
        transport = group.transport_of(endpoint)
        attempt = group.balancer.started(endpoint, now)
        self._running[attempt] = self._send(transport, left, partial(self._ended, attempt))
        group.watch()
        return True

    def _ended(self, attempt: RequestAttempt, response: T | None, error: BaseException | None) -> None:
        del self._running[attempt]
        now, balancer = monotonic(), self._group.balancer
        busy_for = error.retry_after if isinstance(error, BacklineError) else None
        balancer.finished(attempt, verdict_of(error), now, busy_for=busy_for)
        if error is None:
            self._end_attempts()
            self._on_outcome(response, None)
            return
        again = self._pinned is None and may_try_again(error, idempotent=self._idempotent)
        if again and balancer.take_retry() and self._attempt():
            return
        if not self._running:
            self._end_attempts()
            self._on_outcome(None, error)

    def _hedge(self) -> None:
        if len(self._tried) == 1 and self._group.balancer.take_hedge():
            self._attempt()

    def left_by(self, endpoint: Endpoint) -> None:
        """Sends an idempotent call to another server if it is in flight to `endpoint`, which does not
        respond.
        """
        if self._idempotent and any(attempt.endpoint is endpoint for attempt in self._running):
            self._attempt()

    def _end_attempts(self) -> None:
        self._group.calls.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            now = monotonic()
            for attempt, sending in self._running.items():
                self._group.balancer.finished(attempt, Verdict.ABANDONED, now)
                sending.abandon()
            self._running.clear()
