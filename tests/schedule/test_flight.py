"""Identical requests that share a run, by properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Owner, Ticket
from backline.schedule.cache.flight import Flight, latest
from backline.schedule.queues.queue import QueueSettings
from schedule.tickets import ticket

SETTINGS = QueueSettings(QueuePolicy(), levels=3, default_level=2)

deadlines = st.none() | st.floats(1, 100)
tickets = st.builds(
    lambda deadline, priority: ticket(deadline=deadline, priority=priority), deadlines, st.integers(0, 3)
)


def no_ticket_leaves(flight: Flight, left: Ticket) -> None:
    raise AssertionError("no ticket was cancelled")


def in_queue(flight: Flight) -> Ticket:
    """The run of a flight, waiting in a queue."""
    run = flight.run = flight.make_run(SETTINGS, lambda *_: None)
    run.enqueue(Owner())
    return run


@given(st.lists(tickets, min_size=1, max_size=5), st.lists(tickets, max_size=5))
def test_a_shared_run_waits_as_long_as_its_most_patient_request(
    before: list[Ticket], after: list[Ticket]
) -> None:
    flight = Flight(before[0], 0, no_ticket_leaves)
    for one in before[1:]:
        flight.join(one, SETTINGS)
    run = in_queue(flight)
    for one in after:
        flight.join(one, SETTINGS)
    assert flight.waiting == before + after
    assert run.deadline == run.waits_until == latest(one.waits_until for one in before + after)


@given(st.lists(tickets, min_size=1, max_size=5), tickets)
def test_no_request_joins_a_queued_run_of_a_lower_level(before: list[Ticket], later: Ticket) -> None:
    flight = Flight(before[0], 0, no_ticket_leaves)
    for one in before[1:]:
        assert flight.admits(one, SETTINGS), "there is no run yet"
        flight.join(one, SETTINGS)
    run = in_queue(flight)
    assert run.request.priority == min(map(SETTINGS.level_of, before))
    assert flight.admits(later, SETTINGS) == (SETTINGS.level_of(later) >= run.request.priority)
    run.start(None)
    assert flight.admits(later, SETTINGS)


def test_joining_a_run_leaves_the_queues_time_limit_with_the_first_request() -> None:
    first, second = ticket(), ticket(deadline=9.0)
    flight = Flight(first, 0, no_ticket_leaves)
    run = in_queue(flight)
    run.deadline = 5.0
    flight.join(second, SETTINGS)
    assert (first.deadline, run.deadline) == (5.0, 9.0)
