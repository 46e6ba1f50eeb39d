"""Sequences of Python models whose worker is killed: its state is lost, and clients get an error."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from support.server import ServerProcess, metrics_page, serve

#: Adds up the inputs of a sequence and returns its process id. Hangs on numbers above 100.
SUM = """
import os
import sys
import time

import numpy as np

from backline.model import FP64, Request


class Model:
    def load(self) -> None:
        self.sums = {}

    def predict(self, x: FP64[1], request: Request) -> FP64[2]:
        if x[0] > 100:
            print("a long one", file=sys.stderr)
            time.sleep(10)
        self.sums[request.sequence] = self.sums.get(request.sequence, 0) + x[0]
        return np.array([self.sums[request.sequence], os.getpid()])
"""
#: The same, with the sum held by the server.
STATE = """
import os

from typing import NamedTuple

import numpy as np

from backline.model import FP64


class Answer(NamedTuple):
    output: FP64[2]
    after: FP64[1]


class Model:
    def predict(self, x: FP64[1], before: FP64[1]) -> Answer:
        return Answer(np.array([before[0] + x[0], os.getpid()]), before + x)
"""
STATES = 'state [ { input_name: "before" output_name: "after" data_type: TYPE_FP64 dims: [ 1 ] } ]'


def put(repository: Path, name: str, code: str, batching: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(code)
    (repository / name / "config.pbtxt").write_text(
        f"sequence_batching {{ max_sequence_idle_microseconds: 60000000 {batching} }}"
        " instance_group { count: 2 }"
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("sequences")
    put(folder / "models", "direct", SUM, "direct { }")
    put(folder / "models", "oldest", SUM, "oldest { max_candidate_sequences: 4 }")
    put(folder / "models", "state", STATE, "oldest { max_candidate_sequences: 4 } " + STATES)
    with serve(folder / "models", folder / "log") as running:
        yield running


def step(
    server: ServerProcess, model: str, sequence: int, value: float, *, start: bool = False, end: bool = False
) -> tuple[float, int]:
    """The sum so far, and the id of the process that computed it."""
    x = tritonclient.http.InferInput("x", [1], "FP64")
    x.set_data_from_numpy(np.array([value], np.float64))
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        answer = client.infer(model, [x], sequence_id=sequence, sequence_start=start, sequence_end=end)
    total, pid = answer.as_numpy("output")
    return float(total), int(pid)


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_the_next_request_of_a_sequence_fails_after_its_worker_was_killed(
    server: ServerProcess, model: str
) -> None:
    workers = [step(server, model, sequence, 1, start=True)[1] for sequence in (1, 2)]
    assert workers[0] != workers[1]

    os.kill(workers[0], signal.SIGKILL)
    server.wait_for(f"model '{model}' version 1: its worker process was killed")

    assert step(server, model, 2, 2) == (3, workers[1])
    with pytest.raises(
        InferenceServerException,
        match=f"the state of sequence 1 of model '{model}' was lost with its worker process",
    ):
        step(server, model, 1, 2)
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        step(server, model, 1, 3)
    total, worker = step(server, model, 1, 4, start=True)
    assert total == 4
    assert worker != workers[0]
    assert step(server, model, 1, 5, end=True) == (9, worker)
    assert step(server, model, 2, 3, end=True) == (6, workers[1])
    assert not any(
        value
        for name, value in metrics_page(server).items()
        if name.startswith("nv_inference_pending_request_count")
    )


def test_all_queued_requests_of_a_lost_sequence_fail(server: ServerProcess) -> None:
    _, worker = step(server, "oldest", 11, 1, start=True)
    with ThreadPoolExecutor(4) as threads:
        long = threads.submit(step, server, "oldest", 11, 101)
        server.wait_for("a long one")
        queued = [threads.submit(step, server, "oldest", 11, value) for value in (2, 3)]
        wait_for_waiting(server, "oldest", 2)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(InferenceServerException, match="was killed by SIGKILL while it ran this request"):
            long.result()
        for one in queued:
            with pytest.raises(
                InferenceServerException, match="the state of sequence 11 of model 'oldest' was lost"
            ):
                one.result()


def wait_for_waiting(server: ServerProcess, model: str, count: int) -> None:
    """Returns when `count` requests are queued."""
    end = time.monotonic() + 10
    while metrics_page(server)[f'nv_inference_pending_request_count{{model="{model}",version="1"}}'] < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_sequence_with_state_in_the_server_continues_in_another_worker(server: ServerProcess) -> None:
    _, worker = step(server, "state", 1, 1, start=True)
    os.kill(worker, signal.SIGKILL)

    total, other = step(server, "state", 1, 2, end=True)

    assert total == 3
    assert other != worker
