"""The slots of an instance: which run together, and how long they wait for each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.ticket import Ticket
from backline.schedule.sequences.lanes import SlotPolicy, choose
from schedule.tickets import ticket

places = st.lists(
    st.none() | st.builds(ticket, st.just(1), st.sampled_from(["a", "b"]), arrived=st.floats(0, 10)),
    max_size=8,
)


@given(places.filter(any))
def test_slots_with_the_oldest_requests_key_run_in_place(ready: list[Ticket | None]) -> None:
    chosen = choose(ready)
    oldest = min((one for one in ready if one is not None), key=lambda one: one.request.arrived_ns)
    assert oldest in chosen
    assert chosen[-1] is not None
    for place, one in enumerate(ready):
        taken = place < len(chosen) and chosen[place] is one and one is not None
        assert taken == (one is not None and one.batch_key == oldest.batch_key)


@given(
    st.integers(1, 64),
    st.floats(0, 1),
    st.integers(0, 10**9),
    st.integers(0, 64),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_slots_wait_for_the_delay_or_until_enough_are_filled(
    slots: int, minimum: float, delay: int, ready: int, oldest: int, later: int
) -> None:
    now = oldest + later
    until = SlotPolicy(slots, minimum, delay).wait_until(ready, oldest, now)
    if not delay or later >= delay or ready >= minimum * slots:
        assert until == 0
    else:
        assert now < until == oldest + delay
