"""Predicts throughput and latency from measured run times, to exclude settings that cannot win.

The prediction assumes a closed system with `concurrency` callers. Each caller waits for a response before it
sends the next request. So the mean latency is the concurrency divided by the throughput (Little's law). The
instances, the cores and the event loop each set a limit for the throughput. These limits are blended: if two
settings have the same lowest limit, the settings whose other limits are higher are predicted to be faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from backline.plugins.tools.tune.settings import TunedSettings

#: For each lane, the seconds that it takes to pass a batch to an instance and get the result back.
_HOP = {"inline": 0.000004, "thread": 0.00004, "process": 0.00025}

#: The exponent for blending limits. The larger the exponent, the closer the result is to the lowest limit.
_SHARPNESS = 4


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """The mean duration of a run in seconds for each measured batch size, in ascending order of size."""

    points: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, seconds: Mapping[int, float]) -> BatchTimes:
        return cls(tuple(sorted(seconds.items())))

    def seconds(self, batch: float) -> float:
        """Returns the duration of a run in seconds. Interpolates between the measured batch sizes. Below the
        smallest one, the duration is that of the smallest; above the largest, it is proportional to the batch
        size.
        """
        first, last = self.points[0], self.points[-1]
        if batch <= first[0]:
            return first[1]
        if batch >= last[0]:
            return last[1] * batch / last[0]
        for (low, fast), (high, slow) in pairwise(self.points):
            if batch <= high:
                return fast + (slow - fast) * (batch - low) / (high - low)
        return last[1]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted throughput in requests per second, and the predicted 99th percentile of latency in
    seconds.
    """

    throughput: float
    p99: float


@dataclass(frozen=True, slots=True)
class LoadPredictor:
    """A predictor of the performance of any settings, based on measurements of a few.

    `times` contains the run times by number of threads. `factors` contains the factors by which other levels
    of optimisation, or leaving out the arena, lengthen a run. `tail` is the ratio of the 99th percentile of
    latency to the mean latency.

    The event loop spends `alone` seconds on a request that arrives alone, and `overhead` seconds on each of
    many requests that arrive together.
    """

    cores: int
    times: Mapping[int, BatchTimes]
    factors: Mapping[tuple[str, bool], float]
    alone: float
    overhead: float
    tail: float = 1.5

    def run_seconds(self, settings: TunedSettings, batch: float) -> float:
        """Returns the predicted duration of a run."""
        nearest = min(self.times, key=lambda threads: abs(threads - settings.threads))
        factor = self.factors.get((settings.optimization, settings.arena))
        if factor is None:  # only the effect of each of the two options alone was measured
            factor = self.factors.get((settings.optimization, True), 1.0) * self.factors.get(
                ("all", settings.arena), 1.0
            )
        return self.times[nearest].seconds(batch) * factor

    def predict(self, settings: TunedSettings, concurrency: int) -> Prediction:
        parallel = 1 if settings.lane == "inline" else min(settings.instances, concurrency)
        batch = min(max(settings.batch, 1), max(1.0, concurrency / parallel))
        run = self.run_seconds(settings, batch)
        # A batch that is not full runs only after the delay.
        waits = settings.delay_us / 1e6 if concurrency / parallel < settings.batch else 0.0
        cycle = run + waits + _HOP[settings.lane]
        overhead = self.overhead + (self.alone - self.overhead) / concurrency
        if settings.lane == "inline":
            throughput = batch / (cycle + batch * overhead)
        else:
            at_once = concurrency / (self.alone + cycle * max(1.0, concurrency / (parallel * batch)))
            on_cores = self.cores / (run * settings.threads / batch + overhead)
            throughput = _blended(at_once, on_cores, 1 / overhead)
        return Prediction(throughput, self.tail * concurrency / throughput)


def _blended(*limits: float) -> float:
    """Returns a value below the lowest limit. The closer the other limits are, the lower the result."""
    return float(sum(limit**-_SHARPNESS for limit in limits) ** (-1 / _SHARPNESS))


def levels_of(settings: TunedSettings, levels: Sequence[int]) -> list[int]:
    """Returns the concurrencies at which to measure settings. With the highest one, at least two full batches
    are in flight per instance, as far as `levels` allow.
    """
    most = 2 * settings.instances * max(settings.batch, 1)
    useful = [level for level in levels if level <= most]
    return [*useful, next((level for level in levels if level > most), levels[-1])][: len(useful) + 1]
