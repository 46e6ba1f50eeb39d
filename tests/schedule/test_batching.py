"""The batching policy, by example and by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Ticket
from backline.schedule.batching import (
    BRIEF_NS,
    LONGEST_GATHERING_NS,
    SMALLEST_GROUP,
    BatchPolicy,
    Formed,
    Gathering,
    form_batch,
)
from backline.schedule.queues.plain import PlainQueue
from backline.schedule.queues.priority import make_queue
from backline.schedule.queues.queue import Queue, QueueSettings
from schedule.tickets import ticket

SECOND = 1_000_000_000


def queued(*tickets: Ticket, settings: QueueSettings | None = None) -> Queue:
    queue = make_queue(settings or QueueSettings())
    for one in tickets:
        assert queue.add(one)
    return queue


def sizes(formed: Formed) -> list[int]:
    return [one.batch_size for one in formed.tickets]


def test_without_a_delay_a_free_instance_takes_what_is_queued() -> None:
    assert form_batch(queued(ticket()), BatchPolicy(8), 0).items == 1


def test_without_a_delay_a_batch_has_at_most_the_maximum_size() -> None:
    queue = queued(ticket(3), ticket(3), ticket(3))
    assert sizes(form_batch(queue, BatchPolicy(8), 0)) == [3, 3]
    assert queue.size == 1


def test_with_a_delay_a_lone_request_waits_for_it() -> None:
    queue = queued(ticket(arrived=1))
    policy = BatchPolicy(8, delay_ns=1000)
    waiting = form_batch(queue, policy, SECOND + 999)
    assert (waiting.tickets, waiting.wait_until, waiting.lacking, queue.size) == ([], SECOND + 1000, 7, 1)
    assert form_batch(queue, policy, SECOND + 1000).items == 1


def test_a_delay_ends_when_the_batch_is_full() -> None:
    assert form_batch(queued(*(ticket(2) for _ in range(4))), BatchPolicy(8, delay_ns=1000), 0).items == 8


def test_a_delay_ends_when_the_next_request_does_not_fit() -> None:
    assert sizes(form_batch(queued(ticket(5), ticket(5)), BatchPolicy(8, delay_ns=1000), 0)) == [5]


def test_a_delay_ends_when_the_next_request_is_of_another_key() -> None:
    assert sizes(form_batch(queued(ticket(key="a"), ticket(key="b")), BatchPolicy(8, delay_ns=1000), 0)) == [
        1
    ]


def test_the_largest_available_preferred_size_is_taken_at_once() -> None:
    queue = queued(*(ticket() for _ in range(5)))
    assert form_batch(queue, BatchPolicy(8, (2, 4), 1000), 0).items == 4
    assert queue.size == 1


def test_requests_beyond_a_preferred_size_wait_for_the_next_one() -> None:
    waiting = form_batch(queued(ticket(3)), BatchPolicy(8, (2, 4), 1000), 0)
    assert (waiting.tickets, waiting.lacking) == ([], 1)


def test_after_the_delay_a_batch_may_exceed_the_largest_preferred_size() -> None:
    assert form_batch(queued(*(ticket() for _ in range(6))), BatchPolicy(8, (4,), 1000), 1000).items == 6


def test_a_preferred_size_that_cannot_be_met_is_not_waited_for() -> None:
    assert sizes(form_batch(queued(ticket(3), ticket(3)), BatchPolicy(8, (4,), 1000), 0)) == [3]


def test_without_a_delay_preferred_sizes_only_limit_what_is_taken() -> None:
    policy = BatchPolicy(8, (4,))
    queue = queued(*(ticket() for _ in range(6)))
    assert [form_batch(queue, policy, 0).items, form_batch(queue, policy, 0).items] == [4, 2]


def test_requests_with_another_key_wait_for_another_batch() -> None:
    queue = queued(*(ticket(key=key) for key in "aaba"))
    assert [[one.batch_key for one in form_batch(queue, BatchPolicy(8), 0).tickets] for _ in range(3)] == [
        ["a", "a"],
        ["b"],
        ["a"],
    ]


def test_a_request_above_the_maximum_runs_alone() -> None:
    queue = queued(ticket(100), ticket())
    assert sizes(form_batch(queue, BatchPolicy(8), 0)) == [100]
    assert queue.size == 1


def test_a_batch_takes_lower_levels_once_higher_ones_are_empty() -> None:
    settings = QueueSettings(levels=3, default_level=2)
    queue = queued(ticket(priority=3), ticket(priority=2), ticket(priority=1), settings=settings)
    assert [one.level for one in form_batch(queue, BatchPolicy(2), 0).tickets] == [1, 2]


keys = st.sampled_from([None, (1,), (2,)])
arrivals = st.lists(
    st.tuples(
        st.builds(ticket, st.integers(1, 12), keys, deadline=st.sampled_from([None, 1.0, 3.0])), st.booleans()
    )
)
policies = st.integers(1, 16).flatmap(
    lambda most: st.builds(
        BatchPolicy,
        st.just(most),
        st.lists(st.integers(1, most), max_size=3).map(tuple),
        st.sampled_from([0, SECOND, 5 * SECOND]),
    )
)


@given(arrivals, policies)
def test_each_request_leaves_once_in_order_and_no_expired_or_cancelled_one_runs(
    arrivals: list[tuple[Ticket, bool]], policy: BatchPolicy
) -> None:
    arrived = [one for one, _ in arrivals]
    queue = PlainQueue(QueuePolicy())
    left: list[Ticket] = []
    queue.on_left = left.append
    for one in arrived:
        queue.add(one)
    for one, cancelled in arrivals:
        if cancelled:
            one.cancel()
    ran: list[Ticket] = []
    now = 2 * SECOND
    while queue.size:
        formed = form_batch(queue, policy, now)
        ran += formed.tickets
        assert formed.items == sum(sizes(formed))
        assert formed.items <= policy.max_items or len(formed.tickets) == 1
        assert len({one.batch_key for one in formed.tickets}) <= 1
        if formed.wait_until:
            assert now < formed.wait_until <= policy.delay_ns
            now = formed.wait_until
    assert all(one.cancelled for one in left)
    assert all(one.deadline is not None and one.deadline * SECOND <= now for one in queue.expired)
    assert not any(one.cancelled or one.deadline == 1.0 for one in ran)
    position = {id(one): index for index, one in enumerate(arrived)}
    assert [position[id(one)] for one in ran] == sorted(position[id(one)] for one in ran)
    assert sorted(position[id(one)] for one in ran + left + queue.expired) == list(range(len(arrived)))


@given(st.lists(st.builds(ticket, st.integers(1, 12), keys, arrived=st.floats(0, 2))), policies)
def test_the_plain_policy_equals_the_general_one_preferring_the_largest_size(
    arrived: list[Ticket], policy: BatchPolicy
) -> None:
    """The shortcut for the common case decides the same as Triton's complete rule."""
    general = BatchPolicy(policy.max_items, (policy.max_items, policy.max_items))
    assert not general.takes_all
    assert BatchPolicy(policy.max_items).takes_all
    plainly, generally = queued(*arrived), queued(*arrived)
    while plainly.size:
        assert (
            form_batch(plainly, BatchPolicy(policy.max_items), 0).tickets
            == form_batch(generally, general, 0).tickets
        )
    assert generally.size == 0


