"""Models of Triton's Python backend get one request at a time unless their configuration asks for batches."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.server import ServerProcess, serve

#: The request with a 0 waits for the gate; the response to each row is the numbers of requests and rows in
#: its run.
TRITON = """
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    {completion}
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        while not np.concatenate(given).all() and not Path({gate!r}).exists():
            Path({gate!r} + ".entered").touch()
            time.sleep(0.001)
        told = [[len(requests), sum(map(len, given))]]
        outputs = [pb_utils.Tensor("y", np.repeat(np.int32(told), len(x), 0)) for x in given]
        return [pb_utils.InferenceResponse([y]) for y in outputs]
"""
COMPLETION = """
    @staticmethod
    def auto_complete_config(config):
        config.set_dynamic_batching()
        return config
"""
NATIVE = """
import time
from pathlib import Path

import numpy as np
from backline.model import FP32, INT32

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[1]) -> INT32[2]:
        while not x.all() and not Path({gate!r}).exists():
            Path({gate!r} + ".entered").touch()
            time.sleep(0.001)
        return np.full((len(x), 2), [0, len(x)], np.int32)
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_INT32 dims: 2 }
"""
#: For queued batches of 1, 2, 4 and 1: the numbers of requests and rows in the run of each.
Runs = Callable[[str], list[list[int]]]
ALONE = [[1, 1], [1, 2], [1, 4], [1, 1]]
TOGETHER = [[4, 8]] * 4


def put(repository: Path, name: str, code: str, config: str, **values: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code.format(gate=str(repository.parent / name), **values))
    (repository / name / "config.pbtxt").write_text(config)


def post(url: str, body: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=60) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joining") / "models"
    put(folder, "plain", TRITON, CONFIG, completion="")
    put(folder, "changed", TRITON, CONFIG, completion="")
    put(folder, "asking", TRITON, CONFIG + "dynamic_batching { }", completion="")
    put(folder, "completed", TRITON, CONFIG, completion=COMPLETION)
    put(folder, "native", NATIVE, "")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serve(
        repository, repository.parent / "log", "--model-control-mode", "explicit", "--load-model", "*"
    ) as running:
        yield running


@pytest.fixture
def runs(repository: Path, server: ServerProcess) -> Iterator[Runs]:
    def pending(model: str) -> int:
        text = urllib.request.urlopen(f"{server.url}/metrics", timeout=10).read().decode()
        found = re.search(
            rf'^nv_inference_pending_request_count{{model="{model}",version="1"}} (\d+)', text, re.MULTILINE
        )
        return int(found[1]) if found else 0

    def until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def infer(model: str, rows: list[int]) -> list[int]:
        given = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 1], "data": rows}]}
        told = json.loads(post(f"{server.url}/v2/models/{model}/infer", json.dumps(given)))
        return list(told["outputs"][0]["data"][:2])

    def ask(model: str) -> list[list[int]]:
        gate, entered = repository.parent / model, repository.parent / f"{model}.entered"
        under_way = []
        try:
            for place, rows in enumerate(([0], [1], [1, 1], [1, 1, 1, 1], [1])):
                under_way.append(threads.submit(infer, model, rows))
                until(lambda place=place: pending(model) == place and entered.exists())
        finally:
            gate.touch()
            answers = [one.result() for one in under_way]
            gate.unlink(missing_ok=True)
            entered.unlink(missing_ok=True)
        return answers[1:]

    with ThreadPoolExecutor(5) as threads:
        yield ask


def test_without_dynamic_batching_requests_run_one_at_a_time(runs: Runs) -> None:
    assert runs("plain") == ALONE


def test_with_dynamic_batching_queued_requests_run_together(runs: Runs) -> None:
    assert runs("asking") == TOGETHER


def test_auto_complete_config_may_enable_dynamic_batching(runs: Runs) -> None:
    assert runs("completed") == TOGETHER


def test_a_reload_with_a_new_configuration_enables_dynamic_batching(
    runs: Runs, repository: Path, server: ServerProcess
) -> None:
    assert runs("changed") == ALONE
    (repository / "changed" / "config.pbtxt").write_text(CONFIG + "dynamic_batching { }")
    post(f"{server.url}/v2/repository/models/changed/load", "")

    assert runs("changed") == TOGETHER


def test_requests_of_other_python_models_still_run_together(runs: Runs) -> None:
    assert runs("native") == [[0, 8]] * 4
