"""Estimates how many servers are needed for the load of this server. Autoscalers use this signal to set the
number of servers.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from msgspec import Struct


class ScalingPolicy(Struct, frozen=True):
    """The rules for how many servers are wanted. Times are in seconds.

    A server is fully used if it has, on average over `window`, `target` requests in flight, including queued
    requests.
    """

    target: float
    window: float = 15.0
    #: The factor by which the number of servers may grow in a single step.
    up: float = 2.0
    #: The fraction to which the number of servers may shrink in a single step.
    down: float = 0.5
    #: The fraction of requests that may be refused because they would miss a latency objective or their
    #: deadline. With more than the default, an objective for the 99th percentile is missed.
    missed: float = 0.01
    #: If the load deviates from the target by no more than this fraction, the number of servers does not
    #: change.
    tolerance: float = 0.1
    #: The number of servers is reduced only after the smaller number would have been enough for this many
    #: seconds.
    stabilization: float = 300.0


class DemandCounters(Struct, frozen=True):
    """The demand on a server since its start: the total time, in seconds, that requests have spent in the
    server, the number of requests, and the number of requests that were refused because they would have been
    late.
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


class ScalingSignal(Struct, frozen=True):
    """The average number of requests in flight as a fraction of the target, and the number of servers that
    this load needs.

    The sum of `desired_replicas` over all servers is the number of servers that the fleet needs.
    """

    utilisation: float
    desired_replicas: float


#: The signal while the load is not yet known. It leaves the number of servers unchanged.
STEADY: Final = ScalingSignal(0.0, 1.0)


class Scaling:
    """Computes a signal from readings of counters. The caller passes the time of each reading. A reading
    within a second of the previous reading is ignored, so frequent scrapes need no additional memory.

    The first counter is the time that all requests so far have spent in the server, in seconds. By Little's
    law, the growth of this counter per second is the average number of requests in flight, so no sampling
    between readings is needed. Requests that are refused immediately because they would be late spend no time
    in the server. If too many requests are refused, the signal is therefore higher than the requests in
    flight suggest: it asks for enough servers to answer all requests in time.
    """

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        #: The time and the counters of each reading in the window, and of the last reading before the window.
        self._readings: deque[tuple[float, DemandCounters]] = deque()
        #: The time and value of each recommendation that may still prevent a smaller one. Their values
        #: decrease from the oldest to the newest, because a recommendation replaces all earlier ones that are
        #: not larger.
        self._wanted: deque[tuple[float, float]] = deque()
        self._signal = STEADY

    def read(self, now: float, demand: DemandCounters, waiting: int = 0) -> ScalingSignal:
        """Returns the signal after another reading. `waiting` is the number of requests that are in the
        queues now.

        Requests are counted in `demand` only when they end, so `waiting` shows a growing queue sooner.
        """
        policy, readings = self._policy, self._readings
        if readings and now - readings[-1][0] < 1:
            return self._signal
        readings.append((now, demand))
        while len(readings) > 1 and readings[1][0] <= now - policy.window:
            readings.popleft()
        began, before = readings[0]
        if now <= began:
            # A server that has just started was needed, so it must not be stopped only because its share of
            # the load is still small.
            self._wanted.append((now, 1.0))
            return STEADY
        recent = demand.since(before)
        in_flight = max(recent.seconds / (now - began), float(waiting))
        used = in_flight / policy.target
        if recent.late > policy.missed * recent.requests:
            in_time = 1 - recent.late / recent.requests
            # If one server answers the fraction `in_time` of the requests in time, 1 / in_time servers are
            # needed to answer all of them. The increase is at least twice the tolerance, so that it has an
            # effect.
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
        # Earlier recommendations prevent a reduction, but do not justify more servers than there are now.
        return max(wanted, min(held[0][1], 1.0))


def replicas(signals: list[ScalingSignal], least: int, most: int) -> int:
    """Returns the number of servers that an autoscaler should set: the sum of the recommendations of all
    servers, rounded up, but at least `least` and at most `most`.
    """
    total = sum(signal.desired_replicas for signal in signals)
    return min(max(math.ceil(total - 1e-9), least), most)
