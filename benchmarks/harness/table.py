"""Formats the results as a Markdown table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.case import Measurement
from harness.comparison import Row

BASE = "backline"


def rate(value: float) -> str:
    """Formats requests per second with at least three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def duration(microseconds: float) -> str:
    """Formats a latency with its unit (us, ms or s), or as a dash if it is unknown."""
    if math.isnan(microseconds):
        return "-"
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    return f"{microseconds / 1000:.1f} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.1f} s"


def multiple(times: float) -> str:
    """Formats a ratio with two decimals, or with two significant digits if it is small."""
    return f"{times:.2f}x" if times >= 0.1 else f"{times:.2g}x"


def cell(median: Measurement | None, times: float | None, reason: str | None) -> str:
    """Returns the text of a peer's cell: its rate and latencies, and in bold the ratio of the base to the
    peer; or the reason why there is no result.
    """
    if median is None:
        return f"none: {reason}" if reason else ""
    words = rate(median.requests_per_second)
    if not math.isnan(median.p50_us):
        words += f", {duration(median.p50_us)} / {duration(median.p99_us)}"
    if not math.isnan(median.cpu_us):
        words += f", cpu {duration(median.cpu_us)}"
    if median.errors:
        words += f", {median.errors} errors"
    if times is not None and not math.isnan(times):
        words += f", **{multiple(times)}**"
    return words + (f" (then: {reason})" if reason else "")


def table(rows: Sequence[Row], peers: Sequence[str], base: str = BASE) -> str:
    """Returns a Markdown table with a row per case and a column per peer."""
    head = ["model", "asked by", "clients", *peers]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        case = row.case
        cells = [
            cell(
                row.median(peer), row.ratio(base, peer) if peer != base else None, row.reasons.get(peer)
            ).replace("|", "/")
            for peer in peers
        ]
        lines.append(
            "| "
            + " | ".join([case.model.name, f"{case.way}, {case.generator}", str(case.concurrency), *cells])
            + " |"
        )
    return "\n".join(lines)


def document(
    rows: Sequence[Row],
    *,
    machine: Mapping[str, str],
    versions: Mapping[str, Mapping[str, str]],
    setups: Mapping[str, str],
    skipped: Mapping[str, str],
    remarks: Sequence[str],
    base: str = BASE,
) -> str:
    """Returns the whole report: machine, versions, the peers' settings, skipped peers with reasons, and the
    table.
    """
    lines = ["# Benchmark", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", "Peers:", ""]
    for peer, setup in setups.items():
        if peer in skipped:
            lines.append(f"- **{peer}**: skipped: {skipped[peer]}")
        else:
            installed = ", ".join(f"{name} {version}" for name, version in versions.get(peer, {}).items())
            lines.append(f"- **{peer}** ({installed}): {setup}")
    lines += ["", "Remarks:", "", *(f"- {remark}" for remark in remarks), ""]
    lines.append(
        "A cell is: requests per second, p50 / p99 latency, the server's processor time per request,"
        f" and in bold the requests per second of {base} as a multiple of the peer's."
        " All are medians over the rounds; the multiple is the median of the ratios within each round."
    )
    lines += ["", table(rows, [peer for peer in setups if peer not in skipped], base), ""]
    return "\n".join(lines)


def as_json(
    rows: Sequence[Row],
    *,
    machine: Mapping[str, str],
    versions: Mapping[str, Mapping[str, str]],
    skipped: Mapping[str, str],
    settings: Mapping[str, Any],
    base: str = BASE,
) -> dict[str, Any]:
    """Returns the report as plain data, with every run."""
    cases = []
    for row in rows:
        case = row.case
        peers = {}
        for peer in {**row.runs, **row.reasons}:
            median = row.median(peer)
            times = row.ratio(base, peer)
            peers[peer] = {
                "runs": [run.as_json() for run in row.runs.get(peer, [])],
                "median": median.as_json() if median else None,
                f"{base}_times": None if times is None or math.isnan(times) else times,
                "reason": row.reasons.get(peer),
            }
        asked = {"model": case.model.name, "protocol": case.protocol, "encoding": case.encoding}
        cases.append({**asked, "generator": case.generator, "concurrency": case.concurrency, "peers": peers})
    found = {peer: dict(names) for peer, names in versions.items()}
    return {
        "machine": dict(machine),
        "versions": found,
        "settings": dict(settings),
        "skipped": dict(skipped),
        "cases": cases,
    }
