"""One call on its way to one of several servers: its attempts, and the one whose response counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
from backline.client.transport import Transport

if TYPE_CHECKING:
    from backline.client.balanced_transport import BalancedTransport

T = TypeVar("T")


def verdict_of(error: BaseException | None) -> Verdict:
    """What the outcome of an attempt says about its server."""
    if isinstance(error, ConnectionFailed):
        return Verdict.LOST
    if isinstance(error, Unavailable):
        return Verdict.BUSY
    if isinstance(error, (DeadlineExceeded, Internal, ProtocolError)):
        return Verdict.FAILED
    return Verdict.ANSWERED


def may_try_again(error: BaseException, *, idempotent: bool) -> bool:
    """Whether a request that got this error may be sent to another server.

    Any request may if it has certainly not run: no connection was opened, or the server refused it because it
    is busy, loading or draining. An idempotent one also may if the connection broke.
    """
    if isinstance(error, ConnectionLost):
        return idempotent
    return isinstance(error, Unavailable)


class BalancedCall(Generic[T]):
    """Sends a call to a server, to another one if that fails, and to a second one if the first is late.

    `send` makes an attempt over a transport within some seconds. The first response wins; the other attempts
    are cancelled. If all fail, the error of the last one is raised.
    """

    def __init__(
        self,
        group: BalancedTransport,
        send: Callable[[Transport, float], Coroutine[Any, Any, T]],
        timeout: float,
        *,
        idempotent: bool,
        pinned: Endpoint | None = None,
    ) -> None:
        """With `pinned`, the call goes to that server only, once."""
        self._group = group
        self._send = send
        self._timeout = timeout
        self._end = monotonic() + timeout
        self._idempotent = idempotent
        self._pinned = pinned
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[T] = self._loop.create_future()
        self._running: dict[asyncio.Task[T], RequestAttempt] = {}
        self._tried: list[Endpoint] = []
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> T:
        """The response. Raises BacklineError; a cancellation cancels all attempts."""
        group = self._group
        group.balancer.arrived()
        if not self._attempt():
            raise Unavailable(f"{group.url} names no server at the moment")
        late_after = group.balancer.late_after
        if self._idempotent and self._pinned is None and late_after is not None:
            self._timer = self._loop.call_later(late_after, self._hedge)
        group.calls.add(self)
        try:
            return await self._outcome
        finally:
            group.calls.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            if self._running:
                self._abandon()

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
        task = self._loop.create_task(self._send(group.transport_of(endpoint), left))
        self._running[task] = group.balancer.started(endpoint, now)
        group.watch()
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[T]) -> None:
        attempt = self._running.pop(task, None)
        if attempt is None:
            return  # abandoned
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        now, balancer = monotonic(), self._group.balancer
        busy_for = error.retry_after if isinstance(error, BacklineError) else None
        balancer.finished(attempt, verdict_of(error), now, busy_for=busy_for)
        if self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(task.result())
            return
        again = self._pinned is None and may_try_again(error, idempotent=self._idempotent)
        if again and balancer.take_retry() and self._attempt():
            return
        if not self._running:
            self._outcome.set_exception(error)

    def _hedge(self) -> None:
        if len(self._tried) == 1 and self._group.balancer.take_hedge():
            self._attempt()

    def left_by(self, endpoint: Endpoint) -> None:
        """Sends the call to another server, because `endpoint`, which may have it, does not respond."""
        if self._idempotent and any(attempt.endpoint is endpoint for attempt in self._running.values()):
            self._attempt()

    def _abandon(self) -> None:
        now = monotonic()
        for task, attempt in self._running.items():
            self._group.balancer.finished(attempt, Verdict.ABANDONED, now)
            task.cancel()
        self._running.clear()
