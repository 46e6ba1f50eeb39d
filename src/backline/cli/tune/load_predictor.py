"""Predicts throughput and latency from measured run times, to exclude settings that cannot win.

The prediction assumes a closed system: `concurrency` callers wait for each response, so the mean latency is
the concurrency divided by the throughput (Little's law). Throughput is limited by the instances, by the
cores, and by the event loop. The limits are blended, so that of two settings with the same lowest limit, the
one further away from its other limits is predicted to be faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from backline.cli.tune.settings import TunedSettings

#: Seconds for passing a batch to an instance and getting the result back, for each lane.
_HOP = {"inline": 0.000004, "thread": 0.00004, "process": 0.00025}

#: The exponent by which limits are blended: the larger it is, the closer to the lowest limit is the result.
_SHARPNESS = 4


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """The mean duration of a run in seconds for each measured batch size, in ascending order of size."""

    points: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, seconds: Mapping[int, float]) -> BatchTimes:
        return cls(tuple(sorted(seconds.items())))

    def seconds(self, batch: float) -> float:
        """Returns the duration of a run in seconds: interpolated, or proportional above the largest batch."""
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
    """The predicted throughput in requests per second, and 99th percentile of latency in seconds."""

    throughput: float
    p99: float


@dataclass(frozen=True, slots=True)
class LoadPredictor:
    """A predictor of the performance of all settings, based on the measurements of a few.

    `times` contains the run times by number of threads. `factors` says how much longer a run takes with
    another optimisation level or without the arena. `tail` is the ratio of the 99th percentile of latency to
    its mean.

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
        if factor is None:  # the two options were only measured separately
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
    """Returns a value below the lowest of the limits: the closer the other limits are, the further below."""
    return float(sum(limit**-_SHARPNESS for limit in limits) ** (-1 / _SHARPNESS))


def levels_of(settings: TunedSettings, levels: Sequence[int]) -> list[int]:
    """Returns the concurrencies at which to measure settings: up to about two full batches per instance."""
    most = 2 * settings.instances * max(settings.batch, 1)
    useful = [level for level in levels if level <= most]
    return [*useful, next((level for level in levels if level > most), levels[-1])][: len(useful) + 1]
