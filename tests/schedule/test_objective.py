"""The policy of a latency objective, by example, by properties, and over simulated time."""

from __future__ import annotations

from math import inf
from time import thread_time_ns

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Ticket
from backline.schedule.objective.policy import LatencyModel, Line, Outlook, Quantile, finish
from backline.schedule.objective.queue import ObjectiveQueue
from backline.schedule.queues.queue import QueueSettings
from schedule.simulation import Machine, simulate
from schedule.tickets import ticket

#: A batch of n takes n + 4 milliseconds.
SECONDS = {1: 0.005, 16: 0.020}
LINE = Line(0.001, 0.004)


def queue_of(
    *tickets: Ticket, objective: float = 0.1, settings: QueueSettings | None = None
) -> ObjectiveQueue:
    queue = ObjectiveQueue(settings or QueueSettings(), objective, Outlook(SECONDS))
    for one in tickets:
        assert queue.add(one)
    return queue


# how long a batch takes


def test_before_any_run_the_measured_times_are_used() -> None:
    line = LatencyModel(SECONDS).line(0)
    assert (line.seconds(1), line.seconds(8)) == pytest.approx((0.005, 0.012))


@given(st.floats(1e-5, 0.1), st.floats(0, 0.1), st.integers(2, 64))
def test_a_line_is_fitted_to_runs_of_different_sizes(a: float, b: float, most: int) -> None:
    model = LatencyModel(SECONDS)
    for turn in range(400):
        size = 1 + turn * 67 % most
        model.learn(0, size, a * size + b)
    line = model.line(0)
    for size in (1, most):
        assert line.seconds(size) == pytest.approx(a * size + b, abs=0.05 * (a * most + b))


def test_when_all_runs_have_one_size_estimates_for_others_scale_along() -> None:
    model = LatencyModel(SECONDS)
    for _ in range(200):
        model.learn(0, 16, 0.040)
    assert model.line(0).seconds(16) == pytest.approx(0.040, rel=0.02)
    assert model.line(0).seconds(1) == pytest.approx(0.010, rel=0.25)


def test_an_outlier_changes_little_and_a_lasting_change_is_learned() -> None:
    model = LatencyModel(SECONDS)
    for _ in range(100):
        model.learn(0, 8, 0.012)
    model.learn(0, 8, 3.0)
    assert model.line(0).seconds(8) < 0.013
    for _ in range(100):
        model.learn(0, 8, 0.048)
    assert model.line(0).seconds(8) == pytest.approx(0.048, rel=0.1)


def test_item_sizes_without_runs_are_estimated_in_proportion() -> None:
    model = LatencyModel(SECONDS, 100)
    assert model.line(400).seconds(1) == pytest.approx(4 * 0.005)
    for _ in range(100):
        model.learn(400, 1, 0.5)
    assert model.line(400).seconds(1) == pytest.approx(0.5, rel=0.1)
    assert model.line(100).seconds(1) == pytest.approx(0.005)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 64), st.floats(0, 10))
def test_the_largest_batch_within_a_time_is_exact(a: float, b: float, most: int, seconds: float) -> None:
    line = Line(a, b)
    size = line.largest(seconds, most)
    assert 0 <= size <= most
    assert size == 0 or line.seconds(size) <= seconds * (1 + 1e-9)
    assert size == most or line.seconds(size + 1) >= seconds * (1 - 1e-9)


def test_a_quantile_is_estimated() -> None:
    quantile = Quantile(0.95)
    values = [((number * 7919) % 1000) / 1000 for number in range(20_000)]
    for value in values:
        quantile.learn(value)
    assert quantile.value == pytest.approx(0.95, abs=0.05)


# when a request will complete


