"""From a repository to served models: which are served, how, and why others are not."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from backline.backends.registry import FORMATS
from backline.engine.engine import Engine
from backline.engine.model import ModelState
from backline.lifecycle.journal import LoadEvent
from backline.lifecycle.lifecycle import Lifecycle
from backline.lifecycle.options import LifecycleOptions
from backline.repository.local import LocalRepository
from backline_client.values.datatypes import DataType
from backline_client.values.errors import NotFound, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from support import models


def ask(model: str, rows: int = 1, version: str = "") -> InferRequest:
    data = np.zeros((rows, 16), np.float32)
    inputs = {"INPUT0": Tensor("INPUT0", DataType.FP32, data.shape, data)}
    return InferRequest(model, inputs, model_version=version)


def value(response: InferResponse) -> float:
    return float(response.outputs[0].data[0, 0])


class Home:
    """An engine that serves repositories while a scenario runs."""

    def __init__(self, *repositories: Path) -> None:
        self.engine = Engine()
        self.events: list[LoadEvent] = []
        opened = [LocalRepository(path, formats=FORMATS) for path in repositories]
        self.lifecycle = Lifecycle(
            self.engine, opened, LifecycleOptions(state_folder=repositories[0].parent / "state")
        )

    async def __aenter__(self) -> Home:
        await self.lifecycle.start(self.events.append)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.lifecycle.close()


def test_the_newest_version_answers_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "add1").mkdir()
    (tmp_path / "add1" / "config.pbtxt").write_text("version_policy { all {} }")
    for version, constant in (("2", 2.0), ("10", 10.0)):
        models.add1(tmp_path, version=version, constant=constant)

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            assert value(await home.engine.infer(ask("add1"))) == 10
            assert value(await home.engine.infer(ask("add1", version="2"))) == 2
            with pytest.raises(NotFound, match="'add1' version 3 is not found"):
                await home.engine.infer(ask("add1", version="3"))

    asyncio.run(scenario())


def test_a_model_that_fails_says_why_and_does_not_stop_the_others(tmp_path: Path) -> None:
    models.add1(tmp_path)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    (tmp_path / "empty").mkdir()

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            assert value(await home.engine.infer(ask("add1"))) == 1
            broken = home.engine.find("broken")
            assert broken.state is ModelState.UNAVAILABLE
            assert "broken/1/model.onnx" in broken.reason
            with pytest.raises(Unavailable, match=r"is not at ready state: .*broken/1/model\.onnx"):
                await home.engine.infer(ask("broken"))
            assert "has no version" in home.engine.find("empty").reason
            assert not home.engine.ready
            assert {(event.name, event.state) for event in home.events} == {
                ("add1", ModelState.READY),
                ("broken", ModelState.UNAVAILABLE),
                ("empty", ModelState.UNAVAILABLE),
            }

    asyncio.run(scenario())


def test_every_load_is_counted_to_its_end(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        models.add1(tmp_path, name)

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            assert sorted((event.done, event.total) for event in home.events) == [(1, 3), (2, 3), (3, 3)]
            assert home.engine.ready

    asyncio.run(scenario())


def test_one_name_in_two_repositories_is_refused_by_naming_both(tmp_path: Path) -> None:
    for repository in ("one", "two"):
        models.add1(tmp_path / repository)
    models.add1(tmp_path / "two", "other")

    async def scenario() -> None:
        async with Home(tmp_path / "one", tmp_path / "two") as home:
            reason = home.engine.find("add1").reason
            assert str(tmp_path / "one" / "add1") in reason
            assert str(tmp_path / "two" / "add1") in reason
            assert home.engine.is_ready("other")

    asyncio.run(scenario())


def test_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        asyncio.run(Home(tmp_path / "nowhere").lifecycle.start())


@pytest.mark.parametrize(
    ("config", "executions"),
    [("", 1), ("max_batch_size: 0", 3), ("max_batch_size: 4 dynamic_batching {}", 1)],
)
def test_the_configuration_decides_whether_requests_are_joined(
    tmp_path: Path, config: str, executions: int
) -> None:
    models.add1(tmp_path)
    (tmp_path / "add1" / "config.pbtxt").write_text(config)

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            await asyncio.gather(*(home.engine.infer(ask("add1")) for _ in range(3)))
            statistics = home.engine.find("add1").statistics
            assert (statistics.inference_count, statistics.execution_count) == (3, executions)

    asyncio.run(scenario())


def test_a_request_without_items_is_answered_alone_and_in_a_batch(tmp_path: Path) -> None:
    models.add1(tmp_path)

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            assert (await home.engine.infer(ask("add1", 0))).outputs[0].shape == (0, 16)
            answers = await asyncio.gather(*(home.engine.infer(ask("add1", rows)) for rows in (0, 2, 0)))
            assert [answer.outputs[0].shape for answer in answers] == [(0, 16), (2, 16), (0, 16)]
            statistics = home.engine.find("add1").statistics
            assert (statistics.inference_count, statistics.execution_count, statistics.success.count) == (
                2,
                2,
                4,
            )

    asyncio.run(scenario())


def test_the_lane_and_the_instances_can_be_set(tmp_path: Path) -> None:
    models.add1(tmp_path)
    (tmp_path / "add1" / "config.pbtxt").write_text(
        'instance_group { count: 3 } parameters { key: "backline.lane" value { string_value: "thread" } }'
    )

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            placement = home.engine.find("add1").placement
            assert placement is not None
            assert (placement.lane, placement.instances) == ("thread", 3)
            answers = await asyncio.gather(*(home.engine.infer(ask("add1", rows)) for rows in range(1, 40)))
            assert [answer.outputs[0].shape[0] for answer in answers] == list(range(1, 40))

    asyncio.run(scenario())


def test_a_model_on_the_event_loop_moves_to_threads_when_requests_take_long(tmp_path: Path) -> None:
    names = ["INPUT0", *(f"hidden{number}" for number in range(7)), "OUTPUT0"]
    models.save(
        tmp_path / "waves" / "1" / "model.onnx",
        [helper.make_node("Sin", [names[number]], [names[number + 1]]) for number in range(8)],
        [("INPUT0", TensorProto.FLOAT, ["N", "M"])],
        [("OUTPUT0", TensorProto.FLOAT, ["N", "M"])],
    )
    data = np.zeros((1, 1_000_000), np.float32)

    def long() -> InferRequest:
        return InferRequest("waves", {"INPUT0": Tensor("INPUT0", DataType.FP32, data.shape, data)})

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            model = home.engine.find("waves")
            assert model.placement is not None
            assert model.placement.lane == "inline"
            for _ in range(4):
                answer = await home.engine.infer(long())
            assert answer.outputs[0].shape == data.shape
            assert model.placement.lane == "thread"
            assert "moved to threads" in model.placement.reason
            assert any(thread.name == "waves-0" for thread in threading.enumerate())

    asyncio.run(scenario())


def test_the_timeout_of_the_configuration_is_for_requests_without_one(tmp_path: Path) -> None:
    models.add1(tmp_path)
    (tmp_path / "add1" / "config.pbtxt").write_text(
        "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 60000000 default_queue_policy {"
        " default_timeout_microseconds: 10000 } }"
    )

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            with pytest.raises(Unavailable, match="Request timeout expired"):
                await home.engine.infer(ask("add1"))

    asyncio.run(scenario())


def test_a_closed_repository_refuses_requests(tmp_path: Path) -> None:
    models.add1(tmp_path)

    async def scenario() -> None:
        async with Home(tmp_path) as home:
            await home.engine.infer(ask("add1"))
        with pytest.raises(Unavailable, match="not at ready state"):
            await home.engine.infer(ask("add1"))

    asyncio.run(scenario())


def test_stopping_while_models_load_does_not_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.add1(tmp_path)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def load(*_: object) -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    monkeypatch.setattr("backline.lifecycle.loading.version_load.load", load)

    async def scenario() -> None:
        lifecycle = Home(tmp_path).lifecycle
        loading = asyncio.ensure_future(lifecycle.start())
        await asyncio.to_thread(begun.wait, 10)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await lifecycle.close()
        assert not ended.is_set()
        go_on.set()

    asyncio.run(scenario())
