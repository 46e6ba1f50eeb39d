"""`backline top`: shows what the models on a server are doing now."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from backline.cli.command import run
from backline.cli.connection import connection_options
from backline.cli.models.entries import memory_text, state_text
from backline.cli.numbers import Number
from backline.cli.options import json_option
from backline.cli.table import STYLES, print_table
from backline_client.client.aio import AsyncClient
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex
from backline_client.values.errors import BacklineError

_HISTOGRAM = "backline_request_duration_seconds_bucket"
_PENDING = "nv_inference_pending_request_count"
_COLUMNS = (
    "model",
    "version",
    "state",
    "req/s",
    "failed/s",
    "mean",
    "p99",
    "queue",
    "batch",
    "waiting",
    "memory",
)
_EPILOG = """\b
Examples:
  backline top
  backline top --interval 5 --url http://server:8000
  backline top --once --json

Times are in ms, and cover the last interval. Over gRPC, or without the scope `metrics`, p99 and the number of
waiting requests are unknown."""
#: Identifies a model version, by the model's name and the version.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of a server at the time `moment`, which is in seconds of time.monotonic()."""

    moment: float
    index: tuple[ModelIndex, ...] = ()
    statistics: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    #: For each model version, the number of requests so far that took at most as long as each bound, in
    #: seconds.
    latencies: Mapping[Key, Mapping[float, float]] = field(default_factory=dict)
    waiting: Mapping[Key, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionActivity:
    """The activity of a model version between two readings. Times are in milliseconds; None if unknown.
    `batch` is the mean number of items per run, and `waiting` is the number of queued requests.
    """

    model: str
    version: str
    state: str
    requests_per_second: float
    failures_per_second: float
    mean_ms: float | None
    p99_ms: float | None
    queue_ms: float | None
    batch: float | None
    waiting: int | None
    memory: str

    def row(self) -> tuple[str, ...]:
        return (
            self.model,
            self.version or "-",
            self.state,
            f"{self.requests_per_second:.1f}",
            f"{self.failures_per_second:.1f}",
            *(
                "-" if value is None else f"{value:.2f}"
                for value in (self.mean_ms, self.p99_ms, self.queue_ms)
            ),
            "-" if self.batch is None else f"{self.batch:.1f}",
            "-" if self.waiting is None else str(self.waiting),
            self.memory,
        )


@click.command(epilog=_EPILOG)
@click.option(
    "--interval",
    type=Number(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds between two readings.",
)
@click.option(
    "--once",
    is_flag=True,
    help="Print one table and exit. The default if stdout is not a terminal and --json is not given.",
)
@json_option("Print JSON lines, one for each interval.")
@connection_options
def command(url: str, options: ClientOptions, interval: float, once: bool, as_json: bool) -> None:
    """Show the requests, latencies and queues of the models on a server, the busiest first."""
    run(_watch(url, options, interval, once=once or not (as_json or sys.stdout.isatty()), as_json=as_json))


async def _watch(url: str, options: ClientOptions, interval: float, *, once: bool, as_json: bool) -> None:
    async with AsyncClient(url, options) as client:
        before = await _read(client, options)
        while True:
            await asyncio.sleep(interval)
            after = await _read(client, options)
            found = activities(before, after)
            if as_json:
                print(json.dumps([asdict(one) for one in found]), flush=True)
            elif once:
                print_table(_COLUMNS, [one.row() for one in found], right=_COLUMNS[3:])
            else:
                _redraw(url, found)
            if once:
                return
            before = after


async def _read(client: AsyncClient, options: ClientOptions) -> Reading:
    transport = await client.transport()
    index = tuple(await client.models())
    counters = {(str(one["name"]), str(one["version"])): one for one in await client.statistics()}
    reading = Reading(time.monotonic(), index, counters)
    if isinstance(transport, HttpTransport):
        with suppress(BacklineError):
            answer = await transport.exchange(b"GET", b"/metrics", options.timeout)
            if answer.status == 200:
                return with_metrics(reading, bytes(answer.body).decode(errors="replace"))
    return reading


def with_metrics(reading: Reading, page: str) -> Reading:
    """Returns the reading, with the latencies and queue lengths from a metrics page added. Returns the
    reading unchanged if the page cannot be parsed.
    """
    from prometheus_client.parser import text_string_to_metric_families

    latencies: dict[Key, dict[float, float]] = {}
    waiting: dict[Key, float] = {}
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                key = sample.labels.get("model", ""), sample.labels.get("version", "")
                if sample.name == _HISTOGRAM:
                    latencies.setdefault(key, {})[float(sample.labels["le"])] = sample.value
                elif sample.name == _PENDING:
                    waiting[key] = sample.value
    except (ValueError, LookupError, TypeError, AttributeError):
        return reading  # the parser raises these errors for a page that does not contain metrics
    return Reading(reading.moment, reading.index, reading.statistics, latencies, waiting)


def activities(before: Reading, after: Reading) -> list[VersionActivity]:
    """Returns what each model version did between two readings, the busiest first."""
    seconds = max(after.moment - before.moment, 1e-9)
    found = []
    for entry in after.index:
        key = entry.name, entry.version
        now, then = after.statistics.get(key, {}), before.statistics.get(key, {})
        succeeded, failed = (_grown(then, now, name, "count") for name in ("success", "fail"))
        if succeeded < 0:  # the model was loaded again, so its counters started at 0
            then, succeeded, failed = (
                {},
                _grown({}, now, "success", "count"),
                _grown({}, now, "fail", "count"),
            )
        runs = int(now.get("execution_count", 0)) - int(then.get("execution_count", 0))
        items = int(now.get("inference_count", 0)) - int(then.get("inference_count", 0))
        waiting = after.waiting.get(key)
        found.append(
            VersionActivity(
                entry.name,
                entry.version,
                state_text(entry),
                succeeded / seconds,
                max(failed, 0) / seconds,
                _grown(then, now, "success", "ns") / succeeded / 1e6 if succeeded else None,
                percentile(before.latencies.get(key, {}), after.latencies.get(key, {}), 0.99),
                _grown(then, now, "queue", "ns") / succeeded / 1e6 if succeeded else None,
                items / runs if runs > 0 else None,
                None if waiting is None else int(waiting),
                memory_text(entry),
            )
        )
    return sorted(found, key=lambda one: (-one.requests_per_second, one.model, one.version))


def _grown(then: Mapping[str, Any], now: Mapping[str, Any], name: str, part: str) -> int:
    def value(counts: Mapping[str, Any]) -> int:
        return int(counts.get("inference_stats", {}).get(name, {}).get(part, 0))

    return value(now) - value(then)


def percentile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float | None:
    """Estimates a percentile of latency from cumulative buckets. Returns the upper bound, in milliseconds, of
    the bucket that contains the percentile.

    Returns None if there was no request, or if the percentile is above the largest finite bound.
    """
    counts = [(bound, count - before.get(bound, 0.0)) for bound, count in sorted(after.items())]
    total = counts[-1][1] if counts else 0.0
    if total <= 0:
        return None
    bound = next(bound for bound, count in counts if count >= share * total)
    return None if bound == float("inf") else bound * 1000


def _redraw(url: str, found: Sequence[VersionActivity]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from backline_client.values.names import printable

    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _COLUMNS[3:] else "left", no_wrap=True)
    for one in found[: max(console.height - 5, 1)]:
        table.add_row(*(Text(printable(cell), STYLES.get(cell, "")) for cell in one.row()))
    total = sum(one.requests_per_second for one in found)
    console.clear()
    console.print(
        f"{url}  {time.strftime('%H:%M:%S')}  {total:.1f} requests/s  (Ctrl-C stops)", highlight=False
    )
    console.print(table)
