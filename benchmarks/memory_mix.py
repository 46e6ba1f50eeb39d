"""Serves models of three runtimes that need five times the memory budget: `python benchmarks/memory_mix.py`.

A server has 30 models: ONNX and TorchScript models, which run in the server's process, and Python models,
which run in worker processes. Half of the Python models read their weights from a file, and the others create
them. Together, all models need five times the memory budget. Clients call them at random and check every
answer, while the memory of the server and its workers is sampled: the sum of their proportional set sizes, in
which a page that several processes map counts once. The audit log then shows, for each eviction, the load for
which it made room, and whether that load succeeded. Finally, requests to unloaded models are timed one by
one, and compared with the time that the server reports for the load.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
from harness.environment import CannotRun
from harness.folders import BENCH
from harness.machine import machine
from harness.peers.backline import serve_command
from harness.server_process import ServerProcess, answers_200, free_ports

#: The number of models of each kind, out of every ten.
KINDS = {"onnx": 3, "torchscript": 3, "python": 2, "python_made": 2}
PYTHON_MODEL = """
import numpy as np

from backline.model import FP32


class Model:
    def load(self) -> None:
        self.weights = {weights}

    def predict(self, x: FP32[-1]) -> FP32[-1]:
        return x @ self.weights
"""


@dataclass(frozen=True)
class Model:
    """A product with a square matrix whose elements are all `constant`."""

    name: str
    kind: str
    side: int
    constant: float

    @property
    def batched(self) -> bool:
        return not self.kind.startswith("python")

    @property
    def weights(self) -> int:
        return self.side * self.side * 4

    def request(self) -> bytes:
        shape = [1, self.side] if self.batched else [self.side]
        tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": [1.0] * self.side}
        return json.dumps({"inputs": [tensor]}).encode()

    def check(self, data: Sequence[float]) -> bool:
        return len(data) == self.side and bool(np.allclose(data, self.constant * self.side, rtol=1e-3))


def make_models(folder: Path, count: int, largest: int, chosen: Sequence[str]) -> list[Model]:
    """Returns the models, which have weights of up to `largest` bytes. Their files are kept between runs.

    Models in the server's process are smaller than those in workers, because ONNX Runtime and PyTorch hold
    the weights twice while they load them.
    """
    kinds = [kind for kind in chosen for _ in range(KINDS[kind])]
    models = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        size = largest * (0.8 + 0.2 * ((number * 7) % count) / count)
        if not kind.startswith("python"):
            size *= 0.65
        model = Model(f"{kind}{number:02}", kind, int((size / 4) ** 0.5), 1.0 + number / 8)
        version = folder / model.name / "1"
        done = folder / model.name / f"{model.side}.done"
        if not done.exists():
            shutil.rmtree(folder / model.name, ignore_errors=True)
            version.mkdir(parents=True)
            _write(model, version)
            done.touch()
        models.append(model)
    return models


def _write(model: Model, version: Path) -> None:
    side = model.side
    if model.kind == "python_made":
        weights = f"np.full(({side}, {side}), {model.constant}, np.float32)"
        (version / "model.py").write_text(PYTHON_MODEL.format(weights=weights))
        return
    array = np.full((side, side), model.constant, np.float32)
    if model.kind == "python":
        np.save(version / "weights.npy", array)
        weights = "np.load(__file__.replace('model.py', 'weights.npy'))"
        (version / "model.py").write_text(PYTHON_MODEL.format(weights=weights))
    elif model.kind == "onnx":
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            model.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", side])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", side])],
            [numpy_helper.from_array(array, "w")],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            str(version / "model.onnx"),
        )
    else:
        import torch

        class Product(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("w", torch.from_numpy(array))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x @ self.w

        torch.jit.trace(Product(), torch.ones(1, side)).save(str(version / "model.pt"))
        (version.parent / "config.pbtxt").write_text(
            'backend: "pytorch"\nmax_batch_size: 8\n'
            f'input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {side} ] }} ]\n'
            f'output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {side} ] }} ]\n'
        )


class Client:
    """A persistent connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, model: Model) -> float:
        """Sends one request and returns the seconds it took. Raises CannotRun if the answer is wrong."""
        body = model.request()
        began = time.perf_counter()
        self.connection.request("POST", f"/v2/models/{model.name}/infer", body)
        answer = self.connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise CannotRun(f"{model.name} answered {answer.status}: {content[:400]!r}")
        if not model.check(json.loads(content)["outputs"][0]["data"]):
            raise CannotRun(f"{model.name} gave a wrong answer")
        return seconds

    def get(self, path: str) -> bytes:
        self.connection.request("GET", path)
        return self.connection.getresponse().read()

    def versions(self) -> dict[str, dict[str, object]]:
        return {entry["name"]: entry for entry in json.loads(self.get("/v2/models"))["versions"]}

    def load_seconds(self, model: Model) -> float:
        """Returns the seconds that the last load of a model took, as reported by the server."""
        pattern = rf'^nv_model_load_duration_secs\{{model="{model.name}".*\}} (\S+)$'
        found = re.search(pattern, self.get("/metrics").decode(), re.MULTILINE)
        if found is None:
            raise CannotRun(f"the metrics do not say how long loading {model.name} took")
        return float(found[1])


