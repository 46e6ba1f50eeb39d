"""Whose turn it is when instances share resources, over random claims and orders of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.instance_group import InstanceGroup, Resource
from backline.schedule.rate_limit.limits import (
    EACH_DEVICE,
    EVERYWHERE,
    Claim,
    Claimant,
    Owner,
    RateLimits,
    claim_of,
    parse_resources,
)
from backline_client.values.errors import InvalidArgument

KEYS = [("0", "a"), ("0", "b"), (EVERYWHERE, "c")]
claims = st.builds(
    Claim,
    st.dictionaries(st.sampled_from(KEYS), st.integers(1, 4), max_size=3).map(MappingProxyType),
    st.integers(1, 3),
)


def one(count: int = 1, priority: int = 1, key: tuple[str, str] = ("0", "a")) -> Claim:
    return Claim(MappingProxyType({key: count}), priority)


@settings(max_examples=200)
@given(st.lists(claims, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_resources_are_never_exceeded_and_every_instance_gets_a_turn(
    wanted: list[Claim], random: Random
) -> None:
    limits = RateLimits()
    turns = limits.register(wanted)
    largest = {key: max(claim.resources.get(key, 0) for claim in wanted) for key in KEYS}
    running: list[Claimant] = []
    rounds: Counter[Claimant] = Counter()

    for turn in turns:
        limits.stage(turn)
    while min(rounds[turn] for turn in turns) < 3:
        running += limits.grant()
        for key in KEYS:
            assert sum(turn.claim.resources.get(key, 0) for turn in running) <= largest[key]
        assert running, "some instance can always run"
        ended = running.pop(random.randrange(len(running)))
        rounds[ended] += 1
        limits.release(ended)
        limits.stage(ended)
        assert sum(rounds.values()) < 1000, "no instance starves"


@pytest.mark.parametrize("priorities", [(1, 1), (1, 2), (1, 3), (2, 3)])
def test_turns_are_inversely_proportional_to_priorities(priorities: tuple[int, int]) -> None:
    limits = RateLimits()
    turns = limits.register([one(priority=priority) for priority in priorities])
    for turn in turns:
        limits.stage(turn)
    runs: Counter[Claimant] = Counter()

    for _ in range(600):
        (granted,) = limits.grant()
        runs[granted] += 1
        limits.release(granted)
        limits.stage(granted)

    assert runs[turns[0]] * priorities[0] == pytest.approx(runs[turns[1]] * priorities[1], rel=0.02)


def test_an_idle_instance_saves_up_no_turns() -> None:
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


def test_instances_overtake_a_waiting_one_without_taking_what_it_needs() -> None:
    limits = RateLimits({(EACH_DEVICE, "a"): 4, (EACH_DEVICE, "b"): 1})
    small, large, other, next_small = limits.register([one(2), one(4), one(1, key=("0", "b")), one(2)])
    limits.stage(small)
    assert limits.grant() == [small]

    for turn in (large, other, next_small):
        limits.stage(turn)

    assert limits.grant() == [other]
    limits.release(small)
    assert limits.grant() == [large]


def test_an_unused_turn_is_returned() -> None:
    limits = RateLimits()
    (turn,) = limits.register([one()])
    limits.stage(turn)
    limits.grant()

    limits.release(turn, ran=False)

    assert turn.passed == 0


def test_a_model_that_could_never_run_is_refused_in_tritons_words() -> None:
    limits = RateLimits(parse_resources(("a:3", "c:5")))

    with pytest.raises(
        InvalidArgument,
        match='Resource count for "a" is limited to 3 which will prevent scheduling of one or more model',
    ):
        limits.register([one(4)])
    with pytest.raises(InvalidArgument, match=r'"b" is limited to 0 .* the minimum required count is 1$'):
        limits.register([one(1, key=("0", "b"))])
    assert limits.register([one(3), one(5, key=(EVERYWHERE, "c"))])


def test_a_resource_belongs_to_devices_or_to_the_server() -> None:
    limits = RateLimits()
    limits.register([one()])

    with pytest.raises(InvalidArgument, match='Resource "a" is present as both global and device-specific'):
        limits.register([one(key=(EVERYWHERE, "a"))])


def test_a_groups_claim_is_on_its_device_or_the_server() -> None:
    claim = claim_of(InstanceGroup(2, (Resource("a", 3), Resource("c", 1, everywhere=True)), 2))

    assert (dict(claim.resources), claim.priority) == ({("0", "a"): 3, (EVERYWHERE, "c"): 1}, 2)


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:x", "a:1:2:3", "a:-1", "a:1:"])
def test_an_invalid_resource_error_says_what_is_expected(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected NAME:COUNT or NAME:COUNT:DEVICE"):
        parse_resources((text,))


def test_resources_are_given_per_device_or_for_one_device() -> None:
    assert parse_resources(("a:4", "b:2:1")) == {(EACH_DEVICE, "a"): 4, ("1", "b"): 2}


class Run:
    """A run of a model that calls the next one in a chain while it holds its resources."""

    def __init__(self, model: str, rest: list[str], caller: Run | None = None) -> None:
        self.model = model
        self.rest = rest
        self.caller = caller
        self.waits = False


def finish_all(
    models: Mapping[str, list[Claim]], limits: RateLimits, chains: list[list[str]], random: Random
) -> int:
    """Continues chains of calls in a random order; returns how many calls were refused. Fails on a
    deadlock.
    """
    free = {name: limits.register(wanted, (name, "1")) for name, wanted in models.items()}
    asked = [Run(chain[0], chain[1:]) for chain in chains]
    staged: dict[Claimant, Run] = {}
    running: dict[Run, Claimant] = {}
    refused = 0
    while asked or staged or running:
        for run in tuple(asked):
            if free[run.model]:
                asked.remove(run)
                turn = free[run.model].pop()
                staged[turn] = run
                limits.stage(turn)
        running |= {staged.pop(turn): turn for turn in limits.grant()}
        able = [run for run in running if not run.waits]
        assert able, "deadlock"
        run = random.choice(able)
        if not run.rest:
            turn = running.pop(run)
            limits.release(turn)
            free[run.model].append(turn)
            if run.caller is not None:
                run.caller.waits, run.caller.rest = False, []
            continue
        waits: dict[Owner, set[Owner]] = {(run.model, "1"): {(run.rest[0], "1")}}
        for other in running:
            if other.waits:
                waits.setdefault((other.model, "1"), set()).add((other.rest[0], "1"))
        if limits.wanting(waits, (run.model, "1")):
            refused += 1
            run.rest = []
        else:
            run.waits = True
            asked.append(Run(run.rest[0], run.rest[1:], run))
    return refused


MODELS = st.fixed_dictionaries({name: st.lists(claims, min_size=1, max_size=2) for name in "abcd"})
#: In the order of their names, since cycles of calls are prevented by the call graph.
CHAINS = st.lists(st.sets(st.sampled_from("abcd"), min_size=1).map(sorted), max_size=6)
RANDOMS = st.randoms(use_true_random=False)


@settings(max_examples=500)
@given(
    MODELS,
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
    CHAINS,
    RANDOMS,
)
def test_no_allowed_call_deadlocks(
    models: dict[str, list[Claim]], extra: list[int], chains: list[list[str]], random: Random
) -> None:
    everything = [claim for wanted in models.values() for claim in wanted]
    given = {
        key: more + max(claim.resources.get(key, 0) for claim in everything)
        for key, more in zip(KEYS, extra, strict=True)
    }

    finish_all(models, RateLimits(given), chains, random)


@given(MODELS, CHAINS, RANDOMS)
def test_no_call_is_refused_if_resources_suffice_for_all_at_once(
    models: dict[str, list[Claim]], chains: list[list[str]], random: Random
) -> None:
    everything = [claim for wanted in models.values() for claim in wanted]
    limits = RateLimits({key: sum(claim.resources.get(key, 0) for claim in everything) for key in KEYS})

    assert finish_all(models, limits, chains, random) == 0


HOLDER, CALLED, OTHER, PLAIN = (("holder", "1"), ("called", "1"), ("other", "1"), ("plain", "1"))


def test_a_call_is_refused_only_where_callers_hold_what_is_needed() -> None:
    limits = RateLimits()
    limits.register([one()], HOLDER)
    limits.register([one()], CALLED)
    limits.register([one(key=("0", "b"))], OTHER)
    limits.register([Claim()], PLAIN)

    assert limits.wanting({HOLDER: [CALLED]}, HOLDER) == "'a'"
    assert limits.wanting({HOLDER: [OTHER]}, HOLDER) == ""
    assert limits.wanting({HOLDER: [PLAIN]}, HOLDER) == ""
    assert limits.wanting({PLAIN: [CALLED], HOLDER: [OTHER]}, PLAIN) == "", "the holder ends"
    assert limits.wanting({HOLDER: [PLAIN], PLAIN: [CALLED]}, HOLDER) == "'a'", "by another one in between"


def test_an_instance_waiting_for_one_resource_may_block_another() -> None:
    limits = RateLimits()
    limits.register([one()], HOLDER)
    limits.register([one(key=("0", "b"))], CALLED)
    assert limits.wanting({HOLDER: [CALLED]}, HOLDER) == ""

    limits.register([Claim(MappingProxyType({("0", "a"): 1, ("0", "b"): 1}))], OTHER)

    assert limits.wanting({HOLDER: [CALLED]}, HOLDER) == "'a' and 'b'"


def test_another_instance_of_the_caller_may_block_a_resource() -> None:
    limits = RateLimits({("0", "a"): 2, ("0", "b"): 1})
    limits.register([Claim(MappingProxyType({("0", "a"): 1, ("0", "b"): 1})), one(key=("0", "b"))], HOLDER)
    limits.register([one()], CALLED)

    assert limits.wanting({HOLDER: [CALLED]}, HOLDER) == "'a' and 'b'"
