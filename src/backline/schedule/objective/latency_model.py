"""How long batches take, learned from runs. Plain data, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

#: The weight of the newest run: in effect the last 20 runs count.
_RATE = 0.05
#: A run whose error exceeds this many times the usual error is an outlier, and is clipped to that.
_OUTLIER = 3.0
#: The usual error is assumed to be at least this fraction of the run time.
_LEAST_ERROR = 0.02
#: The weight of the prior slope: as much as that of the runs when their sizes differ by a tenth.
_PRIOR_WEIGHT = 0.01
#: Buckets per doubling of the item size.
_PER_OCTAVE = 2


class Line:
    """The seconds that a run of n items of similar size takes: `a * n + b`.

    A least-squares fit to recent runs, in which older ones fade. The fit is regularised towards the slope of
    the prior, scaled to the current speed: if all batches have the same size, the runs alone say nothing
    about other sizes.
    """

    __slots__ = ("_error", "_n", "_nn", "_ny", "_prior", "_w", "_x", "_y", "a", "b")

    def __init__(self, a: float, b: float) -> None:
        self.a = a
        self.b = b
        self._prior = (a, b)
        self._error = 0.1 * (a + b)
        #: Fading sums over the runs: weights, items, items squared, seconds, items times seconds, prior
        #: estimates.
        self._w = self._n = self._nn = self._y = self._ny = self._x = 0.0

    def seconds(self, items: float) -> float:
        """The expected duration of a run of `items` items."""
        return self.a * items + self.b

    def largest(self, seconds: float, most: int) -> int:
        """The largest number of items, up to `most`, that run within `seconds`; 0 if not even one does."""
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
    """One Line for each bucket of item sizes.

    An item's size is its number of elements, or 0 for models whose items all have the same. A size without
    runs is extrapolated from the nearest one, in proportion. Before any runs, they are expected to take no
    time.
    """

    def __init__(self, seconds: Mapping[int, float] | None = None, size: int = 0) -> None:
        """`seconds` are run times by batch size, measured earlier with items of `size`."""
        self._lines: dict[int, tuple[int, Line]] = {}
        if seconds:
            most = max(seconds)
            a = (seconds[most] - seconds[1]) / (most - 1) if most > 1 else seconds[1]
            a = min(max(a, 0.0), seconds[1])
            self._lines[_bucket(size)] = (size, Line(a, seconds[1] - a))

    def line(self, size: int) -> Line:
        """The Line for items of a size."""
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
        """Updates the model with a run of a batch of items of about one size."""
        bucket = _bucket(size)
        known = self._lines.get(bucket)
        if known is None:
            line = Line(seconds / items, 0.0) if not self._lines else self.line(size)
            self._lines[bucket] = known = (size, line)
        known[1].learn(items, seconds)


class Quantile:
    """An online estimate of a quantile: the value below which a `share` of observations lies.

    Each observation moves it by a step proportional to their spread.
    """

    __slots__ = ("_share", "_spread", "value")

    def __init__(self, share: float) -> None:
        self.value = 0.0
        self._share = share
        self._spread = 0.0

    def learn(self, observed: float) -> None:
        """Updates the estimate."""
        away = abs(observed - self.value)
        self._spread = (
            away if not self._spread else self._spread + _RATE * (min(away, 4 * self._spread) - self._spread)
        )
        step = 0.2 * self._spread
        self.value += step * self._share if observed > self.value else -step * (1 - self._share)


def _bucket(size: int) -> int:
    return round(_PER_OCTAVE * log2(size)) if size > 0 else 0
