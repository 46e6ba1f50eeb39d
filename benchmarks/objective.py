"""What a latency objective is worth under overload: `python benchmarks/objective.py`.

A network that gains by batches is asked over HTTP and gRPC at several times its capacity, by requests that come at random and do not wait
for each other, of three servers in turns, for several rounds: Backline as it is, Backline with an objective, and Triton with the best queue
policy that was found. A latency counts from when its request was due. Writes docs/benchmarks/overload.md and overload.png.
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
#: One instance, so that the other core of a small machine is left to the front of the server and to the load.
CONFIGURATION = f"max_batch_size = {MAX_BATCH}\n\n[instance_group]\ncount = 1\n\n[dynamic_batching]\n"
#: Seconds at the beginning of each load that are not counted, and that are waited at most for the last answers.
LEAD, SETTLE = 1.0, 20.0


class TunedTriton(Triton):
    """Triton with one instance and a queue policy: `timeout` in seconds and a number of requests, each None for none."""

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


def http_request(model: Model) -> bytes:
    body, headers = model.binary_request()
    lines = [
        f"POST /v2/models/{model.name}/infer HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def offer(peer: Peer, model: Model, protocol: str, rate: float, seconds: float, seed: int) -> Turn:
    """Requests at `rate` a second for `seconds`, after a second that is not counted."""
    clients: Clients | H2Clients
    if protocol == "http":
        clients = Clients(peer.http_port, http_request(model))
    else:
        clients = H2Clients(peer.grpc_port, model.grpc_request())
        await clients.open()
    gc.disable()  # a collection would be a pause of the load
    try:
        began = monotonic() + 0.1
        await clients.send_at([began + moment for moment in poisson(rate, LEAD + seconds, seed)])
        lost = await clients.settle(SETTLE)
    finally:
        gc.enable()
    clients.close()
    return Turn([fate for fate in clients.fates.all if fate.due >= began + LEAD], lost, seconds)


async def closed_loop(peer: Peer, model: Model, seconds: float) -> float:
    """Requests answered per second when 32 clients wait for their answers: batches are full then."""
    clients = Clients(peer.http_port, http_request(model))
    rate = await clients.closed_loop(32, seconds)
    clients.close()
    return rate


def repository(mode: str, objective: float) -> Model:
    """The model in a repository of its own, with the configuration of the mode."""
    model = write_voice_encoder(BENCH / "objective" / mode / NAME / "1" / "model.onnx")
    more = f"\n[objective]\np99_ms = {objective * 1000:g}\n" if mode == OBJECTIVE else ""
    (model.file.parents[1] / "model.toml").write_text(CONFIGURATION + more)
    return model


def tune(model: Model, capacity: float, objective: float, seconds: float) -> tuple[TunedTriton, list[str]]:
    """The policy of Triton's with the best goodput at 1.1 and 4 times the capacity, and what was tried."""
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
@click.option("--objective-ms", type=click.FloatRange(1), default=150.0, help="The objective.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, help="How often each server has its turn at each load."
)
@click.option("--seconds", type=click.FloatRange(1), default=5.0, help="How long a turn is measured.")
@click.option("--loads", default="0.7,1.1,2,4", help="Times the capacity, with commas between.")
@click.option("--protocols", default="http,grpc", help="http, grpc or both.")
@click.option("--without-triton", is_flag=True, help="Leave Triton out.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=REPORT,
    help="Where the page goes; the picture lies beside it.",
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
    """Overloads three servers in turns. Status 1 if a claim is broken."""
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
        f"{median(capacities):.1f}/s in a closed loop of 32 clients, asked before each round: {low:.1f} to {high:.1f}"
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
    """Requests per second that a server that is not in its turn answers in a closed loop."""
    peer.resume()
    capacity = asyncio.run(closed_loop(peer, model, 4.0))
    peer.pause()
    click.echo(f"capacity: {capacity:.1f}/s in a closed loop of 32 clients over HTTP")
    return capacity


if __name__ == "__main__":
    main()
