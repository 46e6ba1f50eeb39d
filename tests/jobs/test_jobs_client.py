"""Jobs from the Python client, synchronous and asyncio, and from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from jobs.conftest import add_slow
from support.models import add1
from support.server import ServerProcess, serve

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "repository"
    add1(folder)
    add_slow(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    with serve(repository, folder / "log", "--state-dir", str(folder / "state")) as running:
        yield running


def run(server: ServerProcess, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "backline", "jobs", *arguments],
        env={**os.environ, "BACKLINE_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_submitted_call_has_the_result_of_the_call(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        job = client["add1"].submit(ROW, priority=1, attempts=2, expires=60, kept=60, attempt_limit=9)
        assert np.array_equal(job.result()["OUTPUT0"], client["add1"](ROW)["OUTPUT0"])
        assert (job.state, job.document["max_attempts"], job.document["priority"]) == ("done", 2, 1)
        assert job.id in repr(job)
        assert client.job(job.id).wait(5) == "done"
        assert client["add1"].submit(ROW).id != job.id
        assert client["add1"].submit(ROW, key="a").id == client["add1"].submit(ROW, key="a").id
        assert len(client.jobs("done,queued,running", "add1", limit=2)) == 2


def test_errors_of_jobs_are_those_of_calls(server: ServerProcess, repository: Path) -> None:
    with backline.connect(server.url) as client:
        with pytest.raises(InvalidArgument, match="shape"):
            client["add1"].submit(ROW[:, :3])
        (repository.parent / "runs").unlink(missing_ok=True)
        job = client["slow"].submit([-1.0], [0.0], attempts=1)
        with pytest.raises(BacklineError, match="not yet"):
            job.result()
        assert job.state == "failed"
        assert job.retry() == "queued"
        assert job.result()["output"].tolist() == [-1.0]
        with pytest.raises(NotFound):
            client.job("1-" + "0" * 32).refresh()


def test_a_wait_has_a_limit_and_a_job_can_be_cancelled(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        job = client["slow"].submit([1.0], [20.0])
        with pytest.raises(DeadlineExceeded, match=job.id):
            job.wait(0.2)
        assert job.cancel() == "cancelled"
        with pytest.raises(BacklineError, match="cancelled"):
            job.result()


async def test_the_asyncio_client_has_the_same_methods(server: ServerProcess) -> None:
    async with backline.connect_async(server.url) as client:
        job = await client["add1"].submit(INPUT0=ROW)
        assert (await job.result())["OUTPUT0"].tolist() == (ROW + 1).tolist()
        assert (await client.jobs(limit=1))[0].id == job.id
        other = await client["slow"].submit([1.0], [20.0])
        assert await other.cancel() == "cancelled"
        assert await other.retry() == "queued"
        assert await client.job(other.id).cancel() == "cancelled"


def test_jobs_need_http(server: ServerProcess) -> None:
    with backline.connect(server.grpc_url) as client, pytest.raises(Unsupported, match="http://"):
        client["add1"].submit(ROW)


def test_a_wait_outlives_the_server(repository: Path, tmp_path: Path) -> None:
    options = ("--state-dir", str(tmp_path / "state"))
    found: list[str] = []
    with serve(repository, tmp_path / "log", *options) as first:
        client = backline.connect(first.url)
        job = client["slow"].submit([1.0], [2.0])
        waiting = threading.Thread(target=lambda: found.append(job.wait()))
        waiting.start()
        first.process.kill()
        first.process.wait()
    ports = ("--http-port", str(first.http_port))  # the same address
    with serve(repository, tmp_path / "log2", *options, *ports, ready=False):
        waiting.join(60)
        assert found == ["done"]
        assert job.result()["output"].tolist() == [1.0]
        client.close()


def test_the_command_line(server: ServerProcess, tmp_path: Path) -> None:
    with backline.connect(server.url) as client:
        done, late = client["add1"].submit(ROW), client["slow"].submit([1.0], [20.0])
    assert run(server, "wait", done.id) == f"{done.id} done\n"
    assert json.loads(run(server, "show", done.id))["state"] == "done"
    assert done.id in run(server, "list", "--state", "done", "--model", "add1")
    assert json.loads(run(server, "list", "--json", "--limit", "1"))[0]["id"] == late.id
    run(server, "result", done.id, "-o", str(tmp_path / "out.npz"))
    assert np.array_equal(np.load(tmp_path / "out.npz")["OUTPUT0"], ROW + 1)
    assert "OUTPUT0" in run(server, "result", done.id, "--json")
    assert run(server, "cancel", late.id).startswith(f"{late.id} cancelled")
    assert "cancelled" in run(server, "wait", late.id, status=1)
    assert run(server, "retry", late.id) == f"{late.id} queued\n"
    run(server, "cancel", late.id)
    assert "already" in run(server, "cancel", done.id, status=1)
    assert "no job" in run(server, "show", "1-" + "0" * 32, status=1)
    assert run(server, "list", "--model", "none") == "no jobs\n"
