"""Instances that wait for a permit: which runs begin, and when permits are given back."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from backline.schedule.batching import BatchPolicy
from backline.schedule.rate_limit.limits import Claim, RateLimits
from backline.schedule.rate_limit.permits import Permits, PermittedInstance
from backline.schedule.scheduler import Scheduler
from backline.schedule.scheduler import Settings as SchedulerSettings
from backline.workers.batch import Batch
from backline_client.values.errors import DeadlineExceeded, Unavailable
from schedule.world import Asked, HeldInstance, World

MEMORY = ("0", "memory")


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def model(
    world: World, permits: Permits, count: int = 1, *, ordered: bool = False
) -> tuple[Scheduler, HeldInstance]:
    """A model whose instance takes `count` of the memory, one request at a time."""
    instance = world.instance()
    (permit,) = permits.register([Claim({MEMORY: count})], ("m", "1"))
    permitted = PermittedInstance(instance, permit, world.loop)
    return Scheduler(
        "m", SchedulerSettings(), [permitted], world.statistics, loop=world.loop, preserve_ordering=ordered
    ), instance


def turns(world: World) -> None:
    world.loop.later(0)


def test_an_instance_takes_its_next_batch_before_all_responses_if_it_can(world: World) -> None:
    scheduler, instance = model(world, Permits(RateLimits()))
    first, second = world.ask(scheduler.submit, [1.0]), world.ask(scheduler.submit, [2.0])
    assert first is not None
    assert second is not None
    turns(world)
    world.loop.inside(instance.vacate)
    turns(world)
    assert second.started
    world.loop.inside(instance.end)
    world.loop.inside(instance.end)
    assert len(first.answers) == len(second.answers) == 1
    assert not world.faults


def test_an_idle_instance_keeps_nothing_of_its_last_run(world: World) -> None:
    """Otherwise the inputs of the last request would stay in memory, and its client's connection."""
    scheduler, instance = model(world, Permits(RateLimits()))
    asked = world.ask(scheduler.submit, [1.0])
    assert asked is not None
    turns(world)
    world.loop.inside(instance.end)
    turns(world)
    assert asked.answers
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Batch) and asked.ticket in one.tickets]


def test_a_permit_given_up_in_the_turn_of_its_grant_goes_to_others(
    world: World,
) -> None:
    """Two requests get their permits at once. The first has expired, and its completion cancels the other."""
    limits = RateLimits({MEMORY: 2})
    permits = Permits(limits)
    (blocking, holder), (late, _), (other, unused) = (
        model(world, permits, 2),
        model(world, permits),
        model(world, permits),
    )
    given_up: list[Asked] = []

    def give_up() -> None:
        given_up[0].cancel()

    world.ask(blocking.submit, [1.0])
    turns(world)
    expiring = world.ask(late.submit, [2.0], within=0.5, then=give_up)
    gone = world.ask(other.submit, [3.0])
    assert expiring is not None
    assert gone is not None
    turns(world)
    given_up.append(gone)
    world.loop.later(1)
    world.loop.inside(holder.end)
    turns(world)
    assert len(expiring.answers) == 1
    assert not gone.answers
    assert unused.batch is None
    assert not any(limits._taken.values())
    assert not limits._staged
    assert not world.faults


def test_a_request_that_expires_before_its_permit_completes_at_once_even_with_ordering(
    world: World,
) -> None:
    permits = Permits(RateLimits({MEMORY: 1}))
    (blocking, _), (ordered, _) = model(world, permits), model(world, permits, ordered=True)
    held = world.instance()
    world.ask(blocking.submit, [1.0])
    turns(world)
    patient = world.ask(ordered.submit, [2.0])
    turns(world)
    world.loop.inside(
        lambda: ordered.replace_instances(
            [PermittedInstance(held, *permits.register([Claim({MEMORY: 1})], ("m", "1")), world.loop)]
        )
    )
    late = world.ask(ordered.submit, [3.0], within=0.5)
    turns(world)
    world.loop.later(1)
    assert patient is not None
    assert late is not None
    assert not patient.answers
    assert isinstance(late.answers[0], DeadlineExceeded)
    assert world.statistics.expired == 1
    assert not world.faults


@pytest.mark.parametrize("ordered", [False, True])
def test_batches_waiting_for_a_permit_are_refused_at_the_end_of_a_drain(world: World, ordered: bool) -> None:
    permits = Permits(RateLimits({MEMORY: 1}))
    (blocking, holder), (waiting, unused) = model(world, permits), model(world, permits, ordered=ordered)
    world.ask(blocking.submit, [1.0])
    turns(world)
    one = world.ask(waiting.submit, [2.0])
    turns(world)
    drained: asyncio.Task[None] = world.loop.create_task(waiting.drain(0.5))
    world.loop.later(0)
    assert one is not None
    assert not one.answers
    world.loop.later(1)
    world.loop.later(0)
    assert isinstance(one.answers[0], Unavailable)
    assert drained.done()
    assert unused.closed
    world.loop.inside(holder.end)
    assert not world.faults


def test_a_request_cancelled_by_an_expired_permit_wait_does_not_run(world: World) -> None:
    (permit,) = Permits(RateLimits()).register([Claim({MEMORY: 1})], ("m", "1"))
    permitted = PermittedInstance(world.instance(off_loop=False), permit, world.loop)
    settings = SchedulerSettings(BatchPolicy(8))
    scheduler = Scheduler("m", settings, [permitted], world.statistics, loop=world.loop)
    given_up, late, other = [
        world.ask(scheduler.submit, [1.0], within=within) for within in (None, 0.05, None)
    ]
    assert given_up is not None
    assert late is not None
    assert other is not None
    late.then = given_up.cancel
    world.loop.turn()
    world.loop.later(1)
    assert world.begun == [other.ticket]
    assert (world.statistics.expired, world.statistics.cancelled) == (1, 1)
    assert not world.faults
