"""Requests larger than a batch, run in parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.splitting import SplittingQueue, put_together, split
from backline.workers.batch import Batch
from backline_client.values.datatypes import DataType
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor
from schedule.bench import Bench, values
from schedule.tickets import ticket
from schedule.world import World


def doubled(numbers: Sequence[float]) -> list[float]:
    return [2 * number for number in numbers]


@pytest.mark.parametrize("inline", [True, False])
def test_a_large_request_completes_once_and_counts_once(inline: bool) -> None:
    async def scenario() -> None:
        bench = Bench(inline=inline, split_at=8)
        numbers = [*range(100, 120)]
        _, answer = bench.ask(*numbers)
        assert values(await answer) == doubled(numbers)
        assert bench.model.batches == [8, 8, 4]
        counted = bench.statistics
        assert (counted.success.count, counted.inference_count, counted.execution_count) == (1, 20, 3)
        assert (
            counted.queue.count,
            counted.compute_infer.count,
            sum(counted.latency),
            sum(counted.queueing),
        ) == (1, 1, 1, 1)
        assert counted.success.ns >= counted.queue.ns
        assert {size: batch.compute_infer.count for size, batch in counted.batches.items()} == {8: 2, 4: 1}
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_request_cancelled_between_a_parts_failure_and_completion_is_counted_once() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, split_at=2)
        cancels: list[Ticket] = []
        bench.ask(1, then=lambda: [ticket.cancel() for ticket in cancels])
        second, answer = bench.ask(3, 4, 13)
        cancels.append(second)
        await asyncio.sleep(0.01)
        assert not answer.done()
        counted = bench.statistics
        assert (counted.success.count, counted.fail.count, counted.cancelled) == (1, 1, 0)
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_the_last_part_is_batched_with_other_requests() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, split_at=8)
        answers = [bench.ask(*range(100, 110))[1], bench.ask(1, 2)[1], bench.ask(3)[1]]
        assert [values(one) for one in await asyncio.gather(*answers)] == [
            doubled(range(100, 110)),
            [2, 4],
            [6],
        ]
        assert bench.model.batches == [8, 5]
        assert (bench.statistics.success.count, bench.statistics.inference_count) == (3, 13)

    asyncio.run(scenario())


@pytest.mark.parametrize(("bad", "error"), [(13, InvalidArgument), (14, Internal)])
def test_a_failed_part_fails_the_request_once_and_the_rest_does_not_run(
    bad: int, error: type[Exception]
) -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(4), split_at=4)
        _, answer = bench.ask(1, 2, 3, 4, bad, 6, 7, 8, 9)
        other = bench.ask(50)[1]
        with pytest.raises(error):
            await answer
        assert values(await other) == [100]
        counted = bench.statistics
        assert bench.model.batches == [4, 4, 1]
        assert (counted.fail.count, counted.success.count, counted.cancelled) == (1, 1, 0)
        assert bench.scheduler.pending == 0

    asyncio.run(scenario())


def test_two_failed_parts_in_one_batch_count_as_one_failure() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(8), split_at=2)
        _, answer = bench.ask(13, 1, 13, 2)
        with pytest.raises(InvalidArgument):
            await answer
        assert bench.statistics.fail.count == 1

    asyncio.run(scenario())


def test_cancelling_a_request_cancels_its_parts() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, split_at=4)
        bench.model.gate.clear()
        _, busy = bench.ask(99)
        await asyncio.sleep(0)  # it has started
        asked, answer = bench.ask(*range(100, 110))
        assert bench.scheduler.pending == 3
        asked.cancel()
        assert bench.scheduler.pending == 0
        assert bench.statistics.cancelled == 1
        bench.model.gate.set()
        assert values(await busy) == [198]
        assert not answer.done()
        assert bench.model.batches == [1]
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_cancelling_a_running_request_is_counted_once() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, split_at=4)
        bench.model.gate.clear()
        asked, answer = bench.ask(*range(100, 110))
        await asyncio.sleep(0)
        asked.cancel()
        bench.model.gate.set()
        await bench.scheduler.drain(10)
        assert not answer.done()
        assert (bench.statistics.cancelled, bench.statistics.success.count, bench.statistics.fail.count) == (
            1,
            0,
            0,
        )

    asyncio.run(scenario())


def test_cancelling_a_running_request_starts_no_further_part() -> None:
    world = World()
    try:
        instance = world.instance(prompt=True)  # it ends its batch as soon as that is abandoned
        scheduler = Scheduler(
            "m", Settings(BatchPolicy(1)), [instance], world.statistics, loop=world.loop, total=world.total
        )
        asked = world.ask(SplittingQueue(scheduler, 1, world.statistics).submit, [1.0, 2.0])
        assert asked is not None
        world.loop.turn()
        world.loop.inside(asked.cancel)
        world.loop.turn()
        assert len(world.begun) == 1
        assert not world.faults
    finally:
        world.close()


def test_a_request_without_room_for_all_parts_is_refused_and_leaves_none_queued() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, queue=QueueSettings(QueuePolicy(max_size=2)), split_at=4)
        bench.model.gate.clear()
        _, busy = bench.ask(99)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 2"):
            bench.ask(*range(100, 110))
        assert bench.scheduler.pending == 0
        assert (bench.statistics.rejected_full, bench.statistics.cancelled) == (1, 0)
        bench.model.gate.set()
        await busy
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_an_expired_request_with_parts_completes_and_counts_once() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, split_at=4)
        bench.model.gate.clear()
        _, busy = bench.ask(99)
        await asyncio.sleep(0)
        _, answer = bench.ask(*range(100, 110), deadline=0.0)
        with pytest.raises(DeadlineExceeded):
            await answer
        assert (bench.statistics.expired, bench.statistics.cancelled, bench.statistics.fail.count) == (
            1,
            0,
            0,
        )
        bench.model.gate.set()
        await busy
        await bench.scheduler.close()

    asyncio.run(scenario())


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    limit=st.integers(1, 10),
    preserve_ordering=st.booleans(),
)
def test_no_request_is_lost_doubled_or_reordered(
    sizes: list[int], limit: int, preserve_ordering: bool
) -> None:
    async def scenario() -> None:
        bench = Bench(
            inline=True,
            policy=BatchPolicy(limit),
            queue=QueueSettings(QueuePolicy(1000)),
            preserve_ordering=preserve_ordering,
            split_at=limit,
        )
        asked, first = [], 100
        for size in sizes:
            asked.append([*range(first, first + size)])
            first += size
        answers = await asyncio.gather(*(bench.ask(*numbers)[1] for numbers in asked))
        assert [values(answer) for answer in answers] == [doubled(numbers) for numbers in asked]
        assert max(bench.model.batches) <= limit
        counted = bench.statistics
        assert sum(bench.model.batches) == sum(sizes) == counted.inference_count
        assert (counted.success.count, counted.execution_count) == (len(sizes), len(bench.model.batches))

    asyncio.run(scenario())


class Collected:
    """Stands in for the scheduler, so that parts complete in any order."""

    def __init__(self) -> None:
        self.parts: list[Ticket] = []
        self.ran: dict[Ticket, Callable[[Batch], None]] = {}
        self.tally = self

    def submit(self, part: Ticket) -> None:
        self.parts.append(part)

    def set_aside(self, part: Ticket, ran: Callable[[Batch], None]) -> None:
        self.ran[part] = ran


@given(st.integers(2, 40), st.integers(1, 10), st.randoms(use_true_random=False))
def test_parts_completed_in_any_order_give_one_response_in_order(
    size: int, limit: int, random: Random
) -> None:
    collected, statistics = Collected(), ModelStatistics()
    answers: list[InferResponse | BacklineError | None] = []
    numbers = np.arange(size, dtype=np.float32)
    whole = ticket(size, complete=lambda _, response, error: answers.append(response or error))
    whole.request.inputs["x"] = Tensor("x", DataType.FP32, numbers.shape, numbers)
    SplittingQueue(collected, limit, statistics).submit(whole)  # type: ignore[arg-type]
    random.shuffle(collected.parts)

    for part in collected.parts:
        assert answers == [], "it waits for all its parts"
        data = part.request.inputs["x"].data
        response = InferResponse("m", "1", "", [Tensor("y", DataType.FP32, data.shape, 2 * data)])
        if part in collected.ran:
            batch = Batch([part], part.batch_size, 0)
            batch.outcomes = [response]
            collected.ran[part](batch)
        part.complete(response, None)

    (answer,) = answers
    assert isinstance(answer, InferResponse)
    assert values(answer) == doubled(range(size))


def test_parts_share_the_memory_of_the_request() -> None:
    data = np.zeros((5, 2), np.float32)
    whole = ticket(5)
    whole.request.inputs["x"] = Tensor("x", DataType.FP32, data.shape, data)

    parts = split(whole, 2, lambda *_: None)

    assert [part.batch_size for part in parts] == [2, 2, 1]
    assert all(np.shares_memory(part.request.inputs["x"].data, data) for part in parts)


def test_parts_with_mismatched_outputs_are_an_error() -> None:
    responses = [
        InferResponse("m", "1", "", [Tensor("y", DataType.FP32, shape, np.zeros(shape))])
        for shape in ((2, 3), (1, 4))
    ]

    with pytest.raises(
        Internal,
        match=r"output 'y' of model 'm' has the shapes \[2, 3\], \[1, 4\] for the parts of one request",
    ):
        put_together(ticket(3), responses)
