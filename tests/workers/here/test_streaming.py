"""Decoupled models on threads: order, turns, backpressure, errors, and how streams end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Serving
from backline.engine.responses import MAX_WAITING, Responses
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.schedule.scheduler import Scheduler, Settings
from backline.workers.here.streaming import MAX_HANDED, StreamPool
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest, Parameter, SequenceStep
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor
from support.embedded import start
from support.repositories import put

SQUARE = """backend: "square"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
sequence_batching { %s }
"""
Arrays = Mapping[str, np.ndarray]


class Counting:
    """Counts up to its input; `does` replaces the response with the number `at`."""

    streams_at_once = 1
    warnings = ()
    signature = Signature(
        (TensorSpec("N", DataType.INT32, (1,)),), (TensorSpec("OUT", DataType.INT32, (1,)),)
    )

    def __init__(self, at: int = -1, does: Callable[[], Arrays] | None = None, size: int = 1) -> None:
        self.at = at
        self.does = does
        self.size = size
        self.made = 0
        self.closed = 0

    def stream(
        self, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Arrays, None, None]:
        try:
            for number in range(int(inputs["N"][0])):
                if number == self.at and self.does is not None:
                    yield self.does()
                    continue
                self.made += 1
                yield {"OUT": np.full(self.size, number, np.int32)}
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def fail() -> Arrays:
    raise InvalidArgument("not this one")


def crash() -> Arrays:
    raise RuntimeError("out of luck")


class Served:
    """A model in an engine."""

    def __init__(self, model: Counting, threads: int = 1) -> None:
        loop = asyncio.get_running_loop()
        self.statistics = ResponseStatistics()
        self.pool = StreamPool("count", "1", model, loop, threads=threads, statistics=self.statistics)
        self.engine = Engine()
        served = Model("count", "1", ModelConfig("count", decoupled=True))
        served.signature = model.signature
        served.statistics.responses = self.statistics
        self.scheduler = Scheduler("count", Settings(), self.pool.instances, served.statistics, loop=loop)
        served.serving = Serving(lambda _: None, self.scheduler)
        served.state = ModelState.READY
        self.engine.add(served)
        self.engine.refresh()
        self.model = served

    def ask(self, count: int) -> Responses:
        tensor = Tensor("N", DataType.INT32, (1,), np.array([count], np.int32))
        return self.engine.stream(InferRequest("count", {"N": tensor}))

    async def numbers(self, count: int) -> list[int]:
        return await numbers_of(self.ask(count))


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never was")


async def numbers_of(responses: Responses) -> list[int]:
    return [int(response.outputs[0].data[0]) async for response in responses]


async def settled(model: Counting) -> int:
    """The number of responses that the model generates before it pauses."""
    made = -1
    while made != model.made:
        made = model.made
        await asyncio.sleep(0.05)
    return made


@pytest.mark.parametrize("count", [0, 1, MAX_HANDED, 10_000])
def test_every_response_comes_in_order(count: int) -> None:
    async def test() -> None:
        assert await Served(Counting()).numbers(count) == list(range(count))

    run(test())


def test_a_client_that_does_not_read_pauses_its_own_stream_only() -> None:
    async def test() -> None:
        model = Counting()
        served = Served(model)
        slow = served.ask(10_000)
        await anext(slow)
        assert await settled(model) <= MAX_WAITING + 2 * MAX_HANDED + 2

        assert await served.numbers(50) == list(range(50))

        assert await numbers_of(slow) == list(range(1, 10_000))

    run(test())


def test_waiting_responses_are_bounded_by_their_bytes_too() -> None:
    async def test() -> None:
        model = Counting(size=256 * 1024)  # a MiB each
        responses = Served(model).ask(1000)
        await anext(responses)
        assert await settled(model) <= 6
        responses.close()

    run(test())


@pytest.mark.parametrize(("does", "error"), [(fail, InvalidArgument), (crash, Internal)])
def test_an_error_in_mid_stream_follows_the_responses_sent_before_it(
    does: Callable[[], Arrays], error: type[BacklineError]
) -> None:
    async def test() -> None:
        served = Served(Counting(at=3, does=does))
        responses = served.ask(10)
        assert [int((await anext(responses)).outputs[0].data[0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(error, match=r"not this one|out of luck"):
            await anext(responses)
        assert served.statistics.counters[3].fail.count == 1
        assert served.model.statistics.fail.count == 1
        assert await served.numbers(2) == [0, 1]

    run(test())


def test_an_undeclared_output_is_an_error() -> None:
    async def test() -> None:
        with pytest.raises(Internal, match="'WHAT' that it does not declare"):
            await Served(Counting(at=0, does=lambda: {"WHAT": np.zeros(1)})).numbers(1)

    run(test())


def test_cancelling_a_stream_closes_its_generator() -> None:
    async def test() -> None:
        model = Counting()
        served = Served(model)
        async with served.ask(1_000_000) as responses:
            await anext(responses)
        await until(lambda: model.closed == 1 and served.scheduler.running == 0)
        assert model.made < 1000
        assert served.model.statistics.cancelled == 1
        assert sum(one.cancel.count for one in served.statistics.counters) >= 1
        assert served.model.statistics.success.count == 0

    run(test())


def test_streams_take_turns_on_one_thread() -> None:
    async def test() -> None:
        served = Served(Counting(), threads=1)
        assert await asyncio.gather(*(served.numbers(count) for count in (200, 3, 100))) == [
            list(range(n)) for n in (200, 3, 100)
        ]

    run(test())


def test_responses_are_counted_by_index() -> None:
    async def test() -> None:
        served = Served(Counting(at=1, does=dict))
        assert len([response async for response in served.ask(3)]) == 3
        counters = served.statistics.counters
        assert [(one.success.count, one.empty.count) for one in counters] == [(1, 0), (0, 1), (1, 0)]
        assert served.model.statistics.success.count == 1
        assert served.model.statistics.inference_count == 1

    run(test())


def test_an_unloaded_model_ends_its_streams() -> None:
    async def test() -> None:
        model = Counting()
        served = Served(model)
        responses = served.ask(1_000_000)
        await anext(responses)
        await asyncio.wait_for(served.scheduler.drain(0.05), 5)
        with pytest.raises(Unavailable, match="is being unloaded"):
            await numbers_of(responses)
        assert model.closed == 1

    run(test())


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 4 }"])
async def test_an_unloaded_model_ends_the_streams_of_its_sequences(tmp_path: Path, strategy: str) -> None:
    put(tmp_path / "models" / "square" / "1" / "empty", "")
    put(tmp_path / "models" / "square" / "config.pbtxt", SQUARE % strategy)
    program = await start(tmp_path / "models", drain_seconds=0.1)
    count = Tensor("IN", DataType.INT32, (1,), np.array([2**31 - 1], np.int32))
    begins = SequenceStep(7, start=True)

    responses = program.engine.stream(InferRequest("square", {"IN": count}, sequence=begins))
    await anext(responses)
    await asyncio.wait_for(program.stop(), 30)

    with pytest.raises(Unavailable, match="is being unloaded"):
        async for _ in responses:
            pass


def test_a_finished_stream_is_garbage_collected() -> None:
    def present() -> set[int]:
        gc.collect()
        return {id(one) for one in gc.get_objects() if type(one) is Ticket}

    async def test() -> None:
        before = present()
        served = Served(Counting())
        await served.numbers(100)
        await until(lambda: present() <= before)

    run(test())
