"""Which sequence has a place, and which request is next: by example and by properties."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.ticket import Ticket
from backline.schedule.sequences.table import LiveSequence, SequenceTable
from backline_client.values.messages import InferRequest, SequenceStep

IDLE = 1000


def ticket(id: int | str, *, start: bool = False, end: bool = False, deadline: float | None = None) -> Ticket:
    return Ticket(
        InferRequest("m", {}, sequence=SequenceStep(id, start, end), deadline=deadline), lambda *_: None
    )


def accept(table: SequenceTable, asked: Ticket, now: int = 0) -> LiveSequence:
    sequence = table.accept(asked, now)
    assert sequence is not None
    return sequence


def test_a_request_without_an_open_sequence_is_not_accepted() -> None:
    table = SequenceTable(1, 1, IDLE)
    assert table.accept(ticket(7), 0) is None
    accept(table, ticket(7, start=True, end=True))
    assert table.accept(ticket(7), 0) is None


def test_a_sequence_runs_one_request_at_a_time_in_order() -> None:
    table = SequenceTable(1, 4, IDLE)
    asked = [ticket(7, start=True), ticket(7), ticket(7, end=True)]
    sequence, *_ = [accept(table, one) for one in asked]
    ran = []
    while (one := table.take(sequence)) is not None:
        assert table.take(sequence) is None
        ran.append(one)
        table.finish(sequence, 0)
    assert ran == asked
    assert table.empty


def test_places_are_assigned_slot_by_slot_and_cost_nothing_until_then() -> None:
    table = SequenceTable(2, 2_000_000_000, IDLE)
    sequences = [accept(table, ticket(id, start=True, end=True)) for id in range(1, 6)]
    assert [sequence.place for sequence in sequences] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert table.take(sequences[1]) is not None
    table.finish(sequences[1], 0)
    assert accept(table, ticket(6, start=True)).place == (0, 1)
    assert accept(table, ticket(7, start=True)).place == (2, 1)


def test_a_working_lane_gives_its_next_place_before_other_lanes_give_any() -> None:
    works = {0, 1}
    table = SequenceTable(2, 3, IDLE, works.__contains__)
    works.remove(0)
    places = [accept(table, ticket(id, start=True)).place for id in range(1, 7)]
    assert places == [(0, 1), (1, 1), (2, 1), (0, 0), (1, 0), (2, 0)]


def test_a_waiting_sequence_gets_the_place_of_the_first_to_end() -> None:
    table = SequenceTable(1, 1, IDLE)
    first = accept(table, ticket(1, start=True, end=True))
    second = accept(table, ticket(2, start=True))
    assert table.take(first) is not None
    assert table.take(second) is None
    assert table.finish(first, 0) == [second]
    assert table.take(second) is not None


def test_sequences_are_spread_over_the_lanes() -> None:
    table = SequenceTable(2, 2, IDLE)
    places = [accept(table, ticket(id, start=True)).place for id in (1, 2, 3, 4)]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_places_on_working_lanes_are_assigned_first() -> None:
    broken = {0}
    table = SequenceTable(2, 2, IDLE, lambda lane: lane not in broken)
    places = [accept(table, ticket(id, start=True)).place for id in (1, 2, 3)]
    broken.clear()
    places.append(accept(table, ticket(4, start=True)).place)
    assert places == [(0, 1), (1, 1), (0, 0), (1, 0)]


def test_reusing_the_id_of_an_ending_sequence_begins_another_one() -> None:
    table = SequenceTable(1, 4, IDLE)
    before = accept(table, ticket(7, start=True, end=True))
    after = accept(table, ticket(7, start=True))
    assert after is not before
    assert table.take(before) is not None
    assert table.take(after) is not None


def test_an_idle_sequence_ends_and_passes_its_place_on() -> None:
    table = SequenceTable(1, 1, IDLE)
    idle = accept(table, ticket(1, start=True), now=0)
    table.take(idle)
    table.finish(idle, 10)
    waiting = accept(table, ticket(2, start=True), now=20)
    assert table.next_idle_ns() == 10 + IDLE
    assert table.end_idle(10 + IDLE - 1) == ([], [])
    assert table.end_idle(10 + IDLE) == ([idle], [waiting])
    assert table.accept(ticket(1), 2000) is None


def test_a_sequence_waiting_for_a_place_is_not_idle() -> None:
    table = SequenceTable(1, 1, IDLE)
    table.take(accept(table, ticket(1, start=True)))
    accept(table, ticket(2, start=True))
    assert table.end_idle(10 * IDLE) == ([], [])


def test_requests_after_a_dropped_beginning_are_dropped_too() -> None:
    table = SequenceTable(1, 1, IDLE)
    table.take(accept(table, ticket(1, start=True)))
    first, second, again, last = ticket(2, start=True), ticket(2), ticket(2, start=True), ticket(2)
    for one in (first, second, again, last):
        sequence = accept(table, one)
    assert table.drop(sequence, first) == ([second], [])
    assert list(sequence.waiting) == [again, last]
    assert table.drop(sequence, again) == ([last], [])
    assert table.accept(ticket(2), 0) is None


def test_expired_requests_are_found() -> None:
    table = SequenceTable(1, 1, IDLE)
    table.take(accept(table, ticket(1, start=True)))
    early, late = ticket(1, deadline=5.0), ticket(1, deadline=9.0)
    sequence = accept(table, early)
    accept(table, late)
    assert table.expired(5.0) == ([(sequence, early)], 9.0)


def test_after_a_change_of_places_the_oldest_sequences_continue_first() -> None:
    table = SequenceTable(2, 1, IDLE)
    sequences = [accept(table, ticket(id, start=True)) for id in (1, 2, 3)]
    assert table.resize(1, 1) == sequences[:1]
    assert [sequence.place for sequence in sequences] == [(0, 0), None, None]


events = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "begin", "end", "run", "finish", "lose", "cancel first", "cancel last", "idle"]
        ),
        st.integers(1, 6),
    ),
    min_size=1,
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(events, st.integers(1, 3), st.integers(1, 2))
def test_no_request_is_lost_doubled_or_reordered_and_no_place_is_held_twice(
    happened: list[tuple[str, int]], lanes: int, slots: int
) -> None:
    table = SequenceTable(lanes, slots, IDLE)
    known: list[LiveSequence] = []
    accepted: dict[Ticket, int] = {}
    gone: list[Ticket] = []
    ran: dict[LiveSequence, list[int]] = {}
    #: The beginnings of each sequence, and those that have run or still may.
    beginnings: dict[LiveSequence, list[Ticket]] = {}
    begun: set[Ticket] = set()
    now = 0

    def run(sequence: LiveSequence, one: Ticket) -> None:
        ran.setdefault(sequence, []).append(accepted[one])
        before = [beginning for beginning in beginnings[sequence] if accepted[beginning] <= accepted[one]]
        if before[-1] is one:
            begun.add(one)
        assert before[-1] in begun, "no request runs unless its beginning has"

    for what, id in happened:
        now += 1
        if what in ("ask", "begin", "end"):
            one = ticket(id, start=what == "begin", end=what == "end")
            sequence = table.accept(one, now)
            if sequence is not None:
                accepted[one] = len(accepted)
                if sequence not in known:
                    known.append(sequence)
                if what == "begin":
                    beginnings.setdefault(sequence, []).append(one)
        elif what == "idle":
            now += IDLE
            table.end_idle(now)
        for sequence in known:
            if sequence.id != id:
                continue
            if what == "run":
                busy = sequence.running is not None
                if (one := table.take(sequence)) is not None:
                    assert not busy, "one request of a sequence runs at a time"
                    run(sequence, one)
            elif what == "finish" and sequence.running is not None:
                gone.append(sequence.running)
                table.finish(sequence, now)
            elif what == "lose" and sequence.running in begun:
                gone.append(sequence.running)
                begun.remove(sequence.running)
                table.finish(sequence, now)
                gone += table.lose_beginning(sequence)[0]
            elif what.startswith("cancel") and sequence.waiting:
                dropped = sequence.waiting[0 if what == "cancel first" else -1]
                gone += [dropped, *table.drop(sequence, dropped)[0]]
        held = [sequence.place for sequence in known if sequence.place is not None]
        assert len(held) == len(set(held)) <= lanes * slots
        assert table.waiting == sum(len(sequence.waiting) for sequence in known)
        assert len(held) == lanes * slots or all(sequence.place for sequence in known if sequence.waiting), (
            "no place is free in vain"
        )
    while any(sequence.waiting or sequence.running for sequence in known):
        now += IDLE + 1
        for sequence in known:
            if sequence.running is None and (one := table.take(sequence)) is not None:
                run(sequence, one)
            if (one := sequence.running) is not None:
                gone.append(one)
                table.finish(sequence, now)
        table.end_idle(now)
    assert sorted(gone, key=lambda one: accepted[one]) == list(accepted)
    for order in ran.values():
        assert order == sorted(order)
    table.end_idle(now + 2 * IDLE)
    assert table.empty
