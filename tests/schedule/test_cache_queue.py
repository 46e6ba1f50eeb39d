"""The response cache in front of a queue: repeated and identical requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from backline.engine.config.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.batching import BatchPolicy
from backline.schedule.cache.cache import LocalCache
from backline.schedule.cache.flight import RequestKeys
from backline.schedule.cache.queue import LARGE, CachedInstances
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.splitting import SplittingQueue
from backline.workers.here.execution import Execution
from backline.workers.here.instances import ThreadInstance
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, DeadlineExceeded, Internal, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from schedule.bench import Doubler, values
from schedule.world import World


def tensor(name: str, data: np.ndarray) -> Tensor:
    return Tensor(name, DataType.FP32, data.shape, data)


class Bench:
    """A cache in front of a scheduler over a Doubler on a thread."""

    def __init__(
        self, *, queue: QueueSettings | None = None, size: int = 1 << 20, fingerprint: str = "f"
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.model = Doubler()
        self.statistics = ModelStatistics()
        self.settings = Settings(BatchPolicy(8), queue or QueueSettings(QueuePolicy(100)))
        execute = Execution("m", "1", self.model)
        scheduler = Scheduler(
            "m", self.settings, [ThreadInstance(execute, self.loop, "m")], self.statistics, loop=self.loop
        )
        self.cache = LocalCache(size)
        self.queue = CachedInstances(
            scheduler,
            self.cache,
            RequestKeys("m", "1", fingerprint),
            self.settings.queue,
            self.statistics,
            name="m",
            version="1",
            loop=self.loop,
        )

    def ask(
        self, *x: float, id: str = "", deadline: float | None = None, priority: int = 0
    ) -> tuple[Ticket, asyncio.Future[InferResponse]]:
        answer: asyncio.Future[InferResponse] = self.loop.create_future()

        def complete(_: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(response)  # type: ignore[arg-type]

        asked = Ticket(
            InferRequest(
                "m", {"x": tensor("x", np.array(x, np.float32))}, id=id, deadline=deadline, priority=priority
            ),
            complete,
        )
        asked.batch_size = len(x)
        self.queue.submit(asked)
        return asked, answer

    async def running(self) -> None:
        """Returns once the model's only run has begun, which waits for the gate."""
        while not self.queue.running:  # noqa: ASYNC110  # it begins at the end of a turn of the loop
            await asyncio.sleep(0)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_a_cached_response_needs_no_run_and_is_counted_as_in_triton() -> None:
    async def scenario() -> None:
        bench = Bench()
        first = await bench.ask(1, 2, id="a")[1]
        second = await bench.ask(1, 2, id="b")[1]
        assert (values(first), first.id) == ([2, 4], "a")
        assert (values(second), second.id) == ([2, 4], "b")
        assert not second.outputs[0].data.flags.writeable
        counted = bench.statistics
        assert (counted.success.count, counted.inference_count, counted.execution_count) == (2, 2, 1)
        assert (counted.cache_hit.count, counted.cache_miss.count) == (1, 1)
        assert counted.cache_hit.ns > 0
        assert counted.cache_miss.ns > 0
        assert counted.compute_infer.count == 1
        assert counted.queue.count == 2
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_identical_requests_in_flight_share_a_run_and_keep_their_ids() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        asked = [bench.ask(3, id=str(number))[1] for number in range(3)]
        await bench.running()
        asked.append(bench.ask(3, id="3")[1])
        bench.model.gate.set()
        answers = await asyncio.gather(*asked)
        assert [(values(one), one.id) for one in answers] == [([6], str(number)) for number in range(4)]
        assert bench.model.batches == [1]
        assert (
            bench.statistics.cache_miss.count,
            bench.statistics.cache_hit.count,
            bench.statistics.success.count,
        ) == (1, 3, 4)
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_cancelling_a_request_does_not_affect_others_that_share_its_run() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        (first, gone), (_, second) = bench.ask(3, id="a"), bench.ask(3, id="b")
        first.cancel()
        bench.model.gate.set()
        answer = await second
        assert (values(answer), answer.id) == ([6], "b")
        assert not gone.done()
        assert (bench.statistics.cancelled, bench.statistics.success.count) == (1, 1)
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_a_shared_run_is_cancelled_with_its_last_request() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        bench.ask(1)
        await bench.running()
        (first, _), (second, _) = bench.ask(3), bench.ask(3)
        first.cancel()
        second.cancel()
        assert bench.queue.pending == 0
        assert bench.statistics.cancelled == 2
        bench.model.gate.set()
        await bench.queue.drain(5)
        assert bench.model.batches == [1]

    asyncio.run(scenario())


