"""A network on several GPUs: ONNX Runtime is made to report two, and computes on the CPU."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline.backends.backend import LoadOptions
from backline.dialects.open_inference.configuration import model_configuration
from backline.engine.device import Gpus
from backline.plugins.runtimes.onnx.runtime import OnnxModel, OnnxRuntime
from backline.workers.here import execution
from backline_client.values.errors import InvalidArgument
from support.models import add1

#: Requests are not batched, so that concurrent ones run on different instances.
ALONE = "max_batch_size: 0 "
TWO_EACH = ALONE + "instance_group { count: 2 kind: KIND_GPU }"
WARM_UP = (
    "model_warmup { name: 'w' count: 3 inputs { key: 'INPUT0' value { data_type: TYPE_FP32 dims: [ 1, 16 ]"
    " zero_data: true } } }"
)


class Devices:
    """Records loads and runs by device."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.ran: Counter[str] = Counter()
        self.before_run: Callable[[str], object] = lambda device: None
        self.broken: str = ""


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    seen = Devices()
    load = OnnxRuntime.load

    def load_on(self: OnnxRuntime, path: Path, config: Any, options: LoadOptions) -> OnnxModel:
        name = str(options.device)
        if name == seen.broken:
            raise InvalidArgument(f"{name} is broken")
        model = load(self, path, config)
        seen.loaded.append(name)
        run, close = model.run, model.close

        def run_there(*arguments: Any) -> Any:
            seen.ran[name] += 1
            seen.before_run(name)
            return run(*arguments)

        def close_there() -> None:
            seen.closed.append(name)
            close()

        model.run, model.close = run_there, close_there  # type: ignore[method-assign]
        return model

    monkeypatch.setattr(OnnxRuntime, "gpus", lambda *_: Gpus((0, 1)))
    monkeypatch.setattr(OnnxRuntime, "load", load_on)
    return seen


def configure(repository: Path, text: str) -> None:
    (repository / "add1" / "config.pbtxt").write_text(text)


def test_each_device_has_one_model_and_its_instances(home: Any, repository: Path, devices: Devices) -> None:
    add1(repository)
    configure(repository, TWO_EACH + WARM_UP)

    async def scenario() -> None:
        async with home(repository) as server:
            placement = server.engine.find("add1").placement
            assert (placement.lane, placement.instances) == ("thread", 4)
            assert placement.reason.endswith("; on GPU 0, GPU 1")
            assert devices.loaded == ["GPU 0", "GPU 1"]
            assert devices.ran["GPU 1"] == 3  # measured on the first, warmed up on each
            devices.ran.clear()
            meet = threading.Barrier(4, timeout=20)
            devices.before_run = lambda device: meet.wait()
            assert await asyncio.gather(*(server.answer() for _ in range(4))) == [1, 1, 1, 1]
            assert devices.ran == {"GPU 0": 2, "GPU 1": 2}
            group = model_configuration(server.engine, "add1", "").instance_group[0]
            assert (group.count, list(group.gpus)) == (2, [0, 1])
        assert sorted(devices.closed) == ["GPU 0", "GPU 1"]

    asyncio.run(scenario())


def test_without_groups_each_gpu_gets_a_thread(home: Any, repository: Path, devices: Devices) -> None:
    add1(repository)

    async def scenario() -> None:
        async with home(repository) as server:
            placement = server.engine.find("add1").placement
            assert (placement.lane, placement.instances) == ("thread", 2)

    asyncio.run(scenario())


def test_runs_on_gpus_take_no_cores_from_others(
    home: Any, repository: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "PATIENCE", 60)
    add1(repository)
    configure(repository, TWO_EACH)

    async def scenario() -> None:
        async with home(repository, compute_threads=1) as server:
            meet = threading.Barrier(4, timeout=20)
            devices.before_run = lambda device: meet.wait()
            assert await asyncio.gather(*(server.answer() for _ in range(4))) == [1, 1, 1, 1]

    asyncio.run(scenario())


def test_a_core_is_shared_while_its_model_waits_for_a_gpu(
    home: Any, repository: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPU, runs were measured to be mostly waiting. This does not hold for the CPU."""
    monkeypatch.setattr(execution, "PATIENCE", 60)
    add1(repository)
    configure(
        repository, ALONE + "instance_group [ { kind: KIND_GPU gpus: [ 0 ] }, { count: 3 kind: KIND_CPU } ]"
    )
    at_once: list[int] = []
    running = threading.Semaphore(3)

    def compute(device: str) -> None:
        if device == "CPU":
            with running:
                at_once.append(3 - running._value)
                time.sleep(0.01)
        else:
            time.sleep(0.01)

    async def scenario() -> None:
        devices.before_run = compute
        async with home(repository, compute_threads=1) as server:
            assert await asyncio.gather(*(server.answer() for _ in range(8))) == [1] * 8
        assert devices.ran["CPU"] >= 3
        assert set(at_once) == {1}

    asyncio.run(scenario())


def test_an_instance_takes_the_resources_of_its_gpu(home: Any, repository: Path, devices: Devices) -> None:
    add1(repository)
    configure(
        repository,
        ALONE + "instance_group { kind: KIND_GPU rate_limiter { resources { name: 'memory' count: 1 } } }",
    )

    async def scenario() -> None:
        async with home(repository, rate_limit=("memory:1",)) as server:
            meet = threading.Barrier(2, timeout=20)
            devices.before_run = lambda device: meet.wait()
            assert await asyncio.gather(server.answer(), server.answer()) == [1, 1]

    asyncio.run(scenario())


def test_a_new_count_needs_no_load_but_a_new_gpu_does(home: Any, repository: Path, devices: Devices) -> None:
    add1(repository)
    configure(repository, ALONE + "instance_group { kind: KIND_GPU gpus: [ 0 ] }")

    async def scenario() -> None:
        async with home(repository, mode="poll") as server:
            configure(repository, ALONE + "instance_group { kind: KIND_GPU gpus: [ 0 ] count: 3 }")
            await server.lifecycle.refresh()
            assert (server.engine.find("add1").placement.instances, devices.loaded) == (3, ["GPU 0"])
            configure(repository, ALONE + "instance_group { kind: KIND_GPU gpus: [ 1 ] count: 3 }")
            await server.lifecycle.refresh()
            assert devices.loaded == ["GPU 0", "GPU 1"]

    asyncio.run(scenario())


def test_a_load_that_fails_on_one_device_leaves_nothing_on_the_others(
    home: Any, repository: Path, devices: Devices
) -> None:
    add1(repository)
    configure(repository, TWO_EACH)
    devices.broken = "GPU 1"

    async def scenario() -> None:
        async with home(repository) as server:
            assert server.engine.find("add1").reason == "GPU 1 is broken"
            assert devices.closed == ["GPU 0"]

    asyncio.run(scenario())
