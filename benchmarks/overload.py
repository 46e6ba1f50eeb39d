"""Overloads a server at three times its capacity, then sends SIGTERM: `python benchmarks/overload.py`.

A closed loop first finds the maximum throughput of a slow model that cannot be batched; then an open loop
sends a multiple of that. h2load, a C program, sends the load, because it takes little of the CPU time that it
shares with the server; this process sends only a few probes per second. The number of answers is the server's
own count.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time

import click
import numpy as np
from harness import h2load
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.model import Model, write_slow_model
from harness.open_loop import Clients, Fate, Fates
from harness.open_loop_grpc import CALLS_PER_CONNECTION, GrpcClients
from harness.peers.backline import Backline

SUCCESS = ("200", "OK")
REFUSALS = ("503", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
WIDTH = 512
#: The largest default limit of queued requests per model version.
QUEUE = 1024
#: The number of h2load's gRPC connections, which are enough to carry a full queue and all refusals in flight.
GRPC_CONNECTIONS = 32
#: The number of probes per second. Unlike h2load, this process records every outcome of a probe.
PROBES_PER_SECOND = 20


@dataclass
class Report:
    """The observations, and whether each claim holds."""

    numbers: dict[str, object] = field(default_factory=dict)
    claims: list[tuple[bool, str]] = field(default_factory=list)

    def claim(self, holds: bool, words: str) -> None:
        self.claims.append((holds, words))
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")


def slow_model(milliseconds: float, queue: int) -> Model:
    """Returns a model that takes about `milliseconds` on one core, with a queue of this size (0: the
    server's default). Each of its layers takes about 15 us.
    """
    layers = max(2, round(milliseconds / 0.015))
    path = BENCH / "overload" / f"slow{layers}-{queue}" / "slow" / "1" / "model.onnx"
    if not path.exists():
        write_slow_model(path, layers, WIDTH)
        if queue:
            policy = f"default_queue_policy {{ max_queue_size: {queue} }}"
            (path.parents[1] / "config.pbtxt").write_text(f"dynamic_batching {{ {policy} }}\n")
    return Model("slow", path, "INPUT0", (1, WIDTH), milliseconds)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Returns the p50, p99 and maximum in milliseconds, or NaN without values."""
    if not seconds:
        return dict.fromkeys(("p50", "p99", "max"), float("nan"))
    return {
        name: float(np.quantile(seconds, quantile) * 1000)
        for name, quantile in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def told(ms: dict[str, float]) -> str:
    return f"p50 {ms['p50']:.1f}, p99 {ms['p99']:.1f}, at most {ms['max']:.1f} ms"


def took(fates: list[Fate]) -> list[float]:
    return [fate.ended - fate.sent for fate in fates]


def answered(server: Backline, model: Model) -> int:
    """Returns the number of successful requests that the server has counted."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    try:
        connection.request("GET", f"/v2/models/{model.name}/stats")
        (version,) = json.loads(connection.getresponse().read())["model_stats"]
        return version["inference_stats"]["success"]["count"]
    finally:
        connection.close()


async def count_answered(server: Backline, model: Model, seconds: float) -> float:
    """Returns the successful requests per second over the next `seconds`."""
    before, started = await asyncio.to_thread(answered, server, model), monotonic()
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(answered, server, model)
    return (after - before) / (monotonic() - started)


def post_of(server: Backline, model: Model, protocol: str) -> h2load.Post:
    return server.http_post(model) if protocol == "http" else server.grpc_post(model)


async def closed_loop(server: Backline, model: Model, protocol: str, clients: int, seconds: float) -> float:
    """Returns the successful requests per second of `clients` closed-loop clients. Ignores the first half
    second.
    """
    options = [f"-c{clients}", "-m1", f"-D{round(seconds) + 2}", *(["--h1"] if protocol == "http" else [])]
    load = h2load.Load(post_of(server, model, protocol), options)
    try:
        await asyncio.sleep(0.5)
        rate = await count_answered(server, model, seconds)
        await asyncio.to_thread(load.finish, 60)
        return rate
    finally:
        load.end()


def open_loop(server: Backline, model: Model, protocol: str, rate: float, requests: int) -> h2load.Load:
    """Starts h2load at `rate` requests per second. It ends when about `requests` have an outcome."""
    if protocol == "http":
        # An HTTP/1.1 request occupies its connection, so each request gets a new connection. Connections are
        # opened every 20 ms.
        pulse = max(1, round(rate * 0.02))
        options = [
            "--h1",
            f"-c{requests}",
            f"-n{requests}",
            f"-r{pulse}",
            f"--rate-period={max(1, round(1000 * pulse / rate))}ms",
        ]
    else:
        each = -(-requests // GRPC_CONNECTIONS)
        options = [
            f"-c{GRPC_CONNECTIONS}",
            f"-m{CALLS_PER_CONNECTION}",
            f"-n{each * GRPC_CONNECTIONS}",
            f"--rps={rate / GRPC_CONNECTIONS:.3f}",
        ]
    return h2load.Load(post_of(server, model, protocol), options)


async def watch_memory(server: Backline, samples: list[float]) -> None:
    """Samples the server's resident memory in MB, twice a second."""
    while True:
        samples.append(server.running().resident_bytes() / 1e6)
        await asyncio.sleep(0.5)


def clients_of(server: Backline, model: Model, protocol: str) -> Clients | GrpcClients:
    if protocol == "http":
        return Clients(server.http_port, model.http_request())
    return GrpcClients(server.grpc_port, model.grpc_request(), connections=8)


async def close(clients: Clients | GrpcClients) -> None:
    if isinstance(clients, GrpcClients):
        await clients.close()
    else:
        clients.close()


async def first_refusal(fates: Fates, seconds: float) -> None:
    """Waits until a refused probe shows that the queue is full. Raises CannotRun after `seconds`."""
    deadline = monotonic() + seconds
    while not fates.of(*REFUSALS):
        if monotonic() > deadline:
            raise CannotRun(f"nothing was refused within {seconds:.0f} s: {dict(fates.count())}")
        await asyncio.sleep(0.05)


async def overload(
    server: Backline,
    model: Model,
    protocol: str,
    times: float,
    seconds: float,
    report: Report,
    queue: int = QUEUE,
) -> float:
    """Runs the closed loop, and then the open loop. Returns the maximum throughput in requests per second."""
    best = max([await closed_loop(server, model, protocol, number, 4.0) for number in (4, 16, 64)])
    rate = best * times
    filling = queue / (rate - best)
    click.echo(
        f"{protocol}: best throughput of a closed loop {best:,.1f}/s;"
        f" now {times:g} times that, for {seconds:g} s after the queue is full"
    )
    probes = clients_of(server, model, protocol)
    samples: list[float] = []
    load = open_loop(server, model, protocol, rate, round(rate * (1.2 * filling + seconds + 2)))
    probing = asyncio.create_task(probes.open_loop(PROBES_PER_SECOND, 1.2 * filling + seconds))
    try:
        await first_refusal(probes.fates, 3 * filling + 5)
        full = monotonic()
        watching = asyncio.create_task(watch_memory(server, samples))
        began = time()
        kept = await count_answered(server, model, seconds)
        ended = time()
        watching.cancel()
        output = await asyncio.to_thread(load.finish, 120 + 2 * queue / best)
        await probing
        lost = await probes.settle(60)
        requests = load.requests()
    finally:
        load.end()
    # The closed loop is repeated to distinguish a slower server from a machine that has become slower.
    again = await closed_loop(server, model, protocol, 16, 4.0)
    await close(probes)
    offered = sum(began <= request.ended < ended for request in requests) / (ended - began)
    statuses = Counter(request.status for request in requests)
    refused = probes.fates.of(*REFUSALS)
    # Those that were sent before the queue was full waited for a shorter time.
    served = quantiles(took([fate for fate in probes.fates.of(*SUCCESS) if fate.sent >= full]))
    # Over gRPC, h2load counts refusals as status 200, so only the probes can time refusals.
    times_of = {"probes": took(refused)}
    if protocol == "http":
        times_of["h2load"] = [request.took for request in requests if request.status == 503]
    others = {str(status): number for status, number in statuses.items() if status not in (200, 503)}
    others |= {
        what: number for what, number in probes.fates.count().items() if what not in (*SUCCESS, *REFUSALS)
    }
    unfinished = h2load.unfinished(output)
    third = max(1, len(samples) // 3)
    middle, last = max(samples[third : 2 * third]), max(samples[2 * third :])
    refusal_ms = {who: quantiles(all) for who, all in times_of.items()}
    report.numbers[protocol] = {
        "best_per_second": best,
        "closed_loop_after_per_second": again,
        "offered_per_second": offered,
        "answered_per_second": kept,
        "statuses": statuses,
        "fates_of_probes": dict(probes.fates.count()),
        "refusal_ms": refusal_ms,
        "served_ms": served,
        "resident_mb": samples,
    }
    click.echo(
        f"  h2load saw {dict(statuses)}, the probes {dict(probes.fates.count())};"
        f" a closed loop afterwards: {again:,.1f}/s\n  responses while the queue is full: {told(served)}"
    )
    kinds = ", ".join(sorted({fate.what for fate in refused}))
    claims = [
        (
            offered >= 0.95 * rate,
            f"{offered / best:.2f} times the best throughput was offered (target {times:g})",
        ),
        (kept >= 0.9 * best, f"answered {kept:,.1f}/s, {kept / best:.1%} of the best (at least 90 %)"),
        *(
            (
                ms["p99"] <= 50,
                f"{len(times_of[who])} refusals ({kinds}) by {who} within {told(ms)} (p99 at most 50 ms)",
            )
            for who, ms in refusal_ms.items()
        ),
        (
            not others and not lost and not unfinished,
            f"no other outcome: {others}, {lost + unfinished} without any at the end",
        ),
        (
            last <= middle + 8,
            (
                f"memory {samples[0]:.0f} MB at first, {middle:.0f} in the middle,"
                f" {last:.0f} at the end (at most 8 more)"
            ),
        ),
    ]
    for holds, words in claims:
        report.claim(holds, f"{protocol}: {words}")
    return best


async def terminate_under_load(
    server: Backline, model: Model, protocol: str, rate: float, report: Report
) -> None:
    """Sends SIGTERM under load. Earlier requests must be answered, and no answer may be truncated."""
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
    click.echo(
        f"SIGTERM at {rate:,.0f}/s over {protocol}:"
        f" sent before {dict(before.count())}, sent after {dict(after.count())}"
    )
    bad_before = [fate.what for fate in before.all if fate.what not in SUCCESS]
    # A request sent just as its connection closes gets no byte of an answer and may be retried (RFC 9112,
    # section 9.3.1), but a truncated answer is never allowed.
    bad_after = [
        fate.what
        for fate in after.all
        if fate.what not in (*SUCCESS, *REFUSALS, "no connection", "unanswered")
    ]
    unanswered = len(after.of("unanswered"))
    claims = [
        (
            not bad_before and not lost,
            f"every request sent before it was answered ({bad_before[:3]}, {lost} open)",
        ),
        (not bad_after, f"nothing sent after it got a broken answer ({bad_after[:3]})"),
        (unanswered == 0, f"{unanswered} requests sent after it hit a closing connection without an answer"),
        (status == 0, f"exited with status {status} after {took:.1f} s"),
    ]
    for holds, words in claims:
        report.claim(holds, f"SIGTERM, {protocol}: {words}")
    await close(clients)


@click.command(context_settings={"show_default": True})
@click.option(
    "--times",
    type=click.FloatRange(1),
    default=3.0,
    help="Offered load as a multiple of the best throughput.",
)
@click.option(
    "--seconds", type=click.FloatRange(3), default=20.0, help="Seconds from when the queue is full."
)
@click.option(
    "--model-ms", type=click.FloatRange(1), default=20.0, help="Approximate milliseconds per execution."
)
@click.option("--queue", type=click.IntRange(0), default=0, help="Queue size; 0 for the server's default.")
@click.option("--protocols", default="http,grpc", help="http, grpc or both.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "overload.json",
    help="File for the results as JSON.",
)
def main(times: float, seconds: float, model_ms: float, queue: int, protocols: str, json_file: Path) -> None:
    """Overloads `backline serve`, then stops it under load. Status 1 if a claim fails."""
    names = protocols.split(",")
    if unknown := [name for name in names if name not in ("http", "grpc")]:
        raise click.BadParameter(f"{unknown[0]!r} is neither http nor grpc", param_hint="--protocols")
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    report = Report()
    model = slow_model(model_ms, queue)
    for protocol in names:
        server = Backline()
        try:
            server.start([model])
            model.check(server.ask_http(model, "binary"))
            best = asyncio.run(overload(server, model, protocol, times, seconds, report, queue or QUEUE))
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
