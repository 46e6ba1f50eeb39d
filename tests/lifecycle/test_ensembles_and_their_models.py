"""Ensembles while the models of their steps change, fail or form a cycle; and the requests of steps."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from backline.embedded.embedded import Embedded
from backline.engine.config.model_config import Ensemble, EnsembleStep, ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Serving
from backline.engine.ticket import Ticket
from backline.lifecycle.composed import with_kinds
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.schedule.cache.config import LocalOptions
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, DeadlineExceeded, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest, SequenceStep
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor
from support.embedded import start
from support.reading import floats
from support.reading import put as put_model
from support.streaming import SQUARE


def adder(repository: Path, name: str, number: float, version: str = "1") -> None:
    """Adds a version that computes y = x + number."""
    aside = repository / f"{name}-made"
    node = helper.make_node("Add", ["x", "n"], ["y"])
    put_model(
        aside.parent,
        aside.name,
        [node],
        [floats("x", "b", 1)],
        [floats("y", "b", 1)],
        {"n": np.array([number], np.float32)},
    )
    (repository / name).mkdir(exist_ok=True)
    (aside / "1").rename(repository / name / version)
    aside.rmdir()


def step(model: str, taken: str, given: str, version: int = -1, names: tuple[str, str] = ("x", "y")) -> str:
    return (
        f'step {{ model_name: "{model}" model_version: {version} input_map {{ key: "{names[0]}" value:'
        f' "{taken}" }}'
        f' output_map {{ key: "{names[1]}" value: "{given}" }} }}'
    )


def ensemble(repository: Path, name: str, *steps: str, kind: str = "TYPE_FP32", more: str = "") -> None:
    """From x to z."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(
        f'platform: "ensemble"\nmax_batch_size: 8\n{more}'
        f'input {{ name: "x" data_type: {kind} dims: [ 1 ] }}\noutput {{ name: "z" data_type: {kind} dims:'
        f" [ 1 ] }}\n"
        f"ensemble_scheduling {{ {' '.join(steps)} }}\n"
    )


def ask(model: str, value: float = 0, **options: Any) -> InferRequest:
    return InferRequest(
        model, {"x": Tensor("x", DataType.FP32, (1, 1), np.array([[value]], np.float32))}, **options
    )


async def value_of(program: Embedded, model: str) -> float:
    response = await program.engine.infer(ask(model))
    return float(response.outputs[0].data[0, 0])


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """first: x + 1, second: x + 10; "chain" takes the newest of both, "pinned" the first version of the
    second.
    """
    repository = tmp_path / "models"
    adder(repository, "first", 1)
    adder(repository, "second", 10)
    (repository / "second" / "config.pbtxt").write_text("version_policy { all { } }\n")
    ensemble(repository, "chain", step("first", "x", "m"), step("second", "m", "z"))
    ensemble(repository, "pinned", step("first", "x", "m"), step("second", "m", "z", 1))
    return repository


async def test_versions_change_under_load_and_a_pinned_one_stays(chain: Path) -> None:
    program = await start(chain)
    control = program.engine.control
    assert control is not None
    seen: dict[str, set[float]] = {"chain": set(), "pinned": set()}

    async def client(model: str) -> None:
        while len(seen["chain"]) < 2:
            seen[model].add(await value_of(program, model))

    clients = [asyncio.ensure_future(client(model)) for model in seen for _ in range(4)]
    adder(chain, "second", 100, "2")
    await control.load("second", who="test")
    await asyncio.gather(*clients)

    assert seen == {"chain": {11.0, 101.0}, "pinned": {11.0}}
    await program.stop()


@pytest.mark.timeout(20)  # an endless loop of reviews would block the event loop
async def test_settings_that_need_no_load_change_while_an_ensemble_serves(chain: Path) -> None:
    program = await start(chain)
    control = program.engine.control
    assert control is not None
    before = program.engine.find("chain")

    config = chain / "chain" / "config.pbtxt"
    config.write_text(
        config.read_text() + 'parameters { key: "backline.pinned" value { string_value: "true" } }'
    )
    await control.load("chain", who="test")

    assert program.engine.find("chain") is before
    assert before.config.pinned
    assert await value_of(program, "chain") == 11
    await program.stop()


