"""A batch ends early once all its requests are cancelled: with a real ONNX model that would run for very
long.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backline.backends.backend import Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.plugins.runtimes.onnx.runtime import OnnxModel, OnnxRuntime
from backline.schedule.batching import BatchPolicy
from backline.schedule.scheduler import Scheduler, Settings
from backline.workers.here.execution import Execution
from backline.workers.here.instances import ThreadInstance
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from support import networks

#: Rounds that take minutes.
ENDLESS = 2**40


def looping(path: Path) -> OnnxModel:
    """See networks.looping."""
    networks.looping(path)
    return OnnxRuntime().load(path, ModelConfig("m", source="config.pbtxt"))


class SignallingModel:
    """An ONNX model that signals when a run begins."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.signature = model.signature
        self.threads_per_run = model.threads_per_run
        self.warnings = model.warnings
        self.run = model.run
        self.close = model.close
        self.runs = 0
        self.began = threading.Event()

    def cancellable(self) -> tuple[Run, Callable[[], None]]:
        run, cancel = self._model.cancellable()

        def signalling(inputs, outputs):  # type: ignore[no-untyped-def]
            self.runs += 1
            self.began.set()
            return run(inputs, outputs)

        return signalling, cancel


class Bench:
    """A scheduler with one thread for a model that loops."""

    def __init__(self, model: OnnxModel) -> None:
        self.loop = asyncio.get_running_loop()
        self.model = SignallingModel(model)
        self.statistics = ModelStatistics()
        instance = ThreadInstance(Execution("m", "1", self.model), self.loop, "m")
        self.scheduler = Scheduler("m", Settings(BatchPolicy(8)), [instance], self.statistics, loop=self.loop)

    def ask(self, rounds: int) -> tuple[Ticket, asyncio.Future[InferResponse]]:
        answer: asyncio.Future[InferResponse] = self.loop.create_future()

        def complete(_: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(response)  # type: ignore[arg-type]

        inputs = {
            "X": Tensor("X", DataType.FP32, (1,), np.ones(1, np.float32)),
            "ROUNDS": Tensor("ROUNDS", DataType.INT64, (1,), np.array([rounds])),
        }
        ticket = Ticket(InferRequest("m", inputs), complete)
        self.scheduler.submit(ticket)
        return ticket, answer

    async def running(self) -> None:
        await self.loop.run_in_executor(None, self.model.began.wait, 30)


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    return looping(tmp_path / "model.onnx")


def test_a_run_of_an_onnx_model_can_be_cancelled_from_another_thread(model: OnnxModel) -> None:
    assert hasattr(model, "cancellable")
    run, cancel = model.cancellable()
    timer = threading.Timer(0.05, cancel)
    timer.start()
    with pytest.raises(Internal, match="terminate"):
        run({"X": np.ones(1, np.float32), "ROUNDS": np.array([ENDLESS])}, ["Y"])
    (answer,) = model.run({"X": np.ones(1, np.float32), "ROUNDS": np.array([2])}, ["Y"])
    assert answer.tolist() == [1.0], "other runs of the model are unaffected"


def test_a_running_batch_ends_with_its_last_request_and_the_instance_continues(
    model: OnnxModel,
) -> None:
    async def scenario() -> None:
        bench = Bench(model)
        batch = [bench.ask(ENDLESS)[0] for _ in range(3)]
        await bench.running()
        for ticket in batch:
            ticket.cancel()
        assert (await bench.ask(1)[1]).outputs[0].data.tolist() == [-1.0]
        assert bench.model.runs == 2
        assert (bench.statistics.cancelled, bench.statistics.success.count, bench.statistics.fail.count) == (
            3,
            1,
            0,
        )
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_running_batch_continues_while_any_of_its_requests_is_live(model: OnnxModel) -> None:
    async def scenario() -> None:
        bench = Bench(model)
        patient, gone = bench.ask(30_001), bench.ask(30_001)
        await bench.running()
        gone[0].cancel()
        assert (await patient[1]).outputs[0].data.tolist() == [-1.0]
        assert bench.model.runs == 1
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_batch_abandoned_before_its_thread_starts_does_not_run(model: OnnxModel) -> None:
    async def scenario() -> None:
        bench = Bench(model)
        held = threading.Event()
        execution = Execution("m", "1", bench.model)

        def execute(batch):  # type: ignore[no-untyped-def]
            held.wait(30)
            execution(batch)

        bench.scheduler.replace_instances([ThreadInstance(execute, bench.loop, "m")])
        ticket, _ = bench.ask(ENDLESS)
        await asyncio.sleep(0)
        assert bench.scheduler.running == 1
        ticket.cancel()
        held.set()
        await bench.scheduler.drain(30)
        assert (bench.model.runs, bench.statistics.cancelled) == (0, 1)

    asyncio.run(scenario())
