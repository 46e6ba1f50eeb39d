"""What follows from a proof, and from a configured batch; and that a slow model is proved only once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline.lifecycle.loading import loaded_here
from backline.plugins.runtimes.onnx.runtime import OnnxModel
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support import models
from support.networks import FLOAT, build, floats, ints, node

Homes = Callable[..., Any]
SLOW = """
backend: "identity"
max_batch_size: 0
input { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }
parameters { key: "execute_delay_ms" value: { string_value: "150" } }
"""


def slow(repository: Path, text: str = SLOW) -> None:
    (repository / "slow" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "slow" / "config.pbtxt").write_text(text)


async def reason(home: Homes, repository: Path, name: str = "slow") -> str:
    async with home(repository) as server:
        placement = server.engine.find(name).placement
        assert placement is not None
        return placement.reason


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are measured."""
    from backline.lifecycle.loading import loader

    names: list[str] = []
    measure = loader.measure_model

    def noted(config: object, *rest: object) -> object:
        names.append(config.name)
        return measure(config, *rest)

    monkeypatch.setattr(loader, "measure_model", noted)
    return names


def test_a_slow_model_is_not_measured_again_after_a_restart(
    home: Homes, repository: Path, measurements: list[str]
) -> None:
    slow(repository)

    first = asyncio.run(reason(home, repository))
    again = asyncio.run(reason(home, repository))

    assert measurements == ["slow"]
    assert again == first


def test_other_files_or_a_damaged_memory_are_measured_again(
    home: Homes, repository: Path, measurements: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    slow(repository)
    asyncio.run(reason(home, repository))

    (repository / "slow" / "1" / "weights").write_bytes(b"others")
    asyncio.run(reason(home, repository))
    slow(repository, SLOW.replace("150", "160"))
    asyncio.run(reason(home, repository))
    (kept,) = (repository.parent / "state" / "measured").iterdir()
    kept.write_text("{}")
    asyncio.run(reason(home, repository))

    assert measurements == ["slow"] * 4
    assert "cannot be used" in caplog.text


def test_a_quick_model_with_small_files_is_measured_once(
    home: Homes, repository: Path, measurements: list[str]
) -> None:
    build(
        repository / "add" / "1" / "model.onnx",
        [node("Add", ["X", "X"], ["Y"])],
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["N", 4])],
    )

    first = asyncio.run(reason(home, repository, "add"))
    again = asyncio.run(reason(home, repository, "add"))

    assert measurements == ["add"]
    assert again == first


def test_a_quick_model_with_large_files_is_measured_at_each_start(
    home: Homes, repository: Path, measurements: list[str]
) -> None:
    slow(repository, SLOW.replace("150", "0"))
    (repository / "slow" / "1" / "weights").write_bytes(bytes(2 << 20))

    asyncio.run(reason(home, repository))
    asyncio.run(reason(home, repository))

    assert measurements == ["slow", "slow"]


@pytest.mark.parametrize("isolate", ["new", "never"])
def test_a_batch_limit_that_a_busy_machine_left_undecided_is_measured_again_at_the_next_start(
    home: Homes, repository: Path, measurements: list[str], isolate: str
) -> None:
    build(
        repository / "add" / "1" / "model.onnx",
        [node("Add", ["X", "X"], ["Y"])],
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["N", 4])],
    )
    asyncio.run(reason(home, repository, "add"))
    (kept,) = (repository.parent / "state" / "measured").iterdir()
    document = json.loads(kept.read_text())
    document["measured"]["times"]["undecided"] = True
    kept.write_text(json.dumps(document))
    measurements.clear()

    async def scenario() -> str:
        async with home(repository, isolate=isolate) as server:
            placement = server.engine.find("add").placement
            assert placement is not None
            return placement.reason

    asyncio.run(scenario())
    assert measurements == ([] if isolate == "new" else ["add"]), "a trial measures in its own process"
    kept_again = json.loads(kept.read_text())["measured"]["times"]
    assert kept_again["seconds"] != document["measured"]["times"]["seconds"]


def test_an_answer_without_the_configured_batch_is_an_error_that_says_so(
    home: Homes, repository: Path
) -> None:
    nodes = [node("MatMul", ["X", "W"], ["h"]), node("ReduceSum", ["h", "axis"], ["Y"], keepdims=0)]
    build(
        repository / "wrong" / "1" / "model.onnx",
        nodes,
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["M"])],
        {"W": floats(4, 5), "axis": ints(0)},
    )
    (repository / "wrong" / "config.pbtxt").write_text("max_batch_size: 8")

    async def scenario() -> str:
        async with home(repository) as server:
            data = np.zeros((3, 4), np.float32)
            request = InferRequest("wrong", {"X": Tensor("X", DataType.FP32, data.shape, data)})
            together = [server.engine.infer(request) for _ in range(2)]
            found = await asyncio.gather(*together, return_exceptions=True)
            assert all(isinstance(error, Internal) for error in found)
            return str(found[0])

    text = asyncio.run(scenario())
    assert "output 'Y' of model 'wrong' has shape [5] for a batch of" in text
    assert "although the model's configuration sets max_batch_size to 8: set it to 0" in text


