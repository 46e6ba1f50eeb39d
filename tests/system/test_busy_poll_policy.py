"""The policy of the poll before a sleep, simulated with plain values: when it pays off, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.system.busy_poll_policy import BusyPollPolicy

LONGEST = 200e-6
#: CPU seconds of a sleep and the wake-up from it.
SLEEP_COST = 50e-6
#: CPU seconds of a small request, without its sleep.
WORK = 20e-6


def cost(gaps: Iterable[float], policy: BusyPollPolicy) -> tuple[float, float, int]:
    """The CPU seconds of requests after these gaps, with polls and without, and how many polls succeeded."""
    with_polls = without = 0.0
    hits = 0
    for gap in gaps:
        without += WORK + SLEEP_COST
        polled = min(gap, policy.length)
        hit = gap <= policy.length
        with_polls += WORK + polled + (0.0 if hit else SLEEP_COST)
        hits += hit
        policy.observe(gap)
    return with_polls, without, hits


def arrivals(rate: float, count: int, seed: int = 1) -> Iterator[float]:
    """Gaps of an open loop: a server that is done before the next request sees the rest of the interval."""
    random = Random(seed)
    for _ in range(count):
        yield max(0.0, random.expovariate(rate) - WORK)


@pytest.mark.parametrize("rate", [10, 100, 1_000, 3_000, 10_000, 20_000, 40_000])
def test_random_arrivals_cost_at_most_a_twentieth_more_cpu(rate: int) -> None:
    with_polls, without, _ = cost(arrivals(rate, 20_000), BusyPollPolicy(LONGEST))

    assert with_polls <= 1.05 * without


@pytest.mark.parametrize("gap", [20e-6, 45e-6, 100e-6, 170e-6])
def test_a_client_that_waits_for_each_response_is_polled_for(gap: float) -> None:
    random = Random(2)
    gaps = [gap * random.uniform(0.9, 1.1) for _ in range(1_000)]

    _, _, hits = cost(gaps, BusyPollPolicy(LONGEST))

    assert hits > 900  # it learns within a hundred gaps


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
    for _ in range(10):
        while not policy.length:
            policy.observe(30e-6)
        policy.lose_core()
        pause = 0
        while not policy.length:
            policy.observe(30e-6)
            pause += 1
        pauses.append(pause)

    assert pauses == sorted(pauses)
    assert pauses[0] < 16
    assert pauses[-1] == pytest.approx(1024, abs=1)


def test_a_core_that_is_lost_rarely_costs_few_polls() -> None:
    policy = BusyPollPolicy(LONGEST)
    skipped = 0
    for count in range(10_000):
        policy.observe(30e-6)
        skipped += not policy.length
        if count % 1_000 == 999:
            policy.lose_core()

    assert skipped < 200


@given(st.lists(st.floats(-1e-4, 1.0), max_size=200))
def test_no_poll_is_longer_than_allowed(gaps: list[float]) -> None:
    policy = BusyPollPolicy(LONGEST)

    for gap in gaps:
        policy.observe(gap)
        assert policy.length in (0.0, LONGEST)
