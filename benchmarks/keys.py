"""Measures keys, quotas and turns: `python benchmarks/keys.py cost` and `python benchmarks/keys.py turns`.

`cost` sends the same requests to a server without keys and to one that checks a key with quotas, in many
short rounds in turn. `turns` measures the latency of four clients of a model that takes 5 ms, with and
without a fifth that sends 50 times its share.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import grpc
import numpy as np
from harness import h2load, wrk
from harness.case import Measurement
from harness.folders import BENCH
from harness.machine import machine
from harness.model import model
from harness.server_process import ServerProcess, answers_200, free_ports
from tritonclient.grpc import service_pb2, service_pb2_grpc

FOLDER = BENCH / "keys"
AUTH = FOLDER / "auth.toml"
SLEEPER = """
import time
from backline.model import FP32

class Model:
    def predict(self, x: FP32[1]) -> FP32[1]:
        time.sleep(0.005)
        return x
"""
STEADY = ("ada", "bob", "cy", "di")
#: Requests per second of a steady client: half its share of the 200 that the model can serve.
RATE = 20
SHARE = 40
FLOOD = 50 * SHARE


def create_key(name: str, *options: str) -> str:
    command = [sys.executable, "-m", "backline", "keys", "create", name, "--auth", str(AUTH), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def served(name: str, repository: Path, *options: str) -> Iterator[tuple[ServerProcess, int, int]]:
    """A server, its HTTP port and its gRPC port."""
    http_port, grpc_port = free_ports(2)
    ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port), "--no-metrics"]
    server = ServerProcess(
        name, [sys.executable, "-m", "backline", "serve", str(repository), *ports, *options]
    )
    try:
        server.wait_until(lambda: answers_200(f"http://127.0.0.1:{http_port}/v2/health/ready"), 120)
        yield server, http_port, grpc_port
    finally:
        server.end()


@click.group()
def main() -> None:
    """Measures what keys and quotas cost, and what taking turns does for other clients."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name, value in machine().items():
        click.echo(f"{name}: {value}")


@main.command()
@click.option("--rounds", default=20)
@click.option("--seconds", default=2.0, help="Seconds per server and round.")
@click.option("--concurrency", default=64)
def cost(rounds: int, seconds: float, concurrency: int) -> None:
    """Compares a server that checks keys and quotas with one that does not, on add1."""
    asked = model("add1", FOLDER / "models")
    body, headers = asked.binary_request()
    message = asked.grpc_request()
    limits = (
        "--rate",
        "1000000",
        "--burst",
        "1000000",
        "--max-in-flight",
        "1000",
        "--bytes-per-second",
        "1e12",
    )
    with_key = {"authorization": f"Bearer {create_key('app', *limits)}"}
    with (
        served("without", FOLDER / "models") as without,
        served("with", FOLDER / "models", "--auth", str(AUTH)) as keyed,
    ):

        def over_http(port: int, fields: dict[str, str]) -> Measurement:
            url = f"http://127.0.0.1:{port}/v2/models/add1/infer"
            return wrk.run(url, "keys", body, {**headers, **fields}, concurrency=concurrency, seconds=seconds)

        def over_grpc(port: int, fields: dict[str, str]) -> Measurement:
            post = h2load.grpc_post(port, message)
            post = h2load.Post(post.url, post.body, {**post.headers, **fields})
            return h2load.run(post, concurrency=concurrency, seconds=seconds)

        for protocol, measure, port in (("HTTP", over_http, 1), ("gRPC", over_grpc, 2)):
            rates, times = compare(measure, port, without, keyed, with_key, rounds)
            for what, ratios in (("requests per second", rates), ("requests per CPU second", times)):
                low, middle, high = np.percentile(ratios, (25, 50, 75))
                click.echo(
                    f"{protocol}, {what}: {middle:.3f} of without keys (quartiles {low:.3f}, {high:.3f})"
                )


def compare(
    measure: Callable[[int, dict[str, str]], Measurement],
    port: int,
    without: tuple[ServerProcess, int, int],
    keyed: tuple[ServerProcess, int, int],
    with_key: dict[str, str],
    rounds: int,
) -> tuple[list[float], list[float]]:
    """The ratios of each round, with keys to without: of rates, and of requests per CPU second."""
    rates, times = [], []
    for number in range(rounds + 1):
        found = {}
        sides = [("without", without, {}), ("with", keyed, with_key)]
        for name, server, fields in sides if number % 2 else reversed(sides):
            before = server[0].cpu_seconds()
            result = measure(server[port], fields)
            assert not result.errors, result
            found[name] = (result.requests_per_second, result.requests / (server[0].cpu_seconds() - before))
        if number:  # the first round is the warm-up
            rates.append(found["with"][0] / found["without"][0])
            times.append(found["with"][1] / found["without"][1])
    return rates, times


