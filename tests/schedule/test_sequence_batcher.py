"""The queue of sequences: requests, places and states when events coincide."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest

from backline.engine.config.model_config import QueuePolicy
from backline.engine.config.sequence_batching import SequenceBatching, SequenceState
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.rate_limit.limits import Claim, RateLimits
from backline.schedule.rate_limit.permits import Permits, PermittedInstance
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.sequences.batcher import Lane, SequenceBatcher
from backline.schedule.sequences.lanes import UNTIMED, SlotLane, SlotPolicy
from backline.schedule.sequences.state_store import MemoryStateStore, State, StateKey
from backline.schedule.sequences.tensors import SequenceTensors
from backline.workers.instance import Instance
from backline_client.values.datatypes import DataType
from backline_client.values.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from backline_client.values.messages import InferResponse, SequenceStep
from backline_client.values.tensor import Tensor
from schedule.world import AGAIN, Asked, HeldInstance, World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()
    assert not made.faults


#: The model's response is also its state.
STATE = SequenceState("before", "y", DataType.FP32, (1,), (1,))


def batcher(
    world: World,
    instances: Sequence[Instance],
    *,
    iterative: bool = False,
    direct: bool = False,
    store: MemoryStateStore | None = None,
    advice: str = "",
) -> SequenceBatcher:
    """One place per instance, or three direct ones. With a `store` the model has a state."""
    slots = 3 if direct else 1
    batching = SequenceBatching(iterative=iterative, states=() if store is None else (STATE,))
    initial = {"before": Tensor("before", DataType.FP32, (1,), np.zeros(1, np.float32))}
    tensors = SequenceTensors("m", batching, initial, batched=True, served=frozenset({"y"}))

    def make_lane(instance: Instance) -> Lane:
        if direct:
            return SlotLane(
                "m", SlotPolicy(slots), instance, world.statistics, tensors.empty, loop=world.loop
            )
        settings = Settings(BatchPolicy(), QueueSettings(UNTIMED))
        return Scheduler("m", settings, [instance], world.statistics, loop=world.loop)

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
            store=MemoryStateStore() if store is None else store,
            policy=QueuePolicy(),
            loop=world.loop,
            total=world.total,
            advice=advice,
        )
    )


class DistantStore(MemoryStateStore):
    """Stores each state when the test says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.writing: list[asyncio.Future[None]] = []

    def put(self, key: StateKey, state: State, seconds: float) -> asyncio.Future[None]:
        super().put(key, state, seconds)
        self.writing.append(self._loop.create_future())
        return self.writing[-1]


def asked(made: Asked | None) -> Asked:
    assert made is not None
    return made


def test_a_rescheduled_request_waits_for_a_place_if_there_are_fewer(world: World) -> None:
    before = [world.instance(), world.instance()]
    queue = batcher(world, before, iterative=True)
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


def test_a_rescheduled_request_is_refused_when_the_model_is_unloaded(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance], iterative=True)
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


def test_a_request_expired_by_the_time_its_slot_runs_does_not_run(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance], direct=True)
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


def test_full_queues_refuse_no_request_that_would_run_at_once(world: World) -> None:
    instances = [world.instance() for _ in range(2)]
    queue = batcher(world, instances, iterative=False)
    assert world.total.limit is not None
    for number in range(world.total.limit + 1):
        assert world.ask(queue.submit, [1.0], step=SequenceStep(1, start=not number))
    assert world.ask(queue.submit, [1.0], step=SequenceStep(1)) is None
    assert world.ask(queue.submit, [1.0], step=SequenceStep(2, start=True))
    assert world.ask(queue.submit, [1.0], step=SequenceStep(2)) is None, "it would wait for the one before it"
    assert world.ask(queue.submit, [1.0], step=SequenceStep(3, start=True)) is None, (
        "it would wait for a place"
    )
    world.loop.later(0)
    while any(instance.batch for instance in instances):
        for instance in instances:
            if instance.batch is not None:
                world.loop.inside(instance.end)
        world.loop.later(0)
    assert [len(one.answers) for one in world.asked] == [1] * (world.total.limit + 2)
    assert world.total.waiting == 0


def test_the_completion_of_a_refused_request_may_cancel_others_refused_with_it(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance])
    world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True))
    first, second, third = [asked(world.ask(queue.submit, [2.0], step=SequenceStep(1))) for _ in range(3)]
    first.then, second.then = second.cancel, third.cancel
    drained: asyncio.Task[None] = world.loop.create_task(queue.drain(0))
    world.loop.later(0)
    assert (world.total.waiting, queue._table.waiting, world.statistics.cancelled) == (0, 0, 1)
    assert isinstance(third.answers[0], Unavailable)
    world.loop.inside(instance.end)
    world.loop.later(0)
    assert drained.done()


