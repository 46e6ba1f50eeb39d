"""Checks that unloading a model releases its memory: `python benchmarks/reload_memory.py`.

A server loads and unloads a model of 100 MB many times, with a request each time. The script compares the
server's resident memory after the last unload with that after the first.
"""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import click
import numpy as np
import onnx
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports
from onnx import TensorProto, helper, numpy_helper

REPOSITORY = BENCH / "reload_memory"
SIDE = 5000


def make_model() -> Path:
    """Returns the path of a model file with 100 MB of weights, which is created on first use."""
    file = REPOSITORY / "large" / "1" / "model.onnx"
    if not file.exists():
        weights = np.random.default_rng(1).standard_normal((SIDE, SIDE)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "large",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SIDE])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", SIDE])],
            [numpy_helper.from_array(weights, "w")],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(made, str(file))
    return file


def post(url: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    with urllib.request.urlopen(
        urllib.request.Request(url, body, headers or {}, method="POST"), timeout=60
    ) as answer:
        return answer.read()


def infer(url: str) -> None:
    raw = np.ones((1, SIDE), np.float32).tobytes()
    tensor = {
        "name": "x",
        "shape": [1, SIDE],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = post(
        f"{url}/v2/models/large/infer", header + raw, {"Inference-Header-Content-Length": str(len(header))}
    )
    if len(answer) < 4 * SIDE:
        raise CannotRun(f"an answer of {len(answer)} bytes is too short")


def settled(process: ServerProcess, seconds: float = 5.0) -> int:
    """Returns the resident memory once it stops falling: the server releases memory after it has responded to
    the unload.
    """
    lowest = process.resident_bytes()
    quiet_since = time.monotonic()
    end = quiet_since + seconds
    while time.monotonic() < end and time.monotonic() - quiet_since < 0.3:
        time.sleep(0.02)
        now = process.resident_bytes()
        if now < lowest - (1 << 18):
            lowest, quiet_since = now, time.monotonic()
    return process.resident_bytes()


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(2), default=50, help="Number of loads and unloads.")
@click.option(
    "--max-growth",
    type=float,
    default=0.05,
    help="Allowed growth, as a fraction of the memory after the first unload.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "reload_memory.json",
    help="File for the results.",
)
def main(rounds: int, max_growth: float, json_file: Path) -> None:
    """Loads and unloads a model of 100 MB. Status 1 if memory is not released."""
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    file = make_model()
    ports = free_ports(3)
    process = ServerProcess(
        "reload_memory", [*serve_command(REPOSITORY, *ports), "--model-control-mode", "explicit"]
    )
    url = f"http://127.0.0.1:{ports[0]}"
    loaded: list[int] = []
    unloaded: list[int] = []
    seconds: list[float] = []
    try:
        process.wait_until(lambda: answers_200(f"{url}/v2/health/live"))
        before = process.resident_bytes()
        for number in range(rounds):
            began = time.perf_counter()
            post(f"{url}/v2/repository/models/large/load")
            seconds.append(time.perf_counter() - began)
            infer(url)
            loaded.append(process.resident_bytes())
            post(f"{url}/v2/repository/models/large/unload")
            unloaded.append(settled(process))
            if number in (0, 1, rounds // 2, rounds - 1):
                click.echo(
                    f"  {number + 1:3}: {loaded[-1] / 1e6:6.1f} MB loaded,"
                    f" {unloaded[-1] / 1e6:6.1f} MB after the unload"
                )
    finally:
        process.end()
    growth = unloaded[-1] / unloaded[0] - 1
    holds = growth <= max_growth
    click.echo(
        f"{'holds ' if holds else 'BROKEN'} {unloaded[-1] / 1e6:.1f} MB after {rounds} loads of"
        f" {file.stat().st_size / 1e6:.0f} MB, {unloaded[0] / 1e6:.1f} MB after the first ({growth:+.1%},"
        f" at most {max_growth:+.0%}), {before / 1e6:.1f} MB before it"
    )
    json_file.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": about,
        "before": before,
        "loaded": loaded,
        "unloaded": unloaded,
        "load_seconds": seconds,
    }
    json_file.write_text(json.dumps(results, indent=1))
    click.echo(f"Written: {json_file}")
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
