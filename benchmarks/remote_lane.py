"""Measures the remote lane: the overhead of a server in front of others, and the effects of their failures.

`python benchmarks/remote_lane.py` calls the model add1 directly and through a server in front, in turn, over
HTTP and gRPC. The model is served by Backline and by Triton. Then one of the two servers of a model fails.
All processes share the cores of this machine, so the throughput through a second server is lower than it
would be with a machine for each. The CPU time per request shows how much work each server does. h2load sends
the requests.

`--before FOLDER` also measures the server in front as another checkout of the source has it, in the same
rounds.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
from harness import h2load
from harness.environment import CannotRun
from harness.folders import BENCH, python_path
from harness.machine import machine
from harness.model import model
from harness.peers.backline import Backline, serve_command
from harness.peers.peer import Peer
from harness.peers.triton import Triton
from harness.server_process import ServerProcess, answers_200, free_ports

from backline_client.client import connect, connect_async
from backline_client.client.errors import BacklineError

ROUNDS = 3
#: Seconds for which the load generator runs each time.
SECONDS = 2
FRONT = BENCH / "remote_lane"
#: The time in milliseconds that each of the four instances takes in the model for the failures, normally and
#: while slow.
RUN_MS, SLOW_MS = 5, 200


def write(repository: Path, name: str, config: str) -> Path:
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(config)
    return repository


def start(name: str, repository: Path, source: Path | None = None) -> tuple[ServerProcess, str, str]:
    """Starts a server, from the checkout `source` if given. Returns it with its URLs for HTTP and gRPC."""
    http, grpc, metrics = free_ports(3)
    environment = {"PYTHONPATH": python_path(source)} if source is not None else {}
    process = ServerProcess(name, serve_command(repository, http, grpc, metrics), environment=environment)
    process.wait_until(lambda: answers_200(f"http://127.0.0.1:{http}/v2/health/ready"))
    return process, f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}"


def front_of(urls: str, name: str, source: Path | None = None) -> tuple[ServerProcess, str, str]:
    shutil.rmtree(FRONT / "front", ignore_errors=True)
    parameter = f'parameters {{ key: "urls" value {{ string_value: "{urls}" }} }}'
    return start("front", write(FRONT / "front", name, f'backend: "remote" {parameter}'), source)


def post(protocol: str, port: int) -> tuple[h2load.Post, list[str]]:
    """Returns the request for add1, and h2load's options for the protocol."""
    asked = model("add1")
    if protocol == "grpc":
        return h2load.grpc_post(port, asked.grpc_request()), []
    body, headers = asked.binary_request()
    return h2load.Post(f"http://127.0.0.1:{port}/v2/models/add1/infer", body, headers), ["--h1"]


@dataclass(frozen=True)
class Cost:
    """The median latency, the rate, and the CPU microseconds per request of the servers involved."""

    p50_us: float
    per_second: float
    cpu_us: tuple[float, ...]


def load(protocol: str, port: int, callers: int, servers: Sequence[ServerProcess]) -> Cost:
    asked, options = post(protocol, port)
    before = [server.cpu_seconds() for server in servers]
    run = h2load.Load(asked, [*options, f"-c{callers}", "-m1", f"-D{SECONDS}"])
    try:
        output = run.finish(SECONDS + 90)
        found = h2load.parse(output, [request.took * 1e6 for request in run.requests()])
    finally:
        run.end()
    cpu = [(server.cpu_seconds() - begin) * 1e6 for server, begin in zip(servers, before, strict=True)]
    if not found.requests or found.errors:
        raise CannotRun(f"{found.errors} of {found.requests} requests failed")
    return Cost(found.p50_us, found.requests_per_second, tuple(one / found.requests for one in cpu))


def middle(costs: Sequence[Cost]) -> Cost:
    cpu = zip(*(one.cpu_us for one in costs), strict=True)
    return Cost(
        median(one.p50_us for one in costs),
        median(one.per_second for one in costs),
        tuple(median(one) for one in cpu),
    )


def show_costs(peer: Peer, protocols: Sequence[str], before: Path | None) -> None:
    peer.start([model("add1")])
    try:
        for protocol in protocols:
            show_costs_over(peer, protocol, {"": None} if before is None else {"before": before, "now": None})
    finally:
        peer.process.end()


def show_costs_over(peer: Peer, protocol: str, sources: dict[str, Path | None]) -> None:
    """Prints the costs of one protocol, for the server in front of each of the `sources`."""
    port = peer.grpc_port if protocol == "grpc" else peer.http_port
    fronts: dict[str, tuple[ServerProcess, int]] = {}
    try:
        for name, source in sources.items():
            process, *urls = front_of(f"{protocol}://127.0.0.1:{port}", "add1", source)
            fronts[name] = process, int(urls[protocol == "grpc"].rpartition(":")[2])
            process.pause()
        for callers in (1, 64):
            direct: list[Cost] = []
            through: dict[str, list[Cost]] = {name: [] for name in fronts}
            for _ in range(ROUNDS):
                direct.append(load(protocol, port, callers, [peer.process]))
                for name, (front, front_port) in fronts.items():
                    front.resume()
                    through[name].append(load(protocol, front_port, callers, [peer.process, front]))
                    front.pause()
            for name, costs in through.items():
                print(
                    row(f"{peer.name} {name}".strip(), protocol, callers, middle(direct), middle(costs)),
                    flush=True,
                )
    finally:
        for front, _ in fronts.values():
            front.resume()
            front.end()


