"""Shows the result of a search as tables, a plot or JSON, and as a comment for the new configuration."""

from __future__ import annotations

import html
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import backline
from backline.cli.table import print_table
from backline.plugins.tools.tune.search import Goal, LoadMeasurement, Outcome, pareto

_UNITS = (
    "Throughput is in requests per second, latency in ms; the column 'in flight' gives the number of callers."
)


def print_outcome(outcome: Outcome, goal: Goal) -> None:
    """Prints the best settings next to the current ones, and the effect of each setting that differs."""
    base, best = outcome.base, outcome.best
    tried = len({one.settings for one in outcome.measured})
    print(
        f"{outcome.candidates} combinations considered, {tried} measured, in {outcome.seconds:.1f} s."
        f" {_UNITS}"
    )
    rows = [_row("now", base), _row("best", best)]
    rows += [_row("pareto", one) for one in pareto(outcome.measured) if one is not best][:8]
    columns = ("", "settings", "in flight", "requests/s", "mean", "p99")
    print_table(columns, rows, right=columns[2:])
    if outcome.shares:
        print("\nEffect of each change:")
        brought = [
            (share.name, _text(share.before), _text(share.after), f"{share.without - 1:+.0%}")
            for share in outcome.shares
        ]
        print_table(
            ("setting", "now", "best", "throughput without it"), brought, right=("throughput without it",)
        )
    for settings, reason in outcome.failed.items():
        print(f"{settings}: {reason}")
    print(f"\n{verdict(outcome, goal)}")


def verdict(outcome: Outcome, goal: Goal) -> str:
    """Returns the result in one sentence."""
    base, best = outcome.base, outcome.best
    limit = "" if goal.p99 is None else f" with a p99 of at most {goal.p99 * 1000:g} ms"
    if goal.of(best) < 0:
        return (
            f"No combination has a p99 of at most {(goal.p99 or 0) * 1000:g} ms; the closest has"
            f" {best.p99 * 1000:.2f} ms."
        )
    if best.settings == base.settings:
        return f"The current settings are the best{limit}: {best.throughput:.0f} requests/s."
    gain = f", {best.throughput / base.throughput:.2f} times as many as now" if goal.of(base) > 0 else ""
    return f"Best{limit}: {best.settings}: {best.throughput:.0f} requests/s{gain}."


def _row(kind: str, one: LoadMeasurement) -> tuple[str, ...]:
    return (
        kind,
        str(one.settings),
        str(one.concurrency),
        f"{one.throughput:.0f}",
        f"{one.mean * 1000:.2f}",
        f"{one.p99 * 1000:.2f}",
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):  # the value is a choice of buckets
        return (
            "; ".join(f"{name} {'/'.join(map(str, lengths))}" for name, lengths in value) or "as configured"
        )
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def document(outcome: Outcome, goal: Goal, name: str, inputs: str) -> dict[str, Any]:
    """Returns the result as a JSON object."""

    def entry(one: LoadMeasurement) -> dict[str, Any]:
        settings = one.settings
        return {
            "settings": {
                "lane": settings.lane,
                "instances": settings.instances,
                "batch": settings.batch,
                "delay_us": settings.delay_us,
                "threads": settings.threads,
                "optimization": settings.optimization,
                "arena": settings.arena,
                "buckets": {name: list(lengths) for name, lengths in settings.buckets},
            },
            "concurrency": one.concurrency,
            "throughput": one.throughput,
            "mean_ms": one.mean * 1000,
            "p99_ms": one.p99 * 1000,
            "errors": one.errors,
        }

    return {
        "model": name,
        "inputs": inputs,
        "p99_limit_ms": None if goal.p99 is None else goal.p99 * 1000,
        "seconds": outcome.seconds,
        "candidates": outcome.candidates,
        "now": entry(outcome.base),
        "best": entry(outcome.best),
        "pareto": [entry(one) for one in pareto(outcome.measured)],
        "shares": [
            {"setting": one.name, "now": one.before, "best": one.after, "throughput_without": one.without}
            for one in outcome.shares
        ],
        "measured": [entry(one) for one in outcome.measured],
    }


def comment(outcome: Outcome, goal: Goal, inputs: str) -> str:
    """Returns a comment for the start of the new configuration file, as lines that begin with "#"."""
    best = outcome.best
    aim = (
        "most throughput" if goal.p99 is None else f"most throughput with p99 at most {goal.p99 * 1000:g} ms"
    )
    lines = (
        f"Written by `backline tune` (Backline {backline.__version__}) on {datetime.now(UTC):%Y-%m-%d}.",
        f"Aim: {aim}. Inputs: {inputs}.",
        f"Measured: {_result(best)}.",
        f"Before, {outcome.base.settings}: {_result(outcome.base)}.",
    )
    return "".join(f"# {line}\n" for line in lines)


def _result(one: LoadMeasurement) -> str:
    return f"{one.throughput:.0f} requests/s, p99 {one.p99 * 1000:.2f} ms, with {one.concurrency} in flight"


def write_plot(outcome: Outcome, goal: Goal, title: str, path: Path) -> None:
    """Writes the Pareto plot as an HTML page if the path ends with .html, and otherwise as an image in the
    format that the suffix names, such as .png or .svg.
    """
    figure = _figure(outcome, goal, title)
    if path.suffix != ".html":
        figure.savefig(path, dpi=150)
        return
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    svg = drawing.getvalue()
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto}}"
        f"svg{{width:100%;height:auto}}</style>{svg[svg.index('<svg') :]}"
        f"<p>{html.escape(verdict(outcome, goal))}</p></html>\n"
    )


def _figure(outcome: Outcome, goal: Goal, title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    every, front = outcome.measured, pareto(outcome.measured)
    axes.scatter(
        [one.p99 * 1000 for one in every],
        [one.throughput for one in every],
        s=18,
        color="#9aa5a0",
        label="measured",
    )
    axes.plot(
        [one.p99 * 1000 for one in front],
        [one.throughput for one in front],
        "o-",
        color="#2a7f62",
        label="Pareto front",
    )
    for one, mark, label in ((outcome.base, "s", "now"), (outcome.best, "*", "best")):
        axes.plot([one.p99 * 1000], [one.throughput], mark, markersize=13, color="#c4572b", label=label)
    if goal.p99 is not None:
        axes.axvline(goal.p99 * 1000, linestyle="--", color="#555", label="limit")
    axes.set(xlabel="p99, ms", ylabel="requests per second", xscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
