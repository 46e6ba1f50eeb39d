"""Generates load from a fixed number of callers, or at a fixed rate, and summarises the results."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter_ns, process_time_ns
from typing import Any, Literal

import numpy as np

from backline_client.values.errors import BacklineError

Send = Callable[[], Awaitable[None]]
Arrivals = Literal["poisson", "constant"]

SECOND = 1_000_000_000
#: For this many nanoseconds before a request is due, the clock is polled, because timers are less precise.
SPIN_NS = 1_200_000
#: The number of requests in flight at which an open loop ends, because the server does not keep up.
MAX_BEHIND = 20_000


@dataclass
class LoadResult:
    """The measurements of one step.

    `latencies` (of successful requests) and `lateness` are in nanoseconds. `lateness` is how late an open
    loop sent each request; the latency of the request includes this time. `seconds` is the time from the
    start of the step until the last response. `fell_behind` says whether an open loop ended early.
    """

    seconds: float = 0.0
    latencies: array[int] = field(default_factory=lambda: array("q"))
    lateness: array[int] = field(default_factory=lambda: array("q"))
    errors: Counter[str] = field(default_factory=Counter)
    last_error: BacklineError | None = None
    #: The share of one core that this program used. If this is near 1, the load generator may be the
    #: bottleneck.
    generator_cpu: float = 0.0
    fell_behind: bool = False

    def fail(self, error: BacklineError) -> None:
        self.errors[type(error).__name__] += 1
        self.last_error = error


async def closed_loop(send: Send, concurrency: int, seconds: float) -> LoadResult:
    """Runs `concurrency` callers for `seconds`. A caller sends its next request when it has the response to
    the previous one.
    """
    load = LoadResult()
    began, cpu = perf_counter_ns(), process_time_ns()
    end = began + int(seconds * SECOND)

    async def caller() -> None:
        latencies = load.latencies
        now = perf_counter_ns()
        while now < end:
            try:
                await send()
            except BacklineError as error:
                load.fail(error)
                await asyncio.sleep(0.001)  # avoids flooding a server that refuses requests
                now = perf_counter_ns()
            else:
                done = perf_counter_ns()
                latencies.append(done - now)
                now = done

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return _measured(load, began, cpu)


async def open_loop(send: Send, rate: float, seconds: float, arrivals: Arrivals) -> LoadResult:
    """Sends `rate` requests per second for `seconds`, without waiting for responses.

    Latency is measured from the time when a request was due, so a stall of the server adds to the latency of
    each request that it delays. Ends early if MAX_BEHIND requests are in flight.
    """
    load = LoadResult()
    tasks: set[asyncio.Task[None]] = set()
    began, cpu = perf_counter_ns(), process_time_ns()

    async def request(due: int) -> None:
        try:
            await send()
        except BacklineError as error:
            load.fail(error)
        else:
            load.latencies.append(perf_counter_ns() - due)

    for offset in _plan(rate, seconds, arrivals):
        due = began + offset
        await _until(due)
        load.lateness.append(perf_counter_ns() - due)
        task = asyncio.create_task(request(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if len(tasks) >= MAX_BEHIND:
            load.fell_behind = True
            break
    await asyncio.gather(*tasks)
    return _measured(load, began, cpu)


def _plan(rate: float, seconds: float, arrivals: Arrivals) -> Iterator[int]:
    """Yields the times at which to send requests, in nanoseconds from the start. The same arguments always
    give the same times.
    """
    chance = random.Random(0)
    moment = 0.0
    while moment < seconds:
        yield int(moment * SECOND)
        moment += chance.expovariate(rate) if arrivals == "poisson" else 1 / rate


async def _until(due: int) -> None:
    left = due - perf_counter_ns()
    if left > SPIN_NS:
        await asyncio.sleep((left - SPIN_NS) / SECOND)
    elif left <= 0:
        await asyncio.sleep(0)  # lets the event loop read responses, although the request is late
    while perf_counter_ns() < due:  # noqa: ASYNC110 - polls the clock
        await asyncio.sleep(0)


def _measured(load: LoadResult, began: int, cpu: int) -> LoadResult:
    took = perf_counter_ns() - began
    load.seconds = took / SECOND
    load.generator_cpu = (process_time_ns() - cpu) / took
    return load


PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class ServerShare:
    """The server's own measurements during a step: the mean times that a request spent in the queue and in
    the model, in microseconds.

    `batch` is the mean number of items per run, or 0 if there was no run. `cached` is the number of responses
    that came from the response cache.
    """

    queue_us: float
    compute_us: float
    batch: float
    cached: int

    @classmethod
    def between(cls, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> ServerShare | None:
        """Returns the measurements between two readings of the server's statistics; None if no request
        succeeded in that time.
        """

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
    """The results at one concurrency or request rate. Fields that end with `_us` are in microseconds.

    `answered` is the number of successful requests, and `throughput` is their number per second.
    `percentiles_us` maps "p50", "p90", "p99" and "p99.9" to latencies in microseconds, or to None if no
    request succeeded.
    """

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
        load: LoadResult,
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
        return asdict(self)
