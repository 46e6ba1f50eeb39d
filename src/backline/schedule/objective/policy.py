"""The policy of a latency objective: who can still be answered in time, and how large the next batch may be.

Plain data in, decision out. Moments are in seconds of one clock, which is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapreplace

from backline.engine.ticket import Ticket
from backline.schedule.objective.latency_model import LatencyModel, Line, Quantile

#: The share of batches that must not end later than was expected, beside what is kept for that.
_SURE = 0.995


def finish(line: Line, free: Sequence[float], ahead: int, size: int, *, usual: int, first: int) -> float:
    """The moment at which a request of `size` items will be answered that has `ahead` items before it.

    `free` are the moments at which the instances will be free, in order. The next batch will have at most `first` items, later ones
    `usual`. The first of a batch must expect that others will join it.
    """
    start = free[0]
    if ahead + size <= first or not ahead:
        return start + line.seconds(max(usual, size) if not ahead else ahead + size)
    a, b = line.a, line.b
    ends = list(free)
    heapreplace(ends, start + a * first + b)
    before = max(0, ahead - first)
    full, joined = divmod(before, usual)
    if joined and joined + size > usual:
        full, joined = full + 1, 0
    rounds, more = divmod(full, len(ends))
    long = a * usual + b
    for _ in range(more):
        heapreplace(ends, ends[0] + long)
    return ends[0] + rounds * long + a * (joined + size if joined else max(usual, size)) + b


class Outlook:
    """What is known of the instances: what their batches take, when those that run will end, and how far that may be wrong."""

    __slots__ = ("_ends", "_slip", "latency")

    def __init__(self, seconds: Mapping[int, float] | None = None, size: int = 0) -> None:
        """As of a LatencyModel."""
        self.latency = LatencyModel(seconds, size)
        self._ends: dict[object, float] = {}
        self._slip = Quantile(_SURE)

    @property
    def margin(self) -> float:
        """Seconds that an answer may come later than expected."""
        return max(0.0, self._slip.value)

    def free(self, now: float, idle: int) -> list[float]:
        """The moments at which the instances will be free, in order, of which `idle` are now.

        One that should have ended already will need as long again as it is late.
        """
        if idle:
            moments = [now] * idle
            moments.extend(sorted([now + abs(end - now) for end in self._ends.values()]))
            return moments
        return sorted([now + abs(end - now) for end in self._ends.values()]) or [now]

    def started(self, instance: object, now: float, size: int, items: int) -> None:
        """A batch was started now, of so many items of a size."""
        self._ends[instance] = now + self.latency.line(size).seconds(items)

    def ended(self, instance: object) -> float | None:
        """Its batch has ended; returns when that was expected."""
        return self._ends.pop(instance, None)

    def slipped(self, seconds: float) -> None:
        """The answers of a batch were given so much later than was expected when it was started."""
        self._slip.learn(seconds)


def item_size(ticket: Ticket) -> int:
    """The elements of one item of a request, where they vary from request to request; else 0."""
    if ticket.batch_key is None:
        return 0
    return max(
        1, sum(tensor.data.size for tensor in ticket.request.inputs.values()) // max(1, ticket.batch_size)
    )
