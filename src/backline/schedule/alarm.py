"""A timer for the first of any number of moments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic


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
