"""How many frames that carry nothing a client may send: a token bucket that useful work fills, too."""

from __future__ import annotations

import time

from backline.wire.http2 import frames
from backline.wire.http2.frames import ConnectionFailure
from backline.wire.limits import Limits

#: Clients answer DATA with WINDOW_UPDATE for the stream and for the connection, and probe the bandwidth with PING.
PER_REQUEST = 6
PER_DATA_FRAME = 4


class FrameAllowance:
    """The allowance of one connection. The clock is read only when the tokens are used up, so an honest frame costs a subtraction."""

    __slots__ = ("_burst", "_credited", "_last", "_rate", "_tokens")

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.max_idle_frames_rate
        self._burst = float(limits.idle_frames_burst)
        self._tokens = self._burst
        self._last = time.monotonic()
        self._credited = 0

    def spend(self, cost: float, requests: int, data_frames: int) -> None:
        """`requests` answered and `data_frames` sent so far. Raises ConnectionFailure when the client floods."""
        self._tokens -= cost
        if self._tokens >= 0:
            return
        now = time.monotonic()
        work = requests * PER_REQUEST + data_frames * PER_DATA_FRAME
        self._tokens = min(
            self._burst, self._tokens + (now - self._last) * self._rate + (work - self._credited)
        )
        self._last = now
        self._credited = work
        if self._tokens < 0:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "too many frames that carry nothing, or too many streams reset"
            )
