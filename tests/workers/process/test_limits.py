"""Workers that exceed their memory limit, freeze, or cannot restart are replaced, and readiness is
accurate.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import backline
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.lifecycle.loading.instances import place
from backline.workers.channel.protocol import WorkerLoad
from backline.workers.process import process as worker_process
from backline.workers.process.pool import PoolOptions, WorkerPool
from backline.workers.process.process import WorkerCommand, WorkerProcess
from backline_client.values.errors import BacklineError, Internal
from support.embedded import start
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


def test_frozen_workers_are_all_given_the_same_time_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerProcess, "farewell", 0.5)
    stopping: list[int] = [0]
    stop = WorkerProcess.stop

    async def counted(process: WorkerProcess) -> None:
        stopping.append(stopping[-1] + 1)
        await stop(process)
        stopping.append(stopping[-1] - 1)

    monkeypatch.setattr(WorkerProcess, "stop", counted)
    for name in ("a", "b", "c"):
        put(tmp_path / "models" / name / "1" / "model.py", ECHO)

    async def freeze() -> None:
        program = await start(tmp_path / "models")
        for one in psutil.Process().children():
            with suppress(psutil.ZombieProcess):  # a child of an earlier test that nobody has waited for
                if "start.py" in " ".join(one.cmdline()):
                    one.suspend()
        await asyncio.wait_for(program.stop(), 20)

    asyncio.run(freeze())

    assert max(stopping) == 3


@pytest.mark.parametrize(
    ("limit", "option"),
    [(resource.RLIMIT_NOFILE, "ulimit -n"), (resource.RLIMIT_AS, "ulimit -v")],
    ids=["files", "addresses"],
)
def test_a_worker_that_a_limit_of_the_system_forbids_fails_with_the_name_of_the_limit(
    limit: int, option: str, tmp_path: Path
) -> None:
    path = put(tmp_path / "echo" / "1" / "model.py", ECHO)
    load = WorkerLoad("python", "echo", "1", str(path), str(tmp_path / "echo"))
    before = resource.getrlimit(limit)

    async def begin() -> None:
        pool = WorkerPool(
            WorkerCommand(load), PoolOptions(), asyncio.get_running_loop(), place(ModelConfig("echo"), Gpus())
        )
        files = sorted(os.listdir("/proc/self/fd"))
        free = os.dup(0)
        os.close(free)
        few = free + 3 if limit == resource.RLIMIT_NOFILE else psutil.Process().memory_info().vms + (1 << 30)
        resource.setrlimit(limit, (few, before[1]))
        try:
            with pytest.raises(Internal, match=rf"version 1 cannot be started: .*{re.escape(f'({option})')}"):
                await pool.start()
        finally:
            resource.setrlimit(limit, before)
        assert sorted(os.listdir("/proc/self/fd")) == files

    asyncio.run(begin())


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


def test_an_ended_worker_is_not_reaped_before_its_group_is_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "echo" / "1" / "model.py", ECHO)
    load = WorkerLoad("python", "echo", "1", str(path), str(tmp_path / "echo"))
    signal_group, unreaped = os.killpg, []

    def note(pid: int, number: int) -> None:
        unreaped.append(psutil.pid_exists(pid))
        signal_group(pid, number)

    async def crash() -> None:
        pool = WorkerPool(
            WorkerCommand(load), PoolOptions(), asyncio.get_running_loop(), place(ModelConfig("echo"), Gpus())
        )
        await pool.start()
        (process,) = pool._running()
        monkeypatch.setattr(os, "killpg", note)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(process._ended), 20)
        await pool.stop()

    asyncio.run(crash())

    assert unreaped
    assert all(unreaped)


@pytest.mark.parametrize(("name", "calls"), [("dup", 2), ("pidfd_open", 1)], ids=["its output", "its end"])
def test_a_worker_that_cannot_be_watched_is_ended_and_started_later(
    name: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "echo" / "1" / "model.py", ECHO)
    load = WorkerLoad("python", "echo", "1", str(path), str(tmp_path / "echo"))
    real, left = getattr(os, name), [calls]

    def run_out(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*arguments, **options)

    async def start_again() -> list[bytes]:
        loop = asyncio.get_running_loop()
        pool = WorkerPool(WorkerCommand(load), PoolOptions(), loop, place(ModelConfig("echo"), Gpus()))
        await pool.start()
        children = len(psutil.Process().children())
        (seat,) = pool._seats
        # The worker ends, and cannot be started again at first.
        monkeypatch.setattr(os, name, run_out)
        assert seat.process is not None
        seat.process.kill("was killed by the test")
        while left[0] > 0 or seat.process is None or not seat.usable:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        answers = await asyncio.wait_for(asyncio.to_thread(pool.run, {"x": one("again")}, ["output"]), 20)
        assert len(psutil.Process().children()) == children
        await pool.stop()
        found: list[bytes] = answers[0].tolist()
        return found

    assert asyncio.run(asyncio.wait_for(start_again(), 30)) == [b"again"]