def test_a_model_whose_batch_was_proved_still_broadcasts_its_inputs(home: Homes, repository: Path) -> None:
    inputs = [("A", FLOAT, ["N", 4]), ("B", FLOAT, ["M", 4])]
    build(
        repository / "mul" / "1" / "model.onnx",
        [node("Mul", ["A", "B"], ["Y"])],
        inputs,
        [("Y", FLOAT, ["N", 4])],
    )

    def request(rows: int, others: int) -> InferRequest:
        arrays = {"A": np.full((rows, 4), rows, np.float32), "B": np.full((others, 4), others, np.float32)}
        return InferRequest(
            "mul", {name: Tensor(name, DataType.FP32, array.shape, array) for name, array in arrays.items()}
        )

    async def scenario() -> None:
        async with home(repository) as server:
            assert server.engine.find("mul").max_batch_size > 0
            pairs = [(1, 3), (2, 2), (3, 1), (1, 3), (2, 2)]
            answers = await asyncio.gather(*(server.engine.infer(request(*pair)) for pair in pairs))
            for (rows, others), answer in zip(pairs, answers, strict=True):
                product = np.full((max(rows, others), 4), rows * others, np.float32)
                np.testing.assert_array_equal(answer.outputs[0].data, product)

    asyncio.run(scenario())


RECALL = """
import sys
from pathlib import Path
from threading import Barrier, Thread
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.measurement_file import MeasurementFile

sys.setswitchinterval(1e-6)
start = Barrier(4)

def recall(version):
    start.wait()
    MeasurementFile(Path(sys.argv[1]), ModelConfig("slow"), version, lambda: None).recall_anywhere()

threads = [Thread(target=recall, args=("1",)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_may_recall_measurements_at_the_same_time(home: Homes, repository: Path) -> None:
    slow(repository)
    asyncio.run(reason(home, repository))
    (kept,) = (file for file in repository.parent.rglob("*.json") if file.parent.name == "measured")
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", RECALL, str(kept.parents[1])], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "quick"])
@pytest.mark.parametrize("isolate", ["new", "never"])
def test_slow_first_runs_of_a_model_whose_measurements_are_known_do_not_block_the_event_loop(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch, isolate: str, slow: bool
) -> None:
    """They may be known from a trial in another process, or from an earlier start."""
    ran_on: list[threading.Thread] = []
    run = OnnxModel.run

    def noted(self: OnnxModel, *args: Any) -> list[np.ndarray]:
        ran_on.append(threading.current_thread())
        return run(self, *args)

    file = models.add1(repository)
    (file.parent.parent / "model.toml").write_text('lane = "inline"\n')
    monkeypatch.setattr(OnnxModel, "run", noted)
    monkeypatch.setattr(loaded_here, "SLOW_FIRST_RUN", -1.0 if slow else 60.0)

    async def scenario() -> None:
        if isolate == "never":
            async with home(repository):
                ran_on.clear()
        async with home(repository, isolate=isolate) as server:
            assert 1 < len(ran_on) <= 3 if slow else not ran_on  # it was not measured again
            assert threading.current_thread() not in ran_on
            assert await server.answer() == 1
            assert ran_on[-1] is threading.current_thread()

    asyncio.run(scenario())


def test_first_runs_that_looked_slow_on_a_busy_machine_are_repeated_at_one_start_only(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    run = OnnxModel.run

    def counted(self: OnnxModel, *args: Any) -> list[np.ndarray]:
        nonlocal runs
        runs += 1
        return run(self, *args)

    file = models.add1(repository)
    (file.parent.parent / "model.toml").write_text('lane = "inline"\n')
    monkeypatch.setattr(loaded_here, "SLOW_FIRST_RUN", 60.0)

    async def runs_of_a_start() -> int:
        nonlocal runs
        runs = 0
        async with home(repository):
            return runs

    async def scenario() -> None:
        kept = repository.parent / "state" / "measured"
        while not kept.exists():  # a busy machine may make the model look slow, which is not stored
            await runs_of_a_start()
        (document,) = kept.iterdir()
        measured = json.loads(document.read_text())
        measured["measured"]["times"]["first"] = 100.0
        document.write_text(json.dumps(measured))
        monkeypatch.setattr(OnnxModel, "run", counted)

        assert await runs_of_a_start() > 0
        assert await runs_of_a_start() == 0

    asyncio.run(scenario())