@dataclass(frozen=True)
class Sample:
    """The proportional set sizes of a server and its workers at `time` (time.time()), by process id."""

    time: float
    processes: dict[int, int]

    @property
    def total(self) -> int:
        return sum(self.processes.values())


def sample(process: ServerProcess) -> Sample:
    began, sizes = time.time(), {}
    for one in process.tree():
        with suppress(OSError):
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            lines = [line for line in rollup.splitlines() if line.startswith("Pss:")]
            sizes[one.pid] = sum(int(line.split()[1]) * 1024 for line in lines)
    return Sample(began, sizes)


class Watch:
    """A sampler of the memory of a server and its workers, which runs until it is stopped."""

    def __init__(self, process: ServerProcess) -> None:
        self.samples: list[Sample] = []
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.wait(0.05):
            self.samples.append(sample(self._process))

    def stop(self) -> list[Sample]:
        self._stop.set()
        self._thread.join()
        return self.samples


def start(repository: Path, state: Path, *options: str) -> tuple[ServerProcess, int]:
    ports = free_ports(3)
    command = [*serve_command(repository, *ports), "--state-dir", str(state), *options]
    process = ServerProcess("memory_mix", command)
    process.wait_until(lambda: answers_200(f"http://127.0.0.1:{ports[0]}/v2/health/ready"), 120)
    return process, ports[0]


def base_memory(folder: Path, kinds: Sequence[str]) -> int:
    """Returns the memory of a server that has imported the runtimes, without any weights or workers."""
    models = make_models(folder / "small", 10, 4096, [kind for kind in kinds if "python" not in kind])
    shutil.rmtree(folder / "small_state", ignore_errors=True)
    process, port = start(folder / "small", folder / "small_state")
    try:
        for model in models:
            Client(port).ask(model)
        return process.tree()[0].memory_info().rss
    finally:
        process.end()


def call_at_random(models: list[Model], port: int, seconds: float, clients: int) -> list[float]:
    """Calls random models from several clients. Returns the seconds that each request took."""
    until = time.monotonic() + seconds

    def call(number: int) -> list[float]:
        client, random = Client(port), np.random.default_rng(number)
        taken = []
        while time.monotonic() < until:
            taken.append(client.ask(models[int(random.integers(len(models)))]))
        return taken

    with ThreadPoolExecutor(clients) as threads:
        return [one for taken in threads.map(call, range(clients)) for one in taken]


def reloads(models: list[Model], port: int, count: int) -> list[tuple[float, float]]:
    """Returns two times in milliseconds for each request that reloads a model: what the request took beyond
    the load and the run, and the load itself.
    """
    client, seen = Client(port), []
    while len(seen) < count:
        versions = client.versions()
        for model in [one for one in models if versions[one.name]["state"] != "READY"][: count - len(seen)]:
            if client.versions()[model.name]["state"] == "READY":
                continue
            slow = client.ask(model)
            load = client.load_seconds(model)
            seen.append(((slow - load - client.ask(model)) * 1000, load * 1000))
    return seen


def evictions(state: Path) -> tuple[int, list[str]]:
    """Returns the number of evictions in the audit log, and the models evicted for no successful load."""
    entries = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    in_vain, open_evictions, count = [], {}, 0
    for entry in entries:
        found = re.fullmatch(r"unloaded to make room for model '(.*)' version .*", entry.get("detail", ""))
        if entry.get("who") == "memory budget":
            count += 1
            if found is None:
                in_vain.append(entry["model"])
            else:
                open_evictions.setdefault(found[1], []).append(entry["model"])
        elif entry["action"] in ("add", "reload"):
            open_evictions.pop(entry["model"], None)
        elif entry["action"] == "fail":
            in_vain += open_evictions.pop(entry["model"], [])
    return count, in_vain + [name for names in open_evictions.values() for name in names]


def steps_around(state: Path, peak: Sample) -> list[str]:
    """Returns the lines of the audit log from the seconds around a sample, with their time relative to it."""
    entries = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    return [
        f"{entry['time'] - peak.time:+.2f} s: {entry['action']} {entry['model']} {entry.get('detail', '')}"
        for entry in entries
        if -5 < entry["time"] - peak.time < 5
    ]


