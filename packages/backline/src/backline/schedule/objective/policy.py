"""The policy for a latency objective. It learns run times, predicts completion times, and chooses batch
sizes.

This module performs no I/O and reads no clock. Times are in seconds of the caller's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapreplace
from math import log2

from backline.engine.ticket import Ticket

#: The weight of the newest run in moving averages. With this weight, an average effectively covers the last
#: 20 runs.
_RATE = 0.05
#: An error of more than this many times the usual error is an outlier, and is reduced to this many times the
#: usual error.
_OUTLIER = 3.0
#: The usual error is assumed to be at least this fraction of the run time.
_LEAST_ERROR = 0.02
#: The weight of the prior slope in the fit. It equals the weight of the runs if the standard deviation of
#: their sizes is a tenth of the mean size.
_PRIOR_WEIGHT = 0.01
#: The number of buckets per doubling of the item size.
_PER_OCTAVE = 2


class Line:
    """Estimates the duration, in seconds, of a run of n items of similar size as `a * n + b`.

    The line is a least-squares fit to recent runs, in which older runs have less weight. The fit is
    regularised towards the slope of the prior, scaled to the current speed, because if all batches have the
    same size, the runs alone say nothing about other sizes.
    """

    __slots__ = ("_error", "_n", "_nn", "_ny", "_prior", "_w", "_x", "_y", "a", "b")

    def __init__(self, a: float, b: float) -> None:
        self.a = a
        self.b = b
        self._prior = (a, b)
        self._error = 0.1 * (a + b)
        #: Weighted sums over the runs, in which older runs have less weight: of 1, items, items squared,
        #: seconds, items times seconds, and prior estimates.
        self._w = self._n = self._nn = self._y = self._ny = self._x = 0.0

    def seconds(self, items: float) -> float:
        """Returns the expected duration of a run of `items` items."""
        return self.a * items + self.b

    def largest(self, seconds: float, most: int) -> int:
        """Returns the largest number of items, up to `most`, whose run takes no longer than `seconds`; 0 if
        even a single item takes longer.
        """
        left = seconds - self.b
        if left < self.a or left < 0:
            return 0
        return most if left >= self.a * most else int(left / self.a)

    def learn(self, items: int, seconds: float) -> None:
        """Updates the fit with a run."""
        expected = self.seconds(items)
        error = seconds - expected
        limit = _OUTLIER * max(self._error, _LEAST_ERROR * expected)
        self._error += _RATE * 2 * (min(abs(error), 2 * limit) - self._error)
        seconds = expected + max(-limit, min(limit, error))
        keep = 1 - _RATE
        a, b = self._prior
        self._w = keep * self._w + _RATE
        self._n = keep * self._n + _RATE * items
        self._nn = keep * self._nn + _RATE * items * items
        self._y = keep * self._y + _RATE * seconds
        self._ny = keep * self._ny + _RATE * items * seconds
        self._x = keep * self._x + _RATE * (a * items + b)
        self._fit()

    def _fit(self) -> None:
        a, _ = self._prior
        mean, seconds = self._n / self._w, self._y / self._w
        slope = a * self._y / self._x if self._x else seconds / mean
        trust = _PRIOR_WEIGHT * mean * mean
        variance, covariance = self._nn / self._w - mean * mean, self._ny / self._w - mean * seconds
        self.a = min(max((covariance + trust * slope) / (variance + trust), 0.0), seconds / mean)
        self.b = seconds - self.a * mean


class LatencyModel:
    """A Line for each bucket of item sizes.

    The size of an item is its number of elements, or 0 for models whose items all have the same number of
    elements. For a size without runs, the times are those of the nearest size with runs, scaled in proportion
    to the sizes, except that the part of the time that does not depend on the number of items is not reduced.
    Without any run or measurement, runs are expected to take no time.
    """

    def __init__(self, seconds: Mapping[int, float] | None = None, size: int = 0) -> None:
        """Creates the model. `seconds` maps batch sizes, always including 1, to run times, measured earlier
        with items of the size `size`.
        """
        self._lines: dict[int, tuple[int, Line]] = {}
        if seconds:
            most = max(seconds)
            a = (seconds[most] - seconds[1]) / (most - 1) if most > 1 else seconds[1]
            a = min(max(a, 0.0), seconds[1])
            self._lines[_bucket(size)] = (size, Line(a, seconds[1] - a))

    def line(self, size: int) -> Line:
        """Returns the Line for items of the size `size`."""
        bucket = _bucket(size) if size else 0
        known = self._lines.get(bucket)
        if known is not None:
            return known[1]
        if not self._lines:
            return Line(0.0, 0.0)
        nearest = min(self._lines, key=lambda other: abs(other - bucket))
        like, line = self._lines[nearest]
        times = size / like if like else 1.0
        return Line(line.a * times, line.b * (times if times > 1 else 1.0))

    def learn(self, size: int, items: int, seconds: float) -> None:
        """Updates the model with a run of `items` items, each of about `size` elements."""
        bucket = _bucket(size)
        known = self._lines.get(bucket)
        if known is None:
            line = Line(seconds / items, 0.0) if not self._lines else self.line(size)
            self._lines[bucket] = known = (size, line)
        known[1].learn(items, seconds)


class Quantile:
    """An online estimate of a quantile, which is the value that the fraction `share` of the observations does
    not exceed.

    Each observation moves the estimate by a step that is proportional to the spread of the observations.
    """

    __slots__ = ("_share", "_spread", "value")

    def __init__(self, share: float) -> None:
        self.value = 0.0
        self._share = share
        self._spread = 0.0

    def learn(self, observed: float) -> None:
        """Updates the estimate with an observation."""
        away = abs(observed - self.value)
        self._spread = (
            away if not self._spread else self._spread + _RATE * (min(away, 4 * self._spread) - self._spread)
        )
        step = 0.2 * self._spread
        self.value += step * self._share if observed > self.value else -step * (1 - self._share)


def _bucket(size: int) -> int:
    return round(_PER_OCTAVE * log2(size)) if size > 0 else 0


#: The fraction of batches that should end no later than the expected time plus the margin.
_SURE = 0.995
#: The fraction of the objective that a batch may take: the minimum, the maximum, and the step by which it
#: grows; it shrinks by two steps. If a batch takes half of the objective, each request that arrives during
#: its run can be served in time by the next run. Larger batches have a higher throughput under overload, but
#: their runs take so long that the next run is in time only for requests that arrived late in the current
#: one.
_LEAST_SHARE, _MOST_SHARE, _SHARE_STEP = 0.5, 0.85, 0.01
#: A batch counts as full if it has at least this fraction of the usual size.
_FULL = 0.9
#: The maximum fraction of the objective that is reserved as a margin for late responses.
_MOST_MARGIN = 0.25
#: The weight of the newest batch in the moving average of the sizes of batches that the next request could
#: not join.
_JOINED_RATE = 0.1


def finish(line: Line, free: Sequence[float], ahead: int, size: int, *, usual: int, first: int) -> float:
    """Returns the time when a request with `size` items will complete if `ahead` items are queued in front of
    it.

    `free` lists the times when the instances become free, in ascending order. The next batch has at most
    `first` items, and later batches have at most `usual` items. The estimate assumes that other requests join
    the first request of a batch.
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
    """Estimates the durations of batches, and the times when running batches will end, and tracks the error
    of these estimates.
    """

    __slots__ = ("_ends", "_slip", "latency")

    def __init__(self, seconds: Mapping[int, float] | None = None, size: int = 0) -> None:
        """Creates the estimates. The arguments are the same as those of LatencyModel."""
        self.latency = LatencyModel(seconds, size)
        self._ends: dict[object, float] = {}
        self._slip = Quantile(_SURE)

    @property
    def margin(self) -> float:
        """The time, in seconds, by which a response may be later than expected."""
        return max(0.0, self._slip.value)

    def free(self, now: float, idle: int) -> list[float]:
        """Returns the times when the instances will be free, in ascending order; `idle` instances are free
        now.

        If a batch has not ended at the expected time, its instance is expected to need as much more time as
        the batch is late.
        """
        if idle:
            moments = [now] * idle
            moments.extend(sorted([now + abs(end - now) for end in self._ends.values()]))
            return moments
        return sorted([now + abs(end - now) for end in self._ends.values()]) or [now]

    def started(self, instance: object, now: float, size: int, items: int) -> None:
        """Records that `instance` starts a batch of `items` items at the time `now`; `size` is the size of an
        item.
        """
        self._ends[instance] = now + self.latency.line(size).seconds(items)

    def ended(self, instance: object) -> float | None:
        """Records the end of a batch. Returns the time at which the batch was expected to end; None if
        unknown.
        """
        return self._ends.pop(instance, None)

    def slipped(self, seconds: float) -> None:
        """Records that the responses of a batch were sent `seconds` seconds later than was expected when the
        batch started.
        """
        self._slip.learn(seconds)


