"""Measures keys, quotas and turns: `python benchmarks/keys.py cost` and `python benchmarks/keys.py fairness`.

`cost` sends the same requests to a server without keys, to one that checks a key with quotas, and with
`--before REVISION` also to the server of an earlier revision, in many short rounds in turn. `fairness`
measures the latency of four clients of a model that takes 5 ms, with and without a fifth client that sends 50
times its share. It also measures how many requests are admitted from a client that exceeds its quota. The
exit status is 1 if a claim fails.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import tritonclient.grpc
import tritonclient.http
from harness import h2load, wrk
from harness.case import Measurement
from harness.folders import BENCH, ROOT, python_path
from harness.machine import machine
from harness.model import model
from harness.server_process import ServerProcess, answers_200, free_ports
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

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
#: The claims of `cost`: the minimum request rate with keys and quotas, as a share of the rate without, and
#: the minimum rate without, as a share of the rate of the earlier revision.
LEAST_WITH_KEYS = 0.95
LEAST_OF_BEFORE = 0.99
#: The claims of `fairness`: the maximum factor by which the fifth client may increase the p99 of the others,
#: and the maximum difference between the admitted requests and the quota, as a share of the quota.
MOST_TIMES_P99 = 2.0
QUOTA_TOLERANCE = 0.02
STEADY = ("ada", "bob", "cy", "di")
#: The requests per second of a steady client: half its share of the 200 that the model can serve.
RATE = 20
SHARE = 40
FLOOD = 50 * SHARE
#: The quota of the client that exceeds it: requests per second, and how many may arrive at once.
QUOTA = 50
BURST = 100

Asker = Callable[[], int | str]


@dataclass(frozen=True)
class Side:
    """A server, and the header fields of the requests to it."""

    name: str
    process: ServerProcess
    http_port: int
    grpc_port: int
    fields: dict[str, str]


def create_key(name: str, *options: str) -> dict[str, str]:
    """Creates a key and returns the header field with it."""
    command = [sys.executable, "-m", "backline", "keys", "create", name, "--auth", str(AUTH), *options]
    key = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return {"authorization": f"Bearer {key}"}


@contextlib.contextmanager
def served(
    name: str,
    repository: Path,
    *options: str,
    fields: dict[str, str] | None = None,
    source: Path | None = None,
) -> Iterator[Side]:
    """Serves a repository, by default with the code of this checkout."""
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "backline", "serve", str(repository)]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), "--no-metrics"]
    command += ["--state-dir", str(FOLDER / f"state-{name}"), *options]
    environment = {"PYTHONPATH": python_path(source)} if source else None
    server = ServerProcess(name, command, environment=environment, folder=FOLDER)
    try:
        server.wait_until(lambda: answers_200(f"http://127.0.0.1:{http_port}/v2/health/ready"), 120)
        yield Side(name, server, http_port, grpc_port, fields or {})
    finally:
        server.end()


def code_of(revision: str) -> Path:
    """Returns a checkout of a revision of this repository. Its dependencies are those of this
    environment.
    """
    folder = FOLDER / "before"
    folder.mkdir()
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=packed, check=True)
    return folder


@click.group()
def main() -> None:
    """Measures what keys and quotas cost, and what they do for other clients."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name, value in machine().items():
        click.echo(f"{name}: {value}")


@main.command()
@click.option("--rounds", default=20, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="Seconds per server and round.")
@click.option("--before", metavar="REVISION", help="Also compare with an earlier revision.")
@click.option("--concurrency", default=(1, 64), show_default=True, multiple=True, help="Repeatable.")
def cost(rounds: int, seconds: float, before: str | None, concurrency: tuple[int, ...]) -> None:
    """Compares a server that checks keys and quotas with one that does not, on add1."""
    asked = model("add1", FOLDER / "models")
    body, headers = asked.binary_request()
    message = asked.grpc_request()
    rate = ("--rate", "1000000", "--burst", "1000000")
    key = create_key("app", *rate, "--max-in-flight", "1000", "--bytes-per-second", "1e12")
    failed = False
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(served("without", FOLDER / "models")),
            stack.enter_context(served("with", FOLDER / "models", "--auth", str(AUTH), fields=key)),
        ]
        pairs = [("with", "without", LEAST_WITH_KEYS)]
        if before:
            code = code_of(before)
            sides.append(stack.enter_context(served("before", FOLDER / "models", source=code)))
            pairs.append(("without", "before", LEAST_OF_BEFORE))

        def over_http(side: Side, clients: int) -> Measurement:
            url = f"http://127.0.0.1:{side.http_port}/v2/models/add1/infer"
            fields = {**headers, **side.fields}
            return wrk.run(url, f"keys-{side.name}", body, fields, concurrency=clients, seconds=seconds)

        def over_grpc(side: Side, clients: int) -> Measurement:
            post = h2load.grpc_post(side.grpc_port, message)
            post = h2load.Post(post.url, post.body, {**post.headers, **side.fields})
            return h2load.run(post, concurrency=clients, seconds=seconds)

        click.echo(
            f"\n{'':>4} {'clients':>7} {'compared':>19} {'rate':>6} {'quartiles':>13} {'per CPU s':>9}"
        )
        for protocol, measure in (("HTTP", over_http), ("gRPC", over_grpc)):
            for clients in concurrency:
                found = compare(measure, sides, clients, rounds)
                for one, other, least in pairs:
                    rates, times = ratios(found, one, other)
                    low, middle, high = np.percentile(rates, (25, 50, 75))
                    verdict = "" if middle >= least else f"  below {least}"
                    failed = failed or bool(verdict)
                    click.echo(
                        f"{protocol:>4} {clients:>7} {f'{one} / {other}':>19} {middle:>6.3f}"
                        f" {low:>6.3f} {high:>6.3f} {np.median(times):>9.3f}{verdict}"
                    )
    sys.exit(failed)