def row(name: str, protocol: str, callers: int, direct: Cost, through: Cost) -> str:
    return (
        f"| {name} | {protocol} | {callers} | {direct.p50_us:.0f} |"
        f" {through.p50_us:.0f} | {through.p50_us - direct.p50_us:+.0f} |"
        f" {direct.per_second:.0f} | {through.per_second:.0f} |"
        f" {through.per_second / direct.per_second:.2f} |"
        f" {direct.cpu_us[0]:.0f} | {through.cpu_us[0]:.0f} + {through.cpu_us[1]:.0f} |"
    )


async def fail(url: str, what: str, victim: ServerProcess, seconds: float) -> tuple[int, int, float]:
    """Sends requests for some seconds, with a failure after the first second. Returns the numbers of
    responses and failures, and the maximum wait.
    """
    answered = failed = 0
    longest = 0.0
    end = time.perf_counter() + seconds
    async with connect_async(url, timeout=20) as client:

        async def caller() -> None:
            nonlocal answered, failed, longest
            while (began := time.perf_counter()) < end:
                try:
                    await client["echo"](np.ones((1, 1), np.float32))
                    answered += 1
                except BacklineError:
                    failed += 1
                longest = max(longest, time.perf_counter() - began)

        async def break_it() -> None:
            await asyncio.sleep(1)
            if what == "frozen":
                victim.pause()
            elif what == "killed":
                victim.process.kill()

        await asyncio.gather(break_it(), *(caller() for _ in range(16)))
    return answered, failed, longest


def served(url: str) -> int:
    with connect(url) as client:
        count: int = client["echo"].statistics()[0]["inference_stats"]["success"]["count"]
        return count


def show_failures() -> None:
    for what in ("killed", "frozen", "slow", "full"):
        servers = [start(name, write(FRONT / name, "echo", _echo(name == "b", what))) for name in ("a", "b")]
        front, url, _ = front_of(",".join(one[2] for one in servers), "echo")
        try:
            if what == "slow":  # the server has been slow for two seconds when the share is counted
                asyncio.run(fail(url, what, servers[1][0], 2))
            before = [0, 0] if what in ("killed", "frozen") else [served(one[1]) for one in servers]
            answered, failed, longest = asyncio.run(fail(url, what, servers[1][0], 4))
            share = "-"
            if what in ("slow", "full"):
                got = [served(one[1]) - begin for one, begin in zip(servers, before, strict=True)]
                share = f"{got[1] / sum(got):.1%}"
            print(f"| {what} | {answered} | {failed} | {share} | {longest * 1e3:.0f} |", flush=True)
        finally:
            servers[1][0].resume()
            for process in (front, *(one[0] for one in servers)):
                process.end()


def _echo(is_victim: bool, what: str) -> str:
    milliseconds = SLOW_MS if is_victim and what == "slow" else RUN_MS
    queue = 1 if is_victim and what == "full" else 1000
    return f"""backend: "identity" max_batch_size: 1 instance_group [ {{ count: 4 }} ]
    dynamic_batching {{ default_queue_policy {{ max_queue_size: {queue} }} }}
    input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }} ]
    output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
    parameters {{ key: "execute_delay_ms" value {{ string_value: "{milliseconds}" }} }}"""


@click.command()
@click.option("--only", type=click.Choice(["backline", "triton", "failures"]), help="Measure this part only.")
@click.option("--protocol", type=click.Choice(["http", "grpc"]), help="Measure the costs of this one only.")
@click.option(
    "--before",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout of the source, whose server is measured in front too.",
)
def main(only: str | None, protocol: str | None, before: Path | None) -> None:
    """Print the costs of a server in front, and a table of failures."""
    for name, value in machine().items():
        print(f"{name}: {value}")
    if only != "failures":
        print(
            "\n| behind | protocol | callers | direct p50 us | through p50 us | added us | direct/s |"
            " through/s | ratio | direct CPU us | behind + front CPU us |"
            "\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        )
        for peer in (Backline, Triton):
            if only in (None, peer.name):
                try:
                    show_costs(peer(), (protocol,) if protocol else ("http", "grpc"), before)
                except CannotRun as error:
                    print(f"{peer.name} was not measured: {error}")
    if only in (None, "failures"):
        print("\n| failure | responses | failed | share of the failing server | longest ms |")
        print("| --- | --- | --- | --- | --- |")
        show_failures()


if __name__ == "__main__":
    main()
