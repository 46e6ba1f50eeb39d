"""The policy of the poll before a sleep, simulated with plain values: when it pays off, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline_client.system.busy_poll import WAKE_TIME, BusyPollPolicy

LONGEST = 200e-6
#: CPU seconds of a sleep and the wake-up from it.
SLEEP_COST = 50e-6
#: CPU seconds of a small request, without its sleep.
WORK = 20e-6
#: CPU seconds of a batch of small requests, without those of its requests.
BATCH = 10e-6
#: CPU seconds of a request in a batch.
EACH = 10e-6


def cost(gaps: Iterable[float], policy: BusyPollPolicy) -> tuple[float, float, int]:
    """The CPU seconds of requests after these gaps, with polls and without, and how many polls succeeded."""
    with_polls = without = 0.0
    hits = 0
    for gap in gaps:
        without += WORK + SLEEP_COST
        length = policy.longest if policy.polls else 0.0
        polled = min(gap, length)
        hit = gap <= length
        with_polls += WORK + polled + (0.0 if hit else SLEEP_COST)
        hits += hit
        policy.observe(gap)
    return with_polls, without, hits


@dataclass
class Served:
    """What a simulated loop has done: its CPU seconds, its requests, and how many of its gaps it polled
    for.
    """

    cpu: float = 0.0
    requests: int = 0
    gaps: int = 0
    polls: int = 0

    @property
    def cpu_per_request(self) -> float:
        return self.cpu / self.requests


def serve(policy: BusyPollPolicy, arriving: list[float], again: Callable[[], float], batches: int) -> Served:
    """Simulates a loop that runs all requests which have arrived as one batch. `arriving` are the times of
    the first request of each client. The next one follows `again()` seconds after the client's response.
    """
    served = Served()
    heapify(arriving)
    now = 0.0
    for _ in range(batches):
        began, first = now, arriving[0]
        if first > began:
            served.gaps += 1
            served.polls += policy.polls
        length = policy.longest if policy.polls else 0.0
        if first <= began + length:
            now = max(began, first)
            served.cpu += now - began
            if first > began:  # otherwise there is no gap that the loop could learn from
                policy.observe(now - began)
        else:
            # Input that has arrived already is found without a sleep.
            served.cpu += length + (SLEEP_COST if first > began else 0.0)
            now = first + WAKE_TIME if first > began else began + WAKE_TIME / 3
            policy.observe(now - began - WAKE_TIME)
        count = 0
        while arriving and arriving[0] <= now:
            heappop(arriving)
            count += 1
        now += BATCH + count * EACH
        served.cpu += BATCH + count * EACH
        served.requests += count
        for _ in range(count):
            heappush(arriving, now + again())
    return served


def closed_loop(policy: BusyPollPolicy, callers: int, work: float, wake_up: float) -> float:
    """Simulates callers in one thread, which sleeps until there is a response and takes `work` seconds for
    each. Waking it up takes about `wake_up` seconds. Returns the requests per second.
    """
    random = Random(3)
    now = free = 0.0
    arriving = [0.0] * callers
    requests = 0
    while requests < 10_000:
        began, first = now, arriving[0]
        if first <= began + (policy.longest if policy.polls else 0.0):
            now = max(began, first)
            if first > began:
                policy.observe(now - began)
        else:
            now = first + WAKE_TIME * random.uniform(0.5, 2.0)
            policy.observe(now - began - WAKE_TIME)
        count = 0
        while arriving and arriving[0] <= now:
            heappop(arriving)
            count += 1
        now += BATCH + count * EACH
        for _ in range(count):
            free = (free if free > now else now + wake_up * random.uniform(0.6, 1.6)) + work
            heappush(arriving, free)
        requests += count
    return requests / now


@pytest.mark.parametrize("work", [8e-6, 25e-6])
@pytest.mark.parametrize("wake_up", [20e-6, 35e-6, 60e-6])
def test_more_callers_never_get_fewer_responses(work: float, wake_up: float) -> None:
    rates = [closed_loop(BusyPollPolicy(LONGEST), callers, work, wake_up) for callers in (1, 2, 3, 4)]

    assert all(more >= 0.99 * fewer for fewer, more in pairwise(rates))


def test_three_callers_are_polled_for_although_their_gaps_are_not_regular() -> None:
    polled, slept = (closed_loop(BusyPollPolicy(longest), 3, 25e-6, 60e-6) for longest in (LONGEST, 0.0))

    assert polled > 1.3 * slept


def arrivals(rate: float, count: int, seed: int = 1) -> Iterator[float]:
    """Gaps of an open loop: a server that is done before the next request sees the rest of the interval."""
    random = Random(seed)
    for _ in range(count):
        yield max(0.0, random.expovariate(rate) - WORK)


@pytest.mark.parametrize("rate", [10, 100, 1_000, 3_000, 10_000, 20_000, 40_000])
def test_random_arrivals_cost_at_most_a_twentieth_more_cpu(rate: int) -> None:
    with_polls, without, _ = cost(arrivals(rate, 20_000), BusyPollPolicy(LONGEST))

    assert with_polls <= 1.05 * without


@pytest.mark.parametrize("clients", [16, 64])
def test_the_loop_does_not_poll_under_load(clients: int) -> None:
    random = Random(5)
    policy = BusyPollPolicy(LONGEST)

    served = serve(policy, [0.0] * clients, lambda: random.uniform(20e-6, 60e-6), 5_000)

    assert served.polls == 0
    assert not policy.polls


@pytest.mark.parametrize("clients", [2, 4, 16, 64])
@pytest.mark.parametrize("pauses", [(20e-6, 60e-6), (30e-6, 40e-6), (50e-6, 150e-6), (10e-6, 400e-6)])
def test_several_clients_cost_at_most_a_twentieth_more_cpu(clients: int, pauses: tuple[float, float]) -> None:
    def cpu(policy: BusyPollPolicy) -> float:
        random = Random(6)
        return serve(policy, [0.0] * clients, lambda: random.uniform(*pauses), 5_000).cpu_per_request

    assert cpu(BusyPollPolicy(LONGEST)) <= 1.05 * cpu(BusyPollPolicy(0.0))


@pytest.mark.parametrize("rate", [100, 1_000, 5_000, 10_000, 20_000])
def test_many_clients_with_random_pauses_cost_at_most_a_twentieth_more_cpu(rate: int) -> None:
    clients = 200

    def cpu(policy: BusyPollPolicy) -> float:
        random = Random(7)
        pause = clients / rate
        arriving = [random.expovariate(1 / pause) for _ in range(clients)]
        return serve(policy, arriving, lambda: random.expovariate(1 / pause), 10_000).cpu_per_request

    assert cpu(BusyPollPolicy(LONGEST)) <= 1.05 * cpu(BusyPollPolicy(0.0))


@pytest.mark.parametrize("gap", [20e-6, 45e-6, 100e-6, 170e-6])
def test_a_client_that_waits_for_each_response_is_polled_for(gap: float) -> None:
    random = Random(2)
    gaps = [gap * random.uniform(0.9, 1.1) for _ in range(1_000)]

    _, _, hits = cost(gaps, BusyPollPolicy(LONGEST))

    assert hits > 900  # it learns within a hundred gaps


def test_a_client_is_polled_for_although_wake_ups_vary() -> None:
    random = Random(4)
    policy = BusyPollPolicy(LONGEST)
    polled = 0
    for _ in range(1_000):
        gap = 30e-6 * random.uniform(0.9, 1.1)
        polled += policy.polls
        if policy.polls:
            policy.observe(gap)
        else:
            policy.observe(gap + WAKE_TIME * random.uniform(0.0, 2.0) - WAKE_TIME)

    assert polled > 900


def test_a_client_is_polled_for_although_some_gaps_are_long() -> None:
    random = Random(8)
    policy = BusyPollPolicy(LONGEST)
    polled = 0
    for number in range(2_000):
        gap = 150e-6 if number % 50 == 0 else 25e-6 * random.uniform(0.8, 1.2)
        polled += policy.polls
        if policy.polls:
            policy.observe(gap)
        else:
            # As measured on a machine with two cores: some wake-ups are fast, and others slow.
            policy.observe(gap + WAKE_TIME * random.choice([0.4, 0.4, 0.8, 1.5, 2.0]) - WAKE_TIME)

    assert polled > 1_800


def test_a_client_on_a_busy_core_is_not_polled_for() -> None:
    policy = BusyPollPolicy(LONGEST)
    for _ in range(1_000):
        policy.observe(
            13e-6 - WAKE_TIME
        )  # the core is busy with the client, so it does not need to be woken up

        assert not policy.polls


def test_a_request_to_a_worker_has_two_gaps_that_are_polled_for() -> None:
    random = Random(3)
    gaps = [gap * random.uniform(0.9, 1.1) for _ in range(500) for gap in (20e-6, 130e-6)]

    _, _, hits = cost(gaps, BusyPollPolicy(LONGEST))

    assert hits > 900  # it learns within a hundred gaps


def test_a_slow_client_is_not_polled_for() -> None:
    with_polls, without, hits = cost([300e-6] * 1_000, BusyPollPolicy(LONGEST))

    assert hits == 0
    assert with_polls == pytest.approx(without)


def test_a_client_that_stops_costs_one_poll() -> None:
    policy = BusyPollPolicy(LONGEST)
    cost([40e-6] * 200, policy)

    with_polls, without, _ = cost([3600.0], policy)

    assert with_polls - without <= LONGEST


def test_a_policy_of_zero_never_polls() -> None:
    with_polls, without, hits = cost([1e-6] * 100, BusyPollPolicy(0.0))

    assert hits == 0
    assert with_polls == pytest.approx(without)


def test_a_lost_core_pauses_polling_for_longer_each_time() -> None:
    policy = BusyPollPolicy(LONGEST)
    pauses = []
    for _ in range(13):
        while not policy.polls:
            policy.observe(30e-6)
        assert not policy.continues(1.0, 1.0, 1.0005)
        pause = 0
        while not policy.polls:
            policy.observe(30e-6)
            pause += 1
        pauses.append(pause)

    assert pauses == sorted(pauses)
    assert pauses[0] < 16
    assert pauses[-1] == pytest.approx(1024, abs=1)


@pytest.mark.parametrize("every", [100, 1_000])
def test_a_core_that_is_lost_rarely_costs_few_polls(every: int) -> None:
    policy = BusyPollPolicy(LONGEST)
    skipped = 0
    for count in range(10_000):
        policy.observe(30e-6)
        skipped += not policy.polls
        if count % every == every - 1:
            policy.continues(1.0, 1.0, 1.0005)

    assert skipped <= 100 + 10 * 10_000 // every


def share_polled(loss: float) -> float:
    """The share of the gaps of one client that are polled for if the core is lost in this share of polls."""
    random = Random(9)
    policy = BusyPollPolicy(LONGEST)
    polled = 0
    for _ in range(20_000):
        gap = 90e-6 * random.uniform(0.9, 1.1)
        if not policy.begins(1.0, lambda now: True):
            policy.observe(gap + WAKE_TIME - WAKE_TIME)
            continue
        polled += 1
        if random.random() < loss:
            policy.continues(1.0, 1.0, 1.0005)
        policy.observe(gap)
    return polled / 20_000


def test_services_in_the_background_that_take_the_core_now_and_then_cost_few_polls() -> None:
    assert share_polled(0.1) > 0.75


def test_a_machine_that_needs_its_cores_gets_them() -> None:
    assert share_polled(0.5) < 0.05


def test_a_poll_continues_for_as_long_as_allowed() -> None:
    policy = BusyPollPolicy(LONGEST)
    cost([30e-6] * 200, policy)

    assert policy.continues(1.0, 1.00019, 1.0002 - 1e-9)
    assert not policy.continues(1.0, 1.00019, 1.0002 + 1e-9)
    assert policy.polls  # the core was not lost


def test_whether_a_core_is_spare_is_checked_from_time_to_time() -> None:
    policy = BusyPollPolicy(LONGEST)
    cost([30e-6] * 200, policy)
    checks: list[float] = []
    spare = [True, True, False]

    def has_spare_core(now: float) -> bool:
        checks.append(now)
        return spare[len(checks) - 1]

    polled = [policy.begins(1.0 + number * 100e-6, has_spare_core) for number in range(300)]

    assert len(checks) == 3  # 30 ms have passed
    assert polled == [now < checks[2] for now in (1.0 + number * 100e-6 for number in range(300))]


@given(st.lists(st.floats(-1e-4, 1.0), max_size=200))
def test_no_poll_is_longer_than_allowed(gaps: list[float]) -> None:
    policy = BusyPollPolicy(LONGEST)

    for gap in gaps:
        policy.observe(gap)
        assert not (policy.polls and policy.continues(1.0, 1.0 + LONGEST, 1.0 + LONGEST + 1e-9))


@pytest.mark.parametrize("gap", [LONGEST * 2, 1.0, -1e-3])
def test_a_policy_is_hopeless_after_a_dozen_gaps_that_are_not_worth_a_poll(gap: float) -> None:
    policy = BusyPollPolicy(LONGEST)
    assert policy.hopeless
    policy.observe(LONGEST / 2)
    states = []
    for _ in range(14):
        states.append(policy.hopeless)
        policy.observe(gap)

    assert states == sorted(states)
    assert (states[0], states[-1]) == (False, True)


def test_a_policy_that_polls_is_not_hopeless() -> None:
    policy = BusyPollPolicy(LONGEST)
    for number in range(1_000):
        policy.observe(LONGEST / 4 if number % 10 else 1.0)

    assert policy.polls
    assert not policy.hopeless