def test_a_request_refused_for_lack_of_a_beginning_and_cancelled_is_counted_once(world: World) -> None:
    queue = batcher(world, [world.instance()])
    world.ask(queue.submit, [0.0], step=SequenceStep(9, start=True))
    first = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True)))
    second = asked(world.ask(queue.submit, [2.0], step=SequenceStep(1)))
    third = asked(world.ask(queue.submit, [3.0], step=SequenceStep(1)))
    second.then = third.cancel
    world.loop.inside(first.cancel)
    assert isinstance(second.answers[0], InvalidArgument)
    assert (world.statistics.rejected_invalid, world.statistics.cancelled) == (1, 2)


def test_if_the_beginning_of_a_sequence_expires_the_requests_up_to_the_next_are_refused(
    world: World,
) -> None:
    instance = world.instance()
    queue = batcher(world, [instance], direct=True)
    world.ask(queue.submit, [0.0], step=SequenceStep(9, start=True, end=True))
    world.loop.later(0)
    late = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True), within=0.5))
    follows = asked(world.ask(queue.submit, [2.0], step=SequenceStep(1)))
    begins = asked(world.ask(queue.submit, [3.0], step=SequenceStep(1, start=True)))
    world.loop.later(1)
    world.loop.inside(instance.end)
    world.loop.later(0)
    assert isinstance(late.answers[0], DeadlineExceeded)
    assert isinstance(follows.answers[0], InvalidArgument)
    world.loop.inside(instance.end)
    assert begins.started
    assert queue.open_sequences == 1


def test_requests_of_an_unknown_sequence_before_its_beginning_are_refused(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance], store=MemoryStateStore())
    unknown = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1)))
    begins = asked(world.ask(queue.submit, [2.0], step=SequenceStep(1, start=True)))
    world.loop.later(0)
    assert isinstance(unknown.answers[0], InvalidArgument)
    assert begins.started
    assert not begins.answers


def test_an_unknown_sequence_is_not_open_after_its_only_request_was_cancelled(world: World) -> None:
    queue = batcher(world, [world.instance()], store=MemoryStateStore())
    world.loop.inside(asked(world.ask(queue.submit, [1.0], step=SequenceStep(1))).cancel)
    world.loop.later(0)
    assert queue.open_sequences == 0
    unknown = asked(world.ask(queue.submit, [2.0], step=SequenceStep(1)))
    world.loop.later(0)
    assert isinstance(unknown.answers[0], InvalidArgument)


def test_a_state_taken_over_without_a_run_stays_for_the_next_load(
    world: World,
) -> None:
    store = MemoryStateStore()
    key = StateKey("m", "1", 1)
    store.put(key, {"before": Tensor("before", DataType.FP32, (1,), np.ones(1, np.float32))}, 10.0)
    instance = world.instance()
    queue = batcher(world, [instance], store=store)
    world.ask(queue.submit, [1.0], step=SequenceStep(2, start=True))
    taken_over = asked(world.ask(queue.submit, [2.0], step=SequenceStep(1)))
    world.loop.later(0)
    drained: asyncio.Task[None] = world.loop.create_task(queue.drain(0))
    world.loop.later(0)
    world.loop.inside(instance.end)
    world.loop.later(0)
    assert drained.done()
    assert isinstance(taken_over.answers[0], Unavailable)
    state = world.loop.run_until_complete(store.take(key))
    assert state is not None


def test_a_response_waits_until_the_state_behind_it_is_stored(world: World) -> None:
    """Another server that gets the next request then finds this state, not the one before. The requests that
    follow on this server run in order, so they wait as well.
    """
    store = DistantStore(world.loop)
    instance = world.instance()
    queue = batcher(world, [instance], store=store)
    first = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True)))
    second = asked(world.ask(queue.submit, [2.0], step=SequenceStep(1)))
    world.loop.later(0)
    world.loop.inside(instance.end)
    world.loop.later(0)
    assert (first.answers, second.started) == ([], False)

    world.loop.inside(lambda: store.writing[0].set_result(None))
    world.loop.later(0)

    assert isinstance(first.answers[0], InferResponse)
    assert second.started
    world.loop.inside(instance.end)
    drained: asyncio.Task[None] = world.loop.create_task(queue.drain(0))
    world.loop.later(0)
    assert (second.answers, drained.done()) == ([], False)
    world.loop.inside(lambda: store.writing[1].set_result(None))
    world.loop.later(0)
    assert isinstance(second.answers[0], InferResponse)
    assert drained.done()


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not-stored"])
def test_a_request_with_many_responses_ends_when_its_state_is_stored(
    world: World, caplog: pytest.LogCaptureFixture, *, stored: bool
) -> None:
    store = DistantStore(world.loop)
    instance = world.instance()
    queue = batcher(world, [instance], store=store)
    responses: list[InferResponse] = []
    one = asked(
        world.ask(
            queue.submit,
            [1.0],
            step=SequenceStep(1, start=True),
            on_response=lambda _, response: responses.append(response),
        )
    )
    world.loop.later(0)
    (run,) = world.running
    for number in (1, 2):
        y = Tensor("y", DataType.FP32, (1,), np.full(1, number, np.float32))
        world.loop.inside(lambda y=y: run.tickets[0].respond(InferResponse("m", "1", "", [y])))
    world.loop.inside(lambda: instance.end(silent=True))
    world.loop.later(0)
    assert (len(responses), one.answers) == (2, [])

    for writing in store.writing:
        end = partial(writing.set_result, None)
        world.loop.inside(end if stored else partial(writing.set_exception, Unavailable("it is gone")))
    world.loop.later(0)

    assert one.answers == [None]
    assert ("no other server can continue the sequence: it is gone" in caplog.text) is not stored


