"""Compares Backline with its peers, which take turns: `python benchmarks/run.py --help`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from harness import h2load, perf_analyzer, wrk
from harness.case import Case
from harness.comparison import measure
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.model import NAMES, Model, model
from harness.peers import PEERS, Peer
from harness.picture import draw
from harness.table import as_json, document


class Names(click.ParamType):
    """A comma-separated list of allowed names."""

    name = "names"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        for name in names:
            if name not in self.allowed:
                self.fail(f"{name!r} is not one of {', '.join(self.allowed)}", param, ctx)
        return names


class Numbers(click.ParamType):
    """A comma-separated list of positive integers."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            numbers = [int(number) for number in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers separated by commas", param, ctx)
        if min(numbers) < 1:
            self.fail("every number must be at least 1", param, ctx)
        return numbers


def cases_of(
    models: list[Model], protocols: list[str], concurrency: list[int], peers: list[Peer], remarks: list[str]
) -> list[Case]:
    """Returns all ways to call each model that a load generator and at least two peers support.

    Adds a line to `remarks` about every way that is left out, or is measured with another load generator.
    """
    ways: list[tuple[str, str, str]] = []
    if "http" in protocols:
        if wrk.available():
            ways.append(("http", "binary", "wrk"))
            if any(("http", "binary") not in peer.ways and ("http", "json") in peer.ways for peer in peers):
                ways.append(("http", "json", "wrk"))
        else:
            ways.append(("http", "binary", "perf_analyzer"))
            remarks.append(
                "wrk is not installed, so perf_analyzer measured HTTP; it cannot drive peers"
                " without the v2 protocol"
            )
    if "grpc" in protocols:
        if perf_analyzer.executable():
            ways.append(("grpc", "binary", "perf_analyzer"))
        else:
            remarks.append("perf_analyzer is not installed, so h2load measured gRPC")
        others = any(("grpc", "binary") in peer.ways and not peer.perf_analyzer for peer in peers)
        if h2load.available() and (others or not perf_analyzer.executable()):
            ways.append(("grpc", "binary", "h2load"))
        elif others:
            remarks.append(
                "h2load is not installed, so gRPC of peers that perf_analyzer cannot drive was not measured"
            )
    cases = [
        Case(one, *way, clients) for one in models for way in ways_of(one, ways) for clients in concurrency
    ]
    if (
        any(one.large for one in models)
        and ("grpc", "binary", "perf_analyzer") in ways
        and h2load.available()
    ):
        remarks.append(
            "gRPC of large requests was measured by h2load alone, for every peer:"
            " perf_analyzer has no result with 16 clients"
        )
    return cases


def ways_of(asked: Model, ways: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Returns the ways to call this model. Large gRPC requests use h2load if it is installed."""
    if not asked.large or not h2load.available():
        return ways
    others = [way for way in ways if way[0] != "grpc"]
    return [*others, ("grpc", "binary", "h2load")] if len(others) < len(ways) else others


@click.command(context_settings={"show_default": True})
@click.option(
    "--peers",
    type=Names(tuple(PEERS)),
    default=",".join(PEERS),
    help="Peers to measure; each ratio is Backline's rate divided by the peer's.",
)
@click.option("--models", type=Names(NAMES), default=",".join(NAMES), help="Models to call.")
@click.option("--protocols", type=Names(("http", "grpc")), default="http,grpc", help="Protocols to use.")
@click.option(
    "--concurrency",
    type=Numbers(),
    default="1,16,64",
    help="Numbers of closed-loop clients.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    help="Number of rounds, with a turn for each peer; results are medians.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=3.0, help="Seconds per turn; slow models get more."
)
@click.option(
    "--quick",
    is_flag=True,
    help="Run one round of one second, to check that everything works; the numbers mean little.",
)
@click.option(
    "--cpus",
    type=str,
    default=None,
    help="Processors for servers and load generators together, such as 0,1; default: all.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "results.json",
    help="File for the results as JSON.",
)
def main(
    peers: list[str],
    models: list[str],
    protocols: list[str],
    concurrency: list[int],
    rounds: int,
    seconds: float,
    quick: bool,
    cpus: str | None,
    json_file: Path,
) -> None:
    """Compares Backline with its peers; leaves JSON, a Markdown table and a picture in build/bench/."""
    if quick:
        rounds, seconds = 1, 1.0
    if cpus is not None:
        try:
            os.sched_setaffinity(
                0, {int(cpu) for cpu in cpus.split(",")}
            )  # inherited by every process started from here
        except (ValueError, OSError) as error:
            raise click.BadParameter(
                f"{cpus!r}: {error}; give processors of this machine, such as 0,1", param_hint="--cpus"
            ) from error
    about = machine()
    loaded = [model(name) for name in models]
    started: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    remarks: list[str] = []
    try:
        for name in peers:
            peer = PEERS[name]()
            click.echo(f"starting {name}")
            try:
                peer.start(loaded)
                peer.pause()
                started[name] = peer
            except CannotRun as error:
                skipped[name] = str(error)
                click.echo(f"  skipped: {error}")
                peer.end()
        cases = cases_of(loaded, protocols, concurrency, list(started.values()), remarks)
        rows = measure(cases, started, rounds=rounds, seconds=seconds, say=click.echo)
    finally:
        for peer in started.values():
            peer.end()
    versions = {name: peer.versions for name, peer in started.items()}
    remarks += [f"rounds: {rounds}, seconds: {seconds:g}; servers and load generator on the same processors"]
    remarks += [remark for peer in started.values() for remark in peer.remarks()]
    setups = {name: PEERS[name].setup for name in peers}
    text = document(rows, machine=about, versions=versions, setups=setups, skipped=skipped, remarks=remarks)
    settings = {"rounds": rounds, "seconds": seconds, "cpus": cpus, "remarks": remarks}
    data = as_json(rows, machine=about, versions=versions, skipped=skipped, settings=settings)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(data, indent=1))
    json_file.with_suffix(".md").write_text(text)
    files = [json_file, json_file.with_suffix(".md")]
    if any(row.runs for row in rows):
        files.append(json_file.with_suffix(".png"))
        draw(rows, list(started), files[-1])
    click.echo("\n" + text)
    click.echo(f"Written: {', '.join(map(str, files))}")
    if any("backline" in row.reasons for row in rows) or "backline" in skipped:
        raise SystemExit("Backline itself could not be measured in every case: see the table")


if __name__ == "__main__":
    main()
