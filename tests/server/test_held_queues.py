"""Triton's debugging hooks, by which tests decide which requests run together, as in Triton."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest

from backline.cli.tritonserver import read_arguments
from support.server import ServerProcess
from support.triton_server import tritonserver

#: Responds with the number of requests that run together.
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        count = np.array([[len(requests)]], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("count", count)]) for _ in requests]
"""
CONFIG = """backend: "python" max_batch_size: 8
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
SEQUENCES = (
    "sequence_batching { oldest { max_candidate_sequences: 2 } max_sequence_idle_microseconds: 60000000 }"
)


def write(repository: Path, name: str, scheduling: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG + scheduling)


def infer(server: ServerProcess, model: str, **parameters: Any) -> int:
    """The number of requests that ran together with this one."""
    body = {
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]}],
        "parameters": parameters,
    }
    url = f"http://127.0.0.1:{server.http_port}/v2/models/{model}/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
        return int(json.loads(answer.read())["outputs"][0]["data"][0])


def pending(server: ServerProcess, model: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith("nv_inference_pending_request_count{") and f'model="{model}"' in line
    )


def wait_for(server: ServerProcess, model: str, count: int) -> None:
    for _ in range(3000):
        if pending(server, model) == count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{pending(server, model)} requests wait, expected {count}")


def test_a_queue_holds_its_requests_until_enough_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "4")
    write(tmp_path / "models", "m", "dynamic_batching { }")
    with (
        tritonserver(tmp_path / "models", tmp_path / "log") as server,
        ThreadPoolExecutor(4) as threads,
    ):
        server.wait_started()
        first = [threads.submit(infer, server, "m") for _ in range(3)]
        wait_for(server, "m", 3)
        assert not any(one.done() for one in first)

        assert infer(server, "m") == 4
        assert [one.result() for one in first] == [4, 4, 4]
        assert infer(server, "m") == 1  # held no more


def test_models_that_do_not_batch_hold_no_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "4")
    write(tmp_path / "models", "m", "")
    with tritonserver(tmp_path / "models", tmp_path / "log") as server:
        server.wait_started()
        assert infer(server, "m") == 1


def test_a_model_of_sequences_holds_its_requests_until_there_is_a_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "2")
    monkeypatch.setenv("TRITONSERVER_BACKLOG_DELAY_SCHEDULER", "1")
    write(tmp_path / "models", "s", SEQUENCES)

    def ask(sequence: int) -> int:
        return infer(server, "s", sequence_id=sequence, sequence_start=True, sequence_end=True)

    with (
        tritonserver(tmp_path / "models", tmp_path / "log") as server,
        ThreadPoolExecutor(4) as threads,
    ):
        server.wait_started()
        placed = [threads.submit(ask, number) for number in (1, 2)]
        wait_for(server, "s", 2)
        assert not any(one.done() for one in placed)

        assert ask(3) == 1  # the third sequence waits for a place, which lets the first two begin
        assert [one.result() for one in placed] == [2, 2]


def test_held_requests_do_not_keep_the_server_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "4")
    write(tmp_path / "models", "m", "dynamic_batching { }")
    write(tmp_path / "models", "s", SEQUENCES)
    with (
        tritonserver(tmp_path / "models", tmp_path / "log", "--exit-timeout-secs=1") as server,
        ThreadPoolExecutor(4) as threads,
    ):
        server.wait_started()
        plain = threads.submit(infer, server, "m")
        sequence = threads.submit(infer, server, "s", sequence_id=1, sequence_start=True)
        wait_for(server, "m", 1)
        wait_for(server, "s", 1)
        assert server.stop() == 0
        for one in (plain, sequence):
            assert one.exception() is not None or one.result() == 1


@pytest.mark.parametrize("value", ["four", "-1", ""])
def test_a_wrong_number_ends_the_command(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", value)
    arguments: Sequence[str] = ["--model-repository=models"]

    with pytest.raises(click.ClickException, match="expected a number of requests"):
        read_arguments(arguments)