class Steady(threading.Thread):
    """A client that sends `RATE` requests per second, one at a time."""

    def __init__(self, ask: Callable[[], bool], seconds: float, phase: float) -> None:
        super().__init__()
        self._ask = ask
        self._seconds = seconds
        self._phase = phase
        #: The milliseconds that each request took; infinity if it was refused.
        self.took: list[float] = []

    def run(self) -> None:
        due = time.perf_counter() + self._phase
        end = due + self._seconds
        while due < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            answered = self._ask()
            ended = time.perf_counter()
            self.took.append((ended - began) * 1000 if answered else np.inf)
            due = max(due + 1 / RATE, ended)


def http_asker(port: int, fields: dict[str, str]) -> Callable[[], bool]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]})

    def ask() -> bool:
        connection.request("POST", "/v2/models/sleeper/infer", body, fields)
        answer = connection.getresponse()
        told = answer.read()
        assert answer.status in (200, 503), told
        return answer.status == 200

    return ask


def small_message() -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="sleeper")
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.raw_input_contents.append(np.ones(1, np.float32).tobytes())
    return message


def grpc_asker(port: int, fields: dict[str, str]) -> Callable[[], bool]:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    message = small_message()

    def ask() -> bool:
        try:
            stub.ModelInfer(message, metadata=list(fields.items()), timeout=60)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True

    return ask


@main.command()
@click.option("--rounds", default=3)
@click.option("--seconds", default=10.0, help="Seconds per stretch.")
def turns(rounds: int, seconds: float) -> None:
    """Measures four clients of a 5 ms model, with and without one that sends 50 times its share."""
    (FOLDER / "models" / "sleeper" / "1").mkdir(parents=True)
    (FOLDER / "models" / "sleeper" / "1" / "model.py").write_text(SLEEPER)
    keys = {name: {"authorization": f"Bearer {create_key(name)}"} for name in (*STEADY, "flood")}
    none: dict[str, dict[str, str]] = {name: {} for name in keys}
    click.echo(
        f"{'server':>8} {'':>5} {'flood':>6} {'requests':>8} {'refused':>8} {'p50 ms':>8} {'p99 ms':>8}"
    )
    for server, options, fields in (("keys", ("--auth", str(AUTH)), keys), ("no keys", (), none)):
        with served(server.replace(" ", "-"), FOLDER / "models", *options) as (_, http_port, grpc_port):
            for protocol, asker, port in (("HTTP", http_asker, http_port), ("gRPC", grpc_asker, grpc_port)):
                alone: list[float] = []
                flooded: list[float] = []
                for _ in range(rounds):
                    alone += stretch(asker, port, fields, seconds)
                    with flood(protocol, port, fields["flood"], seconds + 8):
                        time.sleep(3)  # the queue fills
                        flooded += stretch(asker, port, fields, seconds)
                for how, took in (("no", alone), ("yes", flooded)):
                    p50, p99 = np.percentile(took, (50, 99), method="lower")
                    refused = sum(np.isinf(took))
                    click.echo(
                        f"{server:>8} {protocol:>5} {how:>6} {len(took):>8} {refused:>8}"
                        f" {p50:>8.1f} {p99:>8.1f}"
                    )


def stretch(
    asker: Callable[[int, dict[str, str]], Callable[[], bool]],
    port: int,
    fields: dict[str, dict[str, str]],
    seconds: float,
) -> list[float]:
    clients = [
        Steady(asker(port, fields[name]), seconds, number / RATE / len(STEADY))
        for number, name in enumerate(STEADY)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return [took for client in clients for took in client.took]


@contextlib.contextmanager
def flood(protocol: str, port: int, fields: dict[str, str], seconds: float) -> Iterator[None]:
    """A client that sends FLOOD requests per second, whatever becomes of them."""
    if protocol == "HTTP":
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()
        post = h2load.Post(f"http://127.0.0.1:{port}/v2/models/sleeper/infer", body, fields)
        clients, options = 1200, ["--h1", "-m1"]
    else:
        post = h2load.grpc_post(port, small_message().SerializeToString())
        post = h2load.Post(post.url, post.body, {**post.headers, **fields})
        clients, options = 20, ["-m100"]
    load = h2load.Load(post, [f"-c{clients}", f"--rps={FLOOD / clients}", f"-D{round(seconds)}", *options])
    try:
        yield
    finally:
        load.end()


if __name__ == "__main__":
    main()
