"""Three times what the server can do, then SIGTERM under load: `python benchmarks/overload.py`.

A model that costs some milliseconds and cannot be batched is asked by a closed loop first, which tells the best throughput, then at a fixed
rate of a multiple of that. The clients are this process, on the same processors.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import click
import numpy as np
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.model import Model, write_slow_model
from harness.open_loop import Clients, Fate, Fates
from harness.open_loop_grpc import GrpcClients
from harness.peers.backline import Backline

SUCCESS = ("200", "OK")
REFUSALS = ("503", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
WIDTH = 512


@dataclass
class Report:
    """Lines of what was seen, and what each claim came to."""

    numbers: dict[str, object] = field(default_factory=dict)
    claims: list[tuple[bool, str]] = field(default_factory=list)

    def claim(self, holds: bool, words: str) -> None:
        self.claims.append((holds, words))
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")


def slow_model(milliseconds: float) -> Model:
    """A model that takes about `milliseconds` for a run on one core: one product with a 512 x 512 matrix takes roughly 15 us."""
    layers = max(2, round(milliseconds / 0.015))
    path = BENCH / "overload" / f"slow{layers}" / "slow" / "1" / "model.onnx"
    if not path.exists():
        write_slow_model(path, layers, WIDTH)
    return Model("slow", path, "INPUT0", (1, WIDTH), milliseconds)


def http_request(model: Model) -> bytes:
    body, headers = model.binary_request()
    lines = [f"POST /v2/models/{model.name}/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def milliseconds(fates: list[Fate], quantile: float) -> float:
    """A quantile of the time from sending to the end, in milliseconds; NaN when there are none."""
    return float(np.quantile([fate.ended - fate.sent for fate in fates], quantile) * 1000) if fates else float("nan")


async def watch_memory(server: Backline, samples: list[float]) -> None:
    """Appends the server's resident memory in MB twice a second."""
    while True:
        samples.append(server.running().resident_bytes() / 1e6)
        await asyncio.sleep(0.5)


def clients_of(server: Backline, model: Model, protocol: str) -> Clients | GrpcClients:
    if protocol == "http":
        return Clients(server.http_port, http_request(model))
    return GrpcClients(server.grpc_port, model.grpc_request())


async def close(clients: Clients | GrpcClients) -> None:
    if isinstance(clients, GrpcClients):
        await clients.close()
    else:
        clients.close()


