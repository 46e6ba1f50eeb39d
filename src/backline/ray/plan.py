"""Decides which replicas to start and which to stop, without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backline.observe.scaling import ScalingSignal, replicas
from backline.ray.spec import ReplicaState


@dataclass(frozen=True, slots=True)
class ReplicaMember:
    """An existing replica. `current` says whether it has the current specification. `state` is its last
    report, or None while the replica starts or if its actor has disappeared.
    """

    name: str
    current: bool
    state: ReplicaState | None = None

    @property
    def ready(self) -> bool:
        return self.state is not None and self.state.ready


@dataclass(frozen=True, slots=True)
class Steps:
    """The number of replicas to start, and the names of those to stop."""

    start: int
    stop: tuple[str, ...]


def wanted_replicas(members: Sequence[ReplicaMember], least: int, most: int) -> int:
    """Returns how many replicas the load needs, according to the states that the replicas report.

    The number is not lowered while some replicas do not answer, because their share of the load is unknown.
    """
    known = [one.state for one in members if one.state is not None and one.state.ready]
    if not known:
        return min(max(least, len([one for one in members if one.current])), most)
    signals = [ScalingSignal(one.utilisation, one.desired_replicas) for one in known]
    wanted = replicas(signals, least, most)
    missing = len(known) < len(members)
    return min(max(wanted, len(known)), most) if missing else wanted


def next_steps(members: Sequence[ReplicaMember], wanted: int) -> Steps:
    """Returns the next steps towards `wanted` replicas with the current specification.

    Old replicas are replaced one by one, while at most one more than `wanted` runs. A replica that accepts
    requests is stopped only if at least `wanted` others accept requests.
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
        # Replicas that do not accept requests are stopped first.
        spare = sorted(new, key=lambda one: one.ready)
        stop += [one.name for one in spare[: len(new) - wanted]]
    return Steps(start, tuple(stop))
