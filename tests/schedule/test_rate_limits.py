"""Whose turn it is where instances share resources, over random claims and orders of events."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.errors import InvalidArgument
from backline.engine.instance_group import InstanceGroup, Resource
from backline.schedule.rate_limits import EACH_DEVICE, EVERYWHERE, Claim, RateLimits, Turn, claim_of, parse_resources

KEYS = [("0", "a"), ("0", "b"), (EVERYWHERE, "c")]
claims = st.builds(Claim, st.dictionaries(st.sampled_from(KEYS), st.integers(1, 4), max_size=3).map(MappingProxyType), st.integers(1, 3))


def one(count: int = 1, priority: int = 1, key: tuple[str, str] = ("0", "a")) -> Claim:
    return Claim(MappingProxyType({key: count}), priority)


@settings(max_examples=200)
@given(st.lists(claims, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_never_more_is_out_than_there_is_and_everybody_gets_a_turn(wanted: list[Claim], random: Random) -> None:
    limits = RateLimits()
    turns = limits.register(wanted)
    largest = {key: max(claim.resources.get(key, 0) for claim in wanted) for key in KEYS}
    running: list[Turn] = []
    rounds: Counter[Turn] = Counter()

    for turn in turns:
        limits.stage(turn)
    while min(rounds[turn] for turn in turns) < 3:
        running += limits.grant()
        for key in KEYS:
            assert sum(turn.claim.resources.get(key, 0) for turn in running) <= largest[key]
        assert running, "somebody can always run"
        ended = running.pop(random.randrange(len(running)))
        rounds[ended] += 1
        limits.release(ended)
        limits.stage(ended)
        assert sum(rounds.values()) < 1000, "nobody starves"


@pytest.mark.parametrize("priorities", [(1, 1), (1, 2), (1, 3), (2, 3)])
def test_turns_are_shared_by_the_inverse_of_the_priorities(priorities: tuple[int, int]) -> None:
    limits = RateLimits()
    turns = limits.register([one(priority=priority) for priority in priorities])
    for turn in turns:
        limits.stage(turn)
    runs: Counter[Turn] = Counter()

    for _ in range(600):
        (granted,) = limits.grant()
        runs[granted] += 1
        limits.release(granted)
        limits.stage(granted)

    assert runs[turns[0]] * priorities[0] == pytest.approx(runs[turns[1]] * priorities[1], rel=0.02)


def test_one_that_was_idle_has_saved_no_turns_up() -> None:
    limits = RateLimits()
    busy, late = limits.register([one(), one()])
    limits.stage(busy)
    for _ in range(100):
        limits.grant()
        limits.release(busy)
        limits.stage(busy)
    limits.stage(late)

    order = []
    for _ in range(6):
        (granted,) = limits.grant()
        order.append(granted)
        limits.release(granted)
        limits.stage(granted)

    assert order.count(late) == 3


def test_who_lacks_nothing_passes_one_that_waits_but_takes_nothing_that_it_lacks() -> None:
    limits = RateLimits({(EACH_DEVICE, "a"): 4, (EACH_DEVICE, "b"): 1})
    small, large, other, next_small = limits.register([one(2), one(4), one(1, key=("0", "b")), one(2)])
    limits.stage(small)
    assert limits.grant() == [small]

    for turn in (large, other, next_small):
        limits.stage(turn)

    assert limits.grant() == [other]
    limits.release(small)
    assert limits.grant() == [large]


def test_a_turn_that_was_not_used_is_given_back() -> None:
    limits = RateLimits()
    (turn,) = limits.register([one()])
    limits.stage(turn)
    limits.grant()

    limits.release(turn, ran=False)

    assert turn.passed == 0


def test_a_model_that_could_never_run_is_refused_in_tritons_words() -> None:
    limits = RateLimits(parse_resources(("a:3", "c:5")))

    with pytest.raises(InvalidArgument, match='Resource count for "a" is limited to 3 which will prevent scheduling of one or more model'):
        limits.register([one(4)])
    with pytest.raises(InvalidArgument, match=r'"b" is limited to 0 .* the minimum required count is 1$'):
        limits.register([one(1, key=("0", "b"))])
    assert limits.register([one(3), one(5, key=(EVERYWHERE, "c"))])


def test_a_resource_is_of_devices_or_of_the_server() -> None:
    limits = RateLimits()
    limits.register([one()])

    with pytest.raises(InvalidArgument, match='Resource "a" is present as both global and device-specific'):
        limits.register([one(key=(EVERYWHERE, "a"))])


def test_the_claim_of_a_group_is_of_its_device_or_of_the_server() -> None:
    claim = claim_of(InstanceGroup(2, (Resource("a", 3), Resource("c", 1, everywhere=True)), 2))

    assert (dict(claim.resources), claim.priority) == ({("0", "a"): 3, (EVERYWHERE, "c"): 1}, 2)


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:x", "a:1:2:3", "a:-1", "a:1:"])
def test_a_resource_that_cannot_be_read_says_what_is_expected(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected NAME:COUNT or NAME:COUNT:DEVICE"):
        parse_resources((text,))


def test_resources_are_of_each_device_or_of_one() -> None:
    assert parse_resources(("a:4", "b:2:1")) == {(EACH_DEVICE, "a"): 4, ("1", "b"): 2}
