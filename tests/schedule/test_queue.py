"""The queues, by example and by properties: order, limits and cancellation."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import thread_time_ns

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Ticket
from backline.schedule.batching import BatchPolicy, form_batch
from backline.schedule.queues.plain import PlainQueue
from backline.schedule.queues.priority import PriorityQueue, make_queue
from backline.schedule.queues.queue import Queue, QueueSettings
from schedule.tickets import ticket

LEVELS = QueueSettings(levels=3, default_level=2)
DELAY = QueuePolicy(timeout_us=1_000_000, delay=True)


def filled(tickets: list[Ticket], settings: QueueSettings | None = None) -> Queue:
    queue = make_queue(settings or QueueSettings())
    for one in tickets:
        assert queue.add(one)
    return queue


def emptied(queue: Queue, now: float = 0.0) -> list[Ticket]:
    taken = []
    while (one := queue.next(now)) is not None:
        taken.append(one)
    return taken


both = pytest.mark.parametrize("settings", [QueueSettings(), LEVELS], ids=["plain", "levels"])


# order


def test_higher_levels_come_first_and_within_a_level_earlier_requests() -> None:
    low, first, second, high = (ticket(priority=level) for level in (3, 2, 2, 1))
    assert emptied(filled([low, first, second, high], LEVELS)) == [high, first, second, low]


@pytest.mark.parametrize("asked", [0, 4, 2**40])
def test_a_level_out_of_range_becomes_the_default_level(asked: int) -> None:
    low, one, high = ticket(priority=3), ticket(priority=asked), ticket(priority=1)
    assert emptied(filled([low, one, high], LEVELS)) == [high, one, low]


def test_a_later_request_of_a_higher_level_overtakes_queued_ones() -> None:
    waits, taken = ticket(priority=2), ticket(priority=2)
    queue = filled([taken, waits], LEVELS)
    assert queue.next(0) is taken
    high = ticket(priority=1)
    queue.add(high)
    assert emptied(queue) == [high, waits]


@both
def test_requests_put_back_return_to_their_places(settings: QueueSettings) -> None:
    tickets = [ticket(priority=level) for level in (1, 1, 2, 3)]
    queue = filled(tickets, settings)
    queue.put_back([queue.next(0) for _ in range(3)], 0)  # type: ignore[misc]
    assert (queue.size, emptied(queue)) == (4, tickets)


@both
def test_clear_returns_all_live_requests_in_order(settings: QueueSettings) -> None:
    tickets = [ticket(priority=level) for level in (1, 2, 3)]
    queue = filled(tickets, settings)
    tickets[1].cancel()
    assert queue.clear() == [tickets[0], tickets[2]]
    assert (queue.size, queue.next(0)) == (0, None)


# timeouts


def test_a_late_request_expires_under_a_policy_that_rejects() -> None:
    policy = QueuePolicy(timeout_us=1_000_000)
    one = ticket(arrived=1)
    queue = filled([one], QueueSettings(policy))
    assert queue.next(1.9999) is one
    queue.put_back([one], 1.9999)
    assert queue.next(2.0) is None
    assert queue.expired == [one]
    assert queue.timed_out(one, 2.0)


def test_with_delay_a_late_request_runs_after_those_in_time() -> None:
    late, in_time = ticket(arrived=0), ticket(arrived=1)
    queue = filled([late, in_time], QueueSettings(DELAY))
    assert emptied(queue, 1.5) == [in_time, late]
    assert queue.expired == []


def test_with_delay_a_late_request_still_precedes_lower_levels() -> None:
    late, low = ticket(arrived=0, priority=1), ticket(arrived=5, priority=2)
    assert emptied(filled([low, late], QueueSettings(DELAY, 2, 1)), 5) == [late, low]


def test_with_delay_new_requests_precede_a_late_one() -> None:
    late, in_time = ticket(arrived=0), ticket(arrived=1)
    queue = filled([late, in_time], QueueSettings(DELAY))
    assert queue.next(1.5) is in_time
    new = ticket(arrived=1.5)
    queue.add(new)
    assert emptied(queue, 1.5) == [new, late]


def test_late_requests_put_back_stay_after_those_in_time_and_before_later_ones() -> None:
    first, second, in_time = ticket(arrived=0), ticket(arrived=0), ticket(arrived=4)
    queue = filled([first, second, in_time], QueueSettings(DELAY))
    assert [queue.next(4), queue.next(4)] == [in_time, first]
    queue.put_back([in_time, first], 4)
    assert emptied(queue, 4) == [in_time, first, second]


def test_with_delay_the_callers_own_deadline_still_counts() -> None:
    one = ticket(arrived=0, deadline=3)
    queue = filled([one], QueueSettings(DELAY))
    assert queue.next(3) is None
    assert queue.expired == [one]
    assert not queue.timed_out(one, 3)


@pytest.mark.parametrize(
    ("policy", "own", "end"),
    [
        (QueuePolicy(), None, inf),
        (QueuePolicy(), 3.0, 3.0),
        (QueuePolicy(timeout_us=2_000_000), None, 2.0),
        (QueuePolicy(timeout_us=2_000_000), 1.0, 2.0),
        (QueuePolicy(timeout_us=2_000_000, may_shorten=True), 1.0, 1.0),
        (QueuePolicy(timeout_us=2_000_000, may_shorten=True), 3.0, 2.0),
    ],
)
@pytest.mark.parametrize("levels", [0, 1])
def test_a_request_may_shorten_its_timeout_if_the_policy_allows_it(
    policy: QueuePolicy, own: float | None, end: float, levels: int
) -> None:
    queue = filled([ticket(timeout=own)], QueueSettings(policy, levels, levels))
    assert queue.sweep(0) == end


def test_each_level_has_its_own_timeout() -> None:
    settings = QueueSettings(QueuePolicy(), 2, 2, {1: QueuePolicy(timeout_us=1_000_000)})
    high, low = ticket(priority=1), ticket(priority=2)
    queue = filled([high, low], settings)
    assert emptied(queue, 2) == [low]
    assert queue.expired == [high]


@both
def test_a_sweep_removes_expired_requests_and_returns_the_next_deadline(settings: QueueSettings) -> None:
    over, soon, later, never = (ticket(deadline=deadline) for deadline in (1.0, 3.0, 5.0, None))
    queue = filled([never, later, over, soon], settings)
    assert queue.sweep(1.0) == 3.0
    assert (queue.expired, queue.size) == ([over], 3)
    assert over.owner is None


# limits


def test_a_full_plain_queue_accepts_no_request() -> None:
    queue = filled([ticket(), ticket()], QueueSettings(QueuePolicy(2)))
    assert not queue.add(ticket())
    queue.next(0)
    assert queue.add(ticket())


def test_each_level_has_its_own_limit() -> None:
    settings = QueueSettings(QueuePolicy(2), 2, 2, {1: QueuePolicy(1)})
    queue = filled([ticket(priority=1), ticket(priority=2), ticket(priority=2)], settings)
    assert not queue.add(ticket(priority=1))
    assert not queue.add(ticket(priority=2))
    assert queue.size == 3


@both
def test_a_cancelled_request_makes_room_at_once(settings: QueueSettings) -> None:
    queue = filled([ticket()], QueueSettings(QueuePolicy(2), settings.levels, settings.default_level))
    gone = ticket()
    queue.add(gone)
    gone.cancel()
    assert queue.size == 1
    assert queue.add(ticket())


def test_late_requests_count_towards_the_limit_of_their_level() -> None:
    queue = filled(
        [ticket(arrived=0), ticket(arrived=1)],
        QueueSettings(QueuePolicy(2, timeout_us=1_000_000, delay=True)),
    )
    queue.next(1.5)
    assert queue.add(ticket(arrived=1.5))
    assert not queue.add(ticket(arrived=1.5))


# cancellation


@both
def test_a_cancelled_request_leaves_at_once_and_is_reported_once(settings: QueueSettings) -> None:
    tickets = [ticket(), ticket(), ticket()]
    queue = filled(tickets, settings)
    left: list[Ticket] = []
    queue.on_left = left.append
    tickets[1].cancel()
    assert (left, queue.size) == ([tickets[1]], 2)
    assert emptied(queue) == [tickets[0], tickets[2]]
    assert (left, queue.size) == ([tickets[1]], 0)


@both
def test_cancelling_a_request_that_was_taken_does_not_concern_the_queue(settings: QueueSettings) -> None:
    taken, waits = ticket(), ticket()
    queue = filled([taken, waits], settings)
    assert queue.next(0) is taken
    taken.cancel()
    assert queue.size == 1


@both
def test_a_queue_does_not_keep_cancelled_requests(settings: QueueSettings) -> None:
    """Requests cancelled while an instance is busy must not hold their tensors until it is free."""
    queue = filled([ticket() for _ in range(10)], settings)
    for _ in range(1000):
        gone = ticket()
        assert queue.add(gone)
        gone.cancel()
    line = queue if isinstance(queue, PlainQueue) else queue._lines[2, False]  # type: ignore[attr-defined]
    assert queue.size == 10
    assert len(line.waiting) <= 10 + 2 * 16
    assert len(emptied(queue)) == 10


# cost


def _cost(settings: QueueSettings, policy: BatchPolicy) -> float:
    """Nanoseconds of CPU time to queue a request and plan its batch, with 10,000 queued."""
    tickets = [ticket(priority=1 + number % 8, deadline=100.0) for number in range(10_000)]
    queue = make_queue(settings)
    began = thread_time_ns()
    for one in tickets:
        queue.add(one)
    planned = 0
    while queue.size:
        planned += len(form_batch(queue, policy, 0).tickets)
    taken = thread_time_ns() - began
    assert planned == len(tickets)
    return taken / planned


@pytest.mark.parametrize(
    "settings", [QueueSettings(), QueueSettings(levels=8, default_level=4)], ids=["plain", "levels"]
)
@pytest.mark.parametrize(
    "policy", [BatchPolicy(32), BatchPolicy(32, (8, 16), 1000)], ids=["takes_all", "preferred"]
)
def test_planning_takes_3_microseconds_per_request_with_10_000_queued(
    settings: QueueSettings, policy: BatchPolicy
) -> None:
    """Allows three times as much, best of five: another program may be using the CPU's caches."""
    assert min(_cost(settings, policy) for _ in range(5)) < 3 * 3000


