"""The drivers, over any order of events: each request completes once, in order, and every counter is
right.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from backline.engine.config.model_config import Ensemble, EnsembleStep, ModelConfig, QueuePolicy
from backline.engine.config.sequence_batching import SequenceBatching
from backline.engine.model import Model, Serving
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import QUEUED, Ticket
from backline.schedule.batching import BatchPolicy
from backline.schedule.cache.cache import LocalCache
from backline.schedule.cache.flight import RequestKeys
from backline.schedule.cache.queue import CachedInstances
from backline.schedule.ensembles.queue import EnsembleQueue
from backline.schedule.objective.scheduler import ObjectiveScheduler
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.rate_limit.limits import EACH_DEVICE, Claim, RateLimits
from backline.schedule.rate_limit.permits import Permits, PermittedInstance
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.sequences.batcher import Lane, SequenceBatcher
from backline.schedule.sequences.lanes import SequenceLane, SlotLane, SlotPolicy, slot_of
from backline.schedule.sequences.state_store import MemoryStateStore
from backline.schedule.sequences.tensors import SequenceTensors
from backline.schedule.splitting import SplittingQueue
from backline.workers.batch import Batch
from backline.workers.instance import Finished
from backline_client.values.datatypes import DataType
from backline_client.values.messages import SequenceStep
from backline_client.values.signature import Signature, TensorSpec
from schedule.world import SLACK, Asked, FaultOfTheirs, HeldInstance, World

sizes = st.sampled_from([1, 1, 1, 2, 5, 8])
withins = st.sampled_from([None, None, 0.0, 0.05, 1.0])
reactions = st.sampled_from(["", "", "", "cancel", "cancel all", "ask", "raise"])
asks = st.fixed_dictionaries(
    {
        "size": sizes,
        "within": withins,
        "timeout": st.sampled_from([None, None, 0.05]),
        "priority": st.integers(0, 3),
        "key": st.sampled_from([None, None, None, "other"]),
        "identity": st.sampled_from(["", "often", "often", "often", "rarely"]),
        "then": reactions,
    }
)
steps = st.fixed_dictionaries(
    {
        "step": st.builds(
            SequenceStep,
            st.sampled_from([1, 2, 3, "four"]),
            st.booleans(),
            st.sampled_from([False, False, True]),
        ),
        "within": withins,
        "then": reactions,
    }
)
policies = st.builds(
    QueuePolicy, st.sampled_from([None, None, 1, 5]), st.sampled_from([0, 0, 100_000]), st.booleans()
)
batches = st.sampled_from(
    [BatchPolicy(8), BatchPolicy(1), BatchPolicy(8, (4, 8), 50_000_000), BatchPolicy(5, (), 20_000_000)]
)


def queues(levels: int, *, fair: bool = False) -> st.SearchStrategy[QueueSettings]:
    if not levels:
        return st.builds(QueueSettings, policies, fair=st.just(fair))
    return st.builds(
        QueueSettings,
        policies,
        st.just(levels),
        st.integers(1, levels),
        st.dictionaries(st.integers(1, levels), policies, max_size=2),
        st.just(fair),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """A plain scheduler. The machines below override what other drivers add."""

    LEVELS = 0
    ORDERED = False
    FAIR = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ordered=self.ORDERED)
        logging.getLogger("backline.schedule").disabled = True  # about exceptions of completions
        self.drained: asyncio.Task[None] | None = None
        self.answered_by_refusal = 0

    @initialize(data=st.data(), inline=st.booleans(), count=st.integers(1, 3), batch=batches)
    def begin(self, data: st.DataObject, inline: bool, count: int, batch: BatchPolicy) -> None:
        self.draw = data.draw
        self.settings = Settings(batch, data.draw(queues(self.LEVELS, fair=self.FAIR)))
        self.world.most = batch.max_items
        instances = [
            self.world.instance(off_loop=not inline, prompt=data.draw(st.booleans())) for _ in range(count)
        ]
        self.world.rank = self.rank
        self.queue: Any = self.world.loop.inside(lambda: self.make(instances))

    def make(self, instances: list[HeldInstance]) -> Any:
        self.scheduler: Any = self.scheduler_over(instances)
        return self.scheduler

    def scheduler_over(self, instances: list[HeldInstance]) -> Scheduler:
        world = self.world
        return Scheduler(
            "m",
            self.settings,
            instances,
            world.statistics,
            loop=world.loop,
            preserve_ordering=self.ORDERED,
            total=world.total,
        )

    def teardown(self) -> None:
        try:
            if hasattr(self, "queue"):
                self.finish()
        finally:
            logging.getLogger("backline.schedule").disabled = False
            self.world.close()

    # events

    @precondition(lambda self: self.drained is None)
    @rule(asks=st.lists(asks, min_size=1, max_size=6))
    def ask(self, asks: list[dict[str, Any]]) -> None:
        """Several at once, to make requests more frequent than other events."""
        for options in asks:
            size = options["size"]
            self.submit(
                [float(size + n) for n in range(size)],
                **{name: value for name, value in options.items() if name != "size"},
            )

    def submit(self, values: list[float], *, then: str = "", **options: Any) -> Asked | None:
        def react() -> None:
            if then == "cancel":
                for asked in self.world.open[-1:]:
                    asked.cancel()
            elif then == "cancel all":
                for asked in self.world.open:
                    asked.cancel()
            elif then == "ask" and self.drained is None:
                self.submit([1.0])
            elif then == "raise":
                raise FaultOfTheirs

        return self.world.ask(self.queue.submit, values, then=react, **options)

    @rule()
    def turn(self) -> None:
        self.world.loop.turn()

    @rule(seconds=st.sampled_from([0.02, 0.06, 1.0]))
    def later(self, seconds: float) -> None:
        self.world.loop.later(seconds)
        self.check_none_is_overdue()

    @precondition(lambda self: self.world.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.world.open))
        self.world.loop.inside(asked.cancel)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), failing=st.sampled_from([0, 0, 1, 2]))
    def end(self, data: st.DataObject, failing: int) -> None:
        instance = data.draw(st.sampled_from(self.busy))
        self.world.loop.inside(lambda: instance.end(failing))

    @precondition(lambda self: any(instance.batch for instance in self.world.instances))
    @rule(data=st.data())
    def vacate(self, data: st.DataObject) -> None:
        instance = data.draw(
            st.sampled_from([instance for instance in self.world.instances if instance.batch])
        )
        self.world.loop.inside(instance.vacate)

    @precondition(lambda self: hasattr(self, "queue") and self.drained is None)
    @rule(data=st.data(), batch=batches, instances=st.booleans())
    def update(self, data: st.DataObject, batch: BatchPolicy, instances: bool) -> None:
        self.draw = data.draw
        world = self.world
        waiting = sorted(world.waiting, key=self.rank)
        world.asked = [
            asked for asked in world.asked if asked not in waiting
        ] + waiting  # earlier relations still hold
        self.settings = Settings(
            batch, data.draw(queues(data.draw(st.sampled_from([0, self.LEVELS])), fair=self.FAIR))
        )
        self.world.most = max(self.world.most, batch.max_items)
        others = [self.world.instance()] if instances else None
        self.world.loop.inside(lambda: self.change(self.settings, others))

    def change(self, settings: Settings, others: list[Any] | None) -> None:
        self.queue.update(settings, instances=others)

    @precondition(lambda self: len(self.world.asked) > 8 and self.drained is None)
    @rule(limit=st.sampled_from([0.0, 0.5, inf]))
    def drain(self, limit: float) -> None:
        self.drained = self.world.loop.create_task(self.queue.drain(limit))

    # what holds at any time

    def rank(self, asked: Asked) -> tuple[float, float]:
        """Levels are strict; within a level first come, first served."""
        return self.settings.queue.level_of(asked.ticket), self.world.asked.index(asked)

    @property
    def busy(self) -> list[HeldInstance]:
        return [instance for instance in self.world.instances if instance.batch or instance.vacated]

    def check_none_is_overdue(self) -> None:
        assert not [asked for asked in self.world.waiting if self.world.overdue(asked)]

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.world.faults, self.world.faults

    @invariant()
    def what_waits_and_what_runs_is_counted(self) -> None:
        if hasattr(self, "queue"):
            self.check_counts()

    def check_counts(self) -> None:
        assert self.scheduler.pending == self.world.total.waiting == len(self.world.waiting)
        assert self.scheduler.running == sum(len(batch.tickets) for batch in self.world.running)

    # the end

    def finish(self) -> None:
        """Lets everything end, and checks that nothing is left."""
        loop = self.world.loop
        if self.drained is None:
            self.drain(inf)
        for _ in range(1000):
            loop.later(0.1)
            self.check_none_is_overdue()
            while busy := self.busy:
                loop.inside(busy[0].end)
            if self.drained is not None and self.drained.done() and not self.busy:
                break
        assert self.drained is not None
        assert self.drained.done(), "it drains"
        self.drained.result()
        assert not self.world.open, "all requests complete"
        assert all(instance.closed for instance in self.world.instances)
        self.nothing_is_wrong()
        self.check_nothing_is_left()
        self.check_statistics()

    def check_nothing_is_left(self) -> None:
        assert (self.scheduler.pending, self.scheduler.running, self.world.total.waiting) == (0, 0, 0)
        assert self.scheduler.tally.settled
        assert not self.scheduler._busy

    def check_statistics(self) -> None:
        assert self.counted == len(self.world.asked) + self.world.refused

    @property
    def counted(self) -> int:
        counted = self.world.statistics
        rejected = (
            counted.rejected_full
            + counted.rejected_total
            + counted.rejected_late
            + counted.rejected_invalid
            + self.world.invalid
        )
        done = counted.success.count + counted.fail.count + counted.expired + counted.cancelled
        return done + rejected + self.world.unloaded


class LevelsMachine(SchedulerMachine):
    """Priority levels."""

    LEVELS = 3


class OrderedMachine(SchedulerMachine):
    """Responses in the order of runs."""

    ORDERED = True


class FairMachine(SchedulerMachine):
    """Callers that are served in turn, within priority levels."""

    LEVELS = 2
    FAIR = True

    def make(self, instances: list[HeldInstance]) -> Any:
        began = self.world.began

        def check_order(batch: Batch) -> None:
            began(batch)
            for ticket in batch.tickets:
                self.check_is_first(ticket)

        self.world.began = check_order  # type: ignore[method-assign]
        return super().make(instances)

    def rank(self, asked: Asked) -> tuple[float, float]:
        return self.settings.queue.level_of(asked.ticket), 0

    def check_is_first(self, ticket: Ticket) -> None:
        """A caller's own requests stay in order."""
        world = self.world
        one = world.asked_of(ticket)
        before = world.asked[: world.asked.index(one)]
        now = world.clock.monotonic()
        overtaken = [
            other
            for other in before
            if other in world.waiting
            and other.ticket.identity == ticket.identity
            and self.rank(other) == self.rank(one)
            and world.deadline_of(other) > now
        ]
        world.claim(not overtaken, "a caller's requests run in order")


