"""Estimates how many servers the load of this server needs. Autoscalers use this signal to set their
number.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """The conditions under which more or fewer servers are wanted. Times are in seconds.

    A server is fully used if it has, on average over `window`, `target` requests in flight, including queued
    ones.
    """

    target: float
    window: float = 15.0
    #: The maximum and the minimum factor by which one step may change the number of servers.
    up: float = 2.0
    down: float = 0.5
    #: The fraction of requests that may be refused because they would miss a latency objective or their
    #: deadline. If more are refused, an objective for the 99th percentile is missed.
    missed: float = 0.01
    #: If the load deviates from the target by no more than this fraction, the number of servers does not
    #: change.
    tolerance: float = 0.1
    #: Fewer servers are wanted only once fewer would have been enough for this many seconds.
    stabilization: float = 300.0


@dataclass(frozen=True, slots=True)
class DemandCounters:
    """The demand on a server since its start: the number of seconds that requests have spent in the server,
    the number of requests, and how many of them were refused because they would have been late.
    """

    seconds: float = 0.0
    requests: int = 0
    late: int = 0

    def __add__(self, other: DemandCounters) -> DemandCounters:
        return DemandCounters(
            self.seconds + other.seconds, self.requests + other.requests, self.late + other.late
        )

    def since(self, before: DemandCounters) -> DemandCounters:
        """Returns how much each counter has grown since `before`, at least 0."""
        return DemandCounters(
            max(self.seconds - before.seconds, 0.0),
            max(self.requests - before.requests, 0),
            max(self.late - before.late, 0),
        )


NO_DEMAND: Final = DemandCounters()


@dataclass(frozen=True, slots=True)
class ScalingSignal:
    """The average number of requests in flight as a fraction of the target, and the number of servers that
    this load needs.

    The sum of `desired_replicas` over all servers is the number of servers that the fleet needs.
    """

    utilisation: float
    desired_replicas: float


#: The signal as long as nothing is known: the number of servers does not change.
STEADY: Final = ScalingSignal(0.0, 1.0)


class Scaling:
    """Turns readings of counters into a signal. It has no clock: each reading comes with its time. A reading
    within a second of the last one changes nothing, so frequent scrapes need no memory.

    The first counter is the time that all requests so far have spent in the server, in seconds. By Little's
    law, its growth per second is the average number of requests in flight, so no sampling is needed in
    between. Requests that are refused at once because they would be late spend no time in the server. If too
    many are refused, the signal exceeds what the requests in flight suggest: it asks for enough servers to
    answer all requests in time.
    """

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        #: The time and the counters of each reading in the window, and of the last reading before the window.
        self._readings: deque[tuple[float, DemandCounters]] = deque()
        #: The time and value of each recommendation that may still hold back a smaller one. The values
        #: decrease, because a later, larger recommendation replaces those before it.
        self._wanted: deque[tuple[float, float]] = deque()
        self._signal = STEADY

    def read(self, now: float, demand: DemandCounters, waiting: int = 0) -> ScalingSignal:
        """Returns the signal after another reading. `waiting` is the number of requests in the queues now.

        Requests are counted only when they end, so a growing queue is visible in `waiting` first.
        """
        policy, readings = self._policy, self._readings
        if readings and now - readings[-1][0] < 1:
            return self._signal
        readings.append((now, demand))
        while len(readings) > 1 and readings[1][0] <= now - policy.window:
            readings.popleft()
        began, before = readings[0]
        if now <= began:
            # A server that has just started was wanted, even if its share of the load is still small.
            self._wanted.append((now, 1.0))
            return STEADY
        recent = demand.since(before)
        in_flight = max(recent.seconds / (now - began), float(waiting))
        used = in_flight / policy.target
        if recent.late > policy.missed * recent.requests:
            in_time = 1 - recent.late / recent.requests
            # If one server answers this share of the requests in time, all requests need 1/share servers. Ask
            # for more by at least twice the tolerance.
            used = max(used, 1 + 2 * policy.tolerance, min(1 / in_time, policy.up) if in_time else policy.up)
        wanted = 1.0 if abs(used - 1) <= policy.tolerance else min(max(used, policy.down), policy.up)
        self._signal = ScalingSignal(used, self._held(now, wanted))
        return self._signal

    def _held(self, now: float, wanted: float) -> float:
        held = self._wanted
        while held and held[-1][1] <= wanted:
            held.pop()
        held.append((now, wanted))
        while held[0][0] < now - self._policy.stabilization:
            held.popleft()
        # Earlier recommendations hold back a smaller number, but are no reason for more servers than now.
        return max(wanted, min(held[0][1], 1.0))


def replicas(signals: list[ScalingSignal], least: int, most: int) -> int:
    """Returns the number of servers that an autoscaler sets: the sum of all servers' recommendations, rounded
    up.
    """
    total = sum(signal.desired_replicas for signal in signals)
    return min(max(math.ceil(total - 1e-9), least), most)
