"""The numbers of one step of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backline.cli.bench.load_generator import Load

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class ServerShare:
    """Means of what the server says it spent on a request, in microseconds; `batch` is the mean number of items in a run, 0 where none was
    needed, as the response cache had the answers; `cached` says how many it had.
    """

    queue_us: float
    compute_us: float
    batch: float
    cached: int

    @classmethod
    def between(cls, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> ServerShare | None:
        """The share of the requests between two readings of the statistics, None when it counted none."""

        def total(entries: Sequence[dict[str, Any]], *path: str) -> int:
            values = []
            for entry in entries:
                value: Any = entry
                for key in path:
                    value = value.get(key, {})
                values.append(int(value or 0))
            return sum(values)

        def grown(*path: str) -> int:
            return total(after, *path) - total(before, *path)

        count, runs = grown("inference_stats", "success", "count"), grown("execution_count")
        if count <= 0:
            return None
        compute = sum(
            grown("inference_stats", name, "ns")
            for name in ("compute_input", "compute_infer", "compute_output")
        )
        return cls(
            queue_us=grown("inference_stats", "queue", "ns") / count / 1000,
            compute_us=compute / count / 1000,
            batch=grown("inference_count") / runs if runs else 0.0,
            cached=grown("inference_stats", "cache_hit", "count"),
        )


@dataclass(frozen=True, slots=True)
class BenchStep:
    """One concurrency or one rate. `percentiles_us` maps "p50", "p90", "p99" and "p99.9" to microseconds; None without an answer."""

    concurrency: int | None
    rate: float | None
    seconds: float
    answered: int
    errors: dict[str, int]
    throughput: float
    mean_us: float | None
    max_us: float | None
    percentiles_us: dict[str, float | None]
    server: ServerShare | None
    generator_cpu: float
    late_p99_us: float | None
    fell_behind: bool

    @classmethod
    def of(
        cls,
        load: Load,
        server: ServerShare | None,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
    ) -> BenchStep:
        latencies = np.frombuffer(load.latencies, np.int64) / 1000
        some = latencies.size > 0
        return cls(
            concurrency=concurrency,
            rate=rate,
            seconds=load.seconds,
            answered=int(latencies.size),
            errors=dict(load.errors),
            throughput=latencies.size / load.seconds,
            mean_us=float(latencies.mean()) if some else None,
            max_us=float(np.max(latencies)) if some else None,
            percentiles_us={
                f"p{rank:g}": float(np.percentile(latencies, rank)) if some else None for rank in PERCENTILES
            },
            server=server,
            generator_cpu=load.generator_cpu,
            late_p99_us=float(np.percentile(np.frombuffer(load.lateness, np.int64), 99) / 1000)
            if load.lateness
            else None,
            fell_behind=load.fell_behind,
        )

    @property
    def label(self) -> str:
        return str(self.concurrency) if self.concurrency is not None else f"{self.rate:g}"

    def document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)