@given(st.lists(st.builds(ticket, st.integers(1, 12), keys), min_size=1), policies)
def test_a_waiting_queue_decides_the_same_until_the_lacking_items_arrive(
    arrived: list[Ticket], policy: BatchPolicy
) -> None:
    queue = queued(arrived[0])
    formed = form_batch(queue, policy, 0)
    if not formed.wait_until:
        return
    lacking = formed.lacking
    for one in arrived[1:]:
        lacking -= one.batch_size
        if lacking <= 0 or one.batch_key != formed.key:
            return
        queue.add(one)
        again = form_batch(queue, policy, 0)
        assert (again.tickets, again.wait_until, again.lacking) == ([], formed.wait_until, lacking)


def test_with_a_reach_requests_with_other_keys_are_skipped_and_keep_their_places() -> None:
    queue = queued(*(ticket(key=key, arrived=place) for place, key in enumerate("abacba")))

    formed = [form_batch(queue, BatchPolicy(2, reach=8), 0) for _ in range(4)]

    assert [[one.batch_key for one in batch.tickets] for batch in formed] == [
        ["a", "a"],
        ["b", "b"],
        ["c"],
        ["a"],
    ]


def test_no_more_requests_are_skipped_than_the_reach() -> None:
    queue = queued(*(ticket(key=key) for key in "abca"))

    assert sizes(form_batch(queue, BatchPolicy(8, reach=1), 0)) == [1]


def test_no_request_is_skipped_in_favour_of_a_lower_level() -> None:
    settings = QueueSettings(levels=2, default_level=1)
    queue = queued(
        *(ticket(key=key, priority=level) for key, level in (("a", 1), ("b", 1), ("a", 2))),
        settings=settings,
    )

    assert sizes(form_batch(queue, BatchPolicy(8, reach=8), 0)) == [1]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc"), st.integers(0, 2)), max_size=40),
    st.integers(1, 8),
    st.integers(1, 8),
    st.lists(st.integers(1, 8), max_size=2).map(tuple),
)
def test_with_a_reach_no_request_is_lost_and_each_key_keeps_its_order(
    given_: list[tuple[int, str, int]], max_items: int, reach: int, preferred: tuple[int, ...]
) -> None:
    settings = QueueSettings(levels=2, default_level=2)
    tickets = [ticket(size, key, priority=level or 2) for size, key, level in given_]
    queue = queued(*tickets, settings=settings)
    policy = BatchPolicy(max_items, tuple(size for size in preferred if size <= max_items), reach=reach)

    ran: list[Ticket] = []
    while queue.size:
        first = min((one for one in tickets if one not in ran), key=lambda one: one.level)
        batch = form_batch(queue, policy, 0).tickets
        assert batch[0] is first
        assert len({one.batch_key for one in batch}) == 1
        assert len(batch) == 1 or sum(map(_size, batch)) <= max_items
        ran += batch

    assert len(ran) == len(tickets)
    for key in "abc":
        expected = sorted((one for one in tickets if one.batch_key == key), key=lambda one: one.level)
        assert [one for one in ran if one.batch_key == key] == expected


