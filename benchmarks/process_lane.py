"""What a worker process costs: `python benchmarks/process_lane.py` asks a Python identity model and one inside the server, in turns.

wrk sends 64 bytes and 602,112 bytes with 1, 16 and 64 connections to `python` (a model.py, dynamic batching, one instance) and to
`inside` (the identity backend, on the server's loop). Each turn is `--seconds` long; the median of `--rounds` is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from harness import wrk
from harness.case import Measurement
from harness.environment import CannotRun
from harness.machine import machine
from harness.server_process import ServerProcess, answers_200, free_ports

import backline

MODEL = """
from backline.model import FP32

class Model:
    max_batch_size = 64

    def predict(self, x: FP32[-1]) -> FP32[-1]:
        return x
"""
INSIDE = """
backend: "identity"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "output" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
SIZES = (64, 602_112)
CONNECTIONS = (1, 16, 64)


def write_repository(folder: Path) -> None:
    for name in ("python", "inside"):
        (folder / name / "1").mkdir(parents=True)
    (folder / "python" / "1" / "model.py").write_text(MODEL)
    (folder / "inside" / "config.pbtxt").write_text(INSIDE)


def request(size: int) -> tuple[bytes, dict[str, str]]:
    """Body and headers, tensors in binary both ways."""
    parameters = {"binary_data_size": size}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, size // 4], "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    data = np.random.default_rng(0).random(size // 4).astype(np.float32).tobytes()
    return head + data, {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}


def check(url: str, body: bytes, headers: dict[str, str], size: int) -> None:
    """Raises CannotRun when what comes back is not what was sent."""
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
        if answer.read()[-size:] != body[-size:]:
            raise CannotRun(f"{url} gave a wrong answer")


def measure(port: int, seconds: float, rounds: int) -> None:
    print(f"{'bytes':>8} {'connections':>12} {'python/s':>10} {'p99 ms':>8} {'inside/s':>10} {'ratio':>6} {'failed':>7}")
    for size in SIZES:
        body, headers = request(size)
        for connections in CONNECTIONS:
            found: dict[str, list[Measurement]] = {"python": [], "inside": []}
            for turn in range(rounds):
                for model in ("python", "inside") if turn % 2 == 0 else ("inside", "python"):
                    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
                    check(url, body, headers, size)
                    found[model].append(wrk.run(url, f"process_lane_{size}", body, headers, concurrency=connections, seconds=seconds))
            rates = {model: statistics.median(one.requests_per_second for one in all_) for model, all_ in found.items()}
            slowest = statistics.median(one.p99_us for one in found["python"]) / 1e3
            failed = sum(one.errors for all_ in found.values() for one in all_)
            ratio = rates["python"] / rates["inside"]
            print(
                f"{size:8} {connections:12} {rates['python']:10.0f} {slowest:8.2f} {rates['inside']:10.0f} {ratio:6.2f} {failed:7}",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not wrk.available():
        print("wrk is not installed")
        return 1
    print(f"backline {backline.__version__}; " + ", ".join(f"{name} {value}" for name, value in machine().items()))
    http, grpc, metrics = free_ports(3)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder))
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        server = ServerProcess("process_lane", [sys.executable, "-m", "backline", "serve", folder, *ports], environment=dict(os.environ))
        try:
            server.wait_until(lambda: answers_200(f"http://127.0.0.1:{http}/v2/health/ready"))
            measure(http, given.seconds, given.rounds)
        except CannotRun as error:
            print(error)
            return 1
        finally:
            server.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
