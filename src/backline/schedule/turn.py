"""When something happens on the event loop: at the end of its turn, or at a moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic, monotonic_ns

from backline.engine.ticket import Ticket

#: Nanoseconds for which batches may follow one another before the sockets have their turn.
LONGEST_NS = 1_000_000


class Turn:
    """Batches are formed at the end of the loop's turn, so that requests which arrive together run together.

    Of the steps of ensembles that a batch has made ready, all are there when that batch is answered: their batches follow it in the same
    turn, until LONGEST_NS are over. Lives on the event loop, one for all its queues.
    """

    __slots__ = ("_answering", "_following", "_next")

    def __init__(self) -> None:
        self._answering = False
        self._following = False
        self._next: deque[Callable[[], None]] = deque()

    def soon(self, dispatch: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Calls `dispatch`, which forms a batch, at the end of this turn; behind the batch that is answered, if it is for a step."""
        if self._following:
            self._next.append(dispatch)
        else:
            loop.call_soon(dispatch)

    def submit_step(self, submit: Callable[[Ticket], None], ticket: Ticket) -> None:
        """Submits the request to a step of an ensemble. Raises what `submit` raises."""
        self._following = self._answering
        try:
            submit(ticket)
        finally:
            self._following = False

    def begin_answers(self) -> bool:
        """The requests of a batch are about to be answered. Says whether whoever calls this has to call `end_answers` behind them."""
        begun, self._answering = self._answering, True
        return not begun

    def end_answers(self, loop: asyncio.AbstractEventLoop) -> None:
        """All are answered, and what follows may run."""
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
    """Calls `ring` at the earliest moment that it was set for since it rang, at least `pause` seconds from when it was set.

    Moments are of time.monotonic(). Lives on the event loop. Whoever is called looks at what is due, and sets it for what is not.
    """

    __slots__ = ("_loop", "_pause", "_ring", "_timer", "moment")

    def __init__(
        self, ring: Callable[[], None], loop: asyncio.AbstractEventLoop, *, pause: float = 0.0
    ) -> None:
        self._ring = ring
        self._loop = loop
        self._pause = pause
        self._timer: asyncio.TimerHandle | None = None
        #: The moment that it is set for, or infinity.
        self.moment = inf

    def set(self, moment: float, pause: float = 0.0) -> None:
        """Rings then, or earlier if it was to; for this once not before `pause` seconds are over, either."""
        if moment >= self.moment:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.moment = moment
        self._timer = self._loop.call_later(max(moment - monotonic(), self._pause, pause), self._rings)

    def stop(self) -> None:
        """It does not ring."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.moment = None, inf

    def _rings(self) -> None:
        self._timer, self.moment = None, inf
        self._ring()
