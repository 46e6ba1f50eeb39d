"""Defers work on the event loop to the end of the current turn (Turn) or to a given time (Alarm)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic, monotonic_ns

from backline.engine.ticket import Ticket

#: Maximum time, in nanoseconds, for which batches may follow one another before the sockets are served.
LONGEST_NS = 1_000_000


class Turn:
    """Forms batches at the end of a turn of the event loop, so that requests that arrive together run
    together.

    When a batch of ensemble steps completes, it submits the steps that depended on it. Their batches follow
    in the same turn, for at most LONGEST_NS. All methods must be called on the event loop, whose queues share
    one Turn.
    """

    __slots__ = ("_answering", "_following", "_next")

    def __init__(self) -> None:
        self._answering = False
        self._following = False
        self._next: deque[Callable[[], None]] = deque()

    def soon(self, dispatch: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Calls `dispatch`, which forms a batch, at the end of the current turn.

        While a step of an ensemble is submitted, `dispatch` is instead called right after the completions of
        the current batch.
        """
        if self._following:
            self._next.append(dispatch)
        else:
            loop.call_soon(dispatch)

    def submit_step(self, submit: Callable[[Ticket], None], ticket: Ticket) -> None:
        """Submits a request for a step of an ensemble. Raises what `submit` raises."""
        self._following = self._answering
        try:
            submit(ticket)
        finally:
            self._following = False

    def begin_completions(self) -> bool:
        """Marks the start of a batch's completions.

        If this returns True, the caller must call `end_completions` after these completions.
        """
        begun, self._answering = self._answering, True
        return not begun

    def end_completions(self, loop: asyncio.AbstractEventLoop) -> None:
        """Marks the end of a batch's completions, and runs the batches that have become ready because of
        them.
        """
        following = self._next
        try:
            if following:
                until = monotonic_ns() + LONGEST_NS
                while following and monotonic_ns() < until:
                    following.popleft()()
        finally:
            self._answering = False
            while following:
                loop.call_soon(following.popleft())


class Alarm:
    """A timer for the earliest of any number of times.

    Calls `ring` at the earliest time that was set since the last call, but no sooner than `pause` seconds
    after it was set. Times are in seconds of time.monotonic(). `ring` must handle what is due, and set the
    alarm again for the rest. All methods must be called on the event loop.
    """

    __slots__ = ("_loop", "_pause", "_ring", "_timer", "moment")

    def __init__(
        self, ring: Callable[[], None], loop: asyncio.AbstractEventLoop, *, pause: float = 0.0
    ) -> None:
        self._ring = ring
        self._loop = loop
        self._pause = pause
        self._timer: asyncio.TimerHandle | None = None
        #: When the alarm will ring; infinity if it is not set.
        self.moment = inf

    def set(self, moment: float, pause: float = 0.0) -> None:
        """Sets the alarm to ring at `moment` or earlier, but no sooner than `pause` seconds from now."""
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
