"""Runs the scenarios against Triton, which is recorded, or Backline.

In tests/: `python -m scenarios --against both`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from scenarios.difference import gone, unlisted
from scenarios.runner import compare, record, recorded, run
from scenarios.scenario import Scenario
from scenarios.servers import Setup, backline, triton
from scenarios.session import Server
from scenarios.themes import SCENARIOS, differences_of, setup_of

#: Starts a setup's server in a folder; it runs until the block ends.
Start: TypeAlias = Callable[[Path, Setup], AbstractContextManager[Server]]


def main() -> int:
    """Returns how many scenarios failed or differ without a listed difference."""
    arguments = _arguments()
    chosen = [
        one for one in SCENARIOS if any(text in f"{one.theme}: {one.name}" for text in arguments.only or [""])
    ]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.against != "backline":
            _record(chosen, _run(chosen, triton, Path(folder) / "triton"), complete=not arguments.only)
        answers = {} if arguments.against == "triton" else _run(chosen, backline, Path(folder) / "backline")
    return _show(chosen, answers)


def _run(chosen: list[Scenario], start: Start, folder: Path) -> dict[Scenario, Any]:
    """The results of the scenarios, run one after the other, grouped by server setup."""
    by_setup: dict[Setup, list[Scenario]] = {}
    for one in chosen:
        by_setup.setdefault(setup_of(one), []).append(one)
    answers: dict[Scenario, Any] = {}
    for number, (setup, scenarios) in enumerate(by_setup.items()):
        with start(folder / str(number), setup) as server:
            answers |= {one: _try(one, server) for one in scenarios}
    return answers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scenarios",
        description=__doc__,
        epilog="example: python -m scenarios --against backline --only timeouts",
    )
    parser.add_argument("--against", choices=("triton", "backline", "both"), default="backline")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="only scenarios with TEXT in 'theme: title [way]'; can be repeated",
    )
    return parser.parse_args()


def _try(scenario: Scenario, server: Any) -> Any:
    try:
        return run(scenario, server)
    except Exception as error:
        traceback.print_exc()
        return {"failed": str(error)}


def _record(chosen: list[Scenario], results: dict[Scenario, Any], *, complete: bool) -> None:
    for theme in {one.theme for one in chosen}:
        before = {} if complete else recorded(theme)
        now = {one.name: results[one] for one in chosen if one.theme == theme}
        for name in before.keys() & now.keys():
            for deviation in compare(before[name], now[name]):
                print(f"Triton differs from its recording: {theme}: {name}: {deviation}")
        record(theme, {**before, **now})


def _show(chosen: list[Scenario], answers: dict[Scenario, Any]) -> int:
    table = Table("scenario", "Triton", "Backline", "same")
    remarks = []
    for scenario in chosen:
        expected = recorded(scenario.theme).get(scenario.name)
        got = answers.get(scenario)
        verdict = ""
        if got is not None:
            deviations = list(compare(expected, got))
            listed = differences_of(scenario)
            new = unlisted(listed, scenario, deviations)
            shown = (d for d in listed if d.applies(scenario) and any(map(d.covers, deviations)))
            reasons = sorted({d.reason for d in shown})
            verdict = "NO" if new or gone(listed, scenario, deviations) else ", ".join(reasons) or "yes"
            remarks += [
                f"{scenario.theme}: {scenario.name}: {path}: Triton {one!r}, Backline {other!r}"
                for path, one, other in new
            ]
            remarks += [
                f"{scenario.theme}: {scenario.name}: no longer differs: {d.reason}"
                for d in gone(listed, scenario, deviations)
            ]
        table.add_row(f"{scenario.theme}: {scenario.name}", _summary(expected), _summary(got), verdict)
    Console(width=None if sys.stdout.isatty() else 220, markup=False).print(table)
    print(*remarks, sep="\n")
    return len(remarks)


def _summary(result: Any) -> str:
    """A short summary: the number of answers, the statuses of errors, and the sizes of executed batches."""
    if result is None or "failed" in result:
        return "" if result is None else "failed"
    events = (
        result["seen"].get("events", ()) if isinstance(result.get("seen"), dict) else result.get("seen", ())
    )
    answers = [
        one
        for one in (*result["answers"], *(events if isinstance(events, (list, tuple)) else ()))
        if isinstance(one, dict)
    ]
    statuses = Counter(
        str(one.get("status") or "error").removeprefix("StatusCode.") for one in answers if "error" in one
    )
    answered = sum("error" not in one for one in answers)
    batches = Counter()
    for counted in result["statistics"].values():
        for size, count in counted.get("batches", {}).items():
            batches[int(size)] += count
    runs = " ".join(f"{count}x{size}" for size, count in sorted(batches.items()))
    errors = ", ".join(f"{count} {status}" for status, count in statuses.items())
    return "; ".join(
        filter(None, (f"{answered} answered" if answered else "", errors, f"batches {runs}" if runs else ""))
    )


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
