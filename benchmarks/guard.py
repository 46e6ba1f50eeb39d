"""Measures how soon a guard finds faults, and how often it rejects good ones: `python benchmarks/guard.py`.

Each version is rolled out on an engine in this process: first with copies only, then with half of the
requests. All versions run in worker processes and wait for random times, about 4 ms, so that latencies vary.
The exit status is 1 unless at least 29 of 30 faults are found, within 1000 copies or 200 requests, at most 1
of 30 good versions is rejected, and no client gets an error.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from time import perf_counter
from typing import NamedTuple

import click
import numpy as np
from harness.folders import BENCH
from harness.machine import machine

from backline.embedded.embedded import Embedded
from backline.lifecycle.options import LifecycleOptions
from backline.plugins.traffic.route import Rollout, Route
from backline.plugins.traffic.routes import Routes, open_routes
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor

FOLDER = BENCH / "guard"
GUARD = "errors<0.05%, p50<1.3x, p99<3x, distance<0.0002, memory<1.5x"
COPIES, REQUESTS, CLIENTS = 1000, 200, 4
MODEL = """
import asyncio, os, random
import numpy as np
from backline.model import FP32

WEIGHTS = np.random.default_rng(1).standard_normal((16, 16)).astype("float32")
RANDOM = random.Random(os.getpid())
KEPT = []


class Candidate:
    async def predict(self, x: FP32[1, 16]) -> FP32[1, 16]:
        factor, wrong = 1.0, 0.0
        y = x @ WEIGHTS
        {code}
        await asyncio.sleep(factor * 0.004 * RANDOM.lognormvariate(0, 0.2))
        return (y * (1 + wrong)).astype("float32")
"""


class Version(NamedTuple):
    """A version to roll out; `code` is what it does differently."""

    name: str
    code: str


def faults() -> list[Version]:
    """Returns 30 versions with a fault each."""
    broken = "if RANDOM.random() < {}: raise RuntimeError('planted')"
    crash = "if RANDOM.random() < {}: os._exit(3)"
    nan = "y = y * np.nan if RANDOM.random() < {} else y"
    return [
        *(Version(f"errors on {share:g}", broken.format(share)) for share in (1, 0.5, 0.1, 0.05, 0.02)),
        *(Version(f"{factor:g} times slower", f"factor = {factor}") for factor in (1.5, 1.5, 1.5, 1.6, 2, 5)),
        *(Version(f"wrong by {size:g}", f"wrong = {size}") for size in (1e-3, 2e-3, 0.01, 0.1, 0.5, 1)),
        Version("noise of 1e-3", "y = y + 1e-3 * np.abs(y).mean() * np.random.standard_normal(y.shape)"),
        Version("wrong shape of values", "y = y[:, ::-1]"),
        *(Version(f"NaN on {share:g}", nan.format(share)) for share in (1, 0.1, 0.02, 0.01)),
        *(Version(f"{size} MB a request", f"KEPT.append(b'x' * {size} * 1_000_000)") for size in (1, 2, 4)),
        *(Version(f"crash on {share:g}", crash.format(share)) for share in (0.01, 0.01, 0.02, 0.1)),
    ]


def good_versions() -> list[Version]:
    """Returns 30 versions that differ in ways that are allowed."""
    versions = []
    for number in range(30):
        factor = (0.8, 0.9, 1.0, 1.0, 1.05, 1.1)[number % 6]
        size = (0.0, 1e-8, 1e-7, 1e-6, 1e-5)[number % 5]
        noise = f"y = y * (1 + {size} * np.random.standard_normal(y.shape))"
        versions.append(Version(f"{factor:g} times the time, noise {size:g}", f"factor = {factor}; {noise}"))
    return versions


class Result(NamedTuple):
    """How a rollout ended: the change's action and reason, and what it took."""

    action: str
    detail: str
    copies: int
    requests: int
    client_errors: int


def request(number: int) -> InferRequest:
    data = np.random.default_rng(number).standard_normal((1, 16)).astype(np.float32)
    return InferRequest("served", {"x": Tensor("x", DataType.FP32, data.shape, data)}, id=f"request-{number}")


async def roll_out(program: Embedded, routes: Routes, name: str) -> Result:
    """Rolls out a loaded model under load until the rollout has ended."""
    engine = program.engine
    rollout = Rollout(name, GUARD, (0.0, 50.0), 0.0, COPIES)
    begun = (await routes.put("served", Route({"base": 1.0}, rollout=rollout), "benchmark", None)).revision
    front = routes.front("served")
    run, numbers, failures = front.run, iter(range(10**9)), 0
    assert run is not None

    async def client() -> None:
        nonlocal failures
        while routes.revision("served") == begun:
            try:
                await engine.infer(request(next(numbers)))
            except BacklineError:
                failures += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    change = routes.history("served")[-1]
    return Result(change.action, change.detail, run.seen_in_all - run.canaries, run.canaries, failures)


async def measure() -> bool:
    """Rolls out all versions. Returns whether the guard is as good as it should be."""
    planted, good = faults(), good_versions()
    versions = [*planted, *good]
    models = FOLDER / "models"
    for name, code in [("base", "pass"), *((f"v{n}", one.code) for n, one in enumerate(versions))]:
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.py").write_text(MODEL.format(code=code))
    options = LifecycleOptions(
        mode="explicit", load_models=("base",), state_folder=FOLDER / "state", isolate="never"
    )
    program = Embedded([models], options)
    results: list[Result] = []
    async with program as client:
        routes = open_routes(program.engine, program.state_folder)
        for number, version in enumerate(versions):
            await client.load(f"v{number}")
            began = perf_counter()
            result = await roll_out(program, routes, f"v{number}")
            await client.unload(f"v{number}")
            results.append(result)
            click.echo(
                f"{'fault' if number < len(planted) else 'good ':5} {version.name:36} {result.action:8}"
                f" after {result.copies:5} copies, {result.requests:4} requests,"
                f" {perf_counter() - began:5.1f} s  {result.detail[:90]}"
            )
    found = [
        one.action == "guard" and (one.copies <= COPIES or one.requests <= REQUESTS)
        for one in results[: len(planted)]
    ]
    alarms = [one.action != "promote" for one in results[len(planted) :]]
    errors = sum(one.client_errors for one in results)
    click.echo(
        f"{sum(found)} of {len(found)} faults found, {sum(alarms)} of {len(alarms)} good versions rejected"
    )
    click.echo(f"{errors} client errors")
    return sum(found) >= 29 and sum(alarms) <= 1 and not errors


@click.command()
def main() -> None:
    """Rolls out 30 versions with faults and 30 good versions."""
    random.seed(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, value in machine().items():
        click.echo(f"{name}: {value}")
    click.echo(f"guard: {GUARD}")
    sys.exit(0 if asyncio.run(measure()) else 1)


if __name__ == "__main__":
    main()