Found = dict[str, list[tuple[float, float]]]


def compare(
    measure: Callable[[Side, int], Measurement], sides: list[Side], clients: int, rounds: int
) -> Found:
    """Returns the request rate, and the requests per CPU second, of each server in each round."""
    found: Found = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            before = side.process.cpu_seconds()
            result = measure(side, clients)
            assert not result.errors, result
            if number:  # the first round is the warm-up
                spent = side.process.cpu_seconds() - before
                found[side.name].append((result.requests_per_second, result.requests / spent))
    return found


def ratios(found: Found, one: str, other: str) -> tuple[list[float], list[float]]:
    """Returns the ratios of rates, and of requests per CPU second, in each round."""
    pairs = list(zip(found[one], found[other], strict=True))
    return [a[0] / b[0] for a, b in pairs], [a[1] / b[1] for a, b in pairs]


class Steady(threading.Thread):
    """A client that sends `RATE` requests per second, one at a time."""

    def __init__(self, asker: Callable[[], Asker], seconds: float, phase: float) -> None:
        super().__init__()
        self._asker = asker
        self._seconds = seconds
        self._phase = phase
        #: The milliseconds that each request took, or infinity if it was refused.
        self.took: list[float] = []

    def run(self) -> None:
        ask = self._asker()
        due = time.perf_counter() + self._phase
        end = due + self._seconds
        while due < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            answered = ask() == 200
            ended = time.perf_counter()
            self.took.append((ended - began) * 1000 if answered else np.inf)
            due = max(due + 1 / RATE, ended)


def asker(
    library: Any, port: int, fields: dict[str, str], refusals: dict[str, int | str], **options: Any
) -> Asker:
    """Returns a function that calls the model with a library of tritonclient, and returns 200, or the value
    of the status in `refusals`. Call the function on the thread that created it.
    """
    client = library.InferenceServerClient(f"127.0.0.1:{port}")
    given = library.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))

    def ask() -> int | str:
        try:
            client.infer("sleeper", [given], headers=dict(fields), **options)  # the client adds fields
        except InferenceServerException as error:
            if error.status() not in refusals:
                raise
            return refusals[error.status()]
        return 200

    return ask


def http_asker(side: Side, fields: dict[str, str]) -> Asker:
    return asker(tritonclient.http, side.http_port, fields, {"429": 429, "503": 503})


def grpc_asker(side: Side, fields: dict[str, str]) -> Asker:
    refusals: dict[str, int | str] = {
        f"StatusCode.{name}": name for name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
    }
    return asker(tritonclient.grpc, side.grpc_port, fields, refusals, client_timeout=60)


ASKERS = {"HTTP": http_asker, "gRPC": grpc_asker}


@main.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Seconds per stretch.")
def fairness(rounds: int, seconds: float) -> None:
    """Measures four clients of a 5 ms model with and without one that sends 50 times its share; quotas."""
    (FOLDER / "models" / "sleeper" / "1").mkdir(parents=True)
    (FOLDER / "models" / "sleeper" / "1" / "model.py").write_text(SLEEPER)
    keys = {name: create_key(name) for name in (*STEADY, "flood")}
    keys["limited"] = create_key("limited", "--rate", str(QUOTA), "--burst", str(BURST))
    none: dict[str, dict[str, str]] = {name: {} for name in keys}
    failed = False
    with served("keys", FOLDER / "models", "--auth", str(AUTH)) as side:
        for protocol in ASKERS:
            failed = not within_quota(protocol, side, keys["limited"], seconds) or failed
        click.echo(
            f"\n{'server':>8} {'':>5} {'flood':>6} {'requests':>8} {'refused':>8} {'p50 ms':>8} {'p99 ms':>8}"
        )
        for protocol in ASKERS:
            alone, flooded = turns(protocol, side, keys, rounds, seconds)
            if flooded > MOST_TIMES_P99 * alone:
                click.echo(f"p99 is more than {MOST_TIMES_P99:g} times that without the flood")
                failed = True
    with served("no-keys", FOLDER / "models") as side:
        for protocol in ASKERS:
            turns(protocol, side, none, rounds, seconds)
    sys.exit(failed)