async def test_an_ensemble_that_pins_a_version_leaves_service_with_it_and_says_why(chain: Path) -> None:
    program = await start(chain)
    control = program.engine.control
    assert control is not None

    adder(chain, "second", 100, "2")
    (chain / "second" / "1" / "model.onnx").unlink()
    (chain / "second" / "1").rmdir()
    await control.load("second", who="test")
    with pytest.raises(
        Unavailable, match="ensemble 'pinned' depends on 'second' whose required version 1 is not loaded"
    ):
        await value_of(program, "pinned")

    assert await value_of(program, "chain") == 101
    assert program.engine.find("pinned").state is ModelState.UNAVAILABLE
    await program.stop()


async def test_a_change_without_a_load_is_applied_once(chain: Path) -> None:
    program = await start(chain)
    config = chain / "chain" / "config.pbtxt"
    config.write_text(config.read_text() + 'metric_tags { key: "team" value: "sound" }\n')
    assert program.engine.control is not None
    await program.engine.control.load("chain", who="test")
    tags = program.engine.find("chain").config.metric_tags
    await program.stop()
    assert tags == {"team": "sound"}


async def test_a_step_that_fails_to_load_is_named_with_its_reason(chain: Path) -> None:
    (chain / "second" / "1" / "model.onnx").write_bytes(b"no model")
    program = await start(chain)

    for name in ("chain", "pinned"):
        model = program.engine.find(name)
        assert model.state is ModelState.UNAVAILABLE
        assert model.reason.startswith(f"ensemble '{name}' depends on 'second' ")
    assert "cannot be loaded by ONNX Runtime" in program.engine.find("chain").reason
    with pytest.raises(Unavailable, match="depends on 'second'"):
        await value_of(program, "chain")
    await program.stop()


