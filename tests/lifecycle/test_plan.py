"""The planner: each rule, and properties for every order of events."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.plan import (
    Action,
    BeginLoad,
    Cancel,
    Forget,
    HeldVersion,
    Serve,
    Unload,
    Update,
    Wanted,
    plan,
    replacements,
)


def wanted(version: str = "1", fingerprint: str = "a", **more: object) -> Wanted:
    return Wanted("m", version, fingerprint, **more)  # type: ignore[arg-type]


def held(
    key: int,
    version: str = "1",
    fingerprint: str = "a",
    phase: VersionPhase = VersionPhase.READY,
    **more: object,
) -> HeldVersion:
    return HeldVersion(key, "m", version, fingerprint, phase, **more)  # type: ignore[arg-type]


def steps(goals: list[Wanted], there: list[HeldVersion], now: float = 0.0, slots: int = 4) -> list[Action]:
    return plan(goals, there, now=now, load_slots=slots)


def test_wanted_versions_are_loaded_as_slots_allow() -> None:
    goals = [wanted(version) for version in "123"]
    assert steps(goals, [], slots=2) == [BeginLoad(goals[0]), BeginLoad(goals[1])]
    assert steps(goals, [held(1, "1", phase=VersionPhase.LOADING)], slots=2) == [BeginLoad(goals[1])]


def test_a_new_version_is_loaded_before_the_old_is_unloaded() -> None:
    goal = wanted("2")
    assert steps([goal], [held(1)]) == [BeginLoad(goal)]
    assert steps([goal], [held(1), held(2, "2", phase=VersionPhase.LOADING)]) == []
    assert steps([goal], [held(1), held(2, "2", phase=VersionPhase.LOADED)]) == [Serve(2)]
    assert steps([goal], [held(1), held(2, "2")]) == [Unload(1)]


def test_changed_files_are_loaded_while_the_old_version_serves() -> None:
    goal = wanted(fingerprint="b")
    assert steps([goal], [held(1)]) == [BeginLoad(goal)]
    assert steps([goal], [held(1), held(2, fingerprint="b")]) == [Unload(1)]


def test_a_ready_sibling_does_not_release_a_version_whose_replacement_is_not_ready() -> None:
    goals = [wanted("1", "b"), wanted("2")]
    assert steps(goals, [held(1, "1", "a"), held(2, "2"), held(3, "1", "b", VersionPhase.FAILED)]) == []


def test_a_failed_load_leaves_the_old_version() -> None:
    assert steps([wanted("2")], [held(1), held(2, "2", phase=VersionPhase.FAILED)]) == []


def test_a_version_waits_for_what_replaces_it_even_if_another_one_serves() -> None:
    goals = [wanted("1"), wanted("3")]
    old = held(2, "2", replaced_by=frozenset({"3"}))
    failed = held(3, "3", phase=VersionPhase.FAILED)
    assert steps(goals, [held(1), old, failed]) == []
    assert steps(goals, [held(1), old, held(3, "3")]) == [Unload(2)]
    assert steps(goals[:1], [held(1), old]) == [Unload(2)]


def test_a_new_version_replaces_those_that_leave_the_selection() -> None:
    left = replacements({}, selected_before={"2"}, selected={"3"}, ready={"1", "2"}, failed=set())
    assert left == {"2": {"3"}}
    later = replacements(left, selected_before={"3"}, selected={"4"}, ready={"1", "2"}, failed=set())
    assert later == {"2": {"4"}}
    assert replacements(later, selected_before={"4"}, selected={"2"}, ready={"2"}, failed=set()) == {}


def test_a_version_that_had_failed_before_replaces_no_other() -> None:
    left = replacements(
        {}, selected_before={"1", "2", "3"}, selected={"1", "2"}, ready={"1", "3"}, failed={"2"}
    )
    assert left == {}


def test_a_failed_load_is_retried_when_due() -> None:
    failed = held(1, phase=VersionPhase.FAILED, retry_at=5.0)
    assert steps([wanted()], [failed], now=4.9) == []
    assert steps([wanted()], [failed], now=5.0) == [BeginLoad(wanted(), 1)]


def test_a_failed_load_is_forgotten_when_its_files_change() -> None:
    goal = wanted(fingerprint="b")
    assert steps([goal], [held(1, phase=VersionPhase.FAILED)]) == [Forget(1), BeginLoad(goal)]


def test_changed_settings_are_an_update_not_a_load() -> None:
    goal = wanted(settings="two instances")
    assert steps([goal], [held(1, settings="one instance")]) == [Update(1, goal)]


def test_a_model_that_is_not_wanted_is_unloaded_at_once() -> None:
    there = [
        held(1),
        held(2, "2", phase=VersionPhase.LOADING),
        held(3, "3", phase=VersionPhase.LOADED),
        held(4, "4", phase=VersionPhase.FAILED),
    ]
    assert steps([], there) == [Cancel(2), Unload(3), Forget(4), Unload(1)]


def test_a_version_held_back_is_loaded_but_replaces_nothing() -> None:
    goals = [wanted(), wanted(fingerprint="b", serve=False)]
    assert steps(goals, [held(1), held(2, fingerprint="b", phase=VersionPhase.LOADED)]) == []


def test_a_version_on_demand_is_not_loaded_and_releases_the_old() -> None:
    goal = wanted("2", loaded=False)
    assert steps([goal], []) == []
    assert steps([goal], [held(1)]) == [Unload(1)]


def test_a_version_put_to_rest_is_unloaded() -> None:
    assert steps([wanted(loaded=False)], [held(1)]) == [Unload(1)]


# every order of events


@dataclass
class World:
    """Carries actions out like an executor; loads and drains end when the events say so."""

    slots: int
    broken: set[tuple[str, str, str]]
    goals: list[Wanted] = field(default_factory=list)
    there: dict[int, HeldVersion] = field(default_factory=dict)
    now: float = 0.0
    keys: itertools.count[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        while actions := [action for action in self.plan() if not isinstance(action, Cancel)]:
            before = self.served()
            for action in actions:
                self.carry_out(action)
            self.check(before)

    def plan(self) -> list[Action]:
        return plan(self.goals, list(self.there.values()), now=self.now, load_slots=self.slots)

    def carry_out(self, action: Action) -> None:
        there = self.there
        match action:
            case BeginLoad(goal, instead):
                if instead is not None:
                    assert there[instead].phase is VersionPhase.FAILED
                    del there[instead]
                key = next(self.keys)
                there[key] = HeldVersion(
                    key, goal.name, goal.version, goal.fingerprint, VersionPhase.LOADING, goal.settings
                )
            case Serve(key):
                assert there[key].phase is VersionPhase.LOADED
                there[key] = replace(there[key], phase=VersionPhase.READY)
            case Update(key, goal):
                assert there[key].phase is VersionPhase.READY
                there[key] = replace(there[key], settings=goal.settings)
            case Unload(key):
                assert there[key].phase in (VersionPhase.READY, VersionPhase.LOADED)
                there[key] = replace(there[key], phase=VersionPhase.DRAINING)
            case Forget(key):
                assert there[key].phase is VersionPhase.FAILED
                del there[key]

    def end_one(self, number: int, retry: bool) -> None:
        """Ends one running load or drain."""
        busy = [
            one for one in self.there.values() if one.phase in (VersionPhase.LOADING, VersionPhase.DRAINING)
        ]
        if not busy:
            return
        one = busy[number % len(busy)]
        if one.phase is VersionPhase.DRAINING or any(action == Cancel(one.key) for action in self.plan()):
            del self.there[one.key]
        elif (one.name, one.version, one.fingerprint) in self.broken:
            self.there[one.key] = replace(
                one, phase=VersionPhase.FAILED, retry_at=self.now + 1 if retry else None
            )
        else:
            self.there[one.key] = replace(one, phase=VersionPhase.LOADED)

    def served(self) -> set[str]:
        return {one.name for one in self.there.values() if one.phase is VersionPhase.READY}

    def check(self, before: set[str]) -> None:
        still_wanted = {goal.name for goal in self.goals if goal.loaded}
        resting = {goal.name for goal in self.goals if not goal.loaded}
        assert (before & still_wanted) - resting <= self.served(), (
            "a wanted model lost its last ready version"
        )
        assert sum(one.phase is VersionPhase.LOADING for one in self.there.values()) <= self.slots

    def settle(self) -> None:
        for _ in range(1000):
            self.run()
            if not any(
                one.phase in (VersionPhase.LOADING, VersionPhase.DRAINING) for one in self.there.values()
            ):
                return
            self.end_one(0, retry=False)
        raise AssertionError("does not come to rest")


NAMES, VERSIONS, FINGERPRINTS = ("m", "n"), ("1", "2", "3"), ("a", "b")
versions = st.tuples(st.sampled_from(NAMES), st.sampled_from(VERSIONS))
goal_sets = st.dictionaries(
    versions, st.tuples(st.sampled_from(FINGERPRINTS), st.integers(0, 1), st.booleans()), max_size=6
).map(
    lambda chosen: [
        Wanted(*key, fingerprint, setting, loaded) for key, (fingerprint, setting, loaded) in chosen.items()
    ]
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("want"), goal_sets),
        st.tuples(st.just("end"), st.tuples(st.integers(0, 5), st.booleans())),
        st.tuples(st.just("wait"), st.none()),
    ),
    max_size=30,
)
broken_sets = st.sets(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(VERSIONS), st.sampled_from(FINGERPRINTS)), max_size=4
)


@settings(max_examples=300, deadline=None)
@given(events=events, broken=broken_sets, slots=st.integers(1, 3))
def test_every_order_of_events_keeps_models_answering_and_reaches_the_target(
    events: list[tuple[str, object]], broken: set[tuple[str, str, str]], slots: int
) -> None:
    world = World(slots, broken)
    for kind, what in events:
        if kind == "want":
            world.goals = what  # type: ignore[assignment]
        elif kind == "end":
            world.end_one(*what)  # type: ignore[misc]
        else:
            world.now += 1
        world.run()
    world.settle()

    goals = {(goal.name, goal.version, goal.fingerprint): goal for goal in world.goals}
    ready = {
        (one.name, one.version, one.fingerprint): one
        for one in world.there.values()
        if one.phase is VersionPhase.READY
    }
    for identity, goal in goals.items():
        if goal.loaded and identity not in world.broken:
            assert ready[identity].settings == goal.settings
        if not goal.loaded:
            assert identity not in ready
    # An unwanted version is only held while its replacement could not be loaded.
    for name, version, fingerprint in ready.keys() - goals.keys():
        wanted_of_model = [identity for identity in goals if identity[0] == name]
        assert any(identity in world.broken for identity in wanted_of_model), (name, version, fingerprint)
