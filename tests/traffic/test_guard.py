"""Guards: sequential tests that seldom reject a good version and soon reject a bad one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from backline.plugins.traffic.guard import ALPHA, Guard, parse_guard
from backline_client.values.errors import InvalidArgument

#: How many courses are simulated. With a rejection probability of ALPHA, more than MOST are rejected in fewer
#: than one of 1000 series.
COURSES, REQUESTS, MOST = 300, 1000, 9


def guard(text: str) -> Guard:
    return Guard(parse_guard(text))


def rejected(text: str, observe: Callable[[Guard, Random], None], courses: int = COURSES) -> list[int]:
    """After how many observations each of the courses was rejected; REQUESTS + 1 if it was not."""
    found = []
    for seed in range(courses):
        tested, random = guard(text), Random(seed)
        for number in range(1, REQUESTS + 1):
            observe(tested, random)
            if tested.violation is not None:
                found.append(number)
                break
        else:
            found.append(REQUESTS + 1)
    return found


def alarms(found: list[int]) -> int:
    return sum(number <= REQUESTS for number in found)


def errors(rate: float) -> Callable[[Guard, Random], None]:
    return lambda tested, random: tested.error(random.random() < rate, "")


def distances(mean: float) -> Callable[[Guard, Random], None]:
    return lambda tested, random: tested.distance(random.uniform(0, 2 * mean), "")


def latencies(factor: float, spread: float) -> Callable[[Guard, Random], None]:
    """Log-normal latencies; those of the new version are `factor` times longer."""

    def observe(tested: Guard, random: Random) -> None:
        base, new = (0.01 * random.lognormvariate(0, spread) for _ in range(2))
        tested.latency(base, factor * new, "")

    return observe


@pytest.mark.parametrize(
    ("text", "observe"),
    [
        ("errors<1%", errors(0.01)),
        ("errors<20%", errors(0.2)),
        ("distance<0.02", distances(0.02)),
        ("p50<1.3x", latencies(1.3, 0.3)),
        ("p99<1.3x", latencies(1.3, 0.3)),
        ("p90<1x", latencies(1.0, 1.0)),
    ],
)
def test_a_version_at_the_bound_is_seldom_rejected(
    text: str, observe: Callable[[Guard, Random], None]
) -> None:
    assert COURSES * ALPHA <= MOST / 3
    assert alarms(rejected(text, observe)) <= MOST


@pytest.mark.parametrize(
    ("text", "observe", "within"),
    [
        ("errors<1%", errors(0.1), 200),
        ("errors<1%", errors(1.0), 5),
        ("errors<0.01%", errors(0.01), 1000),
        ("distance<0.001", distances(0.005), 50),
        ("distance<0.0002", distances(0.0005), 200),
        ("distance<0.02", lambda tested, random: tested.distance(1.0, ""), 10),
        ("p50<1.3x", latencies(1.5, 0.2), 400),
        ("p99<1.3x", latencies(1.5, 0.05), 200),
        ("p99<1.3x", latencies(3.0, 0.3), 200),
    ],
)
def test_a_bad_version_is_rejected_soon(
    text: str, observe: Callable[[Guard, Random], None], within: int
) -> None:
    found = rejected(text, observe, 50)

    assert sum(number <= within for number in found) >= 48, sorted(found)


def test_a_violation_says_what_was_observed_and_where() -> None:
    tested = guard("errors<1%, distance<0.02")

    for number in range(20):
        tested.error(number % 2 == 0, f"request-{number}", "out of memory")

    assert tested.violation is not None
    assert tested.violation.clause == "errors<1%"
    assert "requests failed; the last: out of memory" in tested.violation.reason
    assert "request-0" in tested.violation.requests
    assert tested.evidence["errors<1%"] == 1
    assert tested.evidence["distance<0.02"] == 0


def test_growing_memory_breaks_a_guard() -> None:
    tested = guard("memory<1.5x")

    for resident in (0, 100 << 20, 90 << 20, 150 << 20):
        tested.memory(resident)
        assert tested.violation is None
    tested.memory(151 << 20)

    assert tested.violation is not None
    assert tested.violation.reason == "the memory of a worker process has grown from 100 to 151 MiB"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "at least one clause"),
        ("errors<1%, errors<2%", "one for each of its metrics"),
        ("error<1%", "'error<1%' is not a clause"),
        ("errors<1x", "expected a share"),
        ("errors<0%", "expected a share"),
        ("errors<100%", "expected a share"),
        ("p99<1.3", "expected a factor"),
        ("p99<0.5x", "expected a factor"),
        ("p100<2x", "is not a clause"),
        ("p99>1.3x", "is not a clause"),
        ("memory<150%", "expected a factor"),
        ("errors<nan%", "is not a clause"),
    ],
)
def test_a_wrong_clause_is_named(text: str, wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=wrong):
        parse_guard(text)
