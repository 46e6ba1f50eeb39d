"""The driver: queue, instances and responses, over a real model."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from backline.engine.config.model_config import QueuePolicy
from backline.schedule.batching import BRIEF_NS, BatchPolicy
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.scheduler import Settings
from backline.workers.batch import Batch
from backline.workers.here.execution import Execution
from backline.workers.here.instances import InlineInstance, ThreadInstance
from backline.workers.instance import Finished
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)
from backline_client.values.messages import InferResponse
from schedule.bench import Bench, values


@pytest.mark.parametrize("inline", [True, False])
def test_requests_of_one_turn_run_as_one_batch_and_each_gets_its_rows(inline: bool) -> None:
    async def scenario() -> None:
        bench = Bench(inline=inline)
        answers = [bench.ask(1)[1], bench.ask(2, 3)[1], bench.ask(4)[1]]
        assert [values(one) for one in await asyncio.gather(*answers)] == [[2], [4, 6], [8]]
        assert bench.model.batches == [4]
        assert (
            bench.statistics.inference_count,
            bench.statistics.execution_count,
            bench.statistics.success.count,
        ) == (4, 1, 3)
        await bench.scheduler.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", [13, 14])
def test_a_request_that_fails_its_batch_fails_alone(bad: int) -> None:
    async def scenario() -> None:
        bench = Bench(inline=True)
        good, wrong = bench.ask(1)[1], bench.ask(bad)[1]
        assert values(await good) == [2]
        with pytest.raises(InvalidArgument if bad == 13 else Internal):
            await wrong
        assert bench.statistics.fail.count == 1

    asyncio.run(scenario())


def test_requests_retried_one_by_one_are_counted_as_they_ran() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True)
        answers = [bench.ask(1)[1], bench.ask(2, 3)[1], bench.ask(13)[1]]
        await asyncio.gather(*answers, return_exceptions=True)
        assert bench.model.batches == [4, 1, 2, 1]
        counted = bench.statistics
        assert (
            counted.inference_count,
            counted.execution_count,
            counted.success.count,
            counted.fail.count,
        ) == (3, 3, 2, 1)
        assert {size: batch.compute_infer.count for size, batch in counted.batches.items()} == {1: 2, 2: 1}
        assert (
            counted.success.ns
            == counted.queue.ns
            + counted.compute_input.ns
            + counted.compute_infer.ns
            + counted.compute_output.ns
        )

    asyncio.run(scenario())


def test_requests_queued_while_an_instance_is_busy_form_the_next_batch() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        bench.model.gate.clear()
        first = bench.ask(1)[1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [bench.ask(2)[1] for _ in range(20)]
        bench.model.gate.set()
        await asyncio.gather(first, *rest)
        assert bench.model.batches == [1, 8, 8, 4]
        await bench.scheduler.close()

    asyncio.run(scenario())


class HeldInstance:
    """An instance off the event loop whose runs end when the test says so, after `run_ns`."""

    off_loop = True
    memory = None

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._running: list[tuple[Batch, Finished]] = []

    def run(self, batch: Batch, finished: Finished) -> None:
        self.batches.append(len(batch.tickets))
        self._running.append((batch, finished))

    def end(self, run_ns: int) -> None:
        batch, finished = self._running.pop()
        batch.gathered_ns, batch.ran_ns = batch.started_ns, batch.started_ns + run_ns
        batch.ended_ns = batch.ran_ns
        batch.outcomes = [InferResponse("m", "1", "", []) for _ in batch.tickets]
        finished(self, batch)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("run_ns", "batches"), [(BRIEF_NS // 2, [2, 4]), (2 * BRIEF_NS, [2, 2])])
def test_after_brief_runs_a_batch_waits_for_requests_of_the_next_turn(
    run_ns: int, batches: list[int]
) -> None:
    async def scenario() -> None:
        bench = Bench(inline=True)
        held = HeldInstance()
        bench.scheduler.replace_instances([held])
        answers = [bench.ask(1)[1], bench.ask(2)[1]]
        await asyncio.sleep(0)
        held.end(run_ns)
        for _ in range(2):
            answers += [bench.ask(1)[1], bench.ask(2)[1]]
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held.batches == batches
        while not all(answer.done() for answer in answers):
            held.end(run_ns)
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_after_brief_runs_a_group_of_requests_runs_while_the_loop_receives_the_other() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(64))
        held = HeldInstance()
        bench.scheduler.replace_instances([held])
        answers = [bench.ask(1)[1] for _ in range(32)]
        await asyncio.sleep(0)
        held.end(BRIEF_NS // 2)
        answers += [bench.ask(1)[1] for _ in range(20)]
        assert held.batches == [32, 16]
        answers += [bench.ask(1)[1] for _ in range(12)]
        assert held.batches == [32, 16]
        held.end(BRIEF_NS // 2)
        assert held.batches == [32, 16, 16]
        held.end(BRIEF_NS // 2)
        await asyncio.gather(*answers)
        await bench.scheduler.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("first", "batches"), [(14, [16]), (10, [10, 6])])
def test_on_the_event_loop_a_nearly_full_batch_waits_for_late_requests(
    first: int, batches: list[int]
) -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(16))
        answers = [bench.ask(1)[1] for _ in range(first)]
        await asyncio.sleep(0)
        answers += [bench.ask(1)[1] for _ in range(16 - first)]
        await asyncio.gather(*answers)
        assert bench.model.batches == batches
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, queue=QueueSettings(QueuePolicy(2)))
        answers = [bench.ask(1)[1], bench.ask(2)[1]]
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            bench.ask(3)
        await asyncio.gather(*answers)

    asyncio.run(scenario())


def test_an_expired_request_gets_an_error_and_never_runs() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True)
        answer = bench.ask(1, deadline=time.monotonic() - 1)[1]
        with pytest.raises(DeadlineExceeded, match="deadline of the request passed"):
            await answer
        assert bench.model.batches == []
        assert bench.statistics.expired == 1

    asyncio.run(scenario())


def test_a_deadline_is_enforced_while_all_instances_are_busy() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        bench.model.gate.clear()
        running = bench.ask(1)[1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        later, sooner = (bench.ask(2, deadline=time.monotonic() + wait)[1] for wait in (0.02, 0.01))
        patient = bench.ask(3)[1]
        for answer in (sooner, later):
            with pytest.raises(DeadlineExceeded):
                await answer
        assert not running.done()
        bench.model.gate.set()
        assert values(await patient) == [6]
        assert (bench.model.batches, bench.statistics.expired) == ([1, 1], 2)
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_deadline_is_enforced_during_the_batching_delay() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(2, delay_ns=60_000_000_000))
        with pytest.raises(DeadlineExceeded):
            await bench.ask(1, deadline=time.monotonic() + 0.01)[1]

    asyncio.run(scenario())


def test_the_default_timeout_applies_to_requests_without_one() -> None:
    async def scenario() -> None:
        queue = QueueSettings(QueuePolicy(100, timeout_us=10_000))
        bench = Bench(inline=True, policy=BatchPolicy(3, delay_ns=60_000_000_000), queue=queue)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await bench.ask(2)[1]

    asyncio.run(scenario())


def test_a_failed_batch_is_run_again_one_by_one_unless_the_model_is_not_idempotent() -> None:
    async def scenario(*, idempotent: bool) -> tuple[list[int], list[bool]]:
        bench = Bench(inline=True, idempotent=idempotent)
        answers = [bench.ask(number)[1] for number in (1, 13)]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        return bench.model.batches, [isinstance(one, BacklineError) for one in outcomes]

    assert asyncio.run(scenario(idempotent=True)) == ([2, 1, 1], [False, True])
    assert asyncio.run(scenario(idempotent=False)) == ([2], [True, True])


def test_instances_can_be_replaced_between_two_batches() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True)
        assert values(await bench.ask(1)[1]) == [2]
        execute = Execution("m", "1", bench.model)
        bench.scheduler.replace_instances(
            [ThreadInstance(execute, bench.loop, f"m-{number}") for number in range(2)]
        )
        answers = [bench.ask(number)[1] for number in range(12)]
        assert [values(answer) for answer in await asyncio.gather(*answers)] == [
            [2 * number] for number in range(12)
        ]
        await bench.scheduler.close()

    asyncio.run(scenario())


def test_a_cancelled_request_never_runs() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True)
        cancelled, _ = bench.ask(1)
        cancelled.cancel()
        await bench.ask(2)[1]
        assert bench.model.batches == [1]
        assert bench.statistics.cancelled == 1

    asyncio.run(scenario())


def test_with_a_delay_a_lone_request_waits_for_others() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(2, delay_ns=60_000_000_000))
        lone = bench.ask(1)[1]
        await asyncio.sleep(0.01)
        assert not lone.done()
        await asyncio.gather(lone, bench.ask(2)[1])
        assert bench.model.batches == [2]

    asyncio.run(scenario())


def test_a_lone_request_runs_after_the_delay() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(8, delay_ns=20_000_000))
        begin = time.monotonic()
        await bench.ask(1)[1]
        assert time.monotonic() - begin >= 0.019

    asyncio.run(scenario())


def test_closing_refuses_queued_requests_and_finishes_running_ones() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        bench.model.gate.clear()
        running = bench.ask(1)[1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = bench.ask(2)[1]
        closing = asyncio.ensure_future(bench.scheduler.close())
        with pytest.raises(Unavailable, match="being unloaded"):
            await waiting
        bench.model.gate.set()
        await closing
        assert values(await running) == [2]

    asyncio.run(scenario())


def test_draining_finishes_queued_and_running_requests() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        bench.model.gate.clear()
        answers = [bench.ask(1)[1]]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answers += [bench.ask(number)[1] for number in range(20, 40)]
        draining = asyncio.ensure_future(bench.scheduler.drain(60))
        await asyncio.sleep(0)
        bench.model.gate.set()
        await draining
        assert [values(answer.result()) for answer in answers] == [
            [2],
            *([2 * number] for number in range(20, 40)),
        ]

    asyncio.run(scenario())


def test_draining_ends_the_batching_delay() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(2, delay_ns=60_000_000_000))
        lone = bench.ask(1)[1]
        await asyncio.sleep(0)
        await bench.scheduler.drain(60)
        assert values(lone.result()) == [2]

    asyncio.run(scenario())


def test_draining_refuses_requests_still_queued_at_its_limit() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        bench.model.gate.clear()
        running = bench.ask(1)[1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = bench.ask(2)[1]
        draining = asyncio.ensure_future(bench.scheduler.drain(0.01))
        with pytest.raises(Unavailable, match="being unloaded"):
            await waiting
        bench.model.gate.set()
        await draining
        assert values(running.result()) == [2]

    asyncio.run(scenario())


def test_draining_ends_when_all_queued_requests_are_cancelled() -> None:
    async def scenario() -> None:
        bench = Bench(inline=True, policy=BatchPolicy(2, delay_ns=60_000_000_000))
        gone, _ = bench.ask(1)
        await asyncio.sleep(0)
        gone.cancel()
        await bench.scheduler.drain(60)
        assert bench.model.batches == []

    asyncio.run(scenario())


def test_settings_and_instances_change_while_batches_run() -> None:
    async def scenario() -> None:
        bench = Bench(inline=False)
        bench.model.gate.clear()
        running = bench.ask(1)[1]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        execute = Execution("m", "1", bench.model)
        more = [ThreadInstance(execute, bench.loop, f"m-{number}") for number in range(2)]
        bench.scheduler.update(Settings(BatchPolicy(1), QueueSettings(QueuePolicy(3))), instances=more)
        answers = [bench.ask(number)[1] for number in (2, 3, 4)]
        with pytest.raises(Unavailable, match="maximum queue size of 3"):
            bench.ask(5)
        bench.model.gate.set()
        assert [values(answer) for answer in await asyncio.gather(running, *answers)] == [[2], [4], [6], [8]]
        assert bench.model.batches == [1, 1, 1, 1]
        await bench.scheduler.close()

    asyncio.run(scenario())


async def test_a_batch_far_larger_than_those_measured_does_not_block_the_loop() -> None:
    bench = Bench(inline=True)
    bench.model.gate.clear()
    _, answer = bench.ask(*[1.0] * (InlineInstance.FEW_ELEMENTS + 1))
    for _ in range(5):
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(bench.scheduler.close())
    await asyncio.sleep(0)
    assert not answer.done()
    assert not closing.done()

    bench.model.gate.set()
    assert values(await answer) == [2.0] * (InlineInstance.FEW_ELEMENTS + 1)
    await closing
    assert bench.model.threads[0] is not threading.current_thread()
