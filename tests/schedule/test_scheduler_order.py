"""The driver: order of runs and responses, and the limit for all models together."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

import pytest

from backline.engine.config.model_config import QueuePolicy
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings, QueueTotal
from backline.schedule.scheduler import Settings
from backline.workers.batch import Batch
from backline.workers.here.execution import Execution
from backline.workers.instance import Finished
from backline_client.values.errors import DeadlineExceeded, InvalidArgument, Unavailable
from backline_client.values.messages import InferResponse
from schedule.bench import Bench, values


async def occupied(bench: Bench) -> asyncio.Future[InferResponse]:
    """The only instance runs a request until the gate opens."""
    bench.model.gate.clear()
    running = bench.ask(0)[1]
    await asyncio.sleep(0)
    assert bench.scheduler.running == 1
    return running


def noted(answers: dict[str, asyncio.Future[InferResponse]]) -> list[str]:
    """The names of responses in order of arrival."""
    order: list[str] = []
    for name, answer in answers.items():
        answer.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
    return order


def test_queued_requests_run_by_level() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, policy=BatchPolicy(1), queue=QueueSettings(levels=3, default_level=2))
        running = await occupied(bench)
        answers = {
            name: bench.ask(1, priority=level)[1] for name, level in (("low", 3), ("default", 0), ("high", 1))
        }
        order = noted(answers)
        bench.model.gate.set()
        await asyncio.gather(running, *answers.values())
        assert order == ["high", "default", "low"]
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_full_level_refuses_requests_and_is_named() -> None:
    async def scenario() -> None:
        queue = QueueSettings(QueuePolicy(100), 2, 2, {1: QueuePolicy(1)})
        bench = Bench(inline=True, queue=queue)
        answers = [bench.ask(1, priority=1)[1], bench.ask(2, priority=2)[1]]
        with pytest.raises(
            Unavailable, match="Exceeds maximum queue size of 1 for model 'm', priority level 1"
        ):
            bench.ask(3, priority=1)
        answers.append(bench.ask(4, priority=2)[1])
        await asyncio.gather(*answers)
        assert bench.statistics.rejected_full == 1

    asyncio.run(scenario())


def test_a_late_request_whose_policy_delays_runs_after_those_in_time() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, policy=BatchPolicy(1), queue=QueueSettings(QueuePolicy(100, delay=True)))
        running = await occupied(bench)
        answers = {"late": bench.ask(1, timeout=1e-9)[1], "in time": bench.ask(2)[1]}
        order = noted(answers)
        bench.model.gate.set()
        await asyncio.gather(running, *answers.values())
        assert order == ["in time", "late"]
        assert bench.statistics.expired == 0
        await bench.scheduler.close()

    asyncio.run(scenario())


class HeldInstance:
    """Runs its batch when the test says so."""

    off_loop: ClassVar[bool] = True

    def __init__(self, execute: Execution) -> None:
        self._execute = execute
        self._held: list[tuple[Batch, Finished]] = []

    def run(self, batch: Batch, finished: Finished) -> None:
        self._held.append((batch, finished))

    def go_on(self) -> None:
        batch, finished = self._held.pop()
        self._execute(batch)
        finished(self, batch)

    def close(self) -> None:
        assert not self._held


@pytest.mark.parametrize(("preserve", "expected"), [(True, ["1", "2", "3"]), (False, ["3", "2", "1"])])
def test_responses_keep_the_order_of_requests_if_configured(preserve: bool, expected: list[str]) -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(1), preserve_ordering=preserve)
        execute = Execution("m", "1", bench.model)
        instances = [HeldInstance(execute) for _ in range(3)]
        bench.scheduler.replace_instances(instances)
        answers = {str(number): bench.ask(number)[1] for number in (1, 2, 3)}
        order = noted(answers)
        for _ in range(3):  # one batch per turn, on the last free instance
            await asyncio.sleep(0)
        assert bench.scheduler.running == 3
        for instance in instances:  # that of the last request comes first
            instance.go_on()
        await asyncio.gather(*answers.values())
        await asyncio.sleep(0)  # since Python 3.12, gather does not yield if all have completed
        assert order == expected

    asyncio.run(scenario())


def test_with_ordering_a_failed_or_cancelled_request_blocks_no_others() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(1), preserve_ordering=True)
        cancelled, failed, good = bench.ask(1)[0], bench.ask(13)[1], bench.ask(2)[1]
        cancelled.cancel()
        assert values(await good) == [4]
        with pytest.raises(InvalidArgument):
            await failed

    asyncio.run(scenario())


def test_the_total_limit_refuses_requests_to_a_model_with_an_empty_queue() -> None:
    async def scenario() -> None:
        total = QueueTotal(2)
        one, other = (
            Bench(inline=False, policy=BatchPolicy(1), total=total),
            Bench(inline=False, policy=BatchPolicy(1), total=total),
        )
        running = [await occupied(one), await occupied(other)]
        answers = [one.ask(1)[1], one.ask(2)[1]]
        with pytest.raises(Unavailable, match="for all models"):
            other.ask(3)
        assert (other.statistics.rejected_total, other.statistics.rejected_full) == (1, 0)
        for bench in (one, other):
            bench.model.gate.set()
        await asyncio.gather(*running, *answers)
        assert values(await other.ask(3)[1]) == [6]
        await asyncio.gather(one.scheduler.close(), other.scheduler.close())

    asyncio.run(scenario())


def test_the_total_limit_refuses_no_requests_to_an_idle_model() -> None:
    async def scenario() -> None:
        total = QueueTotal(2)
        greedy, polite = (
            Bench(inline=False, policy=BatchPolicy(1), total=total),
            Bench(inline=True, policy=BatchPolicy(2), total=total),
        )
        running = await occupied(greedy)
        waiting = [greedy.ask(1)[1], greedy.ask(2)[1]]
        answers = [polite.ask(3)[1], polite.ask(4)[1]]
        with pytest.raises(Unavailable, match="for all models"):
            polite.ask(5)  # one more than fits into the batch that begins now
        assert [values(answer) for answer in await asyncio.gather(*answers)] == [[6], [8]]
        assert total.waiting == 2
        greedy.model.gate.set()
        await asyncio.gather(running, *waiting)
        await greedy.scheduler.close()

    asyncio.run(scenario())


def test_every_way_of_leaving_a_queue_makes_room_in_the_total() -> None:
    async def scenario() -> None:
        total = QueueTotal(100)
        bench = Bench(inline=False, total=total, queue=QueueSettings(QueuePolicy(3)))
        running = await occupied(bench)
        assert total.waiting == 0, "it runs"
        cancelled, expired = bench.ask(1)[0], bench.ask(2, deadline=time.monotonic() + 0.005)[1]
        refused = bench.ask(3)[1]
        with pytest.raises(Unavailable):
            bench.ask(4)
        assert total.waiting == 3
        cancelled.cancel()
        assert total.waiting == 2
        with pytest.raises(DeadlineExceeded):
            await expired
        assert total.waiting == 1
        closing = asyncio.ensure_future(bench.scheduler.close())
        with pytest.raises(Unavailable, match="being unloaded"):
            await refused
        assert total.waiting == 0
        bench.model.gate.set()
        await asyncio.gather(running, closing)

    asyncio.run(scenario())


def test_queued_requests_move_to_the_queue_of_new_settings() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False, policy=BatchPolicy(1))
        running = await occupied(bench)
        answers = {name: bench.ask(1, priority=level)[1] for name, level in (("low", 2), ("high", 1))}
        order = noted(answers)
        bench.scheduler.update(Settings(BatchPolicy(1), QueueSettings(levels=2, default_level=2)))
        assert bench.scheduler.pending == 2
        bench.model.gate.set()
        await asyncio.gather(running, *answers.values())
        assert order == ["high", "low"]
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_new_settings_keep_requests_over_the_limit_and_expire_those_past_the_timeout() -> None:
    async def scenario() -> None:
        total = QueueTotal(100)
        bench = Bench(inline=False, policy=BatchPolicy(1), total=total)
        running = await occupied(bench)
        waiting = [bench.ask(value)[1] for value in (1, 2, 3)]
        bench.scheduler.update(Settings(BatchPolicy(1), QueueSettings(QueuePolicy(1))))
        assert (bench.scheduler.pending, total.waiting) == (3, 3)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 1"):
            bench.ask(4)
        bench.scheduler.update(Settings(BatchPolicy(1), QueueSettings(QueuePolicy(1, timeout_us=1000))))
        for answer in waiting:
            with pytest.raises(Unavailable, match="Request timeout expired"):
                await answer
        assert (bench.scheduler.pending, total.waiting, bench.statistics.expired) == (0, 0, 3)
        bench.model.gate.set()
        await running
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_new_instances_take_requests_queued_for_hanging_ones() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        running = await occupied(bench)
        waits = bench.ask(2)[1]
        other = HeldInstance(Execution("m", "1", bench.model))
        bench.scheduler.replace_instances([other])
        await asyncio.sleep(0)
        bench.model.gate.set()
        other.go_on()
        assert values(await waits) == [4]
        await running
        await bench.scheduler.close()

    asyncio.run(scenario())