async def overload(server: Backline, model: Model, protocol: str, times: float, seconds: float, report: Report) -> float:
    """The closed loop, then the open loop; returns the best throughput, in requests per second."""
    clients = clients_of(server, model, protocol)
    await clients.closed_loop(16, 1.0)
    best = max([await clients.closed_loop(number, 4.0) for number in (4, 16, 64)])
    click.echo(f"{protocol}: best throughput of a closed loop {best:,.1f}/s; now {times:g} times that for {seconds:g} s")
    clients.fates = Fates()
    samples: list[float] = []
    watching = asyncio.create_task(watch_memory(server, samples))
    started = monotonic()
    await clients.open_loop(best * times, seconds)
    sent_in = monotonic() - started
    within = [fate for fate in clients.fates.all if fate.ended <= started + sent_in]
    lost = await clients.settle(60)
    watching.cancel()
    kept = sum(fate.what in SUCCESS for fate in within) / sent_in
    refused, others = clients.fates.of(*REFUSALS), clients.fates.count()
    for what in (*SUCCESS, *REFUSALS):
        others.pop(what, None)
    offered = (len(clients.fates.all) + lost) / sent_in
    counts = dict(clients.fates.count())
    successes = clients.fates.of(*SUCCESS)
    # The same closed loop once more: a machine that has become slower meanwhile must not be taken for a server that has.
    again = await clients.closed_loop(16, 4.0)
    third = max(1, len(samples) // 3)
    middle, last = max(samples[third : 2 * third]), max(samples[2 * third :])
    p50, p99, most = (milliseconds(refused, quantile) for quantile in (0.5, 0.99, 1.0))
    report.numbers[protocol] = {
        "best_per_second": best,
        "closed_loop_after_per_second": again,
        "offered_per_second": offered,
        "answered_per_second": kept,
        "fates": counts,
        "refusal_ms": {"p50": p50, "p99": p99, "max": most},
        "success_ms": {"p50": milliseconds(successes, 0.5), "p99": milliseconds(successes, 0.99)},
        "resident_mb": samples,
    }
    click.echo(f"  offered {offered:,.0f}/s, fates {counts}; a closed loop afterwards: {again:,.1f}/s")
    statuses = ", ".join(sorted({fate.what for fate in refused})) or "nothing"
    claims = [
        (offered >= 0.95 * best * times, f"{offered / best:.2f} times the best throughput was offered (asked {times:g})"),
        (kept >= 0.9 * best, f"answered {kept:,.1f}/s, {kept / best:.1%} of the best (at least 90 %)"),
        (bool(refused), f"{len(refused)} refused with {statuses}"),
        (p99 <= 50, f"refused within p50 {p50:.1f}, p99 {p99:.1f}, at most {most:.1f} ms (p99 at most 50 ms)"),
        (not others and not lost, f"no other fate: {dict(others)}, {lost} without any after 60 s"),
        (last <= middle + 8, f"memory {samples[0]:.0f} MB at first, {middle:.0f} in the middle, {last:.0f} at the end (at most 8 more)"),
    ]
    for holds, words in claims:
        report.claim(holds, f"{protocol}: {words}")
    await close(clients)
    return best


async def terminate_under_load(server: Backline, model: Model, protocol: str, rate: float, report: Report) -> None:
    """SIGTERM while requests come at `rate`: what was sent before must be answered, and no answer may be cut off."""
    clients = clients_of(server, model, protocol)
    sending = asyncio.create_task(clients.open_loop(rate, 4.0))
    await asyncio.sleep(2.0)
    process = server.running().process
    terminated = monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        status: int | None = await asyncio.to_thread(process.wait, 40)
    except subprocess.TimeoutExpired:
        status = None
    took = monotonic() - terminated
    await sending
    lost = await clients.settle(60)
    before = Fates([fate for fate in clients.fates.all if fate.sent < terminated])
    after = Fates([fate for fate in clients.fates.all if fate.sent >= terminated])
    seen = {"before": dict(before.count()), "after": dict(after.count()), "seconds": took, "status": status}
    report.numbers[f"{protocol} sigterm"] = seen
    click.echo(f"SIGTERM at {rate:,.0f}/s over {protocol}: sent before {dict(before.count())}, sent after {dict(after.count())}")
    bad_before = [fate.what for fate in before.all if fate.what not in SUCCESS]
    # A client that sends on a kept connection in the moment in which it is closed sees it closed without a byte, and may send again
    # (RFC 9112, section 9.3.1); a cut answer is never right.
    bad_after = [fate.what for fate in after.all if fate.what not in (*SUCCESS, *REFUSALS, "no connection", "unanswered")]
    unanswered = len(after.of("unanswered"))
    claims = [
        (not bad_before and not lost, f"every request sent before it was answered ({bad_before[:3]}, {lost} open)"),
        (not bad_after, f"nothing sent after it got a broken answer ({bad_after[:3]})"),
        (unanswered == 0, f"{unanswered} requests sent after it met a closing connection without an answer"),
        (status == 0, f"ended with status {status} after {took:.1f} s"),
    ]
    for holds, words in claims:
        report.claim(holds, f"SIGTERM, {protocol}: {words}")
    await close(clients)


@click.command(context_settings={"show_default": True})
@click.option("--times", type=click.FloatRange(1), default=3.0, help="How many times the best throughput is offered.")
@click.option("--seconds", type=click.FloatRange(3), default=20.0, help="How long; the queue must fill early in it.")
@click.option("--model-ms", type=click.FloatRange(1), default=20.0, help="About how long a run of the model takes.")
@click.option("--protocols", default="http,grpc", help="http, grpc or both.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=BENCH / "overload.json", help="Where the results go as JSON.")
def main(times: float, seconds: float, model_ms: float, protocols: str, json_file: Path) -> None:
    """Overloads `backline serve`, then ends it under load. Status 1 if a claim is broken."""
    names = protocols.split(",")
    if unknown := [name for name in names if name not in ("http", "grpc")]:
        raise click.BadParameter(f"{unknown[0]!r} is neither http nor grpc", param_hint="--protocols")
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    report = Report()
    model = slow_model(model_ms)
    for protocol in names:
        server = Backline()
        try:
            server.start([model])
            model.check(server.ask_http(model, "binary"))
            best = asyncio.run(overload(server, model, protocol, times, seconds, report))
            asyncio.run(terminate_under_load(server, model, protocol, best * 0.7, report))
        except CannotRun as error:
            raise click.ClickException(str(error)) from error
        finally:
            server.end()
    json_file.parent.mkdir(parents=True, exist_ok=True)
    claims = [{"holds": holds, "claim": words} for holds, words in report.claims]
    data = {"machine": about, "model_ms": model_ms, **report.numbers, "claims": claims}
    json_file.write_text(json.dumps(data, indent=1))
    click.echo(f"Written: {json_file}")
    if not all(holds for holds, _ in report.claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
