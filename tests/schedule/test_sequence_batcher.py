"""The queue of sequences, when the model wants to have a request once more and things have changed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from backline.engine.errors import DeadlineExceeded, Unavailable
from backline.engine.messages import SequenceStep
from backline.engine.model_config import QueuePolicy
from backline.engine.sequence_batching import SequenceBatching
from backline.schedule.batching import BatchPolicy
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.sequences.batcher import Lane, SequenceBatcher, slot_of
from backline.schedule.sequences.direct import SlotLane, SlotPolicy
from backline.schedule.sequences.state_store import MemoryStateStore
from backline.schedule.sequences.tensors import SequenceTensors
from backline.workers.instance import Instance
from schedule.world import AGAIN, Asked, HeldInstance, World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    assert not made.faults
    made.close()


def batcher(world: World, instances: list[HeldInstance], *, iterative: bool = True, direct: bool = False) -> SequenceBatcher:
    """One place an instance, or three direct ones."""
    slots = 3 if direct else 1
    tensors = SequenceTensors("m", SequenceBatching(iterative=iterative), {}, batched=True, served=frozenset({"y"}))

    def make_lane(instance: Instance) -> Lane:
        if direct:
            return SlotLane("m", SlotPolicy(slots), instance, world.statistics, slot_of, tensors.empty, loop=world.loop)
        return Scheduler("m", Settings(BatchPolicy()), [instance], world.statistics, loop=world.loop)

    return world.loop.inside(
        lambda: SequenceBatcher(
            "m",
            "1",
            tensors,
            world.statistics,
            instances,
            make_lane,
            slots=slots,
            batched=True,
            idle_seconds=10.0,
            store=MemoryStateStore(world.clock.monotonic),
            policy=QueuePolicy(),
            loop=world.loop,
            total=world.total,
        )
    )


def asked(made: Asked | None) -> Asked:
    assert made is not None
    return made


def test_a_request_that_is_to_run_again_waits_for_a_place_when_there_are_fewer_of_them(world: World) -> None:
    before = [world.instance(), world.instance()]
    queue = batcher(world, before)
    both = [asked(world.ask(queue.submit, [1.0])) for _ in range(2)]
    world.loop.later(0)
    after = world.instance()
    world.loop.inside(lambda: queue.replace_instances([after]))
    world.begun.clear()  # they run again
    for instance in before:
        world.loop.inside(lambda instance=instance: instance.end(AGAIN))
    world.loop.later(0)
    assert (len(world.running), queue.pending, world.total.waiting) == (1, 1, 1)
    world.loop.inside(after.end)
    world.loop.later(0)
    world.loop.inside(after.end)
    assert [len(one.answers) for one in both] == [1, 1]
    assert (queue.pending, queue.running, world.total.waiting) == (0, 0, 0)


def test_a_request_that_is_to_run_again_is_refused_when_the_model_goes_away(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance])
    one = asked(world.ask(queue.submit, [1.0]))
    world.loop.later(0)
    drained: asyncio.Task[None] = world.loop.create_task(queue.drain(0.5))
    world.loop.later(0)
    world.loop.later(1)
    world.loop.later(0)
    assert not drained.done()
    world.loop.inside(lambda: instance.end(AGAIN))
    world.loop.later(0)
    assert isinstance(one.answers[0], Unavailable)
    assert drained.done()
    assert instance.closed


def test_a_request_whose_time_is_over_when_its_place_may_run_is_not_run(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance], iterative=False, direct=True)
    world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True, end=True))
    world.loop.later(0)
    late = asked(world.ask(queue.submit, [2.0], step=SequenceStep(2, start=True, end=True), within=0.5))
    in_time = asked(world.ask(queue.submit, [3.0], step=SequenceStep(3, start=True, end=True)))
    world.loop.later(1)
    world.loop.inside(instance.end)
    world.loop.later(0)
    world.loop.inside(instance.end)
    assert isinstance(late.answers[0], DeadlineExceeded)
    assert len(in_time.answers) == 1
    assert world.statistics.expired == 1


def test_full_queues_refuse_no_sequence_whose_request_would_not_wait(world: World) -> None:
    instances = [world.instance() for _ in range(2)]
    queue = batcher(world, instances, iterative=False)
    assert world.total.limit is not None
    for number in range(world.total.limit + 1):
        assert world.ask(queue.submit, [1.0], step=SequenceStep(1, start=not number))
    assert world.ask(queue.submit, [1.0], step=SequenceStep(1)) is None
    assert world.ask(queue.submit, [1.0], step=SequenceStep(2, start=True))
    assert world.ask(queue.submit, [1.0], step=SequenceStep(2)) is None, "it would wait for the one before it"
    assert world.ask(queue.submit, [1.0], step=SequenceStep(3, start=True)) is None, "it would wait for a place"
    world.loop.later(0)
    while any(instance.batch for instance in instances):
        for instance in instances:
            if instance.batch is not None:
                world.loop.inside(instance.end)
        world.loop.later(0)
    assert [len(one.answers) for one in world.asked] == [1] * (world.total.limit + 2)
    assert world.total.waiting == 0
