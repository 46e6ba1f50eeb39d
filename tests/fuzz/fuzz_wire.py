"""Fuzzes the wire and the dialects: `python tests/fuzz/fuzz_wire.py --inputs 200000 --seed 1`.

Each input is a connection that carries valid HTTP/1.1, HTTP/2, gRPC or inference bodies, mutated by their
grammar. No input may raise, answer 500 or INTERNAL, hang, or leak requests, buffers, connections or memory.
Findings are minimised and printed with the command that reproduces them; any finding makes the exit status 1.

Meanwhile, an honest client in another process calls the same engine over HTTP and gRPC every 50 ms. It may
get no error. Every 6 s, the inputs stop for 2 s, and its p99 while inputs are fed may exceed its p99 in these
pauses by at most 50 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import click
import psutil

try:
    import uvloop
except ImportError:
    uvloop = None

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.bench import Bench, Finding, bench
from fuzz.mutations import Input, make_input
from fuzz.side_by_side import Target, Turns, side_by_side

MIB = 1 << 20
#: Allowed growth of memory in MiB, after the first tenth of the inputs or as many as this.
GROWTH, WARM = 48, 50_000
MAX_FINDINGS = 20


@dataclass
class Report:
    """The results of a run."""

    inputs: int = 0
    answers: int = 0
    seconds: float = 0.0
    growth: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    #: The honest client, if there was one.
    turns: Turns | None = None


def first_line(finding: Finding) -> str:
    lines = [line for line in str(finding).splitlines() if line.strip()]
    return f"{lines[0]} ... {lines[-1]}"[:300] if len(lines) > 1 else str(finding)[:300]


async def still_found(bench: Bench, number: int, one: Input, complaint: str) -> bool:
    try:
        await bench.feed(number, one)
    except Finding as finding:
        return first_line(finding)[:40] == complaint[:40]
    return False


async def smaller(bench: Bench, number: int, one: Input, complaint: str) -> Input:
    """Removes parts of an input for as long as it still causes the same finding."""
    whole = Input(one.kind, (one.data,), one.valid)
    best = whole if await still_found(bench, number, whole, complaint) else one
    size = len(best.data) // 2
    until = monotonic() + 20
    while size and len(best.pieces) == 1 and monotonic() < until:
        at = 0
        while at < len(best.data) and monotonic() < until:
            shorter = Input(one.kind, (best.data[:at] + best.data[at + size :],), one.valid)
            if shorter.data and await still_found(bench, number, shorter, complaint):
                best = shorter
            else:
                at += size
        size //= 2
    return best


async def run(
    inputs: int,
    seed: int,
    first: int = 0,
    *,
    minutes: float | None = None,
    shrink: bool = True,
    progress: bool = False,
    honest: bool = False,
) -> Report:
    """Feeds inputs `first` to `first + inputs` of a seed, or as many as can be fed within `minutes`.

    With `honest`, an honest client calls meanwhile.
    """
    report = Report()
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="backline-fuzz-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            target = await stack.enter_async_context(bench(Path(folder)))
            if honest:
                port = await target.listen()
                stack.push_async_callback(target.stop_listening)
                served = Target(port, os.getpid())
                report.turns = await stack.enter_async_context(side_by_side(served))
            began = monotonic()
            base = 0.0
            seen: set[str] = set()
            for number in range(first, first + inputs):
                if minutes is not None and monotonic() - began > 60 * minutes:
                    break
                if report.turns is not None and report.turns.over:
                    await report.turns.alone()
                one = make_input(seed, number)
                report.kinds[one.kind] = report.kinds.get(one.kind, 0) + 1
                try:
                    await target.feed(number, one)
                except Finding as finding:
                    line = first_line(finding)
                    if line[:60] not in seen:
                        seen.add(line[:60])
                        least = await smaller(target, number, one, line) if shrink else one
                        pieces = least.pieces if len(least.pieces) < 8 else (least.data,)
                        repeat = f"--inputs 1 --first {number} --seed {seed}"
                        report.findings.append(
                            f"input {number} ({one.kind}; {repeat}):\n"
                            f"{str(finding)[:3000]}\n  bytes: {pieces!r}"[:6000]
                        )
                        if progress:
                            click.echo(report.findings[-1] + "\n", err=True)
                    if len(report.findings) >= MAX_FINDINGS:
                        break
                report.inputs += 1
                if report.inputs == max(1, min(inputs // 10, WARM)):
                    base = process.memory_info().rss / MIB
                if progress and report.inputs % 10_000 == 0:
                    rate = report.inputs / (monotonic() - began)
                    click.echo(
                        f"{report.inputs} inputs, {rate:.0f}/s, {process.memory_info().rss / MIB:.0f} MB",
                        err=True,
                    )
            report.seconds = monotonic() - began
            report.answers = target.answers
            report.growth = process.memory_info().rss / MIB - base
    if report.turns is not None:
        report.findings += report.turns.comparison.complaints()
    if report.growth > GROWTH:
        report.findings.append(f"memory grew by {report.growth:.0f} MB after the first inputs")
    return report


@click.command(help=__doc__)
@click.option("--inputs", default=200_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first input.")
@click.option("--minutes", type=float, help="Stop after this time.")
@click.option("--shrink/--no-shrink", default=True, help="Minimise inputs with findings.")
@click.option("--honest/--no-honest", default=True, help="Run the honest client.")
def main(inputs: int, seed: int, first: int, minutes: float | None, shrink: bool, honest: bool) -> None:
    # Uses the server's event loop where it is installed.
    factory = uvloop.new_event_loop if uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        report = runner.run(
            run(inputs, seed, first, minutes=minutes, shrink=shrink, progress=True, honest=honest)
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    click.echo(
        f"{report.inputs} inputs ({kinds}) with {report.answers} answers in {report.seconds:.0f} s, "
        f"memory {report.growth:+.0f} MB, "
        f"{len(report.findings)} findings"
    )
    if report.turns is not None:
        comparison = report.turns.comparison
        click.echo(f"honest client: {comparison}")
        for complaint in comparison.complaints():
            click.echo(complaint)
    sys.exit(1 if report.findings else 0)


if __name__ == "__main__":
    main()
