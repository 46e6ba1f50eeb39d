"""Requests for a version that is not loaded: they wait for one load, within their deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig, QueuePolicy
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Serving
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline.lifecycle.sleep import OnDemandQueue, check_later
from backline.schedule.queues.queue import QueueSettings, QueueTotal
from backline_client.values.datatypes import DataType
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor


class Echo:
    """A queue that answers at once."""

    pending = 0

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.answered: list[Ticket] = []

    def submit(self, ticket: Ticket) -> None:
        if len(self.answered) >= self.limit:
            raise Unavailable("full")
        self.answered.append(ticket)
        request = ticket.request
        ticket.complete(InferResponse("m", "1", request.id, list(request.inputs.values())), None)


class Sleeper:
    """A sleeping version whose load waits until the test releases it."""

    def __init__(
        self, *, queue_size: int = 10, timeout_us: int = 0, failure: BacklineError | None = None
    ) -> None:
        self.engine = Engine()
        self.model = Model("m", "1", ModelConfig("m"))
        self.go_on = asyncio.Event()
        self.loads = 0
        self.failure = failure
        self.real = Echo()
        self.queue = OnDemandQueue(
            self.model, self.load, QueueSettings(QueuePolicy(queue_size, timeout_us)), QueueTotal()
        )
        self.sleep()

    def sleep(self) -> None:
        self.model.state, self.model.on_demand = ModelState.UNAVAILABLE, True
        self.model.serving = Serving(check_later, self.queue)
        self.engine.add(self.model)
        self.engine.refresh()

    async def load(self) -> None:
        self.loads += 1
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        spec = TensorSpec("x", DataType.FP32, (-1, 2))
        model = Model("m", "1", ModelConfig("m"))
        model.statistics = self.model.statistics
        check = RequestCheck("m", Signature((spec,), (spec,)), 4, strict=False)
        model.serving = Serving(check, self.real)
        model.state = ModelState.READY
        self.engine.add(model)
        self.engine.refresh()
        self.model.serving = model.serving

    def ask(self, width: int = 2, deadline: float | None = None) -> asyncio.Task[InferResponse]:
        data = np.ones((1, width), np.float32)
        request = InferRequest("m", {"x": Tensor("x", DataType.FP32, data.shape, data)}, deadline=deadline)
        return asyncio.ensure_future(self.engine.infer(request))

    async def holding(self, count: int) -> None:
        """Lets the requests' tasks start."""
        await asyncio.sleep(0)
        assert self.queue.pending == count


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


def test_all_requests_wait_for_one_load_and_are_answered_in_order() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        asked = [sleeper.ask() for _ in range(5)]
        await sleeper.holding(5)
        sleeper.go_on.set()
        answers = await asyncio.gather(*asked)
        assert [answer.outputs[0].data.tolist() for answer in answers] == [[[1.0, 1.0]]] * 5
        assert sleeper.loads == 1
        assert sleeper.queue.pending == 0

    run(scenario)


def test_a_request_that_does_not_fit_is_refused_after_the_load() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        wrong, right = sleeper.ask(3), sleeper.ask()
        sleeper.go_on.set()
        with pytest.raises(InvalidArgument, match="unexpected shape for input 'x'"):
            await wrong
        assert (await right).outputs[0].shape == (1, 2)
        assert sleeper.model.statistics.rejected_invalid == 1

    run(scenario)


def test_a_failed_load_gives_its_reason_to_held_and_following_requests() -> None:
    async def scenario() -> None:
        sleeper = Sleeper(failure=NotFound("the file is gone"))
        sleeper.go_on.set()
        for result in await asyncio.gather(sleeper.ask(), sleeper.ask(), return_exceptions=True):
            assert isinstance(result, NotFound)
            assert result.message == "the file is gone"
        with pytest.raises(NotFound, match="the file is gone"):
            await sleeper.ask()
        assert sleeper.loads == 1

    run(scenario)


def test_after_a_shortage_the_next_request_tries_again() -> None:
    async def scenario() -> None:
        sleeper = Sleeper(failure=Unavailable("no room", retry_after=1))
        sleeper.go_on.set()
        with pytest.raises(Unavailable, match="no room"):
            await sleeper.ask()
        sleeper.failure = None
        assert (await sleeper.ask()).outputs[0].shape == (1, 2)

    run(scenario)


def test_a_deadline_that_passes_during_the_load_is_kept() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        late = sleeper.ask(deadline=time.monotonic() + 0.03)
        patient = sleeper.ask()
        with pytest.raises(
            DeadlineExceeded,
            match=r"The deadline of the request passed after .* ms while model 'm' was loading",
        ):
            await late
        assert sleeper.model.statistics.expired == 1
        sleeper.go_on.set()
        assert (await patient).outputs[0].shape == (1, 2)
        assert len(sleeper.real.answered) == 1

    run(scenario)


def test_the_default_timeout_includes_the_load() -> None:
    async def scenario() -> None:
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await Sleeper(timeout_us=20_000).ask()

    run(scenario)


def test_more_requests_than_the_queue_holds_are_refused_at_once() -> None:
    async def scenario() -> None:
        sleeper = Sleeper(queue_size=2)
        held = [sleeper.ask(), sleeper.ask()]
        await sleeper.holding(2)
        with pytest.raises(
            Unavailable, match="Exceeds maximum queue size of 2 for model 'm', which is being loaded"
        ):
            await sleeper.ask()
        sleeper.go_on.set()
        await asyncio.gather(*held)

    run(scenario)


def test_a_request_whose_caller_left_is_never_run() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        gone, stays = sleeper.ask(), sleeper.ask()
        await sleeper.holding(2)
        gone.cancel()
        await asyncio.sleep(0)
        sleeper.go_on.set()
        await stays
        assert len(sleeper.real.answered) == 1
        assert sleeper.model.statistics.cancelled == 1

    run(scenario)


def test_waking_waits_for_the_load_without_a_request() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        waking = asyncio.ensure_future(sleeper.queue.wake())
        asked = sleeper.ask()
        sleeper.go_on.set()
        await waking
        await asked
        assert sleeper.loads == 1
        assert sleeper.engine.find("m").state is ModelState.READY

    run(scenario)


def test_a_caller_that_gives_up_waking_does_not_end_the_load() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        waking = asyncio.ensure_future(sleeper.queue.wake())
        asked = sleeper.ask()
        await sleeper.holding(1)
        waking.cancel()
        sleeper.go_on.set()
        assert (await asked).outputs[0].shape == (1, 2)

    run(scenario)


def test_waking_a_version_that_cannot_be_loaded_says_why() -> None:
    async def scenario() -> None:
        sleeper = Sleeper(failure=NotFound("the file is gone"))
        sleeper.go_on.set()
        with pytest.raises(NotFound, match="the file is gone"):
            await sleeper.queue.wake()

    run(scenario)


def test_a_version_sleeps_and_wakes_more_than_once() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        sleeper.go_on.set()
        await sleeper.ask()
        sleeper.sleep()
        await sleeper.ask()
        assert sleeper.loads == 2

    run(scenario)


def test_held_requests_are_refused_when_the_version_is_removed() -> None:
    async def scenario() -> None:
        sleeper = Sleeper()
        asked = sleeper.ask()
        await sleeper.holding(1)
        sleeper.queue.close("model 'm' is being unloaded")
        with pytest.raises(Unavailable, match="model 'm' is being unloaded"):
            await asked

    run(scenario)
