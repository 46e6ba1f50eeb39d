"""Measures many busy models on few cores: `python benchmarks/oversubscription.py`.

Each model takes some milliseconds on one core, cannot be batched, and has one instance thread per core.
Closed-loop clients call all models. Measurements with and without a limit on the number of threads that
compute at once alternate, each in a separate process. Results are medians over the rounds; ratios are medians
of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import monotonic, process_time

import click
import numpy as np
from harness.folders import BENCH
from harness.machine import machine
from harness.model import write_slow_model

WIDTH = 512
#: The number of products of a vector and a matrix, which take roughly 15 us each.
LAYERS = 200
#: The number of requests in flight per model.
AT_ONCE = 4


def put_models(repository: Path, count: int, threads: int) -> None:
    """Writes copies of one model under different names; each loaded copy keeps separate weights in memory."""
    shutil.rmtree(repository, ignore_errors=True)
    first = repository / "model0" / "1" / "model.onnx"
    write_slow_model(first, LAYERS, WIDTH)
    for index in range(count):
        folder = repository / f"model{index}"
        (folder / "1").mkdir(parents=True, exist_ok=True)
        if index:
            shutil.copy(first, folder / "1" / "model.onnx")
        (folder / "model.toml").write_text(
            f'lane = "thread"\nmax_batch_size = 0\nparameters.intra_op_thread_count = {threads}\n'
        )


async def measure(repository: Path, seconds: float, compute_threads: int | None) -> dict[str, float]:
    """Returns the requests per second, the CPU time per request, and the p50 and p99 of the latency; times
    are in milliseconds.
    """
    from backline.embedded.embedded import Embedded
    from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
    from backline_client.values.datatypes import DataType
    from backline_client.values.messages import InferRequest
    from backline_client.values.tensor import Tensor

    options = LifecycleOptions(
        mode="explicit",
        load_models=(ALL_MODELS,),
        state_folder=repository.parent / "state",
        compute_threads=compute_threads,
    )
    program = Embedded([repository], options)
    await program.start()
    engine = program.engine
    row = np.ones((1, WIDTH), np.float32)
    took: list[float] = []
    begin = monotonic() + 0.5
    end = begin + seconds

    async def ask(name: str) -> None:
        while (asked := monotonic()) < end:
            await engine.infer(
                InferRequest(name, {"INPUT0": Tensor("INPUT0", DataType.FP32, row.shape, row)})
            )
            if asked >= begin:
                took.append(monotonic() - asked)

    computed = process_time()
    await asyncio.gather(*(ask(name) for name in engine.names() for _ in range(AT_ONCE)))
    computed = process_time() - computed
    await program.stop()
    p50, p99 = np.percentile(np.array(took) * 1000, (50, 99))
    return {
        "a second": len(took) / seconds,
        "cpu ms": computed * 1000 / max(len(took), 1),
        "p50": float(p50),
        "p99": float(p99),
    }


def in_its_own_process(repository: Path, seconds: float, compute_threads: int | None) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", str(repository), "--seconds", str(seconds)]
    limit = "" if compute_threads is None else str(compute_threads)
    ran = subprocess.run([*command, "--limit", limit], capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@click.command()
@click.option("--models", default="1,8,32", help="Numbers of models.")
@click.option("--threads", default=1, help="Threads per execution.")
@click.option("--seconds", default=4.0, help="Seconds per measurement.")
@click.option("--rounds", default=3)
@click.option("--alone", hidden=True)
@click.option("--limit", default="", hidden=True)
def main(models: str, threads: int, seconds: float, rounds: int, alone: str | None, limit: str) -> None:
    """Measure throughput and latency with and without the limit."""
    if alone:
        print(json.dumps(asyncio.run(measure(Path(alone), seconds, int(limit) if limit else None))))
        return
    click.echo(machine())
    click.echo(
        f"{'models':>6} {'limit':>8} {'requests/s':>11} {'CPU ms each':>11} {'p50 ms':>8} {'p99 ms':>8}"
    )
    for count in map(int, models.split(",")):
        repository = BENCH / "oversubscription" / "models"
        put_models(repository, count, threads)
        ways: dict[str, list[dict[str, float]]] = {"cores": [], "none": []}
        for _ in range(rounds):
            for way, limited_to in (("cores", None), ("none", 0)):
                ways[way].append(in_its_own_process(repository, seconds, limited_to))
        medians = {way: {key: median(one[key] for one in ran) for key in ran[0]} for way, ran in ways.items()}
        for way, found in medians.items():
            click.echo(
                f"{count:>6} {way:>8} {found['a second']:>11.0f} {found['cpu ms']:>11.2f}"
                f" {found['p50']:>8.1f} {found['p99']:>8.1f}"
            )
        pairs = list(zip(ways["cores"], ways["none"], strict=True))
        ratios = [
            median(one[key] / other[key] for one, other in pairs)
            for key in ("a second", "cpu ms", "p50", "p99")
        ]
        click.echo(
            f"{'':>6} {'ratio':>8} {ratios[0]:>11.2f} {ratios[1]:>11.2f} {ratios[2]:>8.2f} {ratios[3]:>8.2f}"
        )


if __name__ == "__main__":
    main()