# properties

timeouts = st.sampled_from([None, 0.5, 2.0, 10.0])
queue_policies = st.builds(
    QueuePolicy,
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0, 1_000_000, 4_000_000]),
    st.booleans(),
    st.booleans(),
)
queue_settings = st.integers(0, 3).flatmap(
    lambda levels: st.builds(
        QueueSettings,
        queue_policies,
        st.just(levels),
        st.integers(1, levels) if levels else st.just(0),
        st.dictionaries(st.integers(1, levels), queue_policies) if levels else st.just({}),
    )
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "take", "form", "cancel", "cancel", "sweep", "later"]),
        st.integers(0, 4),
        timeouts,
        timeouts,
        st.integers(1, 5),
    ),
    max_size=80,
)


class World:
    """A queue, events, and the outcome of every request."""

    def __init__(self, make: Callable[[], Queue], settings: QueueSettings) -> None:
        self.queue = make()
        self.queue.on_left = self._left
        self.settings = settings
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.ran: list[Ticket] = []
        self.left: list[Ticket] = []
        self.expired: list[Ticket] = []
        self.accepted: list[Ticket] = []

    def _left(self, one: Ticket) -> None:
        self.left.append(one)
        self.waiting.remove(one)

    def add(self, priority: int, deadline: float | None, timeout: float | None, size: int) -> None:
        end = None if deadline is None else self.now + deadline
        one = ticket(size, size % 2, deadline=end, timeout=timeout, priority=priority, arrived=self.now)
        if self.queue.add(one):
            self.accepted.append(one)
            self.waiting.append(one)

    def run(self, tickets: list[Ticket]) -> None:
        """These requests were taken to run."""
        self.take_expired()
        for one in tickets:
            self.check_is_next(one)
            self.waiting.remove(one)
            self.ran.append(one)

    def take_expired(self) -> None:
        expired, self.queue.expired = self.queue.expired, []
        for one in expired:
            assert one.deadline is not None
            assert one.deadline <= self.now
            self.waiting.remove(one)
        self.expired += expired

    def check_is_next(self, one: Ticket) -> None:
        assert one in self.waiting, "it was lost, or taken twice"
        assert not one.cancelled
        assert one.deadline is None or one.deadline > self.now
        others = [
            other
            for other in self.waiting
            if not other.cancelled and (other.deadline is None or other.deadline > self.now)
        ]
        assert self.rank(one) == min(map(self.rank, others))

    def rank(self, one: Ticket) -> tuple[int, bool, int]:
        """The order promised: by level, then requests in time in order, then late ones as they were found
        to be late.
        """
        level = one.level if self.settings.levels else 0
        policy = self.settings.policy_of(level)
        timeout = policy.timeout(one.request.timeout)
        late = policy.delay and timeout is not None and one.request.arrived_ns / 1e9 + timeout <= self.now
        return level, late, 0 if late else self.accepted.index(one)


