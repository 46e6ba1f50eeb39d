"""Overrunning in-process executions: stopped by the runtime, or abandoned with their thread."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backline.embedded.embedded import Embedded
from backline.engine.ticket import Ticket
from backline.workers.here.instances import MAX_STUCK
from backline_client.values.control import Change
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from support.embedded import start, submit
from support.networks import looping
from support.server import metrics_page, serve

#: Loop counts that take minutes, and next to no time.
ENDLESS, QUICK = 2**40, 3


def put_looping(
    repository: Path,
    *,
    timeout: float = 0.3,
    idempotent: bool = True,
    shape: tuple[int | str, ...] = ("N",),
    settings: str = "",
) -> None:
    """A model whose executions ONNX Runtime can stop, and which batches concurrent requests."""
    (repository / "loop" / "1").mkdir(parents=True)
    looping(repository / "loop" / "1" / "model.onnx", shape)
    (repository / "loop" / "model.toml").write_text(
        f"max_batch_size = 8\nexecution_timeout_seconds = {timeout}\nidempotent = {str(idempotent).lower()}\n"
        f"{settings}\n[instance_group]\ncount = 1\n"
    )


def put_sleeping(
    repository: Path, *, seconds: float, timeout: float = 0.1, instances: int = 1, settings: str = ""
) -> None:
    """A model whose executions cannot be stopped."""
    (repository / "sleep" / "1").mkdir(parents=True)
    (repository / "sleep" / "config.pbtxt").write_text(
        f"""
        backend: "identity"
        input {{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }}
        output {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }}
        instance_group {{ count: {instances} }}
        parameters {{ key: "execute_delay_ms" value {{ string_value: "{round(seconds * 1000)}" }} }}
        parameters {{ key: "backline.execution_timeout_seconds" value {{ string_value: "{timeout}" }} }}
        {settings}
        """
    )


class Program:
    """The models of a folder, loaded in this process."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded

    def ask(self, model: str, **inputs: float) -> asyncio.Future[InferResponse]:
        known = {spec.name: spec for spec in self.embedded.engine.find(model).signature.inputs}
        tensors = {}
        for name, value in inputs.items():
            datatype = DataType.INT64 if name == "ROUNDS" else DataType.FP32
            data = np.full([1] * len(known[name].shape), value, datatype.dtype)
            tensors[name] = Tensor(name, datatype, data.shape, data)
        return submit(self.embedded, InferRequest(model, tensors))

    async def history(self) -> list[Change]:
        control = self.embedded.engine.control
        assert control is not None
        return await control.history(form=lambda page: list(page.entries))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # an abandoned thread signals nothing when it ends
        await asyncio.sleep(0.02)


def run(folder: Path, scenario: Callable[[Program], Awaitable[None]]) -> None:
    async def whole() -> None:
        program = Program(await start(folder / "models", drain_seconds=0.1))
        try:
            await scenario(program)
        finally:
            await program.embedded.stop()

    asyncio.run(asyncio.wait_for(whole(), 30))


def test_an_overrun_that_the_runtime_can_stop_is_stopped_and_retried_once(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        with pytest.raises(Internal) as error:
            await program.ask("loop", X=1, ROUNDS=ENDLESS)
        assert error.value.message == (
            "model 'loop' version 1 did not finish within 0.3 s, nor when it was retried"
        )
        answer = await program.ask("loop", X=1, ROUNDS=QUICK)
        assert answer.outputs[0].data.tolist() == [-1]
        counted = program.embedded.engine.find("loop").statistics
        assert (counted.timed_out, counted.stuck, counted.fail.count, counted.success.count) == (2, 0, 1, 1)

    put_looping(tmp_path / "models")
    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("shape", "settings", "inputs"),
    [
        (("N",), "constant_input.X = 1.0", {}),
        ((1, "N"), "batch_axis.X = 1\nbatch_axis.Y = 1", {"X": 1}),
    ],
    ids=["constant_input", "batch_axis"],
)
def test_a_timed_out_run_of_an_arranged_model_leaves_no_stuck_thread(
    tmp_path: Path, shape: tuple[int | str, ...], settings: str, inputs: dict[str, float]
) -> None:
    async def scenario(program: Program) -> None:
        with pytest.raises(Internal, match=r"did not finish within 0\.3 s"):
            await program.ask("loop", **inputs, ROUNDS=ENDLESS)
        counted = program.embedded.engine.find("loop").statistics
        assert (counted.timed_out, counted.stuck) == (2, 0)
        answer = await program.ask("loop", **inputs, ROUNDS=QUICK)
        assert answer.outputs[0].data.flatten().tolist() == [-1]

    put_looping(tmp_path / "models", shape=shape, settings=settings)
    run(tmp_path, scenario)