class ObjectiveMachine(SchedulerMachine):
    """A latency objective."""

    LEVELS = 2

    def scheduler_over(self, instances: list[HeldInstance]) -> Scheduler:
        world = self.world
        return ObjectiveScheduler(
            "m",
            self.settings,
            instances,
            world.statistics,
            objective=0.5,
            seconds={1: 0.01, 8: 0.04},
            loop=world.loop,
            total=world.total,
        )

    def rank(self, asked: Asked) -> tuple[float, float]:
        """Earliest due first within a level; requests that will be late give way, and expire next."""
        if asked.ticket in self.scheduler._queue.expired:
            return inf, inf
        return self.settings.queue.level_of(asked.ticket), self.scheduler._queue.due(asked.ticket)

    def check_none_is_overdue(self) -> None:
        super().check_none_is_overdue()
        now = self.world.clock.monotonic()
        assert not [
            asked for asked in self.world.waiting if self.scheduler._queue.due(asked.ticket) < now - SLACK
        ]


class SplittingMachine(SchedulerMachine):
    """Requests with more items than a batch may have."""

    def make(self, instances: list[HeldInstance]) -> Any:
        super().make(instances)
        self.world.most = max(2, self.world.most)
        return SplittingQueue(self.scheduler, 2, self.world.statistics)

    def rank(self, asked: Asked) -> tuple[float, float]:
        return 0, 0  # the parts of a request may expire one by one

    def check_counts(self) -> None:
        assert self.scheduler.pending == self.world.total.waiting


