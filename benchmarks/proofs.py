"""Compares Backline with the speed proofs: `python benchmarks/proofs.py DIR_OF_PROOFS`.

DIR_OF_PROOFS contains `http1_inline.py` and `grpc_hpack.py`, minimal programs started with `MODEL.onnx PORT`.
They are not part of this project. They show how fast a Python server can be that does nothing but read
requests, run the model and respond. Backline does much more, but should be almost as fast.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from harness import perf_analyzer, wrk
from harness.case import Case
from harness.comparison import Row, measure
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.model import model, scheduled_add1
from harness.peers import PEERS, Peer
from harness.peers.in_process import InProcess
from harness.peers.proof import Proof
from harness.table import as_json, table

#: ONNX Runtime at its best batch size and thread count.
ONE_CALLER = "in-process, one caller"
#: ONNX Runtime with concurrent runs as well: reported for comparison, not a goal.
IN_PROCESS = "in-process"


@dataclass(frozen=True)
class Goal:
    """The share of the request rate of `against` that Backline should reach, for each number of clients."""

    against: str
    model: str
    protocol: str
    concurrency: tuple[int, ...]
    least: float
    aim: float
    #: Whether the model has dynamic batching, priorities, deadlines and statistics enabled.
    scheduled: bool = False


GOALS = {
    "http-add1": Goal("proof", "add1", "http", (1, 16, 64), 0.65, 0.80),
    "grpc-add1": Goal("proof", "add1", "grpc", (1, 16, 64), 0.75, 0.90),
    "http-add1-scheduled": Goal("proof", "add1", "http", (1, 16, 64), 0.65, 0.80, scheduled=True),
    "grpc-add1-scheduled": Goal("proof", "add1", "grpc", (1, 16, 64), 0.75, 0.90, scheduled=True),
    "http-ident": Goal("proof", "ident", "http", (16,), 0.90, 1.0),
    "http-basic_pitch": Goal(ONE_CALLER, "basic_pitch", "http", (8,), 0.97, 1.0),
}
#: The maximum CPU time per request, as a multiple of the proof's, with all scheduling features enabled and
#: the largest number of clients.
CPU_SHARE = 20 / 13
PROGRAMS = {"http": "http1_inline.py", "grpc": "grpc_hpack.py"}


def measure_goal(goal: Goal, proofs: Path, *, rounds: int, seconds: float) -> list[Row]:
    """Starts Backline and the proof, measures them in turns, and stops them."""
    asked = scheduled_add1() if goal.scheduled else model(goal.model)
    if goal.against == "proof":
        others: dict[str, Peer] = {"proof": Proof(proofs / PROGRAMS[goal.protocol], goal.protocol)}
    else:
        others = {ONE_CALLER: InProcess(one_caller=True), IN_PROCESS: InProcess()}
    peers: Mapping[str, Peer] = {"backline": PEERS["backline"](), **others}
    generator = "wrk" if goal.protocol == "http" and wrk.available() else "perf_analyzer"
    if generator == "perf_analyzer" and perf_analyzer.executable() is None:
        raise CannotRun("neither wrk nor perf_analyzer is installed")
    try:
        for peer in peers.values():
            peer.start([asked])
        cases = [Case(asked, goal.protocol, "binary", generator, clients) for clients in goal.concurrency]
        rows = measure(cases, peers, rounds=rounds, seconds=seconds, say=click.echo)
        for name, other in others.items():
            for remark in other.remarks():
                click.echo(f"  {name}: {remark}")
        return rows
    finally:
        for peer in peers.values():
            peer.end()


def verdicts(goal: Goal, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Returns a line per number of clients, with its verdict: "reached", "aim reached", "MISSED" or "NOT
    MEASURED".

    Lines that are only for comparison have "no goal" instead.
    """
    lines = []
    for row in rows:
        share = row.ratio("backline", goal.against)
        name = f"{row.case.model.name} with all scheduling on" if goal.scheduled else row.case.model.name
        what = f"{name}, {row.case.way}, {row.case.concurrency} clients by {row.case.generator}"
        if share is None or math.isnan(share):
            lines.append(
                (
                    f"{what}: {'; '.join(f'{name}: {reason}' for name, reason in row.reasons.items())}",
                    "NOT MEASURED",
                )
            )
            continue
        word = "aim reached" if share >= goal.aim else "reached" if share >= goal.least else "MISSED"
        lines.append(
            (f"{what}: {share:.2f} of {goal.against} (least {goal.least:.2f}, aim {goal.aim:.2f})", word)
        )
        if (
            goal.scheduled
            and row.case.concurrency == max(goal.concurrency)
            and (cpu := _cpu_share(row, goal.against)) is not None
        ):
            word = "reached" if cpu <= CPU_SHARE else "MISSED"
            lines.append(
                (
                    (
                        f"{what}: {cpu:.2f} times the processor time of {goal.against} per request"
                        f" (at most {CPU_SHARE:.2f})"
                    ),
                    word,
                )
            )
        concurrent = row.ratio("backline", IN_PROCESS)
        if concurrent is not None:
            lines.append(
                (
                    f"{what}: {concurrent:.2f} of {IN_PROCESS} with concurrent runs",
                    "no goal",
                )
            )
    return lines


def _cpu_share(row: Row, against: str) -> float | None:
    """Returns the server's CPU time per request divided by that of `against`, or None if not measured."""
    mine, theirs = row.median("backline"), row.median(against)
    if mine is None or theirs is None or math.isnan(mine.cpu_us) or math.isnan(theirs.cpu_us):
        return None
    return mine.cpu_us / theirs.cpu_us


@click.command(context_settings={"show_default": True})
@click.argument("proofs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--only", multiple=True, type=click.Choice(tuple(GOALS)), help="Only these comparisons; default: all."
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    help="Number of rounds; each server has a turn in each.",
)
@click.option("--seconds", type=click.FloatRange(0.5), default=3.0, help="Seconds per turn.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "proofs.json",
    help="File for the results as JSON.",
)
def main(proofs: Path, only: tuple[str, ...], rounds: int, seconds: float, json_file: Path) -> None:
    """Compares Backline with the programs in PROOFS and prints the ratios. Status 1 if a goal is missed."""
    about = machine()
    rows: list[Row] = []
    lines: list[tuple[str, str]] = []
    for name in only or GOALS:
        click.echo(f"== {name}")
        try:
            measured = measure_goal(GOALS[name], proofs.resolve(), rounds=rounds, seconds=seconds)
        except CannotRun as error:
            lines.append((f"{name}: {error}", "NOT MEASURED"))
            continue
        rows += measured
        lines += verdicts(GOALS[name], measured)
    data = as_json(
        rows, machine=about, versions={}, skipped={}, settings={"rounds": rounds, "seconds": seconds}
    )
    data["goals"] = [{"what": what, "result": result} for what, result in lines]
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(data, indent=1))
    click.echo("\n" + "\n".join(f"- {name}: {value}" for name, value in about.items()))
    click.echo(
        f"\nMedians of {rounds} rounds of {seconds:g} s; bold: Backline's requests per second as a multiple"
        " of the peer's.\n"
    )
    click.echo(table(rows, ["backline", "proof", ONE_CALLER, IN_PROCESS]) + "\n")
    for what, result in lines:
        click.echo(f"{result:13} {what}")
    if any(result in {"MISSED", "NOT MEASURED"} for _, result in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
