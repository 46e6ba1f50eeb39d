"""Presents the results of a benchmark as a table, as bars on a terminal, as JSON and as a plot."""

from __future__ import annotations

import html
import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import backline
from backline.cli.load_generator import BenchStep
from backline.cli.table import print_table

_UNITS = "Latencies are in ms, measured by the client; queue and compute are means in ms from the server."
BUSY_GENERATOR = 0.9
LATE_US = 1000.0


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The results of a benchmark: what was measured, and the results of each step."""

    model: str
    url: str
    server: str
    inputs: str
    steps: Sequence[BenchStep]

    @property
    def kind(self) -> str:
        return "concurrency" if self.steps[0].concurrency is not None else "rate"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns the columns and rows of the table. Times are in milliseconds. The times in the columns
        "queue" and "compute" were measured by the server, and all other times by the client.
        """
        columns = [
            "in flight" if self.kind == "concurrency" else self.kind,
            "requests/s",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "queue",
            "compute",
            "batch",
            "errors",
        ]
        return columns, [self._row(step) for step in self.steps]

    @staticmethod
    def _row(step: BenchStep) -> list[str]:
        times = [*step.percentiles_us.values(), step.max_us]
        share = step.server
        split = ["-", "-", "-"]
        if share is not None and share.batch:
            split = [f"{share.queue_us / 1000:.3f}", f"{share.compute_us / 1000:.3f}", f"{share.batch:.1f}"]
        errors = ", ".join(f"{count} {name}" for name, count in step.errors.items()) or "0"
        return [
            step.label,
            f"{step.throughput:.0f}",
            *("-" if us is None else f"{us / 1000:.3f}" for us in times),
            *split,
            errors,
        ]

    def notes(self) -> list[str]:
        """Returns the reasons to read the numbers with caution, each as a sentence."""
        notes = []
        embedded = self.url.startswith("inproc:")
        busy = [step.label for step in self.steps if step.generator_cpu > BUSY_GENERATOR]
        if busy and not embedded and self.kind == "concurrency":
            notes.append(
                f"At {self.kind} {', '.join(busy)}, the load generator used almost a full core: the server"
                " may be faster."
            )
        late = [
            step.label for step in self.steps if step.late_p99_us is not None and step.late_p99_us > LATE_US
        ]
        if late:
            notes.append(
                f"At rate {', '.join(late)}, requests were sent more than 1 ms late (p99);"
                " latencies count from when they were due."
            )
        slow = [step.label for step in self.steps if step.fell_behind]
        if slow:
            notes.append(
                f"At rate {', '.join(slow)}, the server did not keep up: too many requests were waiting,"
                " so the step ended early."
            )
        cached = [step.label for step in self.steps if step.server is not None and step.server.cached]
        if cached:
            notes.append(
                f"At {self.kind} {', '.join(cached)}, responses came from the response cache:"
                " to measure the model, use a server without --cache-config."
            )
        if embedded:
            notes.append("The models and the load generator share one process and its cores.")
        return notes

    def document(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "url": self.url,
            "server": self.server,
            "inputs": self.inputs,
            "client": ", ".join(
                (
                    f"backline {backline.__version__}",
                    f"Python {platform.python_version()}",
                    f"numpy {np.__version__}",
                )
            ),
            "machine": ", ".join(
                (platform.machine(), f"{os.cpu_count()} cores", f"{platform.system()} {platform.release()}")
            ),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "notes": self.notes(),
            "steps": [step.document() for step in self.steps],
        }


def print_bench(report: BenchReport) -> None:
    """Prints the table and its notes; on a terminal, also prints bars."""
    columns, rows = report.table()
    print(_UNITS)
    print_table(columns, rows, right=columns[:-1])
    if sys.stdout.isatty() and len(report.steps) > 1:
        _print_bars(report)
    for note in report.notes():
        print(note)


def _print_bars(report: BenchReport) -> None:
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    fastest = max(step.throughput for step in report.steps) or 1.0
    slowest = max(step.percentiles_us["p99"] or 0.0 for step in report.steps) or 1.0
    grid.add_row(report.kind, "requests/s", "", "p99 ms", "")
    for step in report.steps:
        p99 = step.percentiles_us["p99"] or 0.0
        bars = (
            Bar(fastest, 0, step.throughput, width=32, color="green"),
            Bar(slowest, 0, p99, width=32, color="yellow"),
        )
        grid.add_row(step.label, bars[0], f"{step.throughput:.0f}", bars[1], f"{p99 / 1000:.3f}")
    Console().print(grid)
    print()


def write_json(report: BenchReport, path: Path) -> None:
    path.write_text(json.dumps(report.document(), indent=2) + "\n")


def write_png(report: BenchReport, path: Path) -> None:
    _figure(report).savefig(path, format="png", dpi=150)


def write_html(report: BenchReport, path: Path) -> None:
    """Writes a self-contained HTML page with the plot, the table and the notes."""
    drawing = io.StringIO()
    _figure(report).savefig(drawing, format="svg")
    svg = drawing.getvalue()
    columns, rows = report.table()
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    facts = report.document()
    lines = "".join(
        f"<dt>{name}</dt><dd>{html.escape(str(facts[name]))}</dd>"
        for name in ("server", "inputs", "client", "machine", "time")
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report.notes())
    title = html.escape(f"{report.model} at {report.url}")
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_CSS}</style>"
        f"<h1>{title}</h1>{svg[svg.index('<svg') :]}<p>{_UNITS}</p>"
        f"<table><tr>{head}</tr>{body}</table>{notes}<dl>{lines}</dl></html>\n"
    )


_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "svg{width:100%;height:auto}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;color:#555}dd{margin:0}"
)


def _figure(report: BenchReport) -> Any:
    """Returns a plot of the throughput and the latency percentiles of each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = range(len(report.steps))
    labels = [step.label for step in report.steps]
    left.plot(positions, [step.throughput for step in report.steps], "o-", color="#2a7f62")
    left.set_ylabel("requests per second")
    left.set_ylim(bottom=0)
    for name in report.steps[0].percentiles_us:
        measured = [step.percentiles_us[name] for step in report.steps]
        values = [np.nan if value is None else value / 1000 for value in measured]
        right.plot(positions, values, "o-", label=name)
    right.set_ylabel("latency, ms")
    right.set_yscale("log")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(list(positions), labels)
        axes.set_xlabel("requests in flight" if report.kind == "concurrency" else "requests per second sent")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{report.model}, {report.server}")
    return figure