def test_errors_go_to_all_requests_of_a_shared_run_and_are_not_cached() -> None:
    async def scenario() -> None:
        bench = Bench()
        failed = await asyncio.gather(bench.ask(14)[1], bench.ask(14)[1], return_exceptions=True)
        assert [type(one) for one in failed] == [Internal, Internal]
        with pytest.raises(Internal):
            await bench.ask(14)[1]
        assert len(bench.model.batches) == 2
        assert (len(bench.cache), bench.statistics.cache_miss.count) == (0, 0)
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_requests_that_share_a_run_keep_their_own_deadlines() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        _, blocker = bench.ask(1)
        await bench.running()
        (_, hasty), (_, patient) = bench.ask(3, deadline=time.monotonic() + 0.02), bench.ask(3)
        with pytest.raises(BacklineError, match="The deadline of the request passed"):
            await hasty
        assert not patient.done()
        bench.model.gate.set()
        assert values(await patient) == [6]
        await blocker
        assert bench.statistics.expired == 1
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_a_deadline_holds_after_a_more_patient_request_has_left_the_shared_run() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        _, blocker = bench.ask(1)
        await bench.running()
        (_, hasty), (patient, _) = bench.ask(3, deadline=time.monotonic() + 0.02), bench.ask(3)
        patient.cancel()
        with pytest.raises(BacklineError, match="The deadline of the request passed"):
            await hasty
        assert (bench.queue.pending, bench.statistics.expired, bench.statistics.cancelled) == (0, 1, 1)
        bench.model.gate.set()
        await blocker
        await bench.queue.drain(5)
        assert bench.model.batches == [1]

    asyncio.run(scenario())


def test_requests_sharing_a_queued_run_still_expire_after_a_change_of_settings() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        _, blocker = bench.ask(1)
        await bench.running()
        _, patient = bench.ask(3)
        bench.queue.update(Settings(BatchPolicy(8), QueueSettings(QueuePolicy(50))))
        _, hasty = bench.ask(3, deadline=time.monotonic() + 0.02)
        with pytest.raises(BacklineError, match="The deadline of the request passed"):
            await hasty
        bench.model.gate.set()
        assert values(await patient) == [6]
        await blocker
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_a_request_that_shares_a_started_run_completes_after_its_deadline() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.model.gate.clear()
        _, first = bench.ask(3, deadline=time.monotonic() + 0.02)
        await bench.running()
        _, second = bench.ask(3, deadline=time.monotonic() + 0.02)
        await asyncio.sleep(0.05)
        bench.model.gate.set()
        assert [values(one) for one in await asyncio.gather(first, second)] == [[6], [6]]
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_a_request_of_higher_priority_does_not_join_a_queued_run_of_lower_priority() -> None:
    async def scenario() -> None:
        bench = Bench(queue=QueueSettings(QueuePolicy(100), 2, 2))
        bench.model.gate.clear()
        _, blocker = bench.ask(1)
        await bench.running()
        order: list[str] = []
        asked = [
            bench.ask(3, priority=2),
            *(bench.ask(float(number), priority=2) for number in range(20, 40)),
            bench.ask(3, priority=1),
        ]
        for name, (_, answer) in (("low", asked[0]), ("high", asked[-1])):
            answer.add_done_callback(lambda _, name=name: order.append(name))
        bench.model.gate.set()
        await asyncio.gather(blocker, *(answer for _, answer in asked))
        assert len(order) == 2
        assert sum(bench.model.batches) == 23
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_a_full_queue_refuses_requests_that_are_not_cached() -> None:
    async def scenario() -> None:
        bench = Bench(queue=QueueSettings(QueuePolicy(1)))
        kept = await bench.ask(5)[1]
        bench.model.gate.clear()
        answers = [bench.ask(1)[1]]
        await bench.running()
        answers.append(bench.ask(2)[1])
        with pytest.raises(Unavailable):
            bench.ask(3)
        assert values(await bench.ask(5)[1]) == values(kept)
        bench.model.gate.set()
        await asyncio.gather(*answers)
        await bench.queue.drain(5)

    asyncio.run(scenario())


