"""The driver for a latency objective, over a real model on the loop and on threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from backline.engine.config.model_config import QueuePolicy
from backline.schedule.batching import BatchPolicy
from backline.schedule.objective.scheduler import ObjectiveScheduler
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.scheduler import Settings
from backline_client.values.errors import DeadlineExceeded, Unavailable
from schedule.bench import Bench, values

SETTINGS = Settings(BatchPolicy(8), QueueSettings(QueuePolicy(100)))


class ObjectiveBench(Bench):
    """With an objective, after a load that measured 1 ms per run."""

    def __init__(self, *, inline: bool, objective: float) -> None:
        super().__init__(inline=inline)
        instances = list(self.scheduler._instances)
        self.scheduler = ObjectiveScheduler(
            "m",
            SETTINGS,
            instances,
            self.statistics,
            objective=objective,
            seconds={1: 0.001, 8: 0.001},
            loop=self.loop,
        )
        self.queue = self.scheduler


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))  # type: ignore[arg-type]


async def occupied(bench: ObjectiveBench) -> asyncio.Future[object]:
    """Keeps the only instance busy until the gate opens."""
    bench.model.gate.clear()
    _, answer = bench.ask(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bench.scheduler.running == 1
    return answer  # type: ignore[return-value]


@pytest.mark.parametrize("inline", [True, False])
def test_requests_in_time_run_as_in_any_scheduler(inline: bool) -> None:
    async def scenario() -> None:
        bench = ObjectiveBench(inline=inline, objective=5.0)
        answers = [bench.ask(value)[1] for value in (1, 2, 3)]
        assert [values(answer) for answer in await asyncio.gather(*answers)] == [[2], [4], [6]]
        assert (bench.model.batches, bench.statistics.success.count, bench.statistics.inference_count) == (
            [3],
            3,
            3,
        )
        await bench.scheduler.drain(5)

    run(scenario)


def test_requests_are_refused_at_once_while_an_instance_is_overdue() -> None:
    async def scenario() -> None:
        bench = ObjectiveBench(inline=False, objective=0.2)
        running = await occupied(bench)
        await asyncio.sleep(0.25)
        with pytest.raises(
            Unavailable, match="model 'm' is too busy to respond within its objective of 200 ms"
        ) as refused:
            bench.ask(2)
        assert 0 < (refused.value.retry_after or 0) < 5
        assert bench.statistics.rejected_late == 1
        bench.model.gate.set()
        await running
        assert values(await bench.ask(3)[1]) == [6]
        await bench.scheduler.drain(5)

    run(scenario)


def test_a_queued_request_that_becomes_late_is_refused_then_and_never_runs() -> None:
    async def scenario() -> None:
        bench = ObjectiveBench(inline=False, objective=0.2)
        running = await occupied(bench)
        waits, hurried = bench.ask(2)[1], bench.ask(3, deadline=time.monotonic() + 0.05)[1]
        with pytest.raises(DeadlineExceeded):
            await hurried
        with pytest.raises(Unavailable, match="objective"):
            await waits
        assert not running.done()
        bench.model.gate.set()
        await running  # it had started, so it completes although late
        await bench.scheduler.drain(5)
        assert bench.model.batches == [1]
        assert (bench.statistics.rejected_late, bench.statistics.expired, bench.statistics.success.count) == (
            1,
            1,
            1,
        )

    run(scenario)


def test_a_refusal_names_the_deadline_that_cannot_be_met() -> None:
    async def scenario() -> None:
        bench = ObjectiveBench(inline=False, objective=5.0)
        running = await occupied(bench)
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="within the deadline of the request"):
            bench.ask(2, deadline=time.monotonic() + 0.02)
        bench.model.gate.set()
        await running
        await bench.scheduler.drain(5)

    run(scenario)


def test_run_times_are_learned_from_successful_runs_only() -> None:
    async def scenario() -> None:
        bench = ObjectiveBench(inline=True, objective=1.0)
        before = bench.scheduler._outlook.latency.line(0).seconds(1)  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="13 is refused"):
            await bench.ask(13)[1]
        assert bench.scheduler._outlook.latency.line(0).seconds(1) == before  # type: ignore[attr-defined]
        for _ in range(100):
            await bench.ask(1)[1]
        assert bench.scheduler._outlook.latency.line(0).seconds(1) < before / 2  # type: ignore[attr-defined]
        await bench.scheduler.drain(5)

    run(scenario)


def test_queued_requests_move_to_the_queue_of_new_settings() -> None:
    async def scenario() -> None:
        bench = ObjectiveBench(inline=False, objective=5.0)
        running = await occupied(bench)
        waits = bench.ask(2)[1]
        bench.scheduler.update(Settings(BatchPolicy(4), QueueSettings(QueuePolicy(1))))
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 1"):
            bench.ask(3)
        bench.model.gate.set()
        await running
        assert values(await waits) == [4]
        await bench.scheduler.drain(5)

    run(scenario)
