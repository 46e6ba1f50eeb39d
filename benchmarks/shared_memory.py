"""Measures costs and benefits of client shared memory: `python benchmarks/shared_memory.py`.

The first table compares ways to access a region: a view of a mapping (which raises SIGBUS if a client shrinks
the object), a copy through a mapping, and the server's `preadv` and `pwrite`. For the second table,
perf_analyzer sends 602,112 bytes to an identity model over gRPC with four clients, alternating between shared
memory and none.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import numpy as np
from harness import perf_analyzer
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.model import model
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports

SIZES = (64, 4096, 65536, 602_112, 4 << 20, 64 << 20)
REPOSITORY = BENCH / "shared_memory"
NAME = "ident"


def microseconds(step: Callable[[], object], size: int) -> float:
    """Returns the microseconds that one `step` takes, as the minimum of five measurements."""
    count = max(5, min(20_000, (1 << 28) // size))
    runs = []
    for _ in range(5):
        began = perf_counter()
        for _ in range(count):
            step()
        runs.append((perf_counter() - began) / count * 1e6)
    return min(runs)


def copies(size: int) -> dict[str, float]:
    """Returns the microseconds for `size` bytes by each way of access."""
    path = Path("/dev/shm") / f"backline-bench-{os.getpid()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, np.ones(size, np.uint8), 0)
        mapping = mmap.mmap(descriptor, size)
        source = np.ones(size, np.uint8)
        return {
            "view": microseconds(lambda: np.frombuffer(mapping, np.uint8), size),
            "copy of a mapping": microseconds(lambda: np.frombuffer(mapping, np.uint8).copy(), size),
            "preadv": microseconds(lambda: os.preadv(descriptor, [np.empty(size, np.uint8)], 0), size),
            "pwrite": microseconds(lambda: os.pwrite(descriptor, source, 0), size),
        }
    finally:
        os.close(descriptor)
        path.unlink()


def requests_per_second(port: int, kind: str, seconds: float) -> float:
    command = [
        str(perf_analyzer.executable()),
        "-m",
        NAME,
        "-i",
        "grpc",
        "-u",
        f"localhost:{port}",
        "--shared-memory",
        kind,
    ]
    command += [
        "--output-shared-memory-size",
        str(1 << 20),
        "--concurrency-range",
        "4",
        "-s",
        "999",
        "-r",
        "3",
        "--measurement-interval",
    ]
    shown = subprocess.run(
        [*command, str(int(seconds * 1000))], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"Throughput: ([0-9.e+]+) infer/sec", shown)
    if found is None:
        raise CannotRun(f"perf_analyzer has no result:\n{shown[-500:]}")
    return float(found[1])


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Turns per way.")
@click.option("--seconds", default=2.0, show_default=True, help="Seconds per measurement.")
@click.option(
    "--json", "file", type=click.Path(path_type=Path), default=BENCH / "shared_memory.json", show_default=True
)
def main(rounds: int, seconds: float, file: Path) -> None:
    """Measures client shared memory."""
    if perf_analyzer.executable() is None:
        raise CannotRun("perf_analyzer is not installed")
    print("  ".join(f"{key}: {value}" for key, value in machine().items()))
    table = {size: copies(size) for size in SIZES}
    print(f"{'bytes':>10}" + "".join(f"{way:>20}" for way in table[SIZES[0]]))
    for size, ways in table.items():
        print(f"{size:>10}" + "".join(f"{value:>17.1f} us" for value in ways.values()))
    served = model(NAME)
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    (REPOSITORY / NAME / "1").mkdir(parents=True)
    shutil.copy(served.file, REPOSITORY / NAME / "1" / "model.onnx")
    http, grpc, metrics = free_ports(3)
    command = [*serve_command(REPOSITORY, http, grpc, metrics), "--allow-client-shm=true"]
    process = ServerProcess("backline", command)
    try:
        process.wait_until(lambda: answers_200(f"http://127.0.0.1:{http}/v2/health/ready"))
        rates: dict[str, list[float]] = {"none": [], "system": []}
        for _ in range(rounds):
            for kind, found in rates.items():
                found.append(requests_per_second(grpc, kind, seconds))
    finally:
        process.end()
    ratio = median(shared / sent for shared, sent in zip(rates["system"], rates["none"], strict=True))
    print(
        f"{NAME}: {median(rates['none']):,.0f} requests/s sent,"
        f" {median(rates['system']):,.0f} in shared memory: {ratio:.2f} times"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps(
            {"machine": machine(), "copies_us": table, "requests_per_second": rates, "ratio": ratio}, indent=1
        )
    )


if __name__ == "__main__":
    main()