class CachedMachine(SchedulerMachine):
    """A response cache in front of the scheduler, which may be too small for any entry."""

    LEVELS = 2

    def make(self, instances: list[HeldInstance]) -> Any:
        super().make(instances)
        world = self.world
        world.began_for = lambda one: [
            other for other in world.open if other.values == one.values and other is not one
        ]
        keys = RequestKeys("m", "1", "")
        cache = LocalCache(self.draw(st.sampled_from([0, 1500, 1 << 20])))
        self.cached = CachedInstances(
            self.scheduler,
            cache,
            keys,
            self.settings.queue,
            world.statistics,
            name="m",
            version="1",
            loop=world.loop,
        )
        return self.cached

    def submit(self, values: list[float], **options: Any) -> Asked | None:
        values = [1.0] if len(values) == 1 else [2.0, 3.0]  # so that many are identical
        asked = super().submit(values, **options)
        if asked is not None:  # it may have joined a running request
            asked.started = any(
                self.world.asked_of(ticket).values == values
                for batch in self.world.running
                for ticket in batch.tickets
            )
        return asked

    def rank(self, asked: Asked) -> tuple[float, float]:
        return 0, 0  # the oldest request may complete together with a later one

    def check_counts(self) -> None:
        assert self.scheduler.pending == self.world.total.waiting == self.cached.pending
        assert self.scheduler.running == sum(len(batch.tickets) for batch in self.world.running)

    def check_nothing_is_left(self) -> None:
        super().check_nothing_is_left()
        assert not self.cached._flights
        assert not self.cached._passed
        assert self.cached._looking == 0

    def check_statistics(self) -> None:
        counted = self.world.statistics
        done = counted.success.count + counted.fail.count + counted.expired + counted.cancelled
        assert done + self.world.refused <= len(self.world.asked) + self.world.refused


