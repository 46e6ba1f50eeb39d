"""Decides how long to poll for input before sleeping, based on the gaps between earlier inputs."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Seconds between the arrival of input and the end of the sleep that it interrupts. A gap that ended with a
#: sleep was shorter by this time than it seems.
WAKE_TIME: Final = 30e-6
#: If this many seconds pass between two checks for input during a poll, another thread or process must have
#: used the core or the interpreter.
LOST_CORE: Final = 100e-6
#: While polling, seconds between two checks whether the machine has an idle core.
CHECK_INTERVAL: Final = 0.01
#: The weight of the latest gap in the averages.
_WEIGHT: Final = 1 / 16
#: Gaps count as regular if at least this share of them is short enough to poll for, and if their variance,
#: computed from their differences, is below this share of their squared mean. For random arrivals, the
#: variance equals the squared mean.
_MOSTLY: Final = 0.9
_REGULAR: Final = 0.25
#: Requests that each have one, two, three or six gaps are recognised as regular.
_PERIOD: Final = 6
#: After losing the core, this many gaps pass without a poll. The number doubles each time that the core is
#: lost again within _PROBATION gaps, up to the second number.
_FIRST_REST: Final = 8
_LONGEST_REST: Final = 1024
_PROBATION: Final = 256


class BusyPollPolicy:
    """Learns from gaps whether polling for the next input pays off.

    A gap is the time between finishing all work and receiving the next input. Polling takes CPU time for as
    long as the gap lasts, at most `longest`, and saves the sleep and the wake-up if the gap ends within
    `longest`.

    The policy polls if the gaps are short and regular, as with a client that sends its next request once it
    has a response. Each gap is compared with the one six gaps earlier, because a request to a worker process
    has two gaps (one until the worker has responded, one until the next request), and a stream has three.

    Random arrivals from many clients are not regular, however short their gaps: while the loop sleeps, their
    requests collect and then run as one batch, which takes less CPU time than polling for each of them. A
    policy has no clock, so tests simulate it with plain values.
    """

    __slots__ = (
        "_differences",
        "_earlier",
        "_hits",
        "_mean",
        "_rest",
        "_resting",
        "_since_loss",
        "length",
        "longest",
    )

    def __init__(self, longest: float) -> None:
        """`longest` is the maximum duration of a poll, in seconds; 0 means never to poll."""
        self.longest = longest
        #: Seconds to poll during the next gap; 0 means to sleep at once.
        self.length = 0.0
        # Moving averages: of the gaps, each limited to `longest`; of their squared differences; and of the
        # share of gaps that are no longer than `longest`.
        self._mean = longest
        self._differences = longest * longest
        self._hits = 0.0
        self._earlier = deque([longest] * _PERIOD, _PERIOD)
        self._rest = 0
        self._resting = 0
        self._since_loss = _PROBATION

    def observe(self, gap: float) -> None:
        """Learns from a gap, in seconds, and sets `length` for the next one."""
        longest = self.longest
        hit = gap <= longest
        if not hit:
            gap = longest
        elif gap < 0.0:
            gap = 0.0
        self._hits = hits = self._hits + _WEIGHT * (hit - self._hits)
        self._mean = mean = self._mean + _WEIGHT * (gap - self._mean)
        difference = gap - self._earlier[0]
        self._earlier.append(gap)
        self._differences += _WEIGHT * (difference * difference - self._differences)
        self._since_loss += 1
        if self._resting:
            self._resting -= 1
            self.length = 0.0
        elif hits >= _MOSTLY and self._differences < 2 * _REGULAR * mean * mean:
            self.length = longest
        else:
            self.length = 0.0

    def lose_core(self) -> None:
        """Pauses polling, because other threads or processes need the core or the interpreter."""
        again = self._since_loss < _PROBATION + self._rest
        self._rest = min(2 * self._rest, _LONGEST_REST) if again and self._rest else _FIRST_REST
        self._resting = self._rest
        self._since_loss = 0
        self.length = 0.0
