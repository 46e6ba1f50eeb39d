"""What is measured: a case, and one measurement of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median

from harness.model import Model


@dataclass(frozen=True)
class Case:
    """One row of the table: a model, a way to ask it, and a number of clients that each wait for their answer."""

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
        """How long to measure: as asked, but long enough that each client is answered a few times."""
        # Parsing and writing JSON costs a Python server about a millisecond for each 40 KB.
        cost_ms = self.model.run_ms + (self.model.input.size / 10_000 if self.encoding == "json" else 0)
        return max(asked, 4 * self.concurrency * cost_ms / 1000) if cost_ms > 1 else asked


@dataclass(frozen=True)
class Measurement:
    """One run of a load generator. Latencies are in microseconds; NaN where the generator does not say."""

    requests_per_second: float
    p50_us: float
    p99_us: float
    requests: int
    #: Answers that were not a success, and connections that failed.
    errors: int = 0
    #: Processor time of the server for each request, in microseconds; NaN where it was not read.
    cpu_us: float = math.nan

    def as_json(self) -> dict[str, float | int | None]:
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def middle(values: list[float]) -> float:
    """The median of those values that are known; NaN when none is."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def median_measurement(runs: list[Measurement]) -> Measurement:
    """The median of each number over the rounds; requests and errors are summed."""
    return Measurement(
        middle([run.requests_per_second for run in runs]),
        middle([run.p50_us for run in runs]),
        middle([run.p99_us for run in runs]),
        sum(run.requests for run in runs),
        sum(run.errors for run in runs),
        middle([run.cpu_us for run in runs]),
    )


def ratio(mine: list[Measurement], theirs: list[Measurement]) -> float:
    """How many times the requests per second of `theirs` are reached by `mine`: the median over the rounds of the ratio within a round.

    The ratio is taken round by round because neighbours in time met the same machine; NaN when either has no run.
    """
    return middle(
        [
            a.requests_per_second / b.requests_per_second
            for a, b in zip(mine, theirs, strict=False)
            if b.requests_per_second > 0
        ]
    )