@pytest.mark.parametrize(
    ("free", "ahead", "expected"),
    [
        ([0.0], 0, 0.020),  # others will join it
        ([0.1], 5, 0.1 + 0.010),  # in the next batch
        ([0.0], 16, 0.020 + 0.020),  # the first request of the second batch
        ([0.0], 18, 0.020 + 0.007),
        ([0.0, 0.0], 16, 0.0 + 0.020),  # the other instance is free
        ([0.0, 0.01], 16, 0.01 + 0.020),
        ([0.0], 16 * 10 + 3, 10 * 0.020 + 0.008),
        ([0.0, 0.0], 16 * 10 + 3, 5 * 0.020 + 0.008),
        ([0.0, 0.01], 16 * 3 + 3, 0.010 + 0.020 + 0.008),
    ],
)
def test_completion_is_predicted_from_the_queue_and_all_instances(
    free: list[float], ahead: int, expected: float
) -> None:
    assert finish(LINE, free, ahead, 1, usual=16, first=16) == pytest.approx(expected)


@given(
    st.lists(st.floats(0, 0.02), min_size=1, max_size=4).map(sorted),
    st.integers(0, 500),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_predicted_completion_is_neither_before_the_queue_ahead_starts_nor_much_later(
    free: list[float], ahead: int, usual: int, first: int
) -> None:
    expected = finish(LINE, free, ahead, 1, usual=usual, first=min(first, usual))
    assert expected >= free[0] + LINE.seconds(1) - 1e-9
    # when it begins, all before it have begun
    assert expected >= free[0] + LINE.a * (ahead + 1 - usual * len(free)) / len(free) - 1e-9
    assert expected <= free[-1] + (ahead / usual + 3) * LINE.seconds(usual)


def test_an_overdue_instance_is_expected_to_take_as_long_again() -> None:
    outlook = Outlook(SECONDS)
    outlook.started("instance", 0.0, 0, 16)
    assert outlook.free(0.010, 0) == [pytest.approx(0.020)]
    assert outlook.free(0.050, 0) == [pytest.approx(0.080)]
    assert outlook.ended("instance") == pytest.approx(0.020)
    assert outlook.free(0.050, 1) == [0.050]


# which requests are refused


def test_lateness_depends_on_the_queue_ahead() -> None:
    queue = queue_of(*[ticket() for _ in range(32)], objective=0.065)
    # after two batches of 20 ms, in a third of at most 20 ms
    assert queue.lateness(ticket(), [0.0], 16) < 0
    assert queue.lateness(ticket(), [0.010], 16) > 0


def test_lateness_includes_the_time_since_arrival() -> None:
    queue = queue_of(*[ticket(arrived=1.0) for _ in range(16)], objective=0.05)
    assert queue.lateness(ticket(arrived=1.0), [1.0], 16) < 0
    assert queue.lateness(ticket(arrived=0.96), [1.0], 16) > 0


def test_an_earlier_deadline_of_a_request_counts() -> None:
    queue = queue_of(*[ticket() for _ in range(16)], objective=0.5)
    assert queue.lateness(ticket(deadline=0.015), [0.0], 16) > 0
    assert queue.lateness(ticket(timeout=0.015), [0.0], 16) > 0
    assert queue.lateness(ticket(deadline=0.9), [0.0], 16) < 0


def test_only_earlier_requests_and_higher_levels_count_as_ahead() -> None:
    levels = QueueSettings(levels=2, default_level=2)
    queue = queue_of(*[ticket(priority=2) for _ in range(160)], objective=0.05, settings=levels)
    assert queue.lateness(ticket(priority=1), [0.0], 16) < 0
    assert queue.lateness(ticket(priority=2), [0.0], 16) > 0


def test_an_early_deadline_overtakes_others_unless_that_makes_them_late() -> None:
    late = ticket(deadline=0.5)
    queue = queue_of(late, objective=1.0)
    early = ticket(deadline=0.1)
    assert queue.lateness(early, [0.0], 1) < 0
    queue.add(early)
    assert queue.take(1, 0.0)[0] == [early]

    queue = queue_of(*[ticket() for _ in range(16)], objective=0.080)
    assert queue.lateness(ticket(deadline=0.079), [0.0], 1) > 0


def test_requests_are_taken_by_due_time_and_ties_keep_their_order() -> None:
    first, second, third = ticket(arrived=0.002), ticket(arrived=0.002), ticket(arrived=0.001)
    assert queue_of(first, second, third).take(8, 0.0)[0] == [third, first, second]


def test_a_batch_is_no_larger_than_the_first_of_its_requests_allows() -> None:
    queue = queue_of(*[ticket(arrived=0.001 * number) for number in range(12)])
    taken, items = queue.take(16, 0.1 - 0.0125)  # 12.5 ms are left, 8 items take 12
    assert items == len(taken) == 8
    assert (queue.size, queue.expired) == (4, [])


def test_requests_that_will_be_late_are_refused_in_favour_of_others() -> None:
    hopeless, over, fine = ticket(arrived=0.003), ticket(arrived=0.0), ticket(arrived=0.05)
    queue = queue_of(hopeless, over, fine)
    assert queue.take(16, 0.101)[0] == [fine]
    assert queue.expired == [over, hopeless]


def test_an_estimate_alone_refuses_no_request_while_nothing_else_is_queued() -> None:
    hopeless = [ticket(arrived=0.003), ticket(arrived=0.004)]
    queue = queue_of(*hopeless)
    assert queue.take(16, 0.102)[0] == hopeless[:1]
    assert queue.expired == []


def test_no_small_batch_runs_for_a_few_requests_if_it_makes_many_late() -> None:
    few = [ticket(arrived=0.0) for _ in range(2)]
    many = [ticket(arrived=0.0142) for _ in range(14)]
    queue = queue_of(*few, *many)
    taken, _ = queue.take(16, 0.1 - 0.006)
    assert (taken, queue.expired) == (many, few)


def test_a_sweep_removes_overdue_requests_and_returns_the_next_due_time() -> None:
    over, next_one = ticket(arrived=0.0), ticket(arrived=0.5)
    queue = queue_of(next_one, over)
    assert queue.sweep(0.1) == pytest.approx(0.6)
    assert (queue.expired, queue.size) == ([over], 1)
    assert queue.sweep(0.7) == inf


def test_lower_levels_do_not_make_the_request_due_first_late() -> None:
    queue = ObjectiveQueue(QueueSettings(QueuePolicy(), 2, 2), 1.0, Outlook({1: 0.1, 8: 0.8}))
    for _ in range(8):
        queue.add(ticket(priority=1))
    hurried = ticket(priority=1, deadline=0.5)
    before = queue.lateness(hurried, [0.0], 1)
    queue.add(ticket(priority=2))
    assert queue.lateness(hurried, [0.0], 1) == before < 0


def test_a_deadline_postponed_in_the_queue_counts() -> None:
    queue = ObjectiveQueue(QueueSettings(), 1.0, Outlook(SECONDS))
    waits = ticket(deadline=0.1)
    queue.add(waits)
    waits.deadline = 0.5
    assert queue.sweep(0.2) == 0.5
    assert (queue.expired, queue.size) == ([], 1)
    assert queue.sweep(0.6) == inf
    assert (queue.expired, queue.size) == ([waits], 0)


# cost


def _cost(levels: int) -> float:
    """Nanoseconds of CPU time to admit, queue and plan a request, with 10,000 queued."""
    settings = QueueSettings(QueuePolicy(), levels, 1 if levels else 0)
    tickets = [ticket(priority=1 + number % 8, arrived=number * 1e-6) for number in range(10_000)]
    outlook = Outlook(SECONDS)
    queue = ObjectiveQueue(settings, 1000.0, outlook)
    outlook.started(1, 0.0, 0, 16)
    outlook.started(2, 0.0, 0, 8)
    began = thread_time_ns()
    for one in tickets:
        queue.lateness(one, outlook.free(0.01, 0), 32)
        queue.add(one)
    planned = 0
    while queue.size:
        planned += len(queue.take(32, 0.02)[0])
    taken = thread_time_ns() - began
    assert planned == len(tickets)
    return taken / planned


@pytest.mark.parametrize("levels", [0, 8], ids=["plain", "levels"])
def test_decisions_take_3_microseconds_per_request_with_10_000_queued(levels: int) -> None:
    """Allows three times as much, best of five: another program may be using the CPU's caches."""
    assert min(_cost(levels) for _ in range(5)) < 3 * 3000


# properties

steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "take", "cancel", "sweep", "put back", "later"]),
        st.integers(0, 4),
        st.sampled_from([None, 0.05, 0.2, 1.0]),
        st.sampled_from([None, 0.1]),
        st.integers(1, 5),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 3]), steps)
