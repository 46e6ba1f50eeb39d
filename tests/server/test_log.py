"""The log of a running server: what is in it, and that nothing that happens to it hurts serving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backline
from support import models
from support.server import ServerProcess, free_ports, serve

BROKEN = "broken"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers and one that fails to load, which is logged."""
    folder = tmp_path_factory.mktemp("models")
    models.add1(folder)
    broken = folder / BROKEN / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    return folder


def answers(server: ServerProcess) -> bool:
    with backline.connect(server.url) as client:
        return bool((client["add1"](np.zeros((1, 16), np.float32))["OUTPUT0"] == 1).all())


def test_the_log_may_be_lines_of_json_in_a_file(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.log"
    with serve(repository, tmp_path / "log", "--log-format", "json", "--log-file", str(file), ready=False) as server:
        server.wait_started()
        assert server.stop() == 0

    documents = [json.loads(line) for line in file.read_text().splitlines()]
    assert any(document["level"] == "error" and BROKEN in document["message"] for document in documents)
    assert "ERROR" not in server.output


def test_a_file_that_cannot_be_opened_ends_the_start(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log", "--log-file", str(tmp_path / "nowhere" / "log"), ready=False) as server:
        assert server.process.wait(30) == 2

    assert f"--log-file {tmp_path / 'nowhere' / 'log'}: No such file or directory" in server.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_does_not_hurt_serving(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log", "--log-level", "debug", "--log-file", "/dev/full", ready=False) as server:
        server.wait_started()
        assert answers(server)
        assert server.stop() == 0


@pytest.mark.parametrize("standard_error", ["closed", "a pipe without a reader"])
def test_a_standard_error_that_is_gone_does_not_hurt_serving(repository: Path, tmp_path: Path, standard_error: str) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "backline", "serve", str(repository), "--http-port", str(port), "--no-grpc", "--no-metrics"]
    command += ["--log-level", "debug"]
    if standard_error == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    reading, writing = os.pipe()
    os.close(reading)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=writing)
    os.close(writing)
    server = ServerProcess(process, port, 0, 0, log)
    try:
        server.wait_started()
        assert answers(server)
    finally:
        assert server.stop() == 0