@pytest.mark.parametrize("others", [(), ("middle",), ("middle", "last")])
async def test_ensembles_that_call_each_other_are_refused_with_the_cycle(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    repository = tmp_path / "models"
    names = ("round", *others)
    for name, asked in zip(names, (*names[1:], names[0]), strict=True):
        ensemble(repository, name, step(asked, "x", "z", names=("x", "z")))
    program = await start(repository)

    for name in names:
        assert program.engine.find(name).state is ModelState.UNAVAILABLE
        assert "circular dependency between ensembles: " in program.engine.find(name).reason
    assert " -> ".join((*names, names[0])) in program.engine.find("round").reason
    await program.stop()


async def test_a_change_that_would_close_a_cycle_is_refused_and_the_old_keeps_serving(chain: Path) -> None:
    program = await start(chain)
    control = program.engine.control
    assert control is not None

    shutil.rmtree(chain / "first")
    ensemble(chain, "first", step("chain", "x", "z", names=("x", "z")))
    with pytest.raises(
        InvalidArgument, match="circular dependency between ensembles: first -> chain -> first"
    ):
        await control.load("first", who="test")

    assert await value_of(program, "chain") == 11
    await program.stop()


class Seen:
    """A queue in front of a model's that keeps the requests."""

    def __init__(self, program: Embedded, name: str) -> None:
        model = program.engine.find(name)
        self._queue = model.serving.queue
        model.serving = Serving(model.serving.check, self)
        self.tickets: list[Ticket] = []
        self.held: asyncio.Event | None = None

    @property
    def pending(self) -> int:
        return 0

    def submit(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)
        if self.held is not None:
            self.held.set()
            return
        assert self._queue is not None
        self._queue.submit(ticket)


async def test_each_step_gets_the_parameters_of_the_request(chain: Path) -> None:
    program = await start(chain)
    steps = [Seen(program, name) for name in ("first", "second")]
    deadline = monotonic() + 60

    said = {"id": "mine", "parameters": {"word": "yes"}, "priority": 2, "timeout": 30.0}
    await program.engine.infer(
        ask("chain", **said, deadline=deadline, sequence=SequenceStep("me", start=True))
    )

    for seen in steps:
        (ticket,) = seen.tickets
        assert {name: getattr(ticket.request, name) for name in said} == said
        assert ticket.waits_until == deadline
        assert ticket.request.sequence == SequenceStep("me", start=True)
    await program.stop()


async def test_a_deadline_ends_the_running_step_and_later_ones_never_begin(chain: Path) -> None:
    program = await start(chain)
    first, second = Seen(program, "first"), Seen(program, "second")
    first.held = asyncio.Event()
    done: asyncio.Future[BacklineError | None] = asyncio.get_running_loop().create_future()
    ticket = Ticket(ask("chain"), lambda _ticket, _response, error: done.set_result(error))

    program.engine.submit_until(ticket, monotonic() + 0.05)
    error = await done

    assert isinstance(error, DeadlineExceeded)
    assert first.tickets[0].cancelled
    assert second.tickets == []
    assert program.engine.find("chain").statistics.expired == 1
    await program.stop()


async def test_unloading_waits_for_requests_in_flight(chain: Path) -> None:
    program = await start(chain)
    control = program.engine.control
    assert control is not None

    answers = [asyncio.ensure_future(value_of(program, "chain")) for _ in range(8)]
    await asyncio.sleep(0)
    await control.unload("chain", dependents=True, who="test")

    assert {await answer for answer in answers} == {11.0}
    await program.stop()


async def test_cached_responses_last_while_all_called_versions_do(
    chain: Path,
) -> None:
    ensemble(
        chain, "outer", step("chain", "x", "z", names=("x", "z")), more="response_cache { enable: true }\n"
    )
    program = await start(chain, response_cache=LocalOptions(1024 * 1024))
    control = program.engine.control
    assert control is not None
    statistics = program.engine.find("outer").statistics

    before = [await value_of(program, "outer") for _ in range(3)]
    adder(chain, "second", 100, "2")
    await control.load("second", who="test")
    after = [await value_of(program, "outer") for _ in range(2)]

    assert (before, after) == ([11, 11, 11], [101, 101])
    assert (statistics.cache_hit.count, statistics.cache_miss.count, statistics.execution_count) == (3, 2, 2)
    assert (statistics.success.count, statistics.compute_infer.count) == (5, 2)
    await program.stop()


SHOUT = """
from backline.model import BYTES


class Model:
    max_batch_size = 8

    def predict(self, x: BYTES[1]) -> BYTES[1]:
        y = x.copy()
        for place, word in enumerate(x[:, 0]):
            y[place, 0] = word.upper() + b"!"
        return y
"""


async def test_strings_pass_from_step_to_step(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    specs = [helper.make_tensor_value_info(name, TensorProto.STRING, ["b", 1]) for name in "xy"]
    put_model(repository, "same", nodes, specs[:1], specs[1:], {})
    (repository / "shout" / "1").mkdir(parents=True)
    (repository / "shout" / "1" / "model.py").write_text(SHOUT)
    ensemble(
        repository,
        "loud",
        step("same", "x", "m"),
        step("shout", "m", "n", names=("x", "output")),
        step("same", "n", "z"),
        kind="TYPE_STRING",
    )
    program = await start(repository)
    words = np.array([[b"hey"], ["grüße".encode()], [b""]], np.object_)

    response = await program.engine.infer(
        InferRequest("loud", {"x": Tensor("x", DataType.BYTES, (3, 1), words)})
    )

    assert response.outputs[0].data.tolist() == [[b"HEY!"], ["GRüßE!".encode()], [b"!"]]
    await program.stop()


async def test_an_ensemble_loaded_at_start_brings_the_models_it_calls(
    chain: Path,
) -> None:
    ensemble(chain, "outer", step("chain", "x", "z", names=("x", "z")))
    adder(chain, "other", 5)
    program = Embedded(
        [chain],
        LifecycleOptions(mode="explicit", load_models=("outer",), state_folder=chain.parent / "state"),
    )
    await program.start()

    assert await value_of(program, "outer") == 11
    assert {model.name for model in program.engine.models()} == {"outer", "chain", "first", "second"}
    assert program.engine.ready
    await program.stop()


async def test_in_a_namespace_steps_are_models_of_the_same_repository(tmp_path: Path) -> None:
    for name, number in (("blue", 1.0), ("green", 100.0)):
        adder(tmp_path / name, "first", number)
        ensemble(tmp_path / name, "chain", step("first", "x", "m"), step("green.other", "m", "z"))
    adder(tmp_path / "green", "other", 5)
    options = LifecycleOptions(
        mode="explicit", load_models=(ALL_MODELS,), namespacing=True, state_folder=tmp_path / "state"
    )
    program = Embedded([tmp_path / "blue", tmp_path / "green"], options)
    await program.start()

    assert await value_of(program, "blue.chain") == 6
    assert await value_of(program, "green.chain") == 105
    await program.stop()


async def test_in_a_namespace_an_ensemble_appears_with_the_model_its_repository_lacked(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "blue"
    repository.mkdir()
    ensemble(repository, "chain", step("first", "x", "z"))
    options = LifecycleOptions(mode="poll", namespacing=True, state_folder=tmp_path / "state")
    program = Embedded([repository], options)
    await program.start()
    assert program.engine.find("chain").state is ModelState.UNAVAILABLE

    adder(repository, "first", 1)
    assert program.engine.control is not None
    await program.engine.control.refresh()

    assert await value_of(program, "chain") == 1
    await program.stop()


async def test_a_name_of_two_repositories_is_refused_as_ambiguous(tmp_path: Path) -> None:
    for name, number in (("blue", 1.0), ("green", 100.0)):
        adder(tmp_path / name, "first", number)
    (tmp_path / "red").mkdir()
    ensemble(tmp_path / "red", "chain", step("first", "x", "z"))
    options = LifecycleOptions(namespacing=True, state_folder=tmp_path / "state")
    program = Embedded([tmp_path / name for name in ("blue", "green", "red")], options)
    await program.start()

    text = (
        r"There are 2 identifiers of model 'first' in global map, model namespace must be provided to resolve"
        r" ambiguity\. Name the repository too: 'blue\.first' or 'green\.first'"
    )
    with pytest.raises(InvalidArgument, match=text):
        await value_of(program, "first")
    assert "contains models that are not available or ambiguous: first. There are 2" in (
        program.engine.find("chain").reason
    )
    await program.stop()


async def test_an_ensemble_loaded_by_request_calls_the_model_of_its_own_repository_once_that_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("blue", "green"):
        (tmp_path / name).mkdir()
    adder(tmp_path / "blue", "first", 1.0)
    ensemble(tmp_path / "green", "chain", step("first", "x", "z"))
    options = LifecycleOptions(mode="explicit", namespacing=True, state_folder=tmp_path / "state")
    program = Embedded([tmp_path / "blue", tmp_path / "green"], options)
    await program.start()
    control = program.engine.control
    assert control is not None
    await control.load("chain", who="test")
    assert await value_of(program, "chain") == 1

    adder(tmp_path / "green", "first", 100.0)
    await control.load("green.first", who="test")

    assert await value_of(program, "chain") == 100
    assert (await value_of(program, "blue.first"), await value_of(program, "green.first")) == (1, 100)
    async with asyncio.timeout(10):
        while "first" in program.engine.names():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(InvalidArgument, match="resolve ambiguity"):
        await value_of(program, "first")
    with pytest.raises(InvalidArgument, match=r"failed to load 'first'.*resolve ambiguity"):
        await control.load("first", who="test")
    assert "ensemble 'chain': its repository" in caplog.text
    await program.stop()


async def test_a_warning_says_that_an_ensemble_now_calls_the_model_of_another_repository(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, number in (("blue", 1.0), ("green", 100.0)):
        adder(tmp_path / name, "first", number)
    ensemble(tmp_path / "blue", "chain", step("first", "x", "z"))
    options = LifecycleOptions(mode="poll", namespacing=True, state_folder=tmp_path / "state")
    program = Embedded([tmp_path / "blue", tmp_path / "green"], options)
    await program.start()
    assert await value_of(program, "chain") == 1

    shutil.rmtree(tmp_path / "blue" / "first")
    assert program.engine.control is not None
    await program.engine.control.refresh()

    assert await value_of(program, "chain") == 100
    assert (
        f"ensemble 'chain': its repository '{tmp_path / 'blue'}' no longer has a model 'first', so its step"
        " calls 'first' and no longer 'blue.first'"
    ) in caplog.text
    await program.stop()


CALLER = """
from backline.model import FP32, Models

def NAME(x: FP32[-1, -1], models: Models) -> FP32[-1, -1]:
    return models["first"](x=x)["y"]
"""


async def test_in_a_namespace_a_python_model_calls_the_model_of_its_own_repository(tmp_path: Path) -> None:
    for name, number, caller in (("blue", 1.0, "asking"), ("green", 100.0, "calling")):
        adder(tmp_path / name, "first", number)
        (tmp_path / name / caller / "1").mkdir(parents=True)
        (tmp_path / name / caller / "1" / "model.py").write_text(CALLER.replace("NAME", caller))
    options = LifecycleOptions(namespacing=True, state_folder=tmp_path / "state")
    program = Embedded([tmp_path / "blue", tmp_path / "green"], options)
    await program.start()

    assert (await value_of(program, "asking"), await value_of(program, "calling")) == (1, 100)
    await program.stop()


def test_an_ensemble_takes_the_kind_of_file_that_its_step_takes() -> None:
    engine = Engine()
    model = Model("pitch", "1", ModelConfig("pitch"), state=ModelState.READY)
    text, sound = (TensorSpec(name, DataType.BYTES, (1,)) for name in ("text", "sound"))
    model.signature = Signature((replace(sound, media="audio"), text), ())
    engine.add(model)
    steps = Ensemble((EnsembleStep("pitch", "", {"sound": "song", "text": "title"}, {}),))
    inputs = (replace(text, name="title"), replace(sound, name="song"))

    found = with_kinds(Signature(inputs, ()), engine, steps)

    assert [(spec.name, spec.media) for spec in found.inputs] == [("title", ""), ("song", "audio")]


def streaming(repository: Path, name: str, *models: str) -> None:
    """An ensemble of decoupled models, each of which takes the responses of the model before it."""
    steps = (
        step(model, f"t{number}", f"t{number + 1}", names=("IN", "OUT"))
        for number, model in enumerate(models)
    )
    (repository / name).mkdir()
    (repository / name / "config.pbtxt").write_text(
        'platform: "ensemble"\ninput { name: "t0" data_type: TYPE_INT32 dims: [ 1 ] }\n'
        f'output {{ name: "t{len(models)}" data_type: TYPE_INT32 dims: [ 1 ] }}\n'
        f"ensemble_scheduling {{ {' '.join(steps)} }}\n"
    )


async def test_decoupled_steps_that_would_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(SQUARE)
    streaming(tmp_path, "a", "one", "two")
    streaming(tmp_path, "b", "two", "one")
    streaming(tmp_path, "twice", "one", "one")
    program = await start(tmp_path)
    control = program.engine.control
    assert control is not None

    served, refused = sorted((program.engine.find(name) for name in "ab"), key=lambda one: not one.ready)
    assert served.ready
    assert "would wait for later steps that wait for it" in refused.reason
    assert "'one' version 1 -> 'one' version 1. Copy model 'one'" in program.engine.find("twice").reason

    await control.unload(served.name, who="test")
    await control.load(refused.name, who="test")
    assert program.engine.find(refused.name).ready
    await program.stop()
