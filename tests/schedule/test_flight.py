"""Identical requests that share one run: by properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.messages import InferRequest
from backline.engine.model_config import QueuePolicy
from backline.schedule.cache.flight import Flight, latest
from backline.schedule.queues.queue import QueueSettings
from schedule.requests import request

SETTINGS = QueueSettings(QueuePolicy(), levels=3, default_level=2)

deadlines = st.none() | st.floats(1, 100)
requests = st.builds(
    lambda deadline, priority: request(deadline=deadline, priority=priority), deadlines, st.integers(0, 3)
)


def in_queue(flight: Flight) -> InferRequest:
    """The run of a flight, which waits in a queue."""
    run = flight.run = flight.make_run(SETTINGS, lambda *_: None)
    run.on_cancel = lambda _: None
    flight.queued = run.on_cancel
    return run


@given(st.lists(requests, min_size=1, max_size=5), st.lists(requests, max_size=5))
def test_a_run_waits_as_long_as_the_most_patient_of_those_who_want_it(
    before: list[InferRequest], after: list[InferRequest]
) -> None:
    flight = Flight(before[0], 0)
    for one in before[1:]:
        flight.join(one, SETTINGS)
    run = in_queue(flight)
    for one in after:
        flight.join(one, SETTINGS)
    assert flight.waiting == before + after
    assert run.deadline == run.waits_until == latest(one.waits_until for one in before + after)


@given(st.lists(requests, min_size=1, max_size=5), requests)
def test_nobody_waits_behind_a_run_of_a_lower_level_than_its_own(
    before: list[InferRequest], later: InferRequest
) -> None:
    flight = Flight(before[0], 0)
    for one in before[1:]:
        assert flight.admits(one, SETTINGS), "there is no run yet"
        flight.join(one, SETTINGS)
    run = in_queue(flight)
    assert run.priority == min(map(SETTINGS.level_of, before))
    assert flight.admits(later, SETTINGS) == (SETTINGS.level_of(later) >= run.priority)
    run.on_cancel = None  # it runs
    assert flight.admits(later, SETTINGS)


def test_who_joins_a_run_whose_time_the_queue_has_limited_leaves_that_limit_to_the_first() -> None:
    first, second = request(), request(deadline=9.0)
    flight = Flight(first, 0)
    run = in_queue(flight)
    run.deadline = 5.0
    flight.join(second, SETTINGS)
    assert (first.deadline, run.deadline) == (5.0, 9.0)
