"""Model files that a runtime loads in a worker process, so that its crash affects nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from backline.lifecycle.overriding import Overrides
from backline.workers.process.process import WorkerProcess
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support import models
from support.waiting import until

Homes = Callable[..., Any]


def in_a_worker(file: Path, *settings: str) -> None:
    """Gives a model lane process."""
    text = "\n".join(("lane = 'process'", *settings))
    (file.parents[1] / "model.toml").write_text(text)


def workers() -> list[psutil.Process]:
    """The worker processes of this process."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "start.py" in " ".join(one.cmdline()):
                found.append(one)
    return found


def lane_of(server: Any, model: str) -> str:
    placed = server.engine.find(model).placement
    assert placed is not None
    return str(placed.lane)


def test_a_crash_of_the_runtime_ends_its_worker_only_and_the_request_is_answered_by_the_next(
    home: Homes, repository: Path
) -> None:
    in_a_worker(models.add1(repository))
    models.add1(repository, "other", constant=5.0)

    async def scenario() -> None:
        async with home(repository) as server:
            assert await server.answer() == 1
            (before,) = workers()
            os.kill(before.pid, signal.SIGSTOP)  # so that the request is under way when its worker crashes
            answer = asyncio.create_task(server.answer())
            assert await server.answer("other") == 5
            os.kill(before.pid, signal.SIGSEGV)
            os.kill(before.pid, signal.SIGCONT)
            assert await server.answer("other") == 5
            assert await answer == 1
            assert [one.pid for one in workers()] != [before.pid]

    asyncio.run(scenario())


def test_its_worker_ends_with_the_model(home: Homes, repository: Path) -> None:
    in_a_worker(models.add1(repository))

    async def scenario() -> None:
        async with home(repository) as server:
            (worker,) = workers()
            assert lane_of(server, "add1") == "process"
        assert not worker.is_running()

    asyncio.run(scenario())


def test_requests_are_batched_as_in_the_server(home: Homes, repository: Path) -> None:
    in_a_worker(models.slow(repository))
    rows = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)

    async def scenario() -> None:
        async with home(repository) as server:

            async def ask(row: np.ndarray) -> np.ndarray:
                tensor = Tensor("INPUT0", DataType.FP32, (1, 512), row[None])
                response = await server.engine.infer(InferRequest("slow", {"INPUT0": tensor}))
                return np.asarray(response.outputs[0].data[0])

            answers = await asyncio.gather(*map(ask, rows))
            whole = Tensor("INPUT0", DataType.FP32, rows.shape, rows)
            together = await server.engine.infer(InferRequest("slow", {"INPUT0": whole}))
            np.testing.assert_allclose(np.stack(answers), together.outputs[0].data, rtol=1e-5)
            assert server.engine.find("slow").max_batch_size > 1

    asyncio.run(scenario())


def test_an_invalid_file_is_refused_with_the_reason_of_its_runtime(home: Homes, repository: Path) -> None:
    file = models.add1(repository)
    in_a_worker(file)
    file.write_bytes(b"\x08\x08" + os.urandom(100))

    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            with pytest.raises(BacklineError, match=r"cannot be loaded.*ONNX Runtime"):
                await server.lifecycle.load("add1", who="Ada")

    asyncio.run(scenario())


def test_a_run_that_does_not_end_is_killed_and_the_model_serves_on(home: Homes, repository: Path) -> None:
    in_a_worker(models.add1(repository), "execution_timeout_seconds = 0.5")

    async def scenario() -> None:
        async with home(repository) as server:
            (worker,) = workers()
            os.kill(worker.pid, signal.SIGSTOP)
            with pytest.raises(BacklineError, match=r"did not finish within 0\.5 s"):
                await server.answer()
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_load_that_is_given_up_ends_its_worker(home: Homes, repository: Path) -> None:
    in_a_worker(models.endless(repository, "endless", grows=False))

    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            loading = asyncio.create_task(server.lifecycle.load("endless", who="Ada"))
            await asyncio.to_thread(until, lambda: any(one.cpu_times().user > 1.5 for one in workers()))
            await server.lifecycle.unload("endless", who="Ada")
            await asyncio.to_thread(until, lambda: not workers())
            with pytest.raises(BacklineError):
                await loading

    asyncio.run(scenario())