def turns(
    protocol: str, side: Side, keys: dict[str, dict[str, str]], rounds: int, seconds: float
) -> tuple[float, float]:
    """Returns the p99 of the steady clients in milliseconds, without and with the flood.

    It is the median of the p99 of each round: a pause of the machine, which affects one round, says nothing
    about the server.
    """
    alone: list[list[float]] = []
    flooded: list[list[float]] = []
    for _ in range(rounds):
        alone.append(stretch(protocol, side, keys, seconds))
        with flood(protocol, side, keys["flood"], seconds + 8):
            time.sleep(3)  # the queue fills
            flooded.append(stretch(protocol, side, keys, seconds))
    found = []
    for how, stretches in (("no", alone), ("yes", flooded)):
        p50, p99 = np.median([np.percentile(took, (50, 99), method="lower") for took in stretches], axis=0)
        took = [one for stretch in stretches for one in stretch]
        click.echo(
            f"{side.name:>8} {protocol:>5} {how:>6} {len(took):>8} {sum(np.isinf(took)):>8}"
            f" {p50:>8.1f} {p99:>8.1f}"
        )
        found.append(float(p99))
    first, second = found
    return first, second


def stretch(protocol: str, side: Side, keys: dict[str, dict[str, str]], seconds: float) -> list[float]:
    """Returns the milliseconds that the requests of the steady clients took."""
    clients = [
        Steady(lambda name=name: ASKERS[protocol](side, keys[name]), seconds, number / RATE / len(STEADY))  # type: ignore[misc]
        for number, name in enumerate(STEADY)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return [took for client in clients for took in client.took]


def within_quota(protocol: str, side: Side, fields: dict[str, str], seconds: float) -> bool:
    """Returns whether a client that sends as fast as it can has as many requests admitted as its quota
    allows, and the rest refused.
    """
    ask = ASKERS[protocol](side, fields)
    time.sleep(BURST / QUOTA)  # the whole burst is available again
    began = time.perf_counter()
    answers: dict[int | str, int] = {}
    while time.perf_counter() < began + seconds:
        answer = ask()
        answers[answer] = answers.get(answer, 0) + 1
    due = BURST + QUOTA * (time.perf_counter() - began)
    admitted = answers.pop(200, 0)
    told = ", ".join(f"{count} {answer}" for answer, count in answers.items())
    refusal = 429 if protocol == "HTTP" else "RESOURCE_EXHAUSTED"
    right = abs(admitted - due) <= QUOTA_TOLERANCE * due and set(answers) == {refusal}
    click.echo(
        f"quota, {protocol}: {admitted} requests admitted of {due:.0f} that the quota allows;"
        f" {told or 'none refused'}"
        f"{'' if right else ': not what the quota says'}"
    )
    return right


@contextlib.contextmanager
def flood(protocol: str, side: Side, fields: dict[str, str], seconds: float) -> Iterator[None]:
    """Runs a client that sends FLOOD requests per second, whatever their outcome."""
    if protocol == "HTTP":
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()
        post = h2load.Post(f"http://127.0.0.1:{side.http_port}/v2/models/sleeper/infer", body, fields)
        # In h2load, all clients of a process send at the same moments, so several processes are started one
        # after another. Otherwise bursts of 1,200 requests would be measured.
        processes, clients, options = 12, 100, ["--h1", "-m1"]
    else:
        message = service_pb2.ModelInferRequest(model_name="sleeper")
        message.inputs.add(name="x", datatype="FP32", shape=[1])
        message.raw_input_contents.append(np.ones(1, np.float32).tobytes())
        post = h2load.grpc_post(side.grpc_port, message.SerializeToString())
        post = h2load.Post(post.url, post.body, {**post.headers, **fields})
        processes, clients, options = 1, 20, ["-m100"]
    rate = FLOOD / processes / clients
    loads = []
    try:
        for _ in range(processes):
            loads.append(
                h2load.Load(post, [f"-c{clients}", f"--rps={rate}", f"-D{round(seconds)}", *options])
            )
            time.sleep(1 / rate / processes)
        yield
    finally:
        for load in loads:
            load.end()


if __name__ == "__main__":
    main()
