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
#: The part of the objective that a batch may take: in half of it everybody who comes while it runs can be answered after it. When more
#: come than can be answered anyway, larger batches answer more of them: those who come in the last part of a run.
_LEAST_SHARE, _MOST_SHARE, _SHARE_STEP = 0.5, 0.85, 0.01
#: A batch is full from this part of its usual size on.
_FULL = 0.9
#: The part of the objective that may be kept for answers that come later than expected.
_MOST_MARGIN = 0.25
#: The weight of the newest batch in the mean of those that could not be joined with what waited behind them.
_JOINED_RATE = 0.1


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


class BatchSizing:
    """What the batches are to be like that answer within `objective` seconds, learnt from those that were formed."""

    __slots__ = (
        "_joined",
        "_longest",
        "_max_items",
        "_objective",
        "_outlook",
        "_share",
        "margin",
        "planned",
        "refused",
        "usual",
    )

    def __init__(self, objective: float, outlook: Outlook) -> None:
        self._objective = objective
        self._outlook = outlook
        #: The mean items of batches that others waited behind who could not be joined.
        self._joined = 0.0
        self._share = _LEAST_SHARE
        #: Whether anybody was refused since the last batch was formed.
        self.refused = False
        #: The line of the batches that it is planned for; None from one batch to the next request.
        self.planned: Line | None = None
        #: The items of the largest batch that leaves to those who come while it runs the time for another one.
        self.usual = 1
        #: The seconds that answers may be later than expected.
        self.margin = 0.0
        #: Those of the largest batch of all, with these.
        self._longest = 0.0
        self._max_items = 1

    def plan(self, line: Line, max_items: int) -> None:
        """Notes what batches of a line are like; until the next one is formed they are taken to be so."""
        self.planned = line
        self._max_items = max_items
        self.margin = min(self._outlook.margin, _MOST_MARGIN * self._objective)
        most = max(1, min(max_items, round(self._joined))) if self._joined else max_items
        self.usual = line.largest((self._objective - self.margin) * self._share, most) or 1
        self._longest = line.seconds(max_items) + self.margin

    def largest(self, line: Line, left: float) -> int:
        """The items of the next batch at most, as planned for its line, when the first of it are to be answered in `left` seconds."""
        if left >= self._longest:
            return self._max_items
        return self.within(line, left, min(self.usual, line.largest(left, self._max_items)))

    def within(self, line: Line, left: float, items: int) -> int:
        """`items` that are hoped to be answered in `left` seconds, or as many as surely are."""
        return max(1, items, line.largest(left - self.margin, self._max_items))

    def formed(self, items: int) -> None:
        """Lets batches grow as long as they are full and not enough for all, and shrink when they are not."""
        self.planned = None
        if items < _FULL * self.usual:
            self._share = max(_LEAST_SHARE, self._share - 2 * _SHARE_STEP)
        elif self.refused:
            self._share = min(_MOST_SHARE, self._share + _SHARE_STEP)
        self.refused = False

    def complete(self, items: int) -> None:
        """A batch was complete with so many items, or could have had so many."""
        self._joined = items if not self._joined else self._joined + _JOINED_RATE * (items - self._joined)