def test_no_request_is_lost_doubled_or_reordered_and_no_late_or_cancelled_one_runs(
    levels: int, happened: list[tuple[str, int, float | None, float | None, int]]
) -> None:
    queue = ObjectiveQueue(QueueSettings(QueuePolicy(20), levels, min(levels, 2)), 0.5, Outlook(SECONDS))
    waiting: list[Ticket] = []
    gone: list[Ticket] = []
    left: list[Ticket] = []
    queue.on_left = left.append
    accepted = 0
    now = 0.0

    def rank(one: Ticket) -> tuple[int, float]:
        return one.level if levels else 0, queue.due(one)

    def settle() -> None:
        """Requests that were cancelled or refused are gone, the others wait."""
        for one in [*left, *queue.expired]:
            waiting.remove(one)
        gone.extend([*left, *queue.expired])
        left.clear()
        queue.expired.clear()
        assert queue.size == len(waiting)

    def take(most: int) -> list[Ticket]:
        taken, items = queue.take(most, now)
        for one in taken:
            waiting.remove(one)
        settle()
        assert items == sum(one.batch_size for one in taken)
        assert items <= most or len(taken) == 1
        assert len({one.batch_key for one in taken}) <= 1
        assert not [one for one in taken if one.cancelled or queue.due(one) <= now]
        assert [rank(one) for one in taken] == sorted(map(rank, [*taken, *waiting]))[: len(taken)]
        return taken

    for what, number, deadline, timeout, size in happened:
        if what == "add":
            one = ticket(
                size,
                None if number % 2 else "key",
                deadline=None if deadline is None else now + deadline,
                timeout=timeout,
                priority=number,
                arrived=now,
            )
            if queue.add(one):
                accepted += 1
                waiting.append(one)
        elif what == "take":
            gone += take(size * 2)
        elif what == "put back":
            taken = take(size)
            queue.put_back(taken, now)
            waiting += taken
        elif what == "cancel" and waiting:
            waiting[number % len(waiting)].cancel()
        elif what == "sweep":
            nearest = queue.sweep(now)
            settle()
            assert nearest == min(map(queue.due, waiting), default=inf)
            assert nearest > now
        elif what == "later":
            now += number / 20
        settle()
    while queue.size:
        gone += take(100)
    settle()
    assert not waiting
    assert len(gone) == len({id(one) for one in gone}) == accepted


