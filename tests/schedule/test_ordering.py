"""Responses in the order of requests, whatever order the batches end in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.ticket import Ticket
from backline.schedule.ordering import ResponseOrder
from backline_client.values.errors import Internal
from backline_client.values.messages import InferResponse
from schedule.tickets import ticket


def test_a_response_waits_for_all_earlier_ones() -> None:
    order = ResponseOrder()
    first, second, third = ticket(), ticket(), ticket()
    order.start([first, second])
    order.start([third])
    answer, error = InferResponse("m", "1", "", []), Internal("no")
    assert order.finish(third, answer, None) == []
    assert order.finish(second, None, error) == []
    assert order.held == 3
    answers = [(one.ticket, one.response, one.error) for one in order.finish(first, None, None)]
    assert answers == [
        (first, None, None),
        (second, None, error),
        (third, answer, None),
    ]
    assert order.held == 0


def test_a_response_that_is_next_is_sent_at_once() -> None:
    order = ResponseOrder()
    first, second = ticket(), ticket()
    order.start([first, second])
    assert [one.ticket for one in order.finish(first, None, None)] == [first]
    assert [one.ticket for one in order.finish(second, None, None)] == [second]


@given(st.integers(0, 12).flatmap(lambda count: st.permutations(range(count))), st.sets(st.integers(0, 11)))
def test_each_response_is_sent_once_in_order_and_withdrawn_requests_block_none(
    ended: list[int], withdrawn: set[int]
) -> None:
    order = ResponseOrder()
    started = [ticket() for _ in ended]
    order.start(started)
    answered: list[Ticket] = []
    for number in ended:
        due = (
            order.withdraw(started[number])
            if number in withdrawn
            else order.finish(started[number], None, None)
        )
        answered += [one.ticket for one in due]
    assert answered == [one for number, one in enumerate(started) if number not in withdrawn]
    assert order.held == 0
