"""Kills a worker process every second under constant load: `python benchmarks/worker_chaos.py`.

A Python model with two instances gets 200 requests per second, and 50 other models of the same server
together get 50. In the first phase, no worker is killed; in the second, a worker is killed with SIGKILL every
second. The script prints failures and latencies of both phases; latency counts from the time at which a
request was due. The claims are that no request fails and that p99 is below 1 s. The exit status is 1 if a
claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import psutil
from harness.environment import CannotRun
from harness.machine import machine
from harness.server_process import ServerProcess, answers_200, free_ports

import backline
from backline_client.client.aio import AsyncClient

MODEL = """
from backline.model import FP32

class Model:
    max_batch_size = 64
    instances = 2

    def predict(self, x: FP32[-1]) -> FP32[-1]:
        return x
"""
OTHER = """
backend: "identity"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "output" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
OTHERS = 50
OTHER_RATE = 50
#: The maximum p99 in seconds.
SLOWEST = 1.0


@dataclass
class Seen:
    """The outcomes of requests to one kind of model."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def row(self, phase: str, name: str) -> str:
        p50, p99, most = np.percentile(self.seconds, (50, 99, 100)) * 1e3
        count = len(self.seconds)
        return (
            f"{phase:10} {name:12} {count:8} {sum(self.failures.values()):7}"
            f" {p50:8.1f} {p99:8.1f} {most:8.1f}"
        )


def write_repository(folder: Path) -> None:
    (folder / "python" / "1").mkdir(parents=True)
    (folder / "python" / "1" / "model.py").write_text(MODEL)
    for number in range(OTHERS):
        (folder / f"other{number}" / "1").mkdir(parents=True)
        (folder / f"other{number}" / "config.pbtxt").write_text(OTHER)


async def ask(client: AsyncClient, model: str, due: float, seen: Seen) -> None:
    sent = np.full((1, 16), due, np.float32)
    try:
        answer = await client[model](sent)
        if not np.array_equal(answer["output"], sent):
            seen.failures["a wrong answer"] += 1
    except Exception as error:
        seen.failures[f"{type(error).__name__}: {error}"] += 1
    seen.seconds.append(monotonic() - due)


async def load(client: AsyncClient, models: list[str], rate: float, seconds: float, seen: Seen) -> None:
    """Sends `rate` requests per second, each at its due time and to a random model."""
    began = monotonic()
    tasks = []
    for number in range(round(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - monotonic()))
        tasks.append(asyncio.create_task(ask(client, random.choice(models), due, seen)))
    await asyncio.gather(*tasks)


async def kill(server: psutil.Process, seconds: float) -> int:
    """Kills a worker every second. Returns how many it killed."""
    killed = 0
    for _ in range(int(seconds)):
        await asyncio.sleep(1)
        workers = server.children()
        if workers:
            random.choice(workers).send_signal(signal.SIGKILL)
            killed += 1
    return killed


async def phase(
    client: AsyncClient, rate: float, seconds: float, victim: psutil.Process | None
) -> tuple[Seen, Seen, int]:
    own, others = Seen(), Seen()
    _, _, killed = await asyncio.gather(
        load(client, ["python"], rate, seconds, own),
        load(client, [f"other{number}" for number in range(OTHERS)], OTHER_RATE, seconds, others),
        kill(victim, seconds) if victim is not None else asyncio.sleep(0, 0),
    )
    return own, others, killed


async def measure(port: int, server: psutil.Process, rate: float, seconds: float) -> bool:
    async with backline.connect_async(f"http://127.0.0.1:{port}") as client:
        await phase(client, rate, 1, None)
        quiet = await phase(client, rate, max(2.0, seconds / 4), None)
        fire = await phase(client, rate, seconds, server)
    print(
        f"{'phase':10} {'models':12} {'requests':>8} {'failed':>7} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}"
    )
    for name, (own, others, _) in (("quiet", quiet), ("kills", fire)):
        print(own.row(name, "python"))
        print(others.row(name, f"{OTHERS} others"))
    failures = sum((seen.failures for seen in (*quiet[:2], *fire[:2])), Counter())
    print(f"{fire[2]} workers killed in {seconds:g} s")
    for what, count in failures.most_common(5):
        print(f"{count} x {what}")
    slow = float(np.percentile(fire[0].seconds, 99))
    print(f"no request failed: {not failures}; p99 below {SLOWEST:g} s: {slow < SLOWEST}")
    return not failures and slow < SLOWEST


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0)
    given = parser.parse_args()
    print(
        f"backline {backline.__version__}; "
        + ", ".join(f"{name} {value}" for name, value in machine().items())
    )
    http, grpc, metrics = free_ports(3)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder))
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        server = ServerProcess(
            "worker_chaos",
            [sys.executable, "-m", "backline", "serve", folder, *ports],
            environment=dict(os.environ),
        )
        try:
            server.wait_until(lambda: answers_200(f"http://127.0.0.1:{http}/v2/health/ready"))
            held = asyncio.run(measure(http, psutil.Process(server.process.pid), given.rate, given.seconds))
        except CannotRun as error:
            print(error)
            return 1
        finally:
            server.end()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
