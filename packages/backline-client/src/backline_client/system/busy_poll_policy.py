"""Decides how long to poll for input before sleeping, based on the gaps between earlier inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

#: Seconds from the arrival of input until a sleeping loop is awake, on an idle core.
WAKE_TIME: Final = 30e-6
#: If this many seconds pass between two checks for input during a poll, other threads need the core or the
#: interpreter. In less time, a client on the same core handles a response and sends its next request.
_LOST_CORE: Final = 400e-6
#: Seconds between two checks, while polling, of whether the machine has an idle core.
_CHECK_INTERVAL: Final = 0.01
#: The weight of the latest gap in the averages.
_WEIGHT: Final = 1 / 16
#: The policy polls if at least the first share of the gaps is worth a poll, and at least the second share of
#: the gaps is similar to an earlier gap.
_MOSTLY: Final = 0.6
_REGULAR: Final = 0.7
#: Two gaps are similar if they differ by at most this share of the mean gap plus _JITTER. About half of the
#: gaps of random arrivals are similar in this sense.
_SIMILAR: Final = 0.5
#: The amount by which the time of a wake-up varies, in seconds.
_JITTER: Final = WAKE_TIME / 2
#: A gap is not worth a poll if sleeping through it, including the wake-up, took at least this many seconds
#: less than WAKE_TIME. Either the input had arrived before the loop slept, as under load, or the core was
#: busy, so the loop woke up immediately.
_MARGIN: Final = 5e-6
#: Each gap is compared with the gap this many gaps earlier. So requests with one, two, three or six gaps each
#: are recognised as regular.
_PERIOD: Final = 6
#: The number of gaps without a poll after the core was lost. The number doubles each time that the core is
#: lost again within _PROBATION gaps after such a pause, up to _LONGEST_REST. Even on an idle machine, the
#: kernel or the hypervisor takes the core once in a hundred polls, and more often while two servers poll or
#: the machine runs background services, such as Ray's. Such a loss must neither double the number nor cause a
#: long pause: if one of two servers that await each other sleeps for several gaps, the gaps of the other
#: become so long that it stops polling too.
_FIRST_REST: Final = 1
_LONGEST_REST: Final = 1024
_PROBATION: Final = 4
#: After this many gaps in a row that were not worth a poll, the policy is hopeless.
_HOPELESS: Final = 8


class BusyPollPolicy:
    """Learns from gaps whether polling for the next input pays off.

    A gap is the time between finishing all work and receiving the next input. Polling takes CPU time until
    the gap ends, but for at most `longest` seconds. If the gap ends by then, polling saves the time to go to
    sleep and to wake up.

    The policy polls if the gaps are short and regular, as with a client that sends its next request once it
    has a response. Each gap is compared with the gap that was six gaps earlier, because a request to a worker
    process has two gaps (one until the worker has responded, one until the next request), and a request to a
    stream has three. The policy counts gaps that are similar, rather than computing a variance, because every
    hundredth gap is ten times as long as the others even on an idle machine.

    Random arrivals from many clients are not regular, however short the gaps: while the loop sleeps, requests
    collect and then run as one batch, which takes less CPU time than polling for each request. Under load,
    the next requests arrive while the loop works, so it does not have to sleep. A policy reads no clock, so
    tests can simulate time with plain values.
    """

    __slots__ = (
        "_earlier",
        "_hits",
        "_mean",
        "_misses",
        "_next_check",
        "_rest",
        "_resting",
        "_similar",
        "_since_loss",
        "length",
        "longest",
    )

    def __init__(self, longest: float) -> None:
        """`longest` is the maximum duration of a poll, in seconds; 0 turns polling off."""
        self.longest = longest
        #: Seconds to poll during the next gap; 0 means to sleep immediately.
        self.length = 0.0
        #: When to check next whether a core is idle, in seconds of the caller's clock; 0 to check before the
        #: next poll.
        self._next_check = 0.0
        # Three moving averages: of the gaps (a longer gap counts as `longest`), of the share of gaps that are
        # worth a poll, and of the share of gaps that are similar to the gap _PERIOD gaps earlier.
        self._mean = longest
        self._hits = 0.0
        self._similar = 0.0
        # The number of gaps since the last one that was worth a poll.
        self._misses = _HOPELESS
        self._earlier = deque([longest] * _PERIOD, _PERIOD)
        self._rest = 0
        self._resting = 0
        self._since_loss = _PROBATION

    @property
    def hopeless(self) -> bool:
        """Whether none of the latest gaps was worth a poll, so that it is enough to observe some of the gaps
        until one is. True before the first gap.
        """
        return self._misses >= _HOPELESS

    def observe(self, gap: float) -> None:
        """Learns from a gap, in seconds, and sets `length` for the next one.

        The gap may be negative if the loop slept, because `slept` subtracts the usual time of a wake-up.
        """
        longest = self.longest
        hit = -_MARGIN <= gap <= longest
        self._misses = 0 if hit else self._misses + 1
        if gap > longest:
            gap = longest
        elif gap < 0.0:
            gap = 0.0
        self._hits = hits = self._hits + _WEIGHT * (hit - self._hits)
        self._mean = mean = self._mean + _WEIGHT * (gap - self._mean)
        similar = abs(gap - self._earlier[0]) <= _SIMILAR * mean + _JITTER
        self._similar += _WEIGHT * (similar - self._similar)
        self._earlier.append(gap)
        self._since_loss += 1
        if self._resting:
            self._resting -= 1
            self.length = 0.0
        elif hits >= _MOSTLY and self._similar >= _REGULAR:
            self.length = longest
        else:
            self.length = self._next_check = 0.0

    def slept(self, seconds: float) -> None:
        """Learns from a gap during which the loop slept, until `seconds` after the gap began. Sets `length`
        for the next gap.
        """
        self.observe(seconds - WAKE_TIME)

    def begins(self, now: float, has_idle_core: Callable[[], bool]) -> bool:
        """Returns whether to poll in the gap that begins at `now`, in seconds. Calls `has_idle_core` from
        time to time; polling pauses if it returns False, because other threads or processes need the core.
        """
        if not self.length:
            return False
        if now > self._next_check:
            if not has_idle_core():
                self._lose_core()
                return False
            self._next_check = now + _CHECK_INTERVAL
        return True

    def continues(self, began: float, checked: float, now: float) -> bool:
        """Returns whether to continue a poll that began at `began`, and last checked for input at `checked`.

        Polling pauses if the last check was so long ago that other threads or processes must have used the
        core or the interpreter.
        """
        if now - checked > _LOST_CORE:
            self._lose_core()
            return False
        return now - began <= self.length

    def _lose_core(self) -> None:
        again = self._since_loss < _PROBATION + self._rest
        self._rest = min(2 * self._rest, _LONGEST_REST) if again and self._rest else _FIRST_REST
        self._resting = self._rest
        self._since_loss = 0
        self.length = self._next_check = 0.0
