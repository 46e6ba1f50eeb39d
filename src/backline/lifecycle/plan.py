"""The next steps from what is held to what is wanted: a pure function, so that every order of events can be tried."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from backline.lifecycle.phase import VersionPhase


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that should be there. A changed `fingerprint` is another load, changed `settings` are not.

    `loaded` False is a version that is only registered, and loaded when a request asks for it. `serve` False is one that should be loaded
    and not yet take the place of the one that is there: it belongs to a change that is made as a whole.
    """

    name: str
    version: str
    fingerprint: str
    settings: object = None
    loaded: bool = True
    serve: bool = True


@dataclass(frozen=True, slots=True)
class Held:
    """A version that is there, by its `key`. `retry_at` is when a failed load is tried again, None for never."""

    key: int
    name: str
    version: str
    fingerprint: str
    phase: VersionPhase
    settings: object = None
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class BeginLoad:
    """Loads a version; in the place of `instead`, the failed load that is tried again."""

    wanted: Wanted
    instead: int | None = None


@dataclass(frozen=True, slots=True)
class Serve:
    """Opens a loaded version to requests, in the place of another of its number."""

    key: int


@dataclass(frozen=True, slots=True)
class Update:
    """Gives a version its new settings, while it serves."""

    key: int
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Unload:
    """Takes a version out of service, lets it finish, and gives its memory back."""

    key: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gives up a load that is under way; asked for again until it has ended."""

    key: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Drops the memory of a failed load."""

    key: int


Action: TypeAlias = BeginLoad | Serve | Update | Unload | Cancel | Forget
_Identity: TypeAlias = tuple[str, str, str]


def plan(wanted: Collection[Wanted], held: Collection[Held], *, now: float, load_slots: int) -> list[Action]:
    """The actions that may be taken now, in order; to be asked for again whenever one of them has ended.

    `wanted` has no two entries of one name, version and fingerprint, and at most one with `serve` of a name and version. Loads are begun in
    the order of `wanted`, at most `load_slots` at the same time. New before old: what is no longer wanted is unloaded when a wanted version
    of its model is ready, or when none is wanted (TensorFlow Serving's availability-preserving policy). A failed load leaves what serves.
    """
    goals = {(goal.name, goal.version, goal.fingerprint): goal for goal in wanted}
    actions: list[Action] = []
    present: dict[_Identity, Held] = {}
    for one in held:
        if one.phase is VersionPhase.DRAINING:
            continue
        identity = (one.name, one.version, one.fingerprint)
        present[identity] = one
        goal = goals.get(identity)
        if one.phase is VersionPhase.FAILED:
            if goal is None or not goal.loaded:
                actions.append(Forget(one.key))
        elif one.phase is VersionPhase.LOADING:
            if goal is None or not goal.loaded:
                actions.append(Cancel(one.key))
        elif one.phase is VersionPhase.LOADED:
            if goal is None or not goal.loaded:
                actions.append(Unload(one.key))
            elif goal.serve:
                actions.append(Serve(one.key))
        elif goal is not None and goal.loaded and goal.settings != one.settings:
            actions.append(Update(one.key, goal))
    return actions + _unloads(goals, held) + _loads(goals, held, present, now, load_slots)


def _unloads(goals: dict[_Identity, Wanted], held: Collection[Held]) -> list[Action]:
    ready = {(one.name, one.version, one.fingerprint) for one in held if one.phase is VersionPhase.READY}
    #: The names and versions that answer as they should, and the names with any such version.
    answering = {
        (goal.name, goal.version)
        for identity, goal in goals.items()
        if goal.serve and (identity in ready or not goal.loaded)
    }
    replaced = {(goal.name, goal.version) for goal in goals.values() if goal.serve}
    models = {name for name, _ in replaced}
    answering_models = {name for name, _ in answering}
    actions: list[Action] = []
    for one in held:
        if one.phase is not VersionPhase.READY:
            continue
        goal = goals.get((one.name, one.version, one.fingerprint))
        if goal is not None and goal.loaded:
            continue
        if goal is not None or one.name not in models:
            free = True
        elif (one.name, one.version) in replaced:
            free = (one.name, one.version) in answering
        else:
            free = one.name in answering_models
        if free:
            actions.append(Unload(one.key))
    return actions


def _loads(
    goals: dict[_Identity, Wanted],
    held: Collection[Held],
    present: dict[_Identity, Held],
    now: float,
    load_slots: int,
) -> list[Action]:
    free = load_slots - sum(one.phase is VersionPhase.LOADING for one in held)
    actions: list[Action] = []
    for identity, goal in goals.items():
        if free <= 0:
            break
        if not goal.loaded:
            continue
        one = present.get(identity)
        if one is None:
            actions.append(BeginLoad(goal))
        elif one.phase is VersionPhase.FAILED and one.retry_at is not None and one.retry_at <= now:
            actions.append(BeginLoad(goal, one.key))
        else:
            continue
        free -= 1
    return actions