# over time


@pytest.mark.parametrize("load", [0.7, 1.1, 2.0, 4.0])
@pytest.mark.parametrize(
    "machine",
    [Machine(0.001, 0.005, 8, 1, 0.05), Machine(0.002, 0.005, 16, 2, 0.1), Machine(0.02, 0.0, 1, 2, 0.1)],
    ids=["one_instance", "two_instances", "without_batches"],
)
def test_under_any_load_nearly_all_requests_that_can_be_in_time_are(machine: Machine, load: float) -> None:
    fates = simulate(machine, load, seconds=5.0)
    assert fates.good >= 0.95 * min(load, 1.0) * 0.98 * machine.capacity * 5.0
    assert fates.p99 <= machine.objective
    assert max(fates.batches) <= machine.most
    if load < 1:
        assert fates.refused + fates.given_up <= 0.02 * len(fates.latencies)


@pytest.mark.parametrize("load", [1.1, 4.0])
def test_an_objective_too_short_for_the_largest_batches_does_not_lead_to_tiny_ones(
    load: float,
) -> None:
    machine = Machine(0.001, 0.010, 64, 1, 0.05)
    fates = simulate(machine, load, seconds=5.0)
    half = 0.47 * machine.objective  # a batch of which leaves time for the next one
    assert fates.good >= 0.9 * (half - machine.b) / machine.a / half * 5.0
    assert fates.p99 <= machine.objective
