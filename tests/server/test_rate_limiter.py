"""The rate limiter on a real server: shared resources, priorities, and requirements that cannot be met."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backline.cli.serve import command
from backline.embedded.embedded import Embedded
from backline.engine.model import ModelState
from backline_client.values.datatypes import DataType
from backline_client.values.errors import DeadlineExceeded, Internal
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from support.embedded import start, submit
from support.server import serve
from support.streaming import ENSEMBLE_INPUTS, ENSEMBLE_STEP, REPEAT

#: Each execution takes a moment and logs its start and end to a file shared by all instances.
RECORDING = """
import time
from pathlib import Path

from backline.model import FP32


class Model:
    def predict(self, x: FP32[1]) -> FP32[1]:
        name = Path(__file__).parents[1].name
        begun = time.monotonic()
        time.sleep(0.02)
        with open(Path(__file__).parents[2] / "runs", "a") as runs:
            runs.write(f"{name} {begun} {time.monotonic()}\\n")
        return x
"""


def identity(repository: Path, name: str, *, delay: int = 20, groups: str, lane: str = "thread") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(
        f"""
        backend: "identity"
        input {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }}
        output {{ name: "output" data_type: TYPE_FP32 dims: [ 1 ] }}
        {groups}
        parameters {{ key: "execute_delay_ms" value {{ string_value: "{delay}" }} }}
        parameters {{ key: "backline.lane" value {{ string_value: "{lane}" }} }}
        """
    )


def python(repository: Path, name: str, *, groups: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(RECORDING)
    (repository / name / "config.pbtxt").write_text(groups)


def limiter(name: str, count: int, *, instances: int = 1, priority: int = 1, everywhere: bool = False) -> str:
    resource = f'resources [ {{ name: "{name}" count: {count} global: {str(everywhere).lower()} }} ]'
    return f"instance_group [ {{ count: {instances} rate_limiter {{ {resource} priority: {priority} }} }} ]"


async def started(folder: Path, *resources: str) -> Embedded:
    return await start(folder / "models", rate_limit=resources)


def ask(
    program: Embedded, model: str, *, deadline: float | None = None, batched: bool = False
) -> asyncio.Future[InferResponse]:
    shape = (1, 1) if batched else (1,)
    x = Tensor("x", DataType.FP32, shape, np.ones(shape, np.float32))
    return submit(program, InferRequest(model, {"x": x}, deadline=deadline))


def test_models_that_share_a_resource_never_overlap(tmp_path: Path) -> None:
    async def scenario() -> float:
        identity(tmp_path / "models", "one", groups=limiter("a", 2, instances=2))
        identity(tmp_path / "models", "other", groups=limiter("a", 2, instances=2), lane="inline")
        program = await started(tmp_path)
        began = time.monotonic()
        await asyncio.gather(*(ask(program, model) for model in ("one", "other") * 4))
        took = time.monotonic() - began
        await program.stop()
        return took

    assert asyncio.run(scenario()) >= 8 * 0.02


def test_worker_processes_acquire_resources(tmp_path: Path) -> None:
    async def scenario() -> None:
        for name in ("one", "other"):
            python(tmp_path / "models", name, groups=limiter("gpu", 1, instances=2, everywhere=True))
        program = await started(tmp_path, "gpu:2")
        (tmp_path / "models" / "runs").write_text("")
        await asyncio.gather(*(ask(program, model) for model in ("one", "other") * 6))
        await program.stop()

    asyncio.run(scenario())

    runs = [line.split() for line in (tmp_path / "models" / "runs").read_text().splitlines()]
    spans = [(float(begun), float(ended)) for _, begun, ended in runs]
    assert len(spans) == 12
    at_once = max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans)
    assert at_once == 2


def test_turns_are_weighted_by_priority(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int]:
        identity(tmp_path / "models", "first", delay=2, groups=limiter("a", 1))
        identity(tmp_path / "models", "second", delay=2, groups=limiter("a", 1, priority=3))
        program = await started(tmp_path)
        rest = [ask(program, model) for model in ("first", "second") * 60]
        await asyncio.gather(*rest[::2])  # until the first model has had all its turns
        counts = [program.engine.find(model).statistics.execution_count for model in ("first", "second")]
        await asyncio.gather(*rest)
        await program.stop()
        return counts[0], counts[1]

    first, second = asyncio.run(scenario())

    assert first == 60
    assert 17 <= second <= 23


def test_a_deadline_that_passes_while_waiting_for_a_resource_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        identity(tmp_path / "models", "long", delay=150, groups=limiter("a", 1))
        identity(tmp_path / "models", "quick", delay=0, groups=limiter("a", 1))
        program = await started(tmp_path)
        running = ask(program, "long")
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await ask(program, "quick", deadline=time.monotonic() + 0.03)
        await running
        assert program.engine.find("quick").statistics.execution_count == 0
        await program.stop()

    asyncio.run(scenario())


def test_a_model_that_requires_more_than_the_resource_limit_does_not_load(tmp_path: Path) -> None:
    identity(tmp_path / "models", "greedy", groups=limiter("a", 5))
    identity(tmp_path / "models", "modest", groups=limiter("a", 3))
    options = ("--rate-limit", "execution_count", "--rate-limit-resource", "a:3")

    with serve(tmp_path / "models", tmp_path / "log", *options, ready=False) as server:
        server.wait_started()

        reason = (
            'Resource count for "a" is limited to 3 '
            "which will prevent scheduling of one or more model instances, the minimum"
        )
        assert reason in server.output
        assert "loaded modest" in server.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--rate-limit-resource", "a:3"), "--rate-limit-resource needs --rate-limit execution_count"),
        (
            ("--rate-limit", "execution_count", "--rate-limit-resource", "a"),
            "'a' is not a resource: expected NAME:COUNT or NAME:COUNT:DEVICE",
        ),
    ],
)
def test_invalid_resource_options_are_refused(options: tuple[str, ...], reason: str) -> None:
    result = CliRunner().invoke(command, ["models", *options])

    assert result.exit_code == 2
    assert reason in result.output


#: Calls another model for each request.
CALLING = """
from backline.model import FP32, Models


