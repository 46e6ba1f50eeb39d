"""Defers work on the event loop: to the end of the current turn (Turn), or to a given time (Alarm)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic, monotonic_ns

from backline.engine.ticket import Ticket

#: The maximum time, in nanoseconds, for which batches are started one after the other before the event loop
#: serves the sockets again.
LONGEST_NS = 1_000_000


class Turn:
    """Makes queues form their batches at the end of a turn of the event loop, so that requests that arrive
    together run together.

    When a batch of ensemble steps completes, the steps that depend on it are submitted. Their batches are
    formed in the same turn, for at most LONGEST_NS. All methods must be called on the event loop. All queues
    on an event loop share one Turn.
    """

    __slots__ = ("_following", "_next", "answering")

    def __init__(self) -> None:
        #: Whether the requests of a batch are being completed, or the batches that follow them run.
        self.answering = False
        self._following = False
        self._next: deque[Callable[[], None]] = deque()

    def soon(self, dispatch: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Calls `dispatch`, which forms a batch, at the end of the current turn.

        If a step of an ensemble is being submitted during the completions of a batch, `dispatch` is instead
        called right after these completions.
        """
        if self._following:
            self._next.append(dispatch)
        else:
            loop.call_soon(dispatch)

    def submit_step(self, submit: Callable[[Ticket], None], ticket: Ticket) -> None:
        """Submits the request of a step of an ensemble. Raises the errors that `submit` raises."""
        self._following = self.answering
        try:
            submit(ticket)
        finally:
            self._following = False

    def begin_completions(self) -> bool:
        """Records that the requests of a batch are about to be completed.

        If this method returns True, the caller must call `end_completions` after the completions.
        """
        begun, self.answering = self.answering, True
        return not begun

    def end_completions(self, loop: asyncio.AbstractEventLoop) -> None:
        """Records that the requests of a batch have been completed, and runs the batches that have become
        ready as a result.
        """
        following = self._next
        try:
            if following:
                until = monotonic_ns() + LONGEST_NS
                while following and monotonic_ns() < until:
                    following.popleft()()
        finally:
            self.answering = False
            while following:
                loop.call_soon(following.popleft())


class Alarm:
    """A timer that can be set to several points in time, and rings at the earliest of them.

    It calls `ring` at the earliest time that was set since the last call of `ring`, but no sooner than
    `pause` seconds after that time was set. Times are in seconds of time.monotonic(). `ring` must handle
    everything that is due, and set the alarm again for everything that is due later. All methods must be
    called on the event loop.
    """

    __slots__ = ("_loop", "_pause", "_ring", "_timer", "moment")

    def __init__(
        self, ring: Callable[[], None], loop: asyncio.AbstractEventLoop, *, pause: float = 0.0
    ) -> None:
        self._ring = ring
        self._loop = loop
        self._pause = pause
        self._timer: asyncio.TimerHandle | None = None
        #: The time when the alarm will ring; infinity if the alarm is not set.
        self.moment = inf

    def set(self, moment: float, pause: float = 0.0) -> None:
        """Sets the alarm to ring at `moment`, but no sooner than `pause` seconds from now. Has no effect if
        the alarm is already set to `moment` or an earlier time.
        """
        if moment >= self.moment:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.moment = moment
        self._timer = self._loop.call_later(max(moment - monotonic(), self._pause, pause), self._rings)

    def stop(self) -> None:
        """Cancels the alarm."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.moment = None, inf

    def _rings(self) -> None:
        self._timer, self.moment = None, inf
        self._ring()