def test_a_sequence_continues_although_its_state_cannot_be_stored(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    store = DistantStore(world.loop)
    instance = world.instance()
    queue = batcher(world, [instance], store=store)
    one = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True)))
    world.loop.later(0)
    world.loop.inside(instance.end)
    world.loop.inside(lambda: store.writing[0].set_exception(Unavailable("it is gone")))
    world.loop.later(0)

    assert isinstance(one.answers[0], InferResponse)
    assert "no other server can continue the sequence: it is gone" in caplog.text
    following = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1)))
    world.loop.later(0)
    assert following.started


def test_the_error_of_an_unknown_sequence_may_say_what_to_do(world: World) -> None:
    queue = batcher(world, [world.instance()], store=MemoryStateStore(), advice="begin it again")
    unknown = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1)))
    world.loop.later(0)

    assert str(unknown.answers[0]).endswith("START flag on the first request of the sequence; begin it again")


def test_an_idle_sequence_ends_although_a_request_with_a_late_deadline_waits(
    world: World,
) -> None:
    """Its place goes to the next one."""
    instance = world.instance()
    queue = batcher(world, [instance])
    world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True, end=True))
    world.loop.later(0)
    world.ask(queue.submit, [2.0], step=SequenceStep(2, start=True), within=1000.0)
    world.loop.inside(instance.end)
    world.loop.later(0)
    world.loop.inside(instance.end)
    world.loop.later(11)
    assert queue.open_sequences == 0


def test_direct_sequences_keep_their_slots_when_one_request_expires_before_the_permit(
    world: World,
) -> None:
    permits = Permits(RateLimits())
    claim = Claim({("0", "memory"): 1})
    (other,), (own,) = permits.register([claim], ("other", "1")), permits.register([claim], ("m", "1"))
    instance = world.instance()
    permitted = PermittedInstance(instance, own, world.loop)
    queue = batcher(world, [permitted], direct=True)
    world.loop.inside(lambda: other.ask(lambda: None))
    late = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True), within=0.5))
    second = asked(world.ask(queue.submit, [2.0], step=SequenceStep(2, start=True)))
    world.loop.later(0)
    world.loop.later(1)
    world.loop.inside(other.give_back)
    world.loop.later(0)
    assert instance.batch is not None
    assert [ticket.request.id for ticket in instance.batch.tickets] == ["", str(second.number)]
    world.loop.inside(instance.end)
    assert isinstance(late.answers[0], DeadlineExceeded)
    assert len(second.answers) == 1
    assert (world.statistics.expired, world.statistics.fail.count) == (1, 0)


@pytest.mark.parametrize("direct", [True, False])
def test_a_timeout_does_not_count_once_the_sequence_has_its_place(world: World, direct: bool) -> None:
    permits = Permits(RateLimits())
    claim = Claim({("0", "memory"): 1})
    (other,), (own,) = permits.register([claim], ("other", "1")), permits.register([claim], ("m", "1"))
    instance = world.instance()
    queue = batcher(world, [PermittedInstance(instance, own, world.loop)], direct=direct)
    world.loop.inside(lambda: other.ask(lambda: None))
    first = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True), timeout=0.5))
    second = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, end=True), timeout=0.5))
    world.loop.later(1)
    world.loop.inside(other.give_back)
    world.loop.later(1)
    for _ in range(2):
        world.loop.inside(instance.end)
        world.loop.later(0)
    assert all(isinstance(one.answers[0], InferResponse) for one in (first, second))