@click.command(context_settings={"show_default": True})
@click.option("--kinds", default=",".join(KINDS), help="Kinds of models, with commas in between.")
@click.option("--models", "count", type=click.IntRange(10), default=30, help="Number of models.")
@click.option("--mib", type=click.IntRange(1), default=245, help="MiB of weights of the largest model.")
@click.option("--times", type=float, default=5.0, help="What all models need, in budgets.")
@click.option("--seconds", type=float, default=300.0, help="How long the clients call models.")
@click.option("--clients", type=click.IntRange(1), default=3, help="Number of clients.")
@click.option("--reload-count", type=click.IntRange(1), default=40, help="Number of timed reloads.")
@click.option("--max-over", type=float, default=0.05, help="Fraction by which the budget may be exceeded.")
@click.option("--max-ms", type=float, default=20.0, help="Maximum time of a reload beyond its load.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=BENCH / "memory_mix",
    help="Folder for models and the state of the server.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=BENCH / "memory_mix.json",
    help="File for the results.",
)
def main(
    kinds: str,
    count: int,
    mib: int,
    times: float,
    seconds: float,
    clients: int,
    reload_count: int,
    max_over: float,
    max_ms: float,
    folder: Path,
    json_file: Path,
) -> None:
    """Serves models that need several times the budget. Status 1 if an answer is wrong or a claim fails."""
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    state = folder / "state"
    repository = folder / f"repository{count}x{mib}"
    shutil.rmtree(state, ignore_errors=True)
    try:
        models = make_models(repository, count, mib << 20, kinds.split(","))
        base = base_memory(folder, kinds.split(","))
        # A model needs its weights; a worker process also needs an interpreter, of about 25 MiB.
        needed = sum(model.weights + (0 if model.batched else 25 << 20) for model in models)
        budget = int(needed / times)
        click.echo(
            f"- models need {needed / 1e6:.0f} MB, the budget is {budget / 1e6:.0f} MB, of which the server"
            f" with the runtimes takes {base / 1e6:.0f} MB"
        )
        process, port = start(
            repository,
            state,
            "--memory-budget",
            str(budget),
            "--model-control-mode",
            "poll",  # so the audit log has every step
        )
        try:
            watch = Watch(process)
            ready = sum(one["state"] == "READY" for one in Client(port).versions().values())
            taken = call_at_random(models, port, seconds, clients)
            with ThreadPoolExecutor(1) as threads:  # every model has been loaded once
                list(threads.map(Client(port).ask, models))
            timed = reloads(models, port, reload_count)
            samples = watch.stop()
        finally:
            process.end(60)
        evicted, in_vain = evictions(state)
        peak = max(samples, key=lambda one: one.total)
        steps = steps_around(state, peak)
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
    highest = peak.total
    beyond = [ms for ms, _ in timed]
    answers = f"{len(taken)} answers in {seconds:.0f} s were right; {ready} of {count} models fitted at start"
    memory = (
        f"{highest / 1e6:.0f} MB at most in {len(samples)} samples ({highest / budget - 1:+.1%} of the"
        f" budget, at most {max_over:+.0%}; median {median(one.total for one in samples) / 1e6:.0f} MB)"
    )
    waste = f"{len(in_vain)} of {evicted} evictions served no load {in_vain[:5] or ''}"
    reload = (
        f"a reload takes {median(beyond):.1f} ms beyond its load, the median of {len(timed)} (at most"
        f" {max_ms:g} ms; 90 % below {np.quantile(beyond, 0.9):.1f} ms, the slowest {max(beyond):.1f} ms;"
        f" the load {median(ms for _, ms in timed):.0f} ms)"
    )
    claims = [
        (True, answers),
        (highest <= budget * (1 + max_over), memory),
        (not in_vain, waste),
        (median(beyond) <= max_ms, reload),
    ]
    click.echo(f"  requests: median {median(taken) * 1e3:.1f} ms, the slowest {max(taken) * 1e3:.0f} ms")
    for holds, words in claims:
        click.echo(f"{'holds ' if holds else 'BROKEN'} {words}")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": about,
        "budget": budget,
        "base": base,
        "highest": highest,
        "processes_at_highest": peak.processes,
        "steps_around_highest": steps,
        "samples": [(round(one.time, 3), one.total) for one in samples],
        "beyond_ms": beyond,
    }
    json_file.write_text(json.dumps({**data, "claims": [{"holds": h, "claim": w} for h, w in claims]}))
    click.echo(f"Written: {json_file}")
    if not all(holds for holds, _ in claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
