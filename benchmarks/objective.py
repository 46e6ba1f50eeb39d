"""Measures what a latency objective gains under overload: `python benchmarks/objective.py`.

A network that gains from batching gets open-loop Poisson load over HTTP and gRPC, at multiples of its
capacity. Three servers take turns over several rounds: plain Backline, Backline with an objective, and Triton
with the best queue policy found. Latency counts from the time at which a request was due. The script writes
docs/benchmarks/overload.md and overload.png.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
from pathlib import Path
from statistics import median
from time import monotonic

import click
from harness.environment import CannotRun
from harness.folders import BENCH, ROOT
from harness.machine import machine
from harness.model import Model
from harness.open_loop import Clients, poisson
from harness.open_loop_h2 import H2Clients
from harness.overload_report import ANSWERED, Report, Turn, outcome_of
from harness.peers.backline import Backline
from harness.peers.peer import Peer
from harness.peers.triton import Triton
from harness.voice_encoder import NAME, write_voice_encoder

REPORT = ROOT / "docs" / "benchmarks" / "overload.md"
MAX_BATCH = 8
PLAIN, OBJECTIVE, TRITON = "plain", "objective", "triton"
#: The configuration has one instance, which leaves one core of a two-core machine to the server's front end
#: and the load generator.
CONFIGURATION = f"max_batch_size = {MAX_BATCH}\n\n[instance_group]\ncount = 1\n\n[dynamic_batching]\n"
#: Seconds at the start of each load that are not counted, and seconds to wait for the last answers.
LEAD, SETTLE = 1.0, 20.0


class TunedTriton(Triton):
    """Triton with one instance and a queue policy: a `timeout` in seconds, a queue `size`, or both."""

    def __init__(self, timeout: float | None, size: int | None) -> None:
        super().__init__()
        self.timeout, self.size = timeout, size

    @property
    def policy(self) -> str:
        parts = [] if self.timeout is None else [f"default_timeout_microseconds: {round(self.timeout * 1e6)}"]
        parts += [] if self.size is None else [f"max_queue_size: {self.size}"]
        return " ".join(parts)

    def _configuration(self, model: Model) -> str:
        text = super()._configuration(model)
        batching = "max_batch_size: 64\ndynamic_batching { }"
        policy = (
            f"max_batch_size: {MAX_BATCH}\ndynamic_batching {{ default_queue_policy {{ {self.policy} }} }}"
        )
        return text.replace(batching, policy).replace(f"count: {os.cpu_count()}", "count: 1")


async def offer(peer: Peer, model: Model, protocol: str, rate: float, seconds: float, seed: int) -> Turn:
    """Sends `rate` requests per second for `seconds`, after a second that is not counted."""
    clients: Clients | H2Clients
    if protocol == "http":
        clients = Clients(peer.http_port, model.http_request())
    else:
        clients = H2Clients(peer.grpc_port, model.grpc_request())
        await clients.open()
    gc.disable()  # garbage collection would interrupt the load
    try:
        began = monotonic() + 0.1
        await clients.send_at([began + moment for moment in poisson(rate, LEAD + seconds, seed)])
        lost = await clients.settle(SETTLE)
    finally:
        gc.enable()
    clients.close()
    return Turn([fate for fate in clients.fates.all if fate.due >= began + LEAD], lost, seconds)


async def closed_loop(peer: Peer, model: Model, seconds: float) -> float:
    """Returns the number of answers per second to 32 closed-loop clients, which keep batches full."""
    clients = Clients(peer.http_port, model.http_request())
    rate = await clients.closed_loop(32, seconds)
    clients.close()
    return rate


def repository(mode: str, objective: float) -> Model:
    """Writes the model and the configuration of `mode` into a repository; `objective` is in seconds."""
    model = write_voice_encoder(BENCH / "objective" / mode / NAME / "1" / "model.onnx")
    more = f"\n[objective]\np99_ms = {objective * 1000:g}\n" if mode == OBJECTIVE else ""
    (model.file.parents[1] / "model.toml").write_text(CONFIGURATION + more)
    return model


def tune(model: Model, capacity: float, objective: float, seconds: float) -> tuple[TunedTriton, list[str]]:
    """Returns the Triton server with the highest sum of goodputs at 1.1 and 4 times the capacity, and a line
    per policy.
    """
    fit = capacity * objective
    policies = [(0.5, None), (0.65, None), (0.8, None), (None, 0.5), (None, 0.75), (0.65, 0.75)]
    tried: list[tuple[float, TunedTriton]] = []
    words = []
    for timeout, size in policies:
        triton = TunedTriton(
            None if timeout is None else timeout * objective,
            None if size is None else max(1, round(size * fit)),
        )
        try:
            triton.start([model])
            turns = [
                asyncio.run(offer(triton, model, "http", times * capacity, seconds, seed=0))
                for times in (1.1, 4.0)
            ]
            good = [turn.rate(ANSWERED, objective) for turn in turns]
        finally:
            triton.end()
        tried.append((sum(good), triton))
        words.append(f"`{triton.policy}`: {good[0]:.0f}/s at 1.1 and {good[1]:.0f}/s at 4 times the capacity")
        click.echo(f"triton, {words[-1]}")
    _, best = max(tried, key=lambda one: one[0])
    return TunedTriton(best.timeout, best.size), words


@click.command(context_settings={"show_default": True})
@click.option("--objective-ms", type=click.FloatRange(1), default=150.0, help="Objective in milliseconds.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    help="Number of rounds; each server has a turn per load in each.",
)
@click.option("--seconds", type=click.FloatRange(1), default=5.0, help="Measured seconds per turn.")
@click.option("--loads", default="0.7,1.1,2,4", help="Multiples of the capacity, separated by commas.")
@click.option("--protocols", default="http,grpc", help="http, grpc or both.")
@click.option("--without-triton", is_flag=True, help="Skip Triton.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=REPORT,
    help="File for the page; the picture goes next to it.",
)
def main(
    objective_ms: float,
    rounds: int,
    seconds: float,
    loads: str,
    protocols: str,
    without_triton: bool,
    report: Path,
) -> None:
    """Overloads three servers in turns. Status 1 if a claim fails."""
    objective = objective_ms / 1000
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    models = {mode: repository(mode, objective) for mode in (PLAIN, OBJECTIVE)}
    peers: dict[str, Peer] = {PLAIN: Backline(), OBJECTIVE: Backline()}
    tried: list[str] = []
    levels = [float(times) for times in loads.split(",")]
    turns: dict[tuple[str, float, str], list[Turn]] = {}
    try:
        for mode in (PLAIN, OBJECTIVE):
            peers[mode].start([models[mode]])
            models[mode].check(peers[mode].ask_http(models[mode], "binary"))
            peers[mode].pause()
        capacities = [capacity_of(peers[PLAIN], models[PLAIN])]
        if not without_triton:
            triton, tried = tune(models[PLAIN], capacities[0], objective, seconds)
            peers[TRITON] = triton
            triton.start([models[PLAIN]])
            triton.pause()
        for number in range(rounds):
            chance = random.Random(number)
            capacities.append(capacity_of(peers[PLAIN], models[PLAIN]))
            for protocol in protocols.split(","):
                for times in chance.sample(levels, len(levels)):
                    for mode in chance.sample(list(peers), len(peers)):
                        peers[mode].resume()
                        rate, model = times * capacities[-1], models.get(mode, models[PLAIN])
                        turn = asyncio.run(offer(peers[mode], model, protocol, rate, seconds, seed=number))
                        peers[mode].pause()
                        turns.setdefault((protocol, times, mode), []).append(turn)
                        click.echo(
                            f"{number + 1}: {protocol} {times:g}x {mode}: {outcome_of([turn], objective)}"
                        )
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
    finally:
        for peer in peers.values():
            peer.end()
    found = Report(
        objective,
        seconds,
        rounds,
        {key: outcome_of(turns[key], objective) for key in sorted(turns, reverse=True)},
    )
    low, high = min(capacities), max(capacities)
    about["capacity"] = (
        f"{median(capacities):.1f}/s (median, {low:.1f} to {high:.1f}), measured with a closed loop of 32"
        " clients before each round"
    )
    versions = {mode: peers[mode].versions for mode in found.modes}
    found.write(report, about=about, versions=versions, tried=tried, objective_mode=OBJECTIVE)
    (BENCH / "objective.json").write_text(
        json.dumps({"machine": about, "outcomes": found.as_json()}, indent=1)
    )
    claims = found.claims(OBJECTIVE, loads=sorted(levels))
    for holds, words in claims:
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")
    click.echo(f"Written: {report}")
    if not all(holds for holds, _ in claims):
        raise SystemExit(1)


def capacity_of(peer: Peer, model: Model) -> float:
    """Returns the closed-loop capacity of a server outside its turn, in requests per second."""
    peer.resume()
    capacity = asyncio.run(closed_loop(peer, model, 4.0))
    peer.pause()
    click.echo(f"capacity: {capacity:.1f}/s in a closed loop of 32 clients over HTTP")
    return capacity


if __name__ == "__main__":
    main()
