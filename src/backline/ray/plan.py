"""Decides which replicas to start and which to stop. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backline.observe.scaling import ScalingSignal, replicas
from backline.ray.spec import ReplicaState


@dataclass(frozen=True, slots=True)
class ReplicaMember:
    """A replica that exists. `current` says whether it has the present specification. `state` is None while
    it starts, or does not answer.
    """

    name: str
    current: bool
    state: ReplicaState | None = None

    @property
    def ready(self) -> bool:
        return self.state is not None and self.state.ready


@dataclass(frozen=True, slots=True)
class Steps:
    """How many replicas to start, and the names of those to stop."""

    start: int
    stop: tuple[str, ...]


def wanted_replicas(members: Sequence[ReplicaMember], least: int, most: int) -> int:
    """How many replicas the load needs, from what each says of its own.

    While some do not answer, the number is not lowered, because their share of the load is unknown.
    """
    known = [one.state for one in members if one.state is not None and one.state.ready]
    if not known:
        return min(max(least, len([one for one in members if one.current])), most)
    signals = [ScalingSignal(one.utilisation, one.desired_replicas) for one in known]
    wanted = replicas(signals, least, most)
    missing = len(known) < len(members)
    return min(max(wanted, len(known)), most) if missing else wanted


def next_steps(members: Sequence[ReplicaMember], wanted: int) -> Steps:
    """The next steps towards `wanted` replicas of the present specification.

    Old replicas are replaced one by one. One more than wanted may run meanwhile, and one that takes requests
    is stopped only if at least `wanted` others take requests.
    """
    new = [one for one in members if one.current]
    old = [one for one in members if not one.current]
    lacking = max(wanted - len(new), 0)
    start = min(lacking, max(wanted + 1 - len(members), 0)) if old else lacking
    ready = sum(one.ready for one in members)
    stop: list[str] = []
    if sum(one.ready for one in new) >= wanted:
        stop += [one.name for one in old]
    elif any(one.ready for one in old) and ready > wanted:
        stop.append(next(one.name for one in old if one.ready))
    if not old and len(new) > wanted:
        # Those that take no requests go first.
        spare = sorted(new, key=lambda one: one.ready)
        stop += [one.name for one in spare[: len(new) - wanted]]
    return Steps(start, tuple(stop))
