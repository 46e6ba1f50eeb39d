"""Fuzzes the wire and the dialects: `python tests/fuzz/fuzz_wire.py --inputs 200000 --seed 1`.

Each input is a connection that carries valid HTTP/1.1, HTTP/2, gRPC or inference bodies, mutated by their
grammar. No input may raise, answer 500 or INTERNAL, hang, or leak requests, buffers, connections or memory.
Findings are minimised and printed with the command that reproduces them; any finding makes the exit status 1.

Meanwhile, an honest client in another process calls the same engine over HTTP and gRPC every 50 ms. It may
get no error, and while mutated inputs are fed, its p99 may exceed the p99 that it had before the first input
by at most 50 ms. Its p99 while valid inputs are fed is printed too, and not judged: it shows whether the
mutations or other programs on the machine made the client wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
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
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from attacks.arena import collect, honest_client
from attacks.honest import Log
from attacks.target import Target

from fuzz.bench import Bench, Finding, bench
from fuzz.mutations import Input, make_input

MIB = 1 << 20
#: Allowed growth of memory after the first tenth of the inputs, in MiB.
GROWTH = 48
MAX_FINDINGS = 20
#: Seconds for which the honest client calls before the first input.
ALONE = 10.0
#: Before each `PERIOD` of inputs, this many valid ones are fed.
PERIOD, COMPARED = 5_000, 1_500
#: Milliseconds by which the p99 of the honest client may grow.
SLACK = 50.0


class Phase(Enum):
    """What is fed while the honest client calls."""

    ALONE = "alone"
    VALID = "valid"
    MUTATED = "mutated"


@dataclass
class Honest:
    """What the honest client saw in each phase."""

    logs: dict[Phase, Log] = field(default_factory=lambda: {phase: Log() for phase in Phase})
    #: When each phase began.
    phases: list[tuple[float, Phase]] = field(default_factory=list)

    def begin(self, phase: Phase) -> None:
        self.phases.append((monotonic(), phase))

    def sort(self, log: Log) -> None:
        """Divides the calls by the phases."""
        ends = [began for began, _ in self.phases[1:]] + [monotonic()]
        for (began, phase), ended in zip(self.phases, ends, strict=True):
            self.logs[phase].calls.extend(log.between(began, ended).calls)

    def p99(self, phase: Phase) -> float:
        return self.logs[phase].quantile(0.99)

    def __str__(self) -> str:
        mutated = self.logs[Phase.MUTATED]
        alone, valid = self.p99(Phase.ALONE), self.p99(Phase.VALID)
        return (
            f"{len(mutated.calls)} calls, {len(mutated.errors)} errors, p99 {self.p99(Phase.MUTATED):.1f} ms;"
            f" {alone:.1f} ms before the inputs, {valid:.1f} ms while valid inputs arrive"
        )

    def complaints(self) -> list[str]:
        errors = self.logs[Phase.MUTATED].errors
        found = [f"the honest client got {call.protocol} {call.error}" for call in errors[:3]]
        most = self.p99(Phase.ALONE) + SLACK
        if self.p99(Phase.MUTATED) > most:
            busy = self.p99(Phase.VALID) > most
            reason = (
                "; valid inputs made it wait as long, so the machine may be too busy to judge" if busy else ""
            )
            found.append(f"the honest client waited too long, more than {most:.1f} ms: {self}{reason}")
        return found


@dataclass
class Report:
    """The results of a run."""

    inputs: int = 0
    answers: int = 0
    seconds: float = 0.0
    growth: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    honest: Honest = field(default_factory=Honest)


@contextlib.asynccontextmanager
async def honest_calls(port: int, seen: Honest) -> AsyncIterator[None]:
    """Lets an honest client call port `port` of this process during the block."""
    # The client waits for this event loop, so everything that waits for the client runs on another thread.
    client = honest_client(Target(port, os.getpid()))
    control = await asyncio.to_thread(client.__enter__)
    try:
        try:
            yield
        finally:
            seen.sort(await asyncio.to_thread(collect, control))
    finally:
        await asyncio.to_thread(client.__exit__, None, None, None)


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
    shrink: bool = True,
    progress: bool = False,
    honest: bool = False,
) -> Report:
    """Feeds inputs `first` to `first + inputs` of a seed; with `honest`, an honest client calls meanwhile."""
    report = Report()
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="backline-fuzz-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            target = await stack.enter_async_context(bench(Path(folder)))
            if honest:
                port = await target.listen()
                stack.push_async_callback(target.stop_listening)
                await stack.enter_async_context(honest_calls(port, report.honest))
                report.honest.begin(Phase.ALONE)
                await asyncio.sleep(ALONE)
            began = monotonic()
            base = 0.0
            made = (make_input(seed, number) for number in range(2000) if honest)
            compared = [one for one in made if one.valid]
            seen: set[str] = set()
            for number in range(first, first + inputs):
                if honest and (number - first) % PERIOD == 0:
                    report.honest.begin(Phase.VALID)
                    for repeated in range(COMPARED):
                        await target.feed(repeated, compared[repeated % len(compared)])
                    report.honest.begin(Phase.MUTATED)
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
                if report.inputs == max(1, inputs // 10):
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
    report.findings += report.honest.complaints()
    if report.growth > GROWTH:
        report.findings.append(f"memory grew by {report.growth:.0f} MB after the first tenth of the inputs")
    return report


@click.command(help=__doc__)
@click.option("--inputs", default=200_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first input.")
@click.option("--shrink/--no-shrink", default=True, help="Minimise inputs with findings.")
@click.option("--honest/--no-honest", default=True, help="Run the honest client.")
def main(inputs: int, seed: int, first: int, shrink: bool, honest: bool) -> None:
    # Uses the server's event loop where it is installed.
    factory = uvloop.new_event_loop if uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        report = runner.run(run(inputs, seed, first, shrink=shrink, progress=True, honest=honest))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    click.echo(
        f"{report.inputs} inputs ({kinds}) with {report.answers} answers in {report.seconds:.0f} s, "
        f"memory {report.growth:+.0f} MB, "
        f"{len(report.findings)} findings"
    )
    if honest:
        click.echo(f"honest client: {report.honest}")
    for complaint in report.honest.complaints():
        click.echo(complaint)
    sys.exit(1 if report.findings else 0)


if __name__ == "__main__":
    main()