@pytest.mark.parametrize("late", [0, 1])
def test_a_timeout_while_a_sequence_waits_for_its_place_rejects_all_its_requests(
    world: World, late: int
) -> None:
    instance = world.instance()
    queue = batcher(world, [instance])
    world.ask(queue.submit, [0.0], step=SequenceStep(9, start=True))
    world.loop.later(0)
    both = [
        asked(
            world.ask(
                queue.submit,
                [1.0],
                step=SequenceStep(1, start=not index),
                timeout=0.5 if index == late else None,
            )
        )
        for index in range(2)
    ]
    world.loop.later(1)
    assert [str(one.answers[0])[:54] for one in both] == [
        "timeout of the corresponding sequence has been expired"
    ] * 2
    assert (world.statistics.expired, queue.open_sequences, queue.pending) == (2, 1, 0)
    world.loop.inside(instance.end)


def test_a_timeout_no_longer_counts_when_the_sequence_gets_its_place(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance])
    world.ask(queue.submit, [0.0], step=SequenceStep(9, start=True, end=True))
    world.loop.later(0)
    both = [
        asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=start), timeout=0.5))
        for start in (True, False)
    ]
    world.loop.inside(instance.end)
    world.loop.later(1)
    for _ in range(2):
        world.loop.inside(instance.end)
        world.loop.later(1)
    assert all(isinstance(one.answers[0], InferResponse) for one in both)


def test_the_model_sees_the_timeout_of_a_request(world: World) -> None:
    instance = world.instance()
    queue = batcher(world, [instance])
    world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True), timeout=0.5)
    world.loop.later(0)
    assert instance.batch is not None
    assert [ticket.request.timeout for ticket in instance.batch.tickets] == [0.5]


@pytest.mark.parametrize("placed", [True, False])
def test_a_timeout_does_not_apply_to_later_runs_of_a_request(world: World, placed: bool) -> None:
    """This includes waiting for another place in between."""
    instances = [world.instance(), world.instance()]
    queue = batcher(world, instances, iterative=True)
    both = [asked(world.ask(queue.submit, [1.0], timeout=timeout)) for timeout in (None, 0.5)]
    world.loop.later(0)
    after = world.instance()
    if not placed:
        world.loop.inside(lambda: queue.replace_instances([after]))
    world.loop.later(1)
    world.begun.clear()  # they run again
    for instance in instances:
        world.loop.inside(lambda instance=instance: instance.end(AGAIN))
    world.loop.later(1)
    for _ in range(2):
        for instance in (*instances, after):
            if instance.batch is not None:
                world.loop.inside(instance.end)
        world.loop.later(0)
    assert all(isinstance(one.answers[0], InferResponse) for one in both)
    assert world.total.waiting == 0


class Forgetful(HeldInstance):
    """A model whose own state of sequences may be lost."""

    def __init__(self, world: World) -> None:
        super().__init__(world, off_loop=True, prompt=False)
        self.memory = object()


def test_a_response_from_an_instance_that_lost_the_state_is_discarded(world: World) -> None:
    instance = Forgetful(world)
    queue = batcher(world, [instance], direct=True)
    for sequence in (1, 2):
        world.ask(queue.submit, [1.0], step=SequenceStep(sequence, start=True))
    world.loop.later(0)
    world.loop.inside(instance.end)
    running = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1)))
    world.loop.later(0)
    handed, waits, again = (
        asked(world.ask(queue.submit, [1.0], step=SequenceStep(2, start=start)))
        for start in (False, False, True)
    )
    begins = asked(world.ask(queue.submit, [1.0], step=SequenceStep(3, start=True)))

    instance.memory = object()
    world.loop.inside(lambda: instance.end(2))
    for _ in range(2):
        world.loop.later(0)
        world.loop.inside(instance.end)
    world.loop.later(0)

    for one in (handed, waits):
        assert isinstance(one.answers[0], Internal)
        assert "sequence 2 of model 'm' was lost" in str(one.answers[0])
    assert not isinstance(running.answers[0], InferResponse)
    assert all(isinstance(one.answers[0], InferResponse) for one in (again, begins))
    assert world.ask(queue.submit, [1.0], step=SequenceStep(1)) is None, "it has ended"
    assert world.ask(queue.submit, [1.0], step=SequenceStep(2)) is not None
    assert world.total.waiting == 0


def test_direct_sequences_waiting_for_a_permit_are_refused_at_the_end_of_a_drain(world: World) -> None:
    permits = Permits(RateLimits())
    claim = Claim({("0", "memory"): 1})
    (other,), (own,) = permits.register([claim], ("other", "1")), permits.register([claim], ("m", "1"))
    instance = world.instance()
    queue = batcher(world, [PermittedInstance(instance, own, world.loop)], direct=True)
    world.loop.inside(lambda: other.ask(lambda: None))
    one = asked(world.ask(queue.submit, [1.0], step=SequenceStep(1, start=True)))
    world.loop.later(0)
    drained: asyncio.Task[None] = world.loop.create_task(queue.drain(0.5))
    world.loop.later(0)
    world.loop.later(1)
    world.loop.later(0)
    assert isinstance(one.answers[0], Unavailable)
    assert drained.done()
    assert instance.closed
