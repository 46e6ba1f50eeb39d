"""Workers that exceed their memory limit, freeze, or cannot restart are replaced, and readiness is
accurate.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

import backline
from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import BacklineError
from backline.engine.values.device import Gpus
from backline.lifecycle.loading.instances import place
from backline.workers.channel.protocol import WorkerLoad
from backline.workers.process import process as worker_process
from backline.workers.process.pool import PoolOptions, WorkerPool
from backline.workers.process.process import WorkerCommand
from support.repositories import put
from support.server import ServerProcess, serve
from support.waiting import until

HUNGRY = """
import time

class Model:
    memory_limit_bytes = 200_000_000

    def predict(self, mebibytes: int) -> int:
        held = b"x" * (mebibytes << 20)
        if mebibytes > 100:
            time.sleep(60)
        return len(held)
"""
ECHO = """
class Model:
    def predict(self, x: str) -> str:
        return x
"""
LOADS_ONCE = """
from pathlib import Path

class Model:
    def load(self):
        place = Path(__file__).with_name("broken")
        if place.exists():
            raise RuntimeError("the weights are gone")

    def predict(self, x: str) -> str:
        return x
"""


def one(value: str) -> np.ndarray:
    return np.array([value.encode()], object)


def test_a_worker_above_its_memory_limit_is_killed_and_its_request_fails_with_the_reason(
    tmp_path: Path,
) -> None:
    put(tmp_path / "models" / "hungry" / "1" / "model.py", HUNGRY)
    with serve(tmp_path / "models", tmp_path / "log") as server, backline.connect(server.url) as client:
        began = time.monotonic()
        with pytest.raises(
            BacklineError, match=r"used \d+ MiB of memory, more than its limit of 190 MiB, and was killed"
        ):
            client["hungry"](np.array([400]))

        assert time.monotonic() - began < 10
        assert client["hungry"](np.array([1]))["output"] == 1 << 20


def test_a_frozen_worker_is_killed_after_missing_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "HEARTBEAT", 0.1)
    monkeypatch.setattr(worker_process, "HEARTBEAT_TIMEOUT", 0.5)
    path = put(tmp_path / "echo" / "1" / "model.py", ECHO)
    load = WorkerLoad("python", "echo", "1", str(path), str(tmp_path / "echo"))

    async def freeze() -> tuple[int, list[int], list[bytes]]:
        pool = WorkerPool(
            WorkerCommand(load), PoolOptions(), asyncio.get_running_loop(), place(ModelConfig("echo"), Gpus())
        )
        await pool.start()
        (frozen,) = pool.pids
        os.kill(frozen, signal.SIGSTOP)
        try:
            answers = await asyncio.wait_for(asyncio.to_thread(pool.run, {"x": one("again")}, ["output"]), 20)
            return frozen, pool.pids, answers[0].tolist()
        finally:
            await pool.stop()

    frozen, alive, answer = asyncio.run(freeze())

    assert answer == [b"again"]
    assert len(alive) == 1
    assert frozen not in alive
    assert not psutil.pid_exists(frozen)


def test_a_suspended_server_does_not_time_out_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "HEARTBEAT", 0.1)
    monkeypatch.setattr(worker_process, "HEARTBEAT_TIMEOUT", 0.5)
    path = put(tmp_path / "echo" / "1" / "model.py", ECHO)
    load = WorkerLoad("python", "echo", "1", str(path), str(tmp_path / "echo"))

    async def stand_still() -> tuple[list[int], list[int], list[bytes]]:
        options = PoolOptions(execution_timeout=0.5)
        pool = WorkerPool(
            WorkerCommand(load), options, asyncio.get_running_loop(), place(ModelConfig("echo"), Gpus())
        )
        await pool.start()
        before = pool.pids
        answer = asyncio.ensure_future(asyncio.to_thread(pool.run, {"x": one("once")}, ["output"]))
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251  # the request has arrived
        await asyncio.sleep(0)
        time.sleep(2)  # noqa: ASYNC251  # as if the process had been stopped
        answers = await asyncio.wait_for(answer, 20)
        await asyncio.sleep(0.3)
        try:
            return before, pool.pids, answers[0].tolist()
        finally:
            await pool.stop()

    before, after, answer = asyncio.run(stand_still())

    assert answer == [b"once"]
    assert before == after


@contextmanager
def broken(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose only worker was killed, and cannot load its model again."""
    model = put(tmp_path / "models" / "once" / "1" / "model.py", LOADS_ONCE)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        put(model.with_name("broken"))
        (worker,) = psutil.Process(server.process.pid).children()
        worker.kill()
        until(lambda: not ready(server))
        yield server


def ready(server: ServerProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/once/ready", timeout=5) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


def test_a_model_without_workers_is_not_ready_and_says_why(tmp_path: Path) -> None:
    with (
        broken(tmp_path) as server,
        backline.connect(server.url) as client,
        pytest.raises(BacklineError, match="the weights are gone"),
    ):
        client["once"](one("x"))


def test_a_model_is_ready_again_once_its_worker_starts(tmp_path: Path) -> None:
    with broken(tmp_path) as server, backline.connect(server.url) as client:
        (tmp_path / "models" / "once" / "1" / "broken").unlink()
        until(lambda: ready(server))

        assert client["once"](one("back"))["output"][0] == b"back"