class Model:
    def predict(self, x: FP32[1], models: Models) -> FP32[1]:
        return models["called"](x=x)["output"]
"""


def calling(repository: Path, *, groups: str) -> None:
    (repository / "calling" / "1").mkdir(parents=True)
    (repository / "calling" / "1" / "model.py").write_text(CALLING)
    (repository / "calling" / "config.pbtxt").write_text(groups)


def test_calling_a_model_that_needs_a_resource_the_caller_holds_is_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        identity(tmp_path / "models", "called", delay=0, groups=limiter("memory", 1))
        calling(tmp_path / "models", groups=limiter("memory", 1))
        program = await started(tmp_path)
        with pytest.raises(
            Internal, match="would wait for model 'called', which might wait for 'memory' forever"
        ):
            await asyncio.wait_for(ask(program, "calling"), 10)
        await asyncio.wait_for(ask(program, "called"), 10)
        await program.stop()

    asyncio.run(scenario())


def test_calling_a_model_is_allowed_if_enough_of_the_resource_remains(tmp_path: Path) -> None:
    async def scenario() -> None:
        identity(tmp_path / "models", "called", delay=0, groups=limiter("memory", 1))
        calling(tmp_path / "models", groups=limiter("memory", 1, instances=2))
        program = await started(tmp_path, "memory:3")
        await asyncio.wait_for(asyncio.gather(*(ask(program, "calling") for _ in range(8))), 20)
        await program.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("resources", "reason"), [((), "might wait for 'memory' forever"), (("memory:129",), "")]
)
def test_an_ensemble_whose_decoupled_step_holds_the_next_steps_resource_is_refused(
    tmp_path: Path, resources: tuple[str, ...], reason: str
) -> None:
    """A decoupled model has a slot for each of 128 streams."""

    async def scenario() -> None:
        for name, config in (
            ("repeat", REPEAT + limiter("memory", 1)),
            ("last", LAST + limiter("memory", 1)),
            ("both", BOTH),
        ):
            (tmp_path / "models" / name / "1").mkdir(parents=True)
            (tmp_path / "models" / name / "config.pbtxt").write_text(config)
        program = await started(tmp_path, *resources)
        both = program.engine.find("both")
        assert reason in both.reason
        assert (both.state is ModelState.READY) == (not reason)
        await program.stop()

    asyncio.run(scenario())


LAST = """
backend: "identity"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
BOTH = (
    'platform: "ensemble"'
    + ENSEMBLE_INPUTS
    + """output [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling {
  max_inflight_requests: 2"""
    + ENSEMBLE_STEP
    + """    output_map { key: "OUT" value: "n" } }
  step { model_name: "last" model_version: -1
    input_map { key: "IN" value: "n" } output_map { key: "OUT" value: "N" } }
}
"""
)


def test_a_batch_grows_while_waiting_for_its_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        identity(tmp_path / "models", "long", delay=150, groups=limiter("a", 1))
        identity(
            tmp_path / "models",
            "joined",
            delay=0,
            groups=limiter("a", 1) + " max_batch_size: 8 dynamic_batching { }",
        )
        program = await started(tmp_path)
        running = ask(program, "long")
        await asyncio.sleep(0)
        waiting = []
        for _ in range(4):
            waiting.append(ask(program, "joined", batched=True))
            await asyncio.sleep(0.005)
        await asyncio.gather(running, *waiting)
        assert program.engine.find("joined").statistics.execution_count == 1
        await program.stop()

    asyncio.run(scenario())
