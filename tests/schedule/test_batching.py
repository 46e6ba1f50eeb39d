"""The batching policy, by values and by properties."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.messages import InferRequest
from backline.schedule.batching import BatchPolicy, take_batch


def request(size: int = 1, key: object = None, deadline: float | None = None, cancelled: bool = False) -> InferRequest:
    made = InferRequest("m", {}, lambda *_: None, deadline=deadline)
    made.batch_size = size
    made.batch_key = key
    made.cancelled = cancelled
    return made


def test_without_delay_a_free_instance_takes_what_there_is() -> None:
    assert BatchPolicy(max_items=8).items_to_take(queued_items=1, waited_ns=0) == 8


def test_with_a_delay_a_lone_request_waits() -> None:
    assert BatchPolicy(max_items=8, delay_ns=1000).items_to_take(queued_items=1, waited_ns=999) == 0


def test_a_delay_ends_when_the_oldest_has_waited_so_long() -> None:
    assert BatchPolicy(max_items=8, delay_ns=1000).items_to_take(queued_items=1, waited_ns=1000) == 8


def test_a_delay_ends_when_the_batch_is_full() -> None:
    assert BatchPolicy(max_items=8, delay_ns=1000).items_to_take(queued_items=8, waited_ns=0) == 8


def test_the_largest_preferred_size_within_reach_is_taken_at_once() -> None:
    assert BatchPolicy(max_items=8, preferred=(2, 4), delay_ns=1000).items_to_take(queued_items=5, waited_ns=0) == 4


def test_requests_of_another_key_wait_for_their_own_batch() -> None:
    queue = deque([request(key="a"), request(key="a"), request(key="b"), request(key="a")])

    taken = take_batch(queue, 8, now=0)

    assert [one.batch_key for one in taken.requests] == ["a", "a"]
    assert [one.batch_key for one in queue] == ["b", "a"]


def test_a_request_above_the_maximum_runs_alone() -> None:
    queue = deque([request(size=100), request()])

    taken = take_batch(queue, 8, now=0)

    assert taken.items == 100
    assert len(queue) == 1


requests = st.lists(
    st.builds(
        request,
        size=st.integers(1, 12),
        key=st.sampled_from([None, (1,), (2,)]),
        deadline=st.sampled_from([None, 1.0, 3.0]),
        cancelled=st.booleans(),
    )
)


@given(requests, st.integers(1, 16))
def test_every_request_comes_out_once_in_order_and_none_expired_or_cancelled_runs(queued: list[InferRequest], max_items: int) -> None:
    queue = deque(queued)
    ran: list[InferRequest] = []
    dropped: list[InferRequest] = []
    while queue:
        taken = take_batch(queue, max_items, now=2.0)
        assert taken.items == sum(one.batch_size for one in taken.requests)
        assert taken.items <= max_items or len(taken.requests) == 1
        assert len({one.batch_key for one in taken.requests}) <= 1
        ran += taken.requests
        dropped += taken.expired + taken.cancelled

    assert all(one.cancelled or one.deadline == 1.0 for one in dropped)
    assert not any(one.cancelled or one.deadline == 1.0 for one in ran)
    position = {id(one): index for index, one in enumerate(queued)}
    assert [position[id(one)] for one in ran] == sorted(position[id(one)] for one in ran)
    assert sorted(position[id(one)] for one in ran + dropped) == list(range(len(queued)))
