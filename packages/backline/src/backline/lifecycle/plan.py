"""Plans the next actions from the versions that are wanted and those that are loaded, as a pure function."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import TypeAlias

from msgspec import Struct

from backline.lifecycle.phase import VersionPhase


class Wanted(Struct, frozen=True):
    """A version that should be served. A new `fingerprint` requires another load; new `settings` do not.

    If `loaded` is false, the version is only registered, and its first request will load it. If `serve` is
    false, the version is loaded but not yet opened to requests, because it belongs to an all-or-nothing
    change.
    """

    name: str
    version: str
    fingerprint: str
    settings: object = None
    loaded: bool = True
    serve: bool = True


class HeldVersion(Struct, frozen=True):
    """One load of a version, in any phase from LOADING on.

    `retry_at` is the time when a failed load is retried (time.monotonic()); None for never. `replaced_by`
    names the versions that replace this version, which continues to serve until they are ready, even when it
    is no longer wanted.
    """

    key: int
    name: str
    version: str
    fingerprint: str
    phase: VersionPhase
    settings: object = None
    retry_at: float | None = None
    replaced_by: frozenset[str] = frozenset()
    #: Whether to unload this version even if no other version is ready to take requests, because the target
    #: has removed it; see Target.
    dismissed: bool = False


class BeginLoad(Struct, frozen=True):
    """The action that loads a version. `instead` is the key of the failed load that this load retries, if
    any.
    """

    wanted: Wanted
    instead: int | None = None


class Serve(Struct, frozen=True):
    """The action that opens a loaded version to requests, in place of an older load of the same version."""

    key: int


class Update(Struct, frozen=True):
    """The action that gives a serving version new settings."""

    key: int
    wanted: Wanted


class Unload(Struct, frozen=True):
    """The action that takes a version out of service, waits for its requests to complete, and frees the
    version.
    """

    key: int


class Cancel(Struct, frozen=True):
    """The action that aborts a running load. The planner repeats this action until the load has ended."""

    key: int


class Forget(Struct, frozen=True):
    """The action that discards a failed load."""

    key: int


Action: TypeAlias = BeginLoad | Serve | Update | Unload | Cancel | Forget
_Identity: TypeAlias = tuple[str, str, str]


def plan(
    wanted: Collection[Wanted], held: Collection[HeldVersion], *, now: float, load_slots: int
) -> list[Action]:
    """Returns the actions to take at the time `now` (time.monotonic()), in order. After each change, such as
    the end of a load, call this function again.

    Entries of `wanted` differ in name, version or fingerprint; for each name and version, `serve` is true for
    at most one entry. Loads begin in the order of `wanted`, and at most `load_slots` run at a time. An
    unwanted version is unloaded only if no version of its model is wanted, or if one wanted version is ready
    (TensorFlow Serving's availability-preserving policy) and all versions in `replaced_by` that are still
    wanted are ready too. So if the load of a new version fails, the old version continues to serve, even if a
    label keeps a third version loaded. If a version is wanted with other files, its old load is unloaded once
    the new load is ready. A version that is `dismissed` is unloaded in any case.
    """
    goals = {(goal.name, goal.version, goal.fingerprint): goal for goal in wanted}
    actions: list[Action] = []
    present: dict[_Identity, HeldVersion] = {}
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


def _unloads(goals: dict[_Identity, Wanted], held: Collection[HeldVersion]) -> list[Action]:
    leaving = [
        (one, goal)
        for one in held
        if one.phase is VersionPhase.READY
        and ((goal := goals.get((one.name, one.version, one.fingerprint))) is None or not goal.loaded)
    ]
    if not leaving:  # the usual case, in which the sets below would take most of the time of a plan
        return []
    ready = {(one.name, one.version, one.fingerprint) for one in held if one.phase is VersionPhase.READY}
    # The wanted versions that can take requests now.
    answering = {
        (goal.name, goal.version)
        for identity, goal in goals.items()
        if goal.serve and (identity in ready or not goal.loaded)
    }
    replaced = {(goal.name, goal.version) for goal in goals.values() if goal.serve}
    models = {name for name, _ in replaced}
    answering_models = {name for name, _ in answering}
    actions: list[Action] = []
    for one, goal in leaving:
        if goal is not None or one.name not in models or one.dismissed:
            free = True
        elif (one.name, one.version) in replaced:
            free = (one.name, one.version) in answering
        else:
            pending = {(one.name, version) for version in one.replaced_by} & replaced - answering
            free = one.name in answering_models and not pending
        if free:
            actions.append(Unload(one.key))
    return actions


def _loads(
    goals: dict[_Identity, Wanted],
    held: Collection[HeldVersion],
    present: dict[_Identity, HeldVersion],
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


def replacements(
    before: Mapping[str, frozenset[str]],
    *,
    selected_before: Set[str],
    selected: Set[str],
    ready: Set[str],
    failed: Set[str],
) -> dict[str, frozenset[str]]:
    """Maps each ready, deselected version to the versions that must be ready before it may be unloaded.

    Call this function when the selection changes from `selected_before` to `selected`, and pass the result of
    the previous call as `before`. A deselected version waits for the newly selected versions, but not for
    versions whose load has already `failed`: otherwise, a version whose files were deleted might never be
    unloaded.
    """
    new = frozenset(selected - ready - failed)
    leaving = {version: new for version in selected_before - selected if version in ready}
    waiting = {
        version: (wanted & selected) | (new if wanted - selected else frozenset())
        for version, wanted in before.items()
        if version in ready and version not in selected
    }
    return {version: wanted for version, wanted in (leaving | waiting).items() if wanted}
