"""Measures the overhead of a worker process, and that of Triton's: `python benchmarks/process_lane.py`.

wrk sends 64 bytes and 602,112 bytes over 1, 16 and 64 connections to three models that return their input:
`python` (a model.py in a worker process), `inside` (the identity backend on the server's event loop), and a
model for Triton's Python backend. `python` and Triton have one instance with dynamic batching. Each turn
takes `--seconds`, while the other servers are suspended. Each ratio compares two servers within one round;
the median of the ratios is printed. The exit status is 1 if `python` misses its claim: at least Triton's
request rate with 64 bytes, and 1.3 times that rate with 602,112 bytes and 16 connections.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from harness import wrk
from harness.case import Measurement, ratio
from harness.environment import CannotRun
from harness.machine import machine
from harness.peers.triton import Triton
from harness.server_process import ServerProcess, answers_200, free_ports

import backline

MODEL = """
from backline.model import FP32

class Model:
    max_batch_size = 64

    def predict(self, x: FP32[-1]) -> FP32[-1]:
        return x
"""
TRITON_MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            responses.append(
                pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("output", x.as_numpy())])
            )
        return responses
"""
CONFIG = """
backend: "{backend}"
max_batch_size: 64
dynamic_batching {{ }}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "output" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""
SIZES = (64, 602_112)
CONNECTIONS = (1, 16, 64)
#: The claimed ratio to Triton's requests per second, by bytes and connections.
CLAIMED = {(64, 1): 1.0, (64, 16): 1.0, (64, 64): 1.0, (602_112, 16): 1.3}


@dataclass(frozen=True)
class Side:
    """A model and the server that serves it."""

    name: str
    model: str
    port: int
    process: ServerProcess

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/models/{self.model}/infer"


def write_repositories(folder: Path) -> tuple[Path, Path]:
    """Writes the repositories of Backline and of Triton and returns their folders."""
    own, triton = folder / "backline", folder / "triton"
    for place, text in ((own / "python", MODEL), (triton / "identity", TRITON_MODEL)):
        (place / "1").mkdir(parents=True)
        (place / "1" / "model.py").write_text(text)
    (own / "inside" / "1").mkdir(parents=True)
    (own / "inside" / "config.pbtxt").write_text(CONFIG.format(backend="identity"))
    (triton / "identity" / "config.pbtxt").write_text(CONFIG.format(backend="python"))
    return own, triton


def start_backline(repository: Path) -> tuple[ServerProcess, int]:
    http, grpc, metrics = free_ports(3)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    server = ServerProcess(
        "process_lane",
        [sys.executable, "-m", "backline", "serve", str(repository), *ports],
        environment=dict(os.environ),
    )
    server.wait_until(lambda: answers_200(f"http://127.0.0.1:{http}/v2/health/ready"))
    return server, http


def request(size: int) -> tuple[bytes, dict[str, str]]:
    """Returns the body and headers of a request with binary tensors in both directions."""
    parameters = {"binary_data_size": size}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, size // 4], "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    data = np.random.default_rng(0).random(size // 4).astype(np.float32).tobytes()
    return head + data, {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }


def check(url: str, body: bytes, headers: dict[str, str], size: int) -> None:
    """Raises CannotRun unless the answer equals the input.

    It retries for a while, because some servers first finish requests that a load generator has abandoned.
    """
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
                if answer.read()[-size:] != body[-size:]:
                    raise CannotRun(f"{url} gave a wrong answer")
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CannotRun(f"{url} does not answer: {error}") from error
            time.sleep(0.1)


def take_turns(
    sides: list[Side], size: int, connections: int, seconds: float, rounds: int
) -> dict[str, list[Measurement]]:
    body, headers = request(size)
    found: dict[str, list[Measurement]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            for other in sides:
                if other.process is not side.process:
                    other.process.pause()
            side.process.resume()
            try:
                check(side.url, body, headers, size)
            except CannotRun as error:
                if side.process.alive():
                    raise
                print(f"{side.name} exited before its turn with {connections} connections: {error}")
                found[side.name].append(Measurement(0.0, math.nan, math.nan, 0))
                continue
            found[side.name].append(
                wrk.run(
                    side.url, f"process_lane_{size}", body, headers, concurrency=connections, seconds=seconds
                )
            )
    return found


def measure(
    own: list[Side], triton: Triton, repository: Path, sizes: list[int], seconds: float, rounds: int
) -> bool:
    """Prints a row per case. Returns whether all claims hold. Restarts Triton per case, as it may crash."""
    names = [*(side.name for side in own), "triton"]
    print(
        f"{'bytes':>8} {'connections':>12} "
        + " ".join(f"{name + '/s':>10}" for name in names)
        + f" {'p99 ms':>8} {'failed':>7}  python is"
    )
    holds = True
    for size in sizes:
        for connections in CONNECTIONS:
            try:
                triton.start_repository(repository)
                found = take_turns(
                    [*own, Side("triton", "identity", triton.http_port, triton.running())],
                    size,
                    connections,
                    seconds,
                    rounds,
                )
            finally:
                triton.end()
            ratios = {name: ratio(found["python"], found[name]) for name in names if name != "python"}
            least = CLAIMED.get((size, connections))
            verdict = ""
            if least is not None:
                kept = ratios["triton"] >= least
                holds = holds and kept
                verdict = f" ({'at least' if kept else 'MISSED, not'} {least:g})"
            rates = " ".join(
                f"{median(one.requests_per_second for one in found[name]):10.0f}" for name in names
            )
            slowest = median(one.p99_us for one in found["python"]) / 1e3
            failed = sum(one.errors for one in found["python"])
            summary = ", ".join(
                f"{name} ended" if math.isnan(value) else f"{value:.2f} of {name}"
                for name, value in ratios.items()
            )
            print(
                f"{size:8} {connections:12} {rates} {slowest:8.2f} {failed:7}  {summary}{verdict}", flush=True
            )
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=list(SIZES),
        help="bytes: 64,602112",
    )
    given = parser.parse_args()
    if not wrk.available():
        print("wrk is not installed")
        return 1
    print(
        f"backline {backline.__version__}; "
        + ", ".join(f"{name} {value}" for name, value in machine().items())
    )
    triton = Triton()
    with tempfile.TemporaryDirectory() as folder:
        own, theirs = write_repositories(Path(folder))
        server, port = start_backline(own)
        sides = [Side("python", "python", port, server), Side("inside", "inside", port, server)]
        try:
            holds = measure(sides, triton, theirs, given.sizes, given.seconds, given.rounds)
        except CannotRun as error:
            print(error)
            return 1
        finally:
            server.end()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
