"""Checks that a busy machine does not change how models are served: `python benchmarks/verdicts.py`.

Starts a server's engine again and again with five copies of one ONNX model (a product with a matrix of 4000 x
4000), beside busy loops. The batch limit of each copy must be within one power of two of that on the quiet
machine, and the throughput of each at least 0.8 of the best of its start. Status 1 if not.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import numpy as np
from harness.machine import machine
from onnx import TensorProto, helper, numpy_helper, save

from backline.embedded.embedded import Embedded
from backline.lifecycle.options import LifecycleOptions
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor

COPIES = 5
#: More callers than all instances of the largest batch limit can serve at once, so that no limit leaves an
#: instance idle.
CALLERS = 256


def build(repository: Path, size: int) -> None:
    weights = np.random.default_rng(1).standard_normal((size, size), np.float32) / size
    shape = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in "XY"}
    product = helper.make_node("MatMul", ["X", "W"], ["Y"])
    graph = helper.make_graph(
        [product], "g", [shape["X"]], [shape["Y"]], [numpy_helper.from_array(weights, "W")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for copy in range(COPIES):
        folder = repository / f"m{copy}" / "1"
        folder.mkdir(parents=True)
        save(model, folder / "model.onnx")


@contextmanager
def busy(loops: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def start(repository: Path, state: Path, size: int, turns: int) -> list[tuple[int, float, str]]:
    """Serves the models once. Returns for each its batch limit, its requests per second, and the reason.

    The models take turns, in an order that moves on by one in each round, and the median of the turns counts:
    what else runs on the machine changes from second to second.
    """
    program = Embedded([repository], LifecycleOptions(state_folder=state))
    await program.start()
    data = np.ones((1, size), np.float32)
    rates: list[list[float]] = [[] for _ in range(COPIES)]

    async def call(copy: int) -> None:
        request = InferRequest(f"m{copy}", {"X": Tensor("X", DataType.FP32, data.shape, data)})
        await program.engine.infer(request)

    for turn in range(turns * COPIES):
        copy = (turn + turn // COPIES) % COPIES
        begun = time.perf_counter()
        await asyncio.gather(*(call(copy) for _ in range(CALLERS)))
        rates[copy].append(CALLERS / (time.perf_counter() - begun))
    found = []
    for copy in range(COPIES):
        model = program.engine.find(f"m{copy}")
        together = model.scheduling.partition("up to ")[2].partition(" ")[0]
        assert model.placement is not None, "it is served"
        found.append((int(together or 1), median(rates[copy] or [0.0]), model.placement.reason))
    await program.stop()
    return found


def run(repository: Path, size: int, turns: int) -> list[tuple[int, float, str]]:
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, __file__, "--once", f"{repository}", state, f"--size={size}"]
        done = subprocess.run([*command, f"--turns={turns}"], stdout=subprocess.PIPE, check=True)
    return [tuple(one) for one in json.loads(done.stdout)]


@click.command(context_settings={"show_default": True})
@click.option("--starts", type=click.IntRange(1), default=50)
@click.option("--loops", type=click.IntRange(0), default=2, help="Busy loops beside the server.")
@click.option("--size", type=click.IntRange(1), default=4000, help="Rows and columns of the matrix.")
@click.option("--turns", type=click.IntRange(0), default=15, help="Turns of load on each model.")
@click.option("--once", nargs=2, type=click.Path(path_type=Path), hidden=True)
def main(starts: int, loops: int, size: int, turns: int, once: tuple[Path, Path] | None) -> None:
    if once:
        print(json.dumps(asyncio.run(start(*once, size, turns))))
        return
    click.echo("\n".join(f"- {name}: {value}" for name, value in machine().items()))
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        build(repository, size)
        quiet = sorted(limit for _ in range(3) for limit, _, _ in run(repository, size, 0))
        usual = quiet[len(quiet) // 2]
        click.echo(f"quiet: {dict(Counter(quiet))}")
        limits: Counter[int] = Counter()
        shares: list[float] = []
        undecided = 0
        with busy(loops):
            for number in range(starts):
                found = run(repository, size, turns)
                limits.update(limit for limit, _, _ in found)
                best = max(rate for _, rate, _ in found)
                shares += [rate / best for _, rate, _ in found if best]
                undecided += sum("undecided" in reason for _, _, reason in found)
                click.echo(f"{number + 1}: {' '.join(f'{limit}:{rate:.0f}/s' for limit, rate, _ in found)}")
    holds = all(usual / 2 <= limit <= usual * 2 for limit in limits) and min(shares, default=1.0) >= 0.8
    click.echo(f"limits {dict(limits)}, quiet {usual}; undecided {undecided}")
    click.echo(f"least share of the best throughput: {min(shares, default=1.0):.2f}")
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
