"""Serves more models than fit into memory: `python benchmarks/memory_budget.py`.

A server has 300 ONNX models of 2 to 4 MB, each with different weights, and a memory budget for 50 of them.
Clients call the models with a Zipf distribution and check every answer, while the server's resident memory is
sampled. Then the script times requests to unloaded models one by one, and compares each with the time to
create a session of the same file in this process.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
import onnx
import onnxruntime
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports
from onnx import TensorProto, helper, numpy_helper

FOLDER = BENCH / "memory_budget"
CLIENTS = 4


@dataclass(frozen=True)
class Model:
    """A matrix product. Its request is a row of ones, so the answer is the sum of each column of weights."""

    name: str
    file: Path
    side: int
    expected: np.ndarray

    def request(self) -> tuple[bytes, dict[str, str]]:
        raw = np.ones((1, self.side), np.float32).tobytes()
        tensor = {
            "name": "x",
            "shape": [1, self.side],
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return header + raw, {"Inference-Header-Content-Length": str(len(header))}


def make_models(repository: Path, count: int) -> list[Model]:
    """Returns the models of the repository, after creating those that are missing."""
    models = []
    for number in range(count):
        side = 708 + (number * 37) % 292  # 2 to 4 MB
        weights = np.random.default_rng(number).standard_normal((side, side)).astype(np.float32)
        name = f"model{number:03}"
        file = repository / name / "1" / "model.onnx"
        if not file.exists():
            graph = helper.make_graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"])],
                name,
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", side])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", side])],
                [numpy_helper.from_array(weights, "w")],
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(
                helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file)
            )
        models.append(Model(name, file, side, weights.sum(axis=0)))
    return models


class Client:
    """An HTTP client with one persistent connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, model: Model) -> float:
        """Sends one request and returns the seconds it took. Raises CannotRun if the answer is wrong."""
        body, headers = model.request()
        began = time.perf_counter()
        self.connection.request("POST", f"/v2/models/{model.name}/infer", body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise CannotRun(f"{model.name} answered {answer.status}: {content[:300]!r}")
        got = np.frombuffer(content[int(answer.headers["Inference-Header-Content-Length"]) :], np.float32)
        if not np.allclose(got, model.expected, rtol=1e-3, atol=1e-2):
            raise CannotRun(f"{model.name} gave a wrong answer")
        return seconds

    def states(self) -> dict[str, str]:
        self.connection.request("POST", "/v2/repository/index", b"{}")
        return {entry["name"]: entry["state"] for entry in json.loads(self.connection.getresponse().read())}


class Watch:
    """A sampler of a server's resident memory, which runs until it is stopped."""

    def __init__(self, process: ServerProcess) -> None:
        self.highest = 0
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.wait(0.02):
            self.highest = max(self.highest, self._process.resident_bytes())

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.highest


def start(repository: Path, *options: str) -> tuple[ServerProcess, int]:
    ports = free_ports(3)
    process = ServerProcess("memory_budget", [*serve_command(repository, *ports), *options])
    process.wait_until(lambda: answers_200(f"http://127.0.0.1:{ports[0]}/v2/health/ready"), 300)
    return process, ports[0]


def base_memory() -> int:
    """Returns the fixed memory use of a server: its resident memory after one response from a small model."""
    models = make_models(FOLDER / "one", 1)
    process, port = start(FOLDER / "one")
    try:
        Client(port).ask(models[0])
        return process.resident_bytes() - models[0].file.stat().st_size
    finally:
        process.end()


def spread(models: list[Model], port: int, requests: int, skew: float) -> list[float]:
    """Sends Zipf-distributed requests from several clients. Returns the seconds that each request took."""
    random = np.random.default_rng(7)
    order = random.permutation(len(models))
    weights = 1 / np.arange(1, len(models) + 1) ** skew
    chosen = order[random.choice(len(models), requests, p=weights / weights.sum())]
    with ThreadPoolExecutor(CLIENTS) as threads:
        parts = [chosen[number::CLIENTS] for number in range(CLIENTS)]

        def ask_all(part: np.ndarray) -> list[float]:
            client = Client(port)
            return [client.ask(models[index]) for index in part]

        return [seconds for result in threads.map(ask_all, parts) for seconds in result]


def session_seconds(model: Model) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    began = time.perf_counter()
    onnxruntime.InferenceSession(str(model.file), options, providers=["CPUExecutionProvider"])
    return time.perf_counter() - began


def reloads(models: list[Model], port: int, count: int) -> list[tuple[float, float, float]]:
    """Returns, for each reload, three times in seconds: of the request that causes it, of the next request,
    and of creating a session.
    """
    client = Client(port)
    by_name = {model.name: model for model in models}
    seen: list[tuple[float, float, float]] = []
    session_seconds(models[0])
    while len(seen) < count:
        states = client.states()
        asleep = [by_name[name] for name, state in sorted(states.items()) if state != "READY"]
        if not asleep:
            raise CannotRun("all models fit into the budget, so none is reloaded: pass a smaller --fit")
        for model in asleep[: count - len(seen)]:
            slow = client.ask(model)
            seen.append((slow, client.ask(model), session_seconds(model)))
    return seen


@click.command(context_settings={"show_default": True})
@click.option("--models", "count", type=click.IntRange(10), default=300, help="Number of models.")
@click.option("--fit", type=click.IntRange(1), default=50, help="Number of models that fit the budget.")
@click.option("--requests", type=click.IntRange(1), default=3000, help="Number of Zipf-distributed requests.")
@click.option("--skew", type=float, default=1.0, help="Zipf's exponent.")
@click.option("--reload-count", type=click.IntRange(1), default=60, help="Number of timed reloads.")
@click.option("--max-over", type=float, default=0.1, help="Fraction by which the budget may be exceeded.")
@click.option(
    "--max-ms",
    type=float,
    default=30.0,
    help="Maximum median time of a reload beyond creating its session.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "memory_budget.json",
    help="File for the results.",
)
def main(
    count: int,
    fit: int,
    requests: int,
    skew: float,
    reload_count: int,
    max_over: float,
    max_ms: float,
    json_file: Path,
) -> None:
    """Serves more models than fit into the memory budget. Status 1 if an answer is wrong or a claim fails."""
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    try:
        models = make_models(FOLDER / f"repository{count}", count)
        size = sum(model.file.stat().st_size for model in models) / len(models)
        base = base_memory()
        budget = int(base + fit * size)
        process, port = start(FOLDER / f"repository{count}", "--memory-budget", str(budget))
        try:
            watch = Watch(process)
            ready = sum(state == "READY" for state in Client(port).states().values())
            seconds = spread(models, port, requests, skew)
            # This loads every model once, so that later loads are reloads.
            with ThreadPoolExecutor(CLIENTS) as threads:
                list(threads.map(lambda model: Client(port).ask(model), models))
            timed = reloads(models, port, reload_count)
            highest = watch.stop()
        finally:
            process.end()
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
    beyond = [(slow - fast - session) * 1000 for slow, fast, session in timed]
    claims = [
        (
            True,
            (
                f"{requests + count + 2 * reload_count} answers of {count} models were right,"
                f" {ready} of them loaded at start"
            ),
        ),
        (
            highest <= budget * (1 + max_over),
            (
                f"{highest / 1e6:.1f} MB resident at most, the budget is {budget / 1e6:.1f} MB"
                f" ({highest / budget - 1:+.1%}, at most {max_over:+.0%};"
                f" {base / 1e6:.1f} MB without models, {size / 1e6:.2f} MB a model)"
            ),
        ),
        (
            median(beyond) <= max_ms,
            (
                f"a reload takes {median(beyond):.1f} ms beyond its session's creation, the median of"
                f" {len(timed)} (at most {max_ms:g} ms;"
                f" the request {median(t[0] for t in timed) * 1e3:.1f} ms,"
                f" the session {median(t[2] for t in timed) * 1e3:.1f} ms)"
            ),
        ),
    ]
    click.echo(
        f"  spread requests: median {median(seconds) * 1e3:.2f} ms,"
        f" 99 % below {np.quantile(seconds, 0.99) * 1e3:.1f} ms,"
        f" the slowest {max(seconds) * 1e3:.0f} ms"
    )
    for holds, words in claims:
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": about,
        "budget": budget,
        "base": base,
        "highest": highest,
        "beyond_ms": beyond,
        "request_seconds": seconds,
    }
    json_file.write_text(
        json.dumps({**data, "claims": [{"holds": h, "claim": w} for h, w in claims]}, indent=1)
    )
    click.echo(f"Written: {json_file}")
    if not all(holds for holds, _ in claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