@settings(max_examples=300, deadline=None)
@given(queue_settings, steps)
def test_no_request_is_lost_doubled_or_reordered_and_no_expired_or_cancelled_one_runs(
    settings: QueueSettings, happened: list[tuple[str, int, float | None, float | None, int]]
) -> None:
    world = World(lambda: make_queue(settings), settings)
    queue = world.queue
    for what, number, deadline, timeout, size in happened:
        if what == "add":
            world.add(number, deadline, timeout, size)
        elif what == "take":
            one = queue.next(world.now)
            world.run([] if one is None else [one])
        elif what == "form":
            formed = form_batch(
                queue, BatchPolicy(size, (), number % 2 * 1_000_000_000), round(world.now * 1e9)
            )
            assert formed.items == sum(one.batch_size for one in formed.tickets)
            assert formed.items <= size or len(formed.tickets) == 1
            assert len({one.batch_key for one in formed.tickets}) <= 1
            world.run(formed.tickets)
        elif what == "cancel" and world.waiting:
            world.waiting[number % len(world.waiting)].cancel()
        elif what == "sweep":
            queue.sweep(world.now)
            world.take_expired()
        elif what == "later":
            world.now += number
        assert queue.size == len(world.waiting)
    for one in emptied(queue, world.now):
        world.run([one])
    world.take_expired()
    gone = world.ran + world.left + world.expired
    assert sorted(map(world.accepted.index, gone)) == list(range(len(world.accepted)))
    assert (queue.size, world.waiting) == (0, [])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12), st.booleans())), st.integers(1, 16))
def test_both_queues_decide_the_same_for_requests_of_one_level(
    arrived: list[tuple[int, int, bool]], most: int
) -> None:
    """The plain queue's shortcut takes the same requests as the general queue."""
    plain, levels = make_queue(QueueSettings()), PriorityQueue(QueueSettings(levels=1, default_level=1))
    for key, size, cancelled in arrived:
        for queue in (plain, levels):
            queue.add(one := ticket(size, key, timeout=1.0))
            if cancelled:
                one.cancel()
    while plain.size:
        (first, items), (second, same) = plain.take(most, 0), levels.take(most, 0)
        assert [one.batch_size for one in first] == [one.batch_size for one in second]
        assert items == same
    assert levels.size == 0