def test_requests_batched_with_an_overrunning_one_are_answered(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        endless, quick = program.ask("loop", X=1, ROUNDS=ENDLESS), program.ask("loop", X=2, ROUNDS=QUICK)
        assert (await quick).outputs[0].data.tolist() == [-2]
        with pytest.raises(Internal, match="nor when it was retried"):
            await endless
        counted = program.embedded.engine.find("loop").statistics
        assert (counted.timed_out, counted.execution_count) == (2, 1)

    put_looping(tmp_path / "models")
    run(tmp_path, scenario)


def test_a_model_that_is_not_idempotent_is_not_retried(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        with pytest.raises(
            Internal, match=r"within 0\.3 s; it is not tried again: the model is not idempotent"
        ):
            await program.ask("loop", X=1, ROUNDS=ENDLESS)
        assert program.embedded.engine.find("loop").statistics.timed_out == 1

    put_looping(tmp_path / "models", idempotent=False)
    run(tmp_path, scenario)


def test_a_thread_that_cannot_be_interrupted_is_abandoned_and_replaced(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        with pytest.raises(Internal, match=r"model 'sleep' version 1 did not finish within 0\.1 s, nor when"):
            await program.ask("sleep", X=1)
        counted = program.embedded.engine.find("sleep").statistics
        assert (counted.timed_out, counted.stuck) == (2, 2)
        replaced = [change for change in await program.history() if change.action == "replace"]
        assert [(change.who, change.model, change.version) for change in replaced] == [
            ("server", "sleep", "1")
        ] * 2
        assert (
            "cannot be interrupted: its thread is abandoned, and a new thread replaces it (2 so far)"
            in replaced[0].detail
        )
        await until(lambda: not counted.stuck)  # they end within a second

    declared = 'parameters { key: "backline.idempotent" value { string_value: "true" } }'
    put_sleeping(tmp_path / "models", seconds=0.8, settings=declared)
    run(tmp_path, scenario)


def test_an_overrun_is_not_retried_unless_the_model_is_declared_idempotent(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        with pytest.raises(Internal) as error:
            await program.ask("sleep", X=1)
        assert error.value.message == (
            "model 'sleep' version 1 did not finish within 0.1 s; it is not tried again unless the model is"
            " declared idempotent"
        )
        counted = program.embedded.engine.find("sleep").statistics
        assert (counted.timed_out, counted.stuck) == (1, 1)

    put_sleeping(tmp_path / "models", seconds=0.8)
    run(tmp_path, scenario)


def test_a_model_with_too_many_stuck_executions_refuses_requests_until_one_ends(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        asked = [program.ask("sleep", X=1) for _ in range(3 * MAX_STUCK)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in errors} == {Internal, Unavailable}
        model = program.embedded.engine.find("sleep")
        assert MAX_STUCK <= model.statistics.stuck < MAX_STUCK + 4  # other instances may have been executing
        with pytest.raises(
            Unavailable, match="runs that do not end; it is available again when one of them does"
        ):
            program.ask("sleep", X=1)
        await until(lambda: model.answers)
        assert model.statistics.stuck < MAX_STUCK

    put_sleeping(tmp_path / "models", seconds=1.0, instances=4)
    run(tmp_path, scenario)


def test_an_execution_that_ended_while_the_server_was_suspended_is_not_overdue(tmp_path: Path) -> None:
    put_sleeping(tmp_path / "models", seconds=0.3, timeout=0.5)
    with serve(tmp_path / "models", tmp_path / "log") as server, ThreadPoolExecutor(1) as thread:
        body = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1],"data":[1]}]}'
        answer = thread.submit(urllib.request.urlopen, f"{server.url}/v2/models/sleep/infer", body)
        time.sleep(0.1)  # it is executing
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        server.process.send_signal(signal.SIGCONT)
        assert answer.result().status == 200
        assert metrics_page(server)['backline_execution_timeouts_total{model="sleep",version="1"}'] == 0


def test_a_cancelled_execution_is_not_counted_as_overdue(tmp_path: Path) -> None:
    async def scenario(program: Program) -> None:
        tensors = {
            "X": Tensor("X", DataType.FP32, (1,), np.ones(1, np.float32)),
            "ROUNDS": Tensor("ROUNDS", DataType.INT64, (1,), np.array([ENDLESS])),
        }
        request = Ticket(InferRequest("loop", tensors), lambda *_: None)
        program.embedded.engine.submit(request)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        request.cancel()
        assert (await program.ask("loop", X=1, ROUNDS=QUICK)).outputs[0].data.tolist() == [-1]
        counted = program.embedded.engine.find("loop").statistics
        assert (counted.timed_out, counted.cancelled) == (0, 1)

    put_looping(tmp_path / "models", timeout=20)
    run(tmp_path, scenario)


def test_the_metrics_count_overdue_executions(tmp_path: Path) -> None:
    put_sleeping(tmp_path / "models", seconds=0.6)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        body = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1],"data":[1]}]}'
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/v2/models/sleep/infer", body)
        assert refused.value.code == 500
        metrics = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
        assert 'backline_execution_timeouts_total{model="sleep",version="1"} 1' in metrics
        assert 'backline_stuck_runs{model="sleep",version="1"}' in metrics