def test_large_requests_are_hashed_off_the_loop_and_found_as_well() -> None:
    async def scenario() -> None:
        bench = Bench(size=1 << 24)
        count = LARGE // 4 + 1
        x = [1.0] * count
        first = await bench.ask(*x)[1]
        second = await bench.ask(*x)[1]
        assert first.outputs[0].data.tolist() == second.outputs[0].data.tolist() == [2.0] * count
        assert (bench.statistics.execution_count, bench.statistics.cache_hit.count) == (1, 1)
        gone, _ = bench.ask(*x)
        gone.cancel()
        await bench.queue.drain(5)
        assert bench.statistics.cancelled == 1
        assert bench.queue.pending == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("policy", [QueuePolicy(), QueuePolicy(None, timeout_us=500_000)])
def test_parts_of_a_shared_request_wait_as_long_as_its_most_patient_caller(
    world: World, policy: QueuePolicy
) -> None:
    instance = world.instance()
    queue = QueueSettings(policy)
    scheduler = Scheduler(
        "m", Settings(BatchPolicy(2), queue), [instance], world.statistics, loop=world.loop, total=world.total
    )
    splitting = SplittingQueue(scheduler, 2, world.statistics)
    keys = RequestKeys("m", "1", "")
    cached = CachedInstances(
        splitting, LocalCache(0), keys, queue, world.statistics, name="m", version="1", loop=world.loop
    )
    world.began_for = lambda one: [other for other in world.open if other.values == one.values]
    world.ask(cached.submit, [0.0])
    world.loop.later(0)
    hasty = world.ask(cached.submit, [1.0, 2.0, 3.0], within=0.2)
    world.loop.later(0.1)
    patient = world.ask(cached.submit, [1.0, 2.0, 3.0], within=0.45)
    assert hasty is not None
    assert patient is not None
    world.loop.later(0.3)
    assert isinstance(hasty.answers[0], DeadlineExceeded)
    while instance.batch is not None:
        world.loop.inside(instance.end)
        world.loop.later(0)
    assert isinstance(patient.answers[0], InferResponse)
    assert not world.faults


def test_a_flight_replaced_by_one_of_higher_priority_still_expires_after_a_change_of_settings(
    world: World,
) -> None:
    instance = world.instance()
    queue = QueueSettings(QueuePolicy(), levels=2, default_level=2)
    scheduler = Scheduler(
        "m", Settings(BatchPolicy(), queue), [instance], world.statistics, loop=world.loop, total=world.total
    )
    keys = RequestKeys("m", "1", "")
    cached = CachedInstances(
        scheduler, LocalCache(0), keys, queue, world.statistics, name="m", version="1", loop=world.loop
    )
    world.ask(cached.submit, [0.0])
    world.loop.later(0)
    hasty, _, _ = (
        world.ask(cached.submit, [1.0], within=0.2),
        world.ask(cached.submit, [1.0]),
        world.ask(cached.submit, [1.0], priority=1),
    )
    assert hasty is not None
    world.loop.inside(lambda: cached.update(Settings(BatchPolicy(), QueueSettings(QueuePolicy(100)))))
    world.loop.later(0.3)
    assert isinstance(hasty.answers[0], DeadlineExceeded)
