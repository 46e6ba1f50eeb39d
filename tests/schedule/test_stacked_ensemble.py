"""Requests that reach an ensemble together, go through its steps together, and yet are separate requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from backline.embedded.embedded import Embedded
from backline.engine.model import Serving
from backline.engine.statistics import ModelStatistics, ResponseStatistics
from backline.engine.ticket import Ticket
from backline.schedule.ensembles import stacked
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, DeadlineExceeded
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.embedded import AwaitedTicket, start
from support.reading import floats, put

WIDTH = 4
ENSEMBLE = f"""\
platform: "ensemble"
max_batch_size: 8
input {{ name: "row" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
input {{ name: "place" data_type: TYPE_INT64 dims: [ 1 ] }}
output {{ name: "picked" data_type: TYPE_FP32 dims: [ 1 ] }}
ensemble_scheduling {{
  step {{ model_name: "pick" model_version: -1
    input_map {{ key: "row" value: "doubled" }} input_map {{ key: "place" value: "place" }}
    output_map {{ key: "picked" value: "picked" }} }}
  step {{ model_name: "double" model_version: -1
    input_map {{ key: "row" value: "row" }} output_map {{ key: "doubled" value: "doubled" }} }}
}}
"""
STEPS = ("double", "pick")
#: Two steps with the same model.
TWICE = f"""\
platform: "ensemble"
max_batch_size: 8
input {{ name: "one" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
input {{ name: "other" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
output {{ name: "first" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
output {{ name: "second" data_type: TYPE_FP32 dims: [ {WIDTH} ] }}
ensemble_scheduling {{
  step {{ model_name: "double" model_version: -1
    input_map {{ key: "row" value: "one" }} output_map {{ key: "doubled" value: "first" }} }}
  step {{ model_name: "double" model_version: -1
    input_map {{ key: "row" value: "other" }} output_map {{ key: "doubled" value: "second" }} }}
}}
"""


def write(repository: Path) -> Path:
    """Doubles a row, then picks the value at a place; the second step fails if there is no such place."""
    row, place = (
        floats("row", "b", WIDTH),
        helper.make_tensor_value_info("place", TensorProto.INT64, ["b", 1]),
    )
    doubled, picked = floats("doubled", "b", WIDTH), floats("picked", "b", 1)
    put(repository, "double", [helper.make_node("Add", ["row", "row"], ["doubled"])], [row], [doubled], {})
    pick = helper.make_node("GatherElements", ["row", "place"], ["picked"], axis=1)
    put(repository, "pick", [pick], [row, place], [picked], {})
    for step in STEPS:
        (repository / step / "config.pbtxt").write_text(
            "max_batch_size: 8\ndynamic_batching { preferred_batch_size: 8 }\n"
            'parameters { key: "backline.lane" value { string_value: "inline" } }\n'
        )
    for name, text in (("both", ENSEMBLE), ("twice", TWICE)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)
    return repository


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Embedded]:
    program = await start(write(tmp_path / "models"))
    try:
        yield program
    finally:
        await program.stop()


class Asked(AwaitedTicket):
    """A request for the value at a place of each of some rows, which all begin with `first`."""

    def __init__(self, first: float, place: int = 1, *, rows: int = 1, deadline: float | None = None) -> None:
        row = np.tile(np.arange(first, first + WIDTH, dtype=np.float32), (rows, 1))
        places = np.full((rows, 1), place)
        inputs = {
            "row": Tensor("row", DataType.FP32, row.shape, row),
            "place": Tensor("place", DataType.INT64, places.shape, places),
        }
        super().__init__(InferRequest("both", inputs, id=f"{first}", deadline=deadline))
        self.expected = [[2 * (first + place)]] * rows

    async def check(self) -> None:
        response = await self.done
        assert (response.model_name, response.id) == ("both", self.ticket.request.id)
        assert [tensor.name for tensor in response.outputs] == ["picked"]
        assert response.outputs[0].data.tolist() == self.expected


def submit(program: Embedded, *asked: Asked) -> None:
    for one in asked:
        program.engine.submit(one.ticket)


def of(program: Embedded, name: str) -> ModelStatistics:
    return program.engine.find(name).statistics


def checked(program: Embedded, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The requests that reach the steps from now on: the names of the models, and the numbers of items."""
    found: list[tuple[str, int]] = []
    for step in STEPS:
        model = program.engine.find(step)

        def check(ticket: Ticket, step: str = step, check=model.serving.check) -> None:
            check(ticket)
            found.append((step, ticket.batch_size))

        monkeypatch.setattr(model, "serving", Serving(check, model.serving.queue))
    return found


async def test_the_requests_of_a_turn_pass_each_step_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as program:
        seen = checked(program, monkeypatch)
        asked = [Asked(1), Asked(2, 3), Asked(3, rows=2)]

        submit(program, *asked)

        await asyncio.gather(*(one.check() for one in asked))
        assert seen == [("double", 4), ("pick", 4)]


async def test_they_are_counted_as_separate_requests(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        asked = [Asked(1), Asked(2, 3), Asked(3, rows=2)]

        submit(program, *asked)

        await asyncio.gather(*(one.check() for one in asked))
        both = of(program, "both")
        for step in STEPS:
            counted = of(program, step)
            assert (counted.success.count, counted.queue.count, counted.compute_infer.count) == (3, 3, 3)
            assert (counted.inference_count, counted.execution_count) == (4, 1)
            assert {size: batch.compute_infer.count for size, batch in counted.batches.items()} == {4: 1}
            assert sum(counted.latency) == sum(counted.queueing) == 3
            assert both.calls[step].success.count == 3
        assert (both.success.count, both.inference_count, both.execution_count) == (3, 4, 3)
        assert both.compute_infer.ns == sum(of(program, step).compute_infer.ns for step in STEPS)


async def test_requests_that_are_too_many_for_a_batch_form_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as program:
        seen = checked(program, monkeypatch)
        asked = [Asked(number, rows=3) for number in range(5)]

        submit(program, *asked)

        await asyncio.gather(*(one.check() for one in asked))
        assert sorted(seen) == sorted((step, items) for step in STEPS for items in (6, 6, 3))


async def test_a_request_that_fails_fails_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        asked = [Asked(1), Asked(2, 99), Asked(3)]

        submit(program, *asked)

        with pytest.raises(BacklineError, match=r"^in ensemble 'both', model 'pick'"):
            await asked[1].check()
        await asyncio.gather(asked[0].check(), asked[2].check())
        counts = {name: (of(program, name).success.count, of(program, name).fail.count) for name in STEPS}
        assert counts == {"double": (3, 0), "pick": (2, 1)}
        assert of(program, "double").inference_count == 3
        both = of(program, "both")
        assert (both.success.count, both.fail.count) == (2, 1)
        assert (both.calls["pick"].success.count, both.calls["pick"].fail.count) == (2, 1)


@pytest.mark.parametrize(
    "configuration",
    [
        'parameters { key: "backline.idempotent" value { string_value: "false" } }',
        'parameters { key: "backline.allowed_batch_sizes" value { string_value: "1,8" } }',
    ],
    ids=["not idempotent", "joins requests by its own rules"],
)
async def test_a_step_that_must_see_each_request_runs_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    with (write(tmp_path / "models") / "double" / "config.pbtxt").open("a") as file:
        file.write(configuration)
    program = await start(tmp_path / "models")
    seen = checked(program, monkeypatch)
    asked = [Asked(1), Asked(2, 99), Asked(3)]

    submit(program, *asked)

    results = await asyncio.gather(*(one.done for one in asked), return_exceptions=True)
    assert [isinstance(one, BacklineError) for one in results] == [False, True, False]
    assert [items for step, items in seen if step == "double"] == [1, 1, 1]
    await program.stop()


async def test_each_response_is_counted_if_the_ensemble_may_send_several(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        responses = of(program, "both").responses = ResponseStatistics()
        asked = [Asked(1), Asked(2)]

        submit(program, *asked)

        await asyncio.gather(*(one.check() for one in asked))
        assert responses.counters[0].compute_infer.count == 2


async def test_requests_that_are_too_large_together_go_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stack(tickets: list[Ticket]) -> None:
        raise MemoryError

    monkeypatch.setattr(stacked, "stack", stack)
    async with serving(tmp_path) as program:
        asked = [Asked(1), Asked(2)]

        submit(program, *asked)

        await asyncio.gather(*(one.check() for one in asked))


async def test_a_request_cancelled_before_the_steps_run_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as program:
        seen = checked(program, monkeypatch)
        gone, left = Asked(1), Asked(2)

        submit(program, gone, left)
        gone.ticket.cancel()

        await left.check()
        assert seen == [("double", 1), ("pick", 1)]
        assert not gone.done.done()
        assert (of(program, "both").success.count, of(program, "both").cancelled) == (1, 1)


async def test_a_request_that_joins_after_others_were_cancelled_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        gone, left = Asked(1), Asked(2)

        submit(program, gone)
        gone.ticket.cancel()
        submit(program, left)

        await left.check()


async def test_a_request_whose_deadline_passes_before_the_steps_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as program:
        late, left = Asked(1, deadline=asyncio.get_running_loop().time() + 1000), Asked(2)

        submit(program, late, left)
        monkeypatch.setattr(stacked, "monotonic", lambda: asyncio.get_running_loop().time() + 2000)

        with pytest.raises(DeadlineExceeded, match="in the queue of model 'both'"):
            await late.check()
        await left.check()
        assert (of(program, "both").success.count, of(program, "both").expired) == (1, 1)


async def test_a_request_cancelled_between_steps_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as program:
        monkeypatch.setattr(stacked, "LONGEST_NS", -1)  # each step runs in a turn of its own
        gone, left = Asked(1), Asked(2)
        submit(program, gone, left)

        while not of(program, "both").cancelled:
            await asyncio.sleep(0)
            if any(run._ran for run in program.engine.find("both").serving.queue._runs):  # type: ignore[union-attr]
                gone.ticket.cancel()

        await left.check()
        assert not gone.done.done()
        assert (of(program, "both").success.count, of(program, "both").cancelled) == (1, 1)


async def test_an_ensemble_that_is_unloaded_answers_the_requests_of_the_turn(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        asked = [Asked(1), Asked(2)]
        queue = program.engine.find("both").serving.queue

        submit(program, *asked)
        await queue.drain(60)  # type: ignore[union-attr]

        await asyncio.gather(*(one.check() for one in asked))


async def test_an_ensemble_that_is_unloaded_at_once_refuses_the_requests_of_the_turn(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as program:
        asked = [Asked(1), Asked(2)]

        submit(program, *asked)
        for run in tuple(program.engine.find("both").serving.queue._runs):  # type: ignore[union-attr]
            run.fail(BacklineError("unloaded"))

        for one in asked:
            with pytest.raises(BacklineError, match="unloaded"):
                await one.check()
        assert of(program, "both").fail.count == 2


async def test_steps_with_the_same_model_share_a_batch(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        rows = {
            name: Tensor(name, DataType.FP32, (1, WIDTH), np.ones((1, WIDTH), np.float32))
            for name in ("one", "other")
        }

        await program.engine.infer(InferRequest("twice", rows))

        assert of(program, "double").batches.keys() == {2}
