"""Defines a benchmark case and its measurement."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median

from harness.model import Model


@dataclass(frozen=True)
class Case:
    """A row of the table: a model, a protocol and encoding, and a number of closed-loop clients."""

    model: Model
    protocol: str  # http or grpc
    encoding: str  # binary or json
    generator: str  # wrk, perf_analyzer or h2load
    concurrency: int

    @property
    def way(self) -> str:
        return (
            "gRPC" if self.protocol == "grpc" else f"HTTP {'JSON' if self.encoding == 'json' else 'binary'}"
        )

    def seconds(self, asked: float) -> float:
        """Returns how long to measure: `asked` seconds, or longer if clients would get too few answers."""
        # A Python server spends about a millisecond per 40 KB of JSON.
        cost_ms = self.model.run_ms + (self.model.input.size / 10_000 if self.encoding == "json" else 0)
        return max(asked, 4 * self.concurrency * cost_ms / 1000) if cost_ms > 1 else asked


@dataclass(frozen=True)
class Measurement:
    """One run of a load generator. Latencies are in microseconds, NaN if not reported."""

    requests_per_second: float
    p50_us: float
    p99_us: float
    requests: int
    #: The number of unsuccessful answers and failed connections.
    errors: int = 0
    #: The server's processor time per request in microseconds, or NaN if it was not measured.
    cpu_us: float = math.nan

    def as_json(self) -> dict[str, float | int | None]:
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def middle(values: list[float]) -> float:
    """Returns the median of the known values, or NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def median_measurement(runs: list[Measurement]) -> Measurement:
    """Returns the median of each number over the rounds; requests and errors are summed."""
    return Measurement(
        middle([run.requests_per_second for run in runs]),
        middle([run.p50_us for run in runs]),
        middle([run.p99_us for run in runs]),
        sum(run.requests for run in runs),
        sum(run.errors for run in runs),
        middle([run.cpu_us for run in runs]),
    )


def ratio(mine: list[Measurement], theirs: list[Measurement]) -> float:
    """Returns the ratio of the rate of `mine` to the rate of `theirs`, or NaN if either has no runs.

    It is the median of the rounds' ratios, because within a round the machine was equally fast for both.
    """
    return middle(
        [
            a.requests_per_second / b.requests_per_second
            for a, b in zip(mine, theirs, strict=False)
            if b.requests_per_second > 0
        ]
    )