def item_size(ticket: Ticket) -> int:
    """Returns the number of elements in an item of the request, if the model's items may differ in their
    numbers of elements; otherwise 0.
    """
    if ticket.batch_key is None:
        return 0
    return max(
        1, sum(tensor.data.size for tensor in ticket.request.inputs.values()) // max(1, ticket.batch_size)
    )


class BatchSizing:
    """Learns from past batches how large the next batches should be, so that requests complete within
    `objective` seconds.
    """

    def __init__(self, objective: float, outlook: Outlook) -> None:
        self._objective = objective
        self._outlook = outlook
        #: The mean number of items in those batches that the next request in the queue could not join.
        self._joined = 0.0
        self._share = _LEAST_SHARE
        #: Whether a request was refused since the last batch was formed.
        self.refused = False
        #: The Line on which the current plan is based; None if no plan has been made since the last batch was
        #: formed.
        self.planned: Line | None = None
        #: The maximum number of items in a batch, unless a larger batch would still be in time for its first
        #: request.
        self.usual = 1
        #: The time, in seconds, by which responses may be later than expected.
        self.margin = 0.0
        #: The duration of the largest possible batch, including the margin, in seconds.
        self._longest = 0.0
        self._max_items = 1

    def plan(self, line: Line, max_items: int) -> None:
        """Plans the sizes of batches of items whose run times `line` describes. The plan is valid until the
        next batch is formed.
        """
        self.planned = line
        self._max_items = max_items
        self.margin = min(self._outlook.margin, _MOST_MARGIN * self._objective)
        most = max(1, min(max_items, round(self._joined))) if self._joined else max_items
        self.usual = line.largest((self._objective - self.margin) * self._share, most) or 1
        self._longest = line.seconds(max_items) + self.margin

    def largest(self, line: Line, left: float) -> int:
        """Returns the maximum number of items in the next batch if its first request is due in `left`
        seconds.
        """
        if left >= self._longest:
            return self._max_items
        return self.within(line, left, min(self.usual, line.largest(left, self._max_items)))

    def within(self, line: Line, left: float, items: int) -> int:
        """Returns the maximum number of items that can be run in `left` seconds, less the margin, but at
        least `items` and at least 1.
        """
        return max(1, items, line.largest(left - self.margin, self._max_items))

    def formed(self, items: int) -> None:
        """Adapts the batch size after a batch was formed. Batches grow while they are full and requests are
        refused, and shrink when they are not full.
        """
        self.planned = None
        if items < _FULL * self.usual:
            self._share = max(_LEAST_SHARE, self._share - 2 * _SHARE_STEP)
        elif self.refused:
            self._share = min(_MOST_SHARE, self._share + _SHARE_STEP)
        self.refused = False

    def complete(self, items: int) -> None:
        """Records that the next request in the queue could not join a batch of `items` items."""
        self._joined = items if not self._joined else self._joined + _JOINED_RATE * (items - self._joined)
