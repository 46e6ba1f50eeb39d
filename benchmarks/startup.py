"""Measures Backline's startup time and memory use: `python benchmarks/startup.py`.

The time is measured from the start of the command to the first 200 of /v2/health/ready. The memory is the
resident memory of the server's processes with the model add1, measured once after a number of requests and
again after ten times that number.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
from harness import h2load
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.model import model
from harness.peers.backline import Backline, serve_command
from harness.server_process import ServerProcess, free_ports

REPOSITORY = BENCH / "startup"
CLIENTS = 16
#: The allowed growth in MB between the two readings, because some pages are first used late, whatever the
#: load. It is less than a byte per request.
PAGES_MB = 0.1


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def seconds_to_ready() -> float:
    """Returns the seconds from starting the command to the first 200."""
    http_port, grpc_port, metrics_port = free_ports(3)
    started = time.perf_counter()
    process = ServerProcess("startup", serve_command(REPOSITORY, http_port, grpc_port, metrics_port))
    try:
        while not is_ready(http_port):
            if not process.alive():
                raise CannotRun(f"the server exited: {process.last_words()}")
            if time.perf_counter() - started > 30:
                raise CannotRun(f"the server was not ready within 30 s: {process.last_words()}")
            time.sleep(0.002)
        return time.perf_counter() - started
    finally:
        process.end()


def answered(connection: http.client.HTTPConnection, name: str) -> int:
    """Returns the number of successful requests to the model `name` that the server has counted."""
    connection.request("GET", f"/v2/models/{name}/stats")
    return sum(
        version["inference_stats"]["success"]["count"]
        for version in json.loads(connection.getresponse().read())["model_stats"]
    )


def memory_after(requests: int, protocol: str, say: Callable[[str], None]) -> list[tuple[int, float]]:
    """Returns pairs of answered requests and resident MB (10**6 bytes): at the start, after `requests`, and
    after ten times as many.

    All requests share the same connections, so that memory for connections is not counted as memory for
    requests.
    """
    asked = model("add1", REPOSITORY)
    server = Backline()
    load: h2load.Load | None = None
    try:
        server.start([asked])
        process = server.running()
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        seen = [(answered(connection, asked.name), process.resident_bytes() / 1e6)]
        options = [f"-c{CLIENTS}", f"-n{10 * requests}", *(["--h1"] if protocol == "http" else [])]
        post = server.http_post(asked) if protocol == "http" else server.grpc_post(asked)
        load = h2load.Load(post, options)
        while (count := answered(connection, asked.name)) < requests and load.running():
            time.sleep(0.02)
        seen.append((count, process.resident_bytes() / 1e6))
        result = h2load.parse(load.finish(120 + requests / 50), [])
        seen.append((answered(connection, asked.name), process.resident_bytes() / 1e6))
        if result.errors or seen[-1][0] < 10 * requests:
            raise CannotRun(f"{result.errors} errors, {seen[-1][0]:,} of {10 * requests:,} requests answered")
        for count, megabytes in seen[1:]:
            say(f"  {protocol}: after {count:,} requests {megabytes:.2f} MB")
        return seen
    finally:
        if load is not None:
            load.end()
        server.end()


@click.command(context_settings={"show_default": True})
@click.option("--starts", type=click.IntRange(1), default=5, help="Number of starts.")
@click.option(
    "--requests",
    type=click.IntRange(1),
    default=100_000,
    help="Requests before the first reading of memory; the second is after ten times as many.",
)
@click.option("--protocols", default="http,grpc", help="http, grpc or both, each with a separate server.")
@click.option("--max-seconds", type=float, default=0.6, help="Maximum startup time.")
@click.option("--max-mb", type=float, default=100.0, help="Maximum memory at the first reading.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "startup.json",
    help="File for the results as JSON.",
)
def main(
    starts: int, requests: int, protocols: str, max_seconds: float, max_mb: float, json_file: Path
) -> None:
    """Measures startup and memory. Status 1 if either exceeds its limit."""
    names = protocols.split(",")
    if unknown := [name for name in names if name not in ("http", "grpc")]:
        raise click.BadParameter(f"{unknown[0]!r} is neither http nor grpc", param_hint="--protocols")
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    model("add1", REPOSITORY)
    claims: list[tuple[bool, str]] = []
    try:
        seconds_to_ready()  # warms the disk cache and compiles modules
        times = [seconds_to_ready() for _ in range(starts)]
        middle = median(times)
        claims.append(
            (
                middle <= max_seconds,
                f"ready after {middle:.3f} s, the median of {starts} (at most {max_seconds:g} s)",
            )
        )
        memory: dict[str, list[tuple[int, float]]] = {}
        for name in names:
            memory[name] = memory_after(requests, name, click.echo)
            (_, first), (before, some), (after, many) = memory[name]
            claims.append(
                (
                    some < max_mb,
                    (
                        f"{name}: {some:.2f} MB after {before:,} requests,"
                        f" {first:.2f} before (below {max_mb:g} MB)"
                    ),
                )
            )
            words = f"{many:.2f} MB after {after:,} requests (at most {some:.2f} + {PAGES_MB:g} MB)"
            claims.append((many <= some + PAGES_MB, f"{name}: {words}"))
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
    for holds, words in claims:
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": about,
        "ready_seconds": times,
        "memory_mb": memory,
        "claims": [{"holds": h, "claim": w} for h, w in claims],
    }
    json_file.write_text(json.dumps(data, indent=1))
    click.echo(f"Written: {json_file}")
    if not all(holds for holds, _ in claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
