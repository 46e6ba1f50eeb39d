"""How many servers the load of this one needs: the signal by which an autoscaler sets their number."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """When more or fewer servers are wanted. Times are in seconds.

    A server is fully used with `target` requests in flight, queued ones included, on average over `window`.
    """

    target: float
    window: float = 15.0
    #: One step asks for at most this many times the servers, and at least this share of them.
    up: float = 2.0
    down: float = 0.5
    #: The share of requests that may be refused because they would miss a latency objective or their
    #: deadline. If more are refused, an objective for the 99th percentile is missed.
    missed: float = 0.01
    #: Within this distance of the target, the number stays.
    tolerance: float = 0.1
    #: Fewer servers are wanted only once fewer have been enough for this many seconds.
    stabilization: float = 300.0


@dataclass(frozen=True, slots=True)
class DemandCounters:
    """The demand on a server since its start: the seconds that requests have spent in it, the number of
    requests, and how many of them were refused because they would have been late.
    """

    seconds: float = 0.0
    requests: int = 0
    late: int = 0

    def __add__(self, other: DemandCounters) -> DemandCounters:
        return DemandCounters(
            self.seconds + other.seconds, self.requests + other.requests, self.late + other.late
        )

    def since(self, before: DemandCounters) -> DemandCounters:
        """The growth of each counter since `before`, at least 0."""
        return DemandCounters(
            max(self.seconds - before.seconds, 0.0),
            max(self.requests - before.requests, 0),
            max(self.late - before.late, 0),
        )


NO_DEMAND: Final = DemandCounters()


@dataclass(frozen=True, slots=True)
class ScalingSignal:
    """The average number of requests in flight as a share of the target, and how many servers that needs.

    The sum of the latter over all servers is how many the fleet needs.
    """

    utilisation: float
    desired_replicas: float


#: The signal before anything is known: the number of servers stays.
STEADY: Final = ScalingSignal(0.0, 1.0)


class Scaling:
    """Turns readings of a counter into a signal. It has no clock: each reading comes with its time. A reading
    within a second of the last one changes nothing, so frequent scrapes need no memory.

    The first counter is the time that all requests so far have spent in the server, in seconds. By Little's
    law, its growth per second is the average number of requests in flight, so nothing is sampled in between.
    Requests that are refused at once because they would be late spend no time in the server. If too many are
    refused, the signal exceeds what the requests in flight suggest: it asks for enough servers to answer all
    requests in time.
    """

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        #: The time and the counters of each reading in the window, and of the last one before it.
        self._readings: deque[tuple[float, DemandCounters]] = deque()
        #: Time and result of the recommendations that may still hold back a smaller one. Their results
        #: decrease, because a later, larger one replaces those before it.
        self._wanted: deque[tuple[float, float]] = deque()
        self._signal = STEADY

    def read(self, now: float, demand: DemandCounters, waiting: int = 0) -> ScalingSignal:
        """The signal after another reading. `waiting` requests are in the queues now.

        Requests are counted when they end, so a queue that has grown shows in `waiting` first.
        """
        policy, readings = self._policy, self._readings
        if readings and now - readings[-1][0] < 1:
            return self._signal
        readings.append((now, demand))
        while len(readings) > 1 and readings[1][0] <= now - policy.window:
            readings.popleft()
        began, before = readings[0]
        if now <= began:
            # A server that was just started was wanted, even if its share of the load is still small.
            self._wanted.append((now, 1.0))
            return STEADY
        recent = demand.since(before)
        in_flight = max(recent.seconds / (now - began), float(waiting))
        used = in_flight / policy.target
        if recent.late > policy.missed * recent.requests:
            in_time = 1 - recent.late / recent.requests
            # If one server answers this share of the requests in time, all requests need 1/share servers; ask
            # for at least one step more.
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
        # What was wanted before holds back a smaller number, but is no reason for more servers than now.
        return max(wanted, min(held[0][1], 1.0))


def replicas(signals: list[ScalingSignal], least: int, most: int) -> int:
    """The number of servers that an autoscaler sets: the sum of what all servers want, rounded up."""
    total = sum(signal.desired_replicas for signal in signals)
    return min(max(math.ceil(total - 1e-9), least), most)