def _size(one: Ticket) -> int:
    return one.batch_size


def test_while_the_first_requests_wait_those_with_another_key_run() -> None:
    queue = queued(ticket(key="a"), ticket(key="b"), ticket(key="b"))
    policy = BatchPolicy(2, delay_ns=SECOND, reach=8)

    formed = form_batch(queue, policy, 0)
    waiting = form_batch(queue, policy, 0)

    assert [one.batch_key for one in formed.tickets] == ["b", "b"]
    assert (waiting.tickets, waiting.wait_until, waiting.lacking, waiting.key) == ([], SECOND, 1, "a")


def test_with_a_reach_a_request_with_any_key_may_end_the_wait() -> None:
    waiting = form_batch(
        queued(ticket(key="a"), ticket(key="b", arrived=0.5)),
        BatchPolicy(8, delay_ns=SECOND, reach=8),
        SECOND // 2,
    )

    assert (waiting.tickets, waiting.wait_until, waiting.lacking) == ([], SECOND, 1)


def gathering(
    last: int, run_ns: int = BRIEF_NS - 1, share: float = 64, max_items: int = 64, *, calls: bool = False
) -> Gathering:
    """Returns a Gathering after a batch of `last` requests that ran for `run_ns`."""
    made = Gathering(calls=calls)
    made.ran(last, run_ns, share, max_items)
    return made


def test_after_a_brief_run_a_batch_gathers_while_every_turn_brings_requests() -> None:
    brief = gathering(8)
    assert [brief.goes_on(queued, 0, 0) for queued in (3, 7, 7, 7)] == [True, True, False, True]


def test_after_a_run_that_is_not_brief_a_batch_starts_at_once() -> None:
    assert not gathering(8, BRIEF_NS).goes_on(3, 0, 0)
    assert not gathering(8, 0).goes_on(3, 0, 0)


def test_a_client_that_sends_one_request_at_a_time_is_not_delayed() -> None:
    assert not gathering(1).goes_on(1, 0, 0)
    assert gathering(1).goes_on(2, 0, 0)
    assert gathering(2).goes_on(1, 0, 0)


def test_a_batch_starts_once_its_group_is_queued() -> None:
    brief = gathering(12, share=12)
    assert brief.group == 12
    assert [brief.goes_on(queued, 0, 0) for queued in (5, 11, 12)] == [True, True, False]


def test_small_groups_do_not_start_at_once_and_large_groups_are_full_batches() -> None:
    assert gathering(2, share=1.5).group == SMALLEST_GROUP
    assert gathering(64, share=200).group == 64
    assert gathering(8, BRIEF_NS, share=8).group == 0


def test_a_group_grows_at_once_and_shrinks_slowly() -> None:
    brief = gathering(16, share=16)
    brief.ran(16, 1, 32, 64)
    assert brief.group == 32
    brief.ran(16, 1, 16, 64)
    assert 16 < brief.group < 32
    for _ in range(64):
        brief.ran(16, 1, 16, 64)
    assert brief.group == pytest.approx(16, abs=0.1)


def test_requests_gather_while_a_call_to_another_server_is_in_flight() -> None:
    call = gathering(30, LONGEST_GATHERING_NS - 1, calls=True)
    assert not call.goes_on(5, 0, 0)
    assert [call.goes_on(queued, 1, 0) for queued in (5, 40, 40)] == [True, True, False]
    assert not gathering(30, LONGEST_GATHERING_NS, calls=True).goes_on(5, 1, 0)
    assert not gathering(1, 1, calls=True).goes_on(1, 1, 0)


def test_on_the_event_loop_a_nearly_full_batch_waits_for_one_turn() -> None:
    fresh = Gathering()
    assert [fresh.fills(queued, 64) for queued in (63, 64, 60, 62, 62, 63)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("policy", "nearly_full"),
    [(BatchPolicy(64), 40), (BatchPolicy(8), 8), (BatchPolicy(1), 8), (BatchPolicy(64, delay_ns=1), 64)],
)
def test_small_batches_and_batches_with_a_delay_are_never_nearly_full(
    policy: BatchPolicy, nearly_full: int
) -> None:
    assert policy.nearly_full == nearly_full


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(1, 64), st.integers(0, LONGEST_GATHERING_NS // 4))))
def test_a_batch_gathers_for_a_limited_time(last: int, turns: list[tuple[int, int]]) -> None:
    brief = gathering(last)
    queued = now = began = 0
    for more, took in turns:
        queued, now = queued + more, now + took
        began = began or now
        if not brief.goes_on(queued, 0, now):
            return
        assert now < began + LONGEST_GATHERING_NS