class CachedSplittingMachine(CachedMachine):
    """A response cache in front of requests with more items than a batch may have."""

    def make(self, instances: list[HeldInstance]) -> Any:
        super().make(instances)
        self.cached._queue = SplittingQueue(self.scheduler, 1, self.world.statistics)
        return self.cached


class RateLimited(SchedulerMachine):
    """Instances that wait for resources, which suffice for one or two of them."""

    def make(self, instances: list[HeldInstance]) -> Any:
        self.limits = RateLimits({(EACH_DEVICE, "memory"): 4})
        self.permits = Permits(self.limits)
        return super().make(self.permitted(instances))

    def permitted(self, instances: list[HeldInstance]) -> list[Any]:
        world = self.world

        class Permitted(PermittedInstance):
            def run(self, batch: Batch, finished: Finished) -> None:
                world.taken(batch)
                super().run(batch, finished)

        claims = [
            Claim({("0", "memory"): self.draw(st.integers(1, 4))}, self.draw(st.integers(1, 2)))
            for _ in instances
        ]
        return [
            Permitted(instance, permit, world.loop)
            for instance, permit in zip(instances, self.permits.register(claims, ("m", "1")), strict=True)
        ]

    def change(self, settings: Settings, others: list[Any] | None) -> None:
        super().change(settings, None if others is None else self.permitted(others))

    def rank(self, asked: Asked) -> tuple[float, float]:
        return 0, 0  # batches also wait for their permits

    def check_counts(self) -> None:
        assert sum(self.limits._taken.values()) <= 4

    def check_nothing_is_left(self) -> None:
        super().check_nothing_is_left()
        assert not any(self.limits._taken.values())
        assert not self.limits._staged
        assert not self.permits._permits


class RateLimitedOrderedMachine(RateLimited):
    """Responses in the order of runs, which wait for resources."""

    ORDERED = True


class RateLimitedObjectiveMachine(RateLimited, ObjectiveMachine):
    """A latency objective, on instances that wait for resources."""

    def check_none_is_overdue(self) -> None:
        """Requests waiting for a permit have their full timeouts."""
        SchedulerMachine.check_none_is_overdue(self)


class RateLimitedSplittingMachine(RateLimited, SplittingMachine):
    """Requests in parts, on instances that wait for resources."""


