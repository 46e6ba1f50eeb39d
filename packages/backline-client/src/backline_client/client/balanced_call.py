"""A call to one of several servers, which may take several attempts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from backline_client.balance.balancer import Endpoint, RequestAttempt, Verdict
from backline_client.client.errors import (
    BacklineError,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ProtocolError,
    Unavailable,
)
from backline_client.client.transport import OnOutcome, Sending, Transport

if TYPE_CHECKING:
    from backline_client.client.balanced_transport import BalancedTransport

log = logging.getLogger("backline_client.client")

T = TypeVar("T")


def verdict_of(error: BaseException | None) -> Verdict:
    """Returns what the outcome of an attempt says about its server."""
    if error is None:
        return Verdict.ANSWERED
    if isinstance(error, asyncio.CancelledError):
        return Verdict.ABANDONED
    if isinstance(error, ConnectionFailed):
        return Verdict.LOST
    if isinstance(error, (Unavailable, NotFound)):
        return Verdict.BUSY
    if isinstance(error, (DeadlineExceeded, Internal, ProtocolError)):
        return Verdict.FAILED
    return Verdict.ANSWERED


#: Part of the error with which Backline and Triton refuse a request of a sequence that they do not have.
_NO_SEQUENCE: Final = "must specify the START flag"


def may_try_again(error: BaseException, *, idempotent: bool, seeks: bool) -> bool:
    """Returns whether a request that got this error may be sent to another server.

    Any request may be sent again if it has certainly not run, because no connection was opened, because the
    server refused the request while busy, loading or draining, or because the server does not have the model:
    servers do not load and unload a version at exactly the same time. An idempotent request may also be sent
    again if the connection broke, or if the response cannot be read. A request that `seeks` the server of its
    sequence may be sent again if a server does not have the sequence.
    """
    if isinstance(error, (ConnectionLost, ProtocolError)):
        return idempotent
    if seeks and isinstance(error, InvalidArgument):
        return _NO_SEQUENCE in error.message
    return isinstance(error, (Unavailable, NotFound))


class BalancedCall(Generic[T]):
    """A call that is sent to one server, then to another if the first attempt fails, or to a second server in
    parallel if the first is slow to respond.

    `send` starts an attempt over a transport, with a limit in seconds. The first response wins, and the other
    attempts are abandoned. If all attempts fail, the error of the last attempt is reported. `on_outcome` is
    called once, with the response or the error, unless the call is abandoned.
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
        seeks: bool = False,
        requests: int = 1,
        on_attempt: Callable[[Endpoint], None] | None = None,
    ) -> None:
        """If `pinned` is given, the call is sent once, to that server only. `seeks` says whether the call
        continues a sequence that any of the servers may have. `requests` is the number of requests that the
        call carries. `on_attempt` is called with the server of each attempt.
        """
        self._group = group
        self._send = send
        self._timeout = timeout
        self._end = monotonic() + timeout
        self._idempotent = idempotent
        self._pinned = pinned
        self._seeks = seeks
        self._requests = requests
        self._on_attempt = on_attempt
        self._on_outcome = on_outcome
        self._running: dict[RequestAttempt, Sending] = {}
        self._tried: list[Endpoint] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Sends the call. Raises Unavailable if no server is available, or another error if the call cannot
        be encoded.
        """
        group = self._group
        group.balancer.arrived()
        if not self._attempt():
            raise group.no_server()
        late_after = group.balancer.late_after
        if self._idempotent and self._pinned is None and late_after is not None:
            self._timer = asyncio.get_running_loop().call_later(late_after, self._hedge)
        group.calls.add(self)

    def abandon(self) -> None:
        """Abandons all attempts, because nothing waits for the outcome any more.

        Has no effect if the outcome has already been reported.
        """
        self._end_attempts()

    def _attempt(self) -> bool:
        """Sends the call to one more server. Returns False if no server or no time is left, or if the client
        is closed.
        """
        now, group = monotonic(), self._group
        left = self._end - now
        endpoint = self._pinned if not self._tried else None
        if self._pinned is None:
            endpoint = group.balancer.choose(now, self._tried, self._requests)
        if endpoint is None or left <= 0 or group.closed:
            return False
        self._tried.append(endpoint)
        if self._on_attempt is not None:
            self._on_attempt(endpoint)
        transport = group.transport_of(endpoint)
        attempt = group.balancer.started(endpoint, now, requests=self._requests)
        try:
            self._running[attempt] = self._send(transport, left, partial(self._ended, attempt))
        except BaseException:  # the call cannot be encoded
            group.balancer.finished(attempt, Verdict.ABANDONED, now)
            raise
        group.watch()
        return True

    def _attempt_elsewhere(self) -> bool:
        """Like `_attempt`, but for a server after the first: returns False, instead of raising, if the call
        cannot be encoded for that server. Servers may use different protocols, which do not carry the same
        values.
        """
        try:
            return self._attempt()
        except Exception as error:
            log.warning("a call cannot be sent to %s: %s", self._tried[-1].url, error)
            return False

    def _ended(self, attempt: RequestAttempt, response: T | None, error: BaseException | None) -> None:
        del self._running[attempt]
        now, balancer = monotonic(), self._group.balancer
        busy_for = error.retry_after if isinstance(error, BacklineError) else None
        balancer.finished(attempt, verdict_of(error), now, busy_for=busy_for)
        if error is None:
            self._end_attempts()
            self._on_outcome(response, None)
            return
        again = self._pinned is None and may_try_again(error, idempotent=self._idempotent, seeks=self._seeks)
        if again and balancer.take_retry() and self._attempt_elsewhere():
            return
        if not self._running:
            self._end_attempts()
            self._on_outcome(None, error)

    def _hedge(self) -> None:
        if len(self._tried) == 1 and self._group.balancer.take_hedge():
            self._attempt_elsewhere()

    def left_by(self, endpoint: Endpoint) -> None:
        """Sends the call to another server if the call is idempotent and in flight to `endpoint`, which does
        not respond.
        """
        if self._idempotent and any(attempt.endpoint is endpoint for attempt in self._running):
            self._attempt_elsewhere()

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
