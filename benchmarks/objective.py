"""What a latency objective is worth under overload: `python benchmarks/objective.py`.

A network that gains by batches is asked over HTTP and gRPC at several times its capacity, by requests that come at random and do not wait
for each other, of three servers in turns: Backline as it is, Backline with an objective, and Triton with the best queue policy that was
found. A latency counts from when its request was due. Writes docs/benchmarks/overload.md and overload.png.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from time import monotonic

import click
from harness.environment import CannotRun
from harness.folders import BENCH, ROOT
from harness.machine import machine
from harness.model import Model
from harness.open_loop import Clients, poisson
from harness.open_loop_h2 import H2Clients
from harness.overload_report import Outcome, Report, outcome_of
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
        policy = f"max_batch_size: {MAX_BATCH}\ndynamic_batching {{ default_queue_policy {{ {self.policy} }} }}"
        return text.replace(batching, policy).replace(f"count: {os.cpu_count()}", "count: 1")


def http_request(model: Model) -> bytes:
    body, headers = model.binary_request()
    lines = [f"POST /v2/models/{model.name}/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def offer(peer: Peer, model: Model, protocol: str, rate: float, seconds: float, objective: float) -> Outcome:
    """Requests at `rate` a second for `seconds`, after a second that is not counted."""
    clients: Clients | H2Clients
    if protocol == "http":
        clients = Clients(peer.http_port, http_request(model))
    else:
        clients = H2Clients(peer.grpc_port, model.grpc_request())
        await clients.open()
    began = monotonic() + 0.1
    await clients.send_at([began + moment for moment in poisson(rate, LEAD + seconds, seed=round(rate))])
    lost = await clients.settle(SETTLE)
    clients.close()
    return outcome_of([fate for fate in clients.fates.all if fate.due >= began + LEAD], lost, seconds, objective)


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
        triton = TunedTriton(None if timeout is None else timeout * objective, None if size is None else max(1, round(size * fit)))
        try:
            triton.start([model])
            good = [asyncio.run(offer(triton, model, "http", times * capacity, seconds, objective)).goodput for times in (1.1, 4.0)]
        finally:
            triton.end()
        tried.append((sum(good), triton))
        words.append(f"`{triton.policy}`: {good[0]:.0f}/s at 1.1 and {good[1]:.0f}/s at 4 times the capacity")
        click.echo(f"triton, {words[-1]}")
    _, best = max(tried, key=lambda one: one[0])
    return TunedTriton(best.timeout, best.size), words


@click.command(context_settings={"show_default": True})
@click.option("--objective-ms", type=click.FloatRange(1), default=150.0, help="The objective.")
@click.option("--seconds", type=click.FloatRange(1), default=10.0, help="How long each load is measured.")
@click.option("--loads", default="0.7,1.1,2,4", help="Times the capacity, with commas between.")
@click.option("--protocols", default="http,grpc", help="http, grpc or both.")
@click.option("--without-triton", is_flag=True, help="Leave Triton out.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the page goes; the picture lies beside it.")
def main(objective_ms: float, seconds: float, loads: str, protocols: str, without_triton: bool, report: Path) -> None:
    """Overloads three servers in turns. Status 1 if a claim is broken."""
    objective = objective_ms / 1000
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    models = {mode: repository(mode, objective) for mode in (PLAIN, OBJECTIVE)}
    peers: dict[str, Peer] = {PLAIN: Backline(), OBJECTIVE: Backline()}
    tried: list[str] = []
    found = Report(objective, seconds)
    try:
        for mode in (PLAIN, OBJECTIVE):
            peers[mode].start([models[mode]])
            models[mode].check(peers[mode].ask_http(models[mode], "binary"))
            peers[mode].pause()
        peers[PLAIN].resume()
        capacity = max(asyncio.run(closed_loop(peers[PLAIN], models[PLAIN], 4.0)) for _ in range(2))
        peers[PLAIN].pause()
        click.echo(f"capacity: {capacity:.1f}/s in a closed loop of 32 clients over HTTP")
        if not without_triton:
            triton, tried = tune(models[PLAIN], capacity, objective, min(seconds, 4.0))
            peers[TRITON] = triton
            triton.start([models[PLAIN]])
            triton.pause()
        for protocol in protocols.split(","):
            for times in map(float, loads.split(",")):
                for mode, peer in peers.items():
                    peer.resume()
                    outcome = asyncio.run(offer(peer, models.get(mode, models[PLAIN]), protocol, times * capacity, seconds, objective))
                    peer.pause()
                    found.add(protocol, times, mode, outcome)
                    click.echo(f"{protocol} {times:g}x {mode}: {outcome}")
        peers[PLAIN].resume()
        again = asyncio.run(closed_loop(peers[PLAIN], models[PLAIN], 4.0))
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
    finally:
        for peer in peers.values():
            peer.end()
    about["capacity"] = f"{capacity:.1f}/s in a closed loop of 32 clients before, {again:.1f}/s after"
    versions = {mode: peer.versions for mode, peer in peers.items()}
    found.write(report, about=about, versions=versions, tried=tried, objective_mode=OBJECTIVE)
    (BENCH / "objective.json").write_text(json.dumps({"machine": about, "outcomes": found.as_json()}, indent=1))
    claims = found.claims(OBJECTIVE, loads=[float(times) for times in loads.split(",")])
    for holds, words in claims:
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")
    click.echo(f"Written: {report}")
    if not all(holds for holds, _ in claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