class EnsembleMachine(SchedulerMachine):
    """An ensemble: two parallel steps and one after them, all of the same model."""

    MODELS = ("m", "m", "m")

    LEVELS = 2

    def make(self, instances: list[HeldInstance]) -> Any:
        world = self.world
        scheduler = super().make(instances)
        world.factor = 4
        self.statistics = ModelStatistics()
        maps = (({"x": "X"}, "A"), ({"x": "X"}, "B"), ({"x": "A", "other": "B"}, "Y"))
        steps = tuple(
            EnsembleStep(name, "", inputs, {"y": output})
            for name, (inputs, output) in zip(self.MODELS, maps, strict=True)
        )
        spec = TensorSpec("Y", DataType.FP32, (-1,))

        def check(ticket: Ticket) -> None:
            ticket.batch_size = ticket.request.inputs["x"].shape[0]

        def submit_step(ticket: Ticket) -> None:
            check(ticket)
            scheduler.submit(ticket)

        model = Model("m", "1", ModelConfig("m"), serving=Serving(check, scheduler))
        self.ensemble = EnsembleQueue(
            "e",
            "1",
            Ensemble(steps),
            Signature((), (spec,)),
            submit_step,
            self.statistics,
            batched=True,
            find=lambda name, version: model,
        )
        return SimpleNamespace(submit=self.submit_request, update=scheduler.update, drain=self.drain_both)

    def submit_request(self, ticket: Ticket) -> None:
        ticket.request = replace(ticket.request, inputs={"X": ticket.request.inputs["x"]})
        self.ensemble.submit(ticket)

    async def drain_both(self, limit: float) -> None:
        await self.ensemble.drain(limit)
        await self.scheduler.drain(limit)

    def rank(self, asked: Asked) -> tuple[float, float]:
        return 0, 0  # a request waits in several places

    def check_counts(self) -> None:
        assert self.scheduler.pending == self.world.total.waiting
        assert self.ensemble.running == len(self.world.open)

    def check_statistics(self) -> None:
        counted = self.statistics
        done = counted.success.count + counted.fail.count + counted.expired + counted.cancelled
        assert done == len(self.world.asked) + self.world.refused
        steps = self.world.statistics
        assert steps.success.count >= 3 * counted.success.count


class StackedEnsembleMachine(EnsembleMachine):
    """An ensemble on the event loop, whose requests go through the steps together. Its three models share a
    scheduler.
    """

    MODELS = ("m1", "m2", "m3")

    @initialize(data=st.data(), count=st.integers(1, 3))
    def begin(self, data: st.DataObject, count: int) -> None:
        super().begin(data=data, inline=True, count=count, batch=BatchPolicy(8))

    def change(self, settings: Settings, others: list[Any] | None) -> None:
        for instance in others or ():
            instance.off_loop = False
        super().change(Settings(BatchPolicy(8), settings.queue), others)