def test_a_worker_that_does_not_load_in_time_is_given_up(home: Homes, repository: Path) -> None:
    in_a_worker(models.add1(repository))

    async def scenario() -> None:
        async with home(repository, mode="explicit", load_timeout_seconds=0.01) as server:
            began = time.monotonic()
            with pytest.raises(BacklineError, match=r"was not loaded within 0\.01 s"):
                await server.lifecycle.load("add1", who="Ada")
            assert time.monotonic() - began < 30
            await asyncio.to_thread(until, lambda: not workers())

    asyncio.run(scenario())


def test_a_worker_whose_load_ends_while_it_is_started_is_killed(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is slow to start the process, which then does not notice that nobody needs it."""
    in_a_worker(models.add1(repository))
    go_on = threading.Event()
    started: list[subprocess.Popen[bytes]] = []
    deaf = [sys.executable, "-c", "import time; time.sleep(60)"]

    def slow_spawn(worker: WorkerProcess, *descriptors: int) -> subprocess.Popen[bytes]:
        go_on.wait(30)
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(deaf, stdout=pipe, stderr=pipe, start_new_session=True))
        return started[0]

    monkeypatch.setattr(WorkerProcess, "_spawn", slow_spawn)

    async def scenario() -> None:
        async with home(repository, mode="explicit", load_timeout_seconds=0.1) as server:
            loading = asyncio.create_task(server.lifecycle.load("add1", who="Ada"))
            await asyncio.sleep(0.5)
            go_on.set()
            with pytest.raises(BacklineError, match=r"was not loaded within 0\.1 s"):
                await loading
            await asyncio.to_thread(until, lambda: started)
            await asyncio.to_thread(until, lambda: started[0].poll() is not None, seconds=20)

    try:
        asyncio.run(scenario())
    finally:
        for one in started:
            one.kill()


def test_files_of_a_load_request_stay_in_workers_where_the_server_says_so(
    home: Homes, repository: Path
) -> None:
    content = models.add1(repository).read_bytes()

    async def scenario() -> None:
        async with home(repository, mode="explicit", load_models=("add1",), isolate="workers") as server:
            assert lane_of(server, "add1") == "inline"
            sent = Overrides(
                '{"parameters": {"backline.lane": {"string_value": "inline"}}}', {"1/model.onnx": content}
            )
            await server.lifecycle.load("add1", overrides=sent, who="Ada")
            assert lane_of(server, "add1") == "process"
            assert await server.answer() == 1
            assert len(workers()) == 1

    asyncio.run(scenario())


def test_a_worker_may_take_no_more_memory_than_a_trial(home: Homes, repository: Path) -> None:
    content = models.add1(repository).read_bytes()

    async def scenario() -> None:
        # The configuration comes with the files, so it cannot lift the limit.
        generous = '{"parameters": {"backline.memory_limit_bytes": {"string_value": "1000000000"}}}'
        options = {"isolate": "workers", "load_memory_limit": 1 << 20}
        async with home(repository, mode="explicit", load_models=("add1",), **options) as server:
            with pytest.raises(BacklineError, match="memory"):
                await server.lifecycle.load(
                    "add1", overrides=Overrides(generous, {"1/model.onnx": content}), who="Ada"
                )

    asyncio.run(scenario())


def test_a_backend_without_a_file_has_no_such_lane(home: Homes, repository: Path) -> None:
    folder = repository / "echo"
    (folder / "1").mkdir(parents=True)
    (folder / "model.toml").write_text(
        "backend = 'identity'\nlane = 'process'\n"
        "[[input]]\nname = 'IN'\ndata_type = 'FP32'\ndims = [4]\n"
        "[[output]]\nname = 'OUT'\ndata_type = 'FP32'\ndims = [4]\n"
    )

    async def scenario() -> None:
        async with home(repository, mode="explicit") as server:
            with pytest.raises(BacklineError, match="models of the identity backend run in the server"):
                await server.lifecycle.load("echo", who="Ada")

    asyncio.run(scenario())


def test_processes_with_models_do_not_get_the_keys_of_the_server(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, kept = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I", "keep-me"
    for name in ("BACKLINE_API_KEY", "BACKLINE_ADMIN_KEY", "BACKLINE_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("MODEL_SETTING", kept)
    in_a_worker(models.add1(repository))
    models.add1(repository, "tried")

    async def scenario() -> None:
        async with home(repository, isolate="new") as server:
            assert await server.answer("tried") == 1
            children = []
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):  # of an earlier test, and not yet waited for
                    children.append(child.environ())
            found = [one for one in children if one.get("MODEL_SETTING") == kept]
            assert len(found) >= 2  # the worker, and the process that tries files
            for environment in found:
                assert secret not in environment.values()

    asyncio.run(scenario())