class SequencesMachine(SchedulerMachine):
    """Sequences whose requests are batched as usual, one of each sequence at a time."""

    DIRECT = False

    def make(self, instances: list[HeldInstance]) -> Any:
        world = self.world
        slots = self.draw(st.integers(1, 3))
        world.most = slots
        self.made = len(instances)
        self.last: dict[object, int] = {}
        world.began_for = self.began_for
        tensors = SequenceTensors("m", SequenceBatching(), {}, batched=True, served=frozenset({"y"}))
        waits = self.draw(st.sampled_from([0, 50_000_000]))
        ordered = self.draw(st.booleans())

        def make_lane(instance: Any) -> Lane:
            if self.DIRECT:
                places = SlotPolicy(slots, 1.0, waits)
                return SlotLane("m", places, instance, world.statistics, tensors.empty, loop=world.loop)
            settings = Settings(BatchPolicy(slots, (), waits))
            return SequenceLane(
                "m", settings, [instance], world.statistics, loop=world.loop, preserve_ordering=ordered
            )

        self.batcher = SequenceBatcher(
            "m",
            "1",
            tensors,
            world.statistics,
            instances,
            make_lane,
            slots=slots,
            batched=True,
            idle_seconds=2.0,
            store=MemoryStateStore(),
            policy=self.settings.queue.policy,
            loop=world.loop,
            total=world.total,
        )
        return self.batcher

    @precondition(lambda self: hasattr(self, "queue"))
    @rule(asks=st.lists(steps, min_size=1, max_size=6))
    def ask(self, asks: list[dict[str, Any]]) -> None:
        """While draining, only open sequences continue."""
        for options in asks:
            if self.drained is None or (
                options["step"].id in self.batcher._table.open and not self.batcher._closed
            ):
                self.submit([1.0], **options)

    def began_for(self, one: Asked) -> list[Asked]:
        """Checks that it is the next request of its sequence, and the only running one."""
        (inner,) = (ticket for ticket in self.world.starting if ticket.request.id == one.ticket.request.id)
        sequence = inner.context.sequence  # type: ignore[attr-defined]
        running = [ticket for batch in self.world.running for ticket in batch.tickets if ticket.request.id]
        self.world.claim(
            all(other.context.sequence is not sequence for other in running),
            "one of a sequence runs at a time",
        )
        self.world.claim(
            self.last.get(sequence, -1) < one.number, "the requests of a sequence run in their order"
        )
        self.world.claim(
            sequence in self.last or inner.request.sequence.start, "a sequence begins with its first request"
        )  # type: ignore[union-attr]
        # otherwise it may be in a lane that was replaced
        if self.DIRECT and len(self.world.instances) == self.made:
            self.world.claim(self.world.starting.index(inner) == slot_of(inner), "a sequence keeps its place")
        self.last[sequence] = one.number
        return []

    def rank(self, asked: Asked) -> tuple[float, float]:
        return 0, 0

    def check_none_is_overdue(self) -> None:
        """A request handed to an instance is not expected to expire."""
        waiting = [asked for asked in self.world.waiting if asked.ticket.state is QUEUED]
        assert not [asked for asked in waiting if self.world.overdue(asked)]

    def check_counts(self) -> None:
        assert self.batcher._table.waiting == self.world.total.waiting
        assert self.batcher.running <= self.world.most * len(self.world.instances)

    def check_nothing_is_left(self) -> None:
        table = self.batcher._table
        assert (table.waiting, table.running, self.world.total.waiting, self.batcher.pending) == (0, 0, 0, 0)
        assert not table.backlogged
        assert not self.batcher._tasks

    def check_statistics(self) -> None:
        """Requests cancelled on an instance that is then closed are not counted."""
        cancelled = sum(asked.cancelled for asked in self.world.asked)
        assert 0 <= len(self.world.asked) + self.world.refused - self.counted <= cancelled


class SlotsMachine(SequencesMachine):
    """Sequences with fixed slots in the batches of an instance."""

    DIRECT = True


class RateLimitedSequencesMachine(RateLimited, SequencesMachine):
    """Sequences on instances that wait for resources."""


class RateLimitedSlotsMachine(RateLimited, SlotsMachine):
    """Sequences with slots, on instances that wait for resources."""


def _in_every_order(machine: type[SchedulerMachine]) -> Any:
    case = machine.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
    return case


pytestmark = pytest.mark.timeout(400)

TestPlain = _in_every_order(SchedulerMachine)
TestLevels = _in_every_order(LevelsMachine)
TestFair = _in_every_order(FairMachine)
TestOrdered = _in_every_order(OrderedMachine)
TestObjective = _in_every_order(ObjectiveMachine)
TestSplitting = _in_every_order(SplittingMachine)
TestCached = _in_every_order(CachedMachine)
TestCachedSplitting = _in_every_order(CachedSplittingMachine)
TestEnsemble = _in_every_order(EnsembleMachine)
TestStackedEnsemble = _in_every_order(StackedEnsembleMachine)
TestRateLimited = _in_every_order(RateLimited)
TestRateLimitedOrdered = _in_every_order(RateLimitedOrderedMachine)
TestRateLimitedObjective = _in_every_order(RateLimitedObjectiveMachine)
TestRateLimitedSplitting = _in_every_order(RateLimitedSplittingMachine)
TestRateLimitedSequences = _in_every_order(RateLimitedSequencesMachine)
TestRateLimitedSlots = _in_every_order(RateLimitedSlotsMachine)
TestSequences = _in_every_order(SequencesMachine)
TestSlots = _in_every_order(SlotsMachine)
