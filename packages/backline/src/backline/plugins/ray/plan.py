"""Decides which replicas to start and which to stop, without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backline.observe.scaling import ScalingSignal, replicas
from backline.plugins.ray.spec import ReplicaState


@dataclass(frozen=True, slots=True)
class ShardTarget:
    """The number of replicas that should run with a specification, which `digest` identifies. `models` are
    the models of a shard; None means all models.
    """

    digest: str
    replicas: int
    models: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ReplicaMember:
    """An existing replica. `digest` is the digest of the replica's specification. `state` is what the replica
    last reported, or None while the replica starts or if its actor has disappeared.
    """

    name: str
    digest: str
    state: ReplicaState | None = None

    @property
    def ready(self) -> bool:
        return self.state is not None and self.state.ready

    @property
    def models(self) -> frozenset[str]:
        """The names of the models that are ready in the replica."""
        return frozenset() if self.state is None else frozenset(name for name, _ in self.state.models)


@dataclass(frozen=True, slots=True)
class Steps:
    """The digests of the specifications of replicas to start, and the names of the replicas to stop."""

    start: tuple[str, ...]
    stop: tuple[str, ...]


def wanted_replicas(members: Sequence[ReplicaMember], digest: str, least: int, most: int) -> int:
    """Returns how many replicas with a specification are needed for the load that `members` report. The
    `members` are all replicas that have the models of this specification.

    The number is not lowered while some replicas do not respond, because their share of the load is unknown.
    """
    known = [one.state for one in members if one.state is not None and one.state.ready]
    if not known:
        return min(max(least, len([one for one in members if one.digest == digest])), most)
    signals = [ScalingSignal(one.utilisation, one.desired_replicas) for one in known]
    wanted = replicas(signals, least, most)
    missing = len(known) < len(members)
    return min(max(wanted, len(known)), most) if missing else wanted


def next_steps(members: Sequence[ReplicaMember], targets: Sequence[ShardTarget]) -> Steps:
    """Returns the next steps towards the targets.

    Old replicas, which have none of the targets' specifications, are replaced one by one. Meanwhile, at most
    one more replica runs than the targets ask for in total. An old replica that accepts requests is stopped
    only if every shard that contains one of its models has as many other replicas as the shard's target asks
    for. If the models are divided into different shards than before, it may be impossible to stop any old
    replica; then one more replica is started.
    """
    of_target = {target.digest: [one for one in members if one.digest == target.digest] for target in targets}
    old = [one for one in members if one.digest not in of_target]
    lacking = [
        target.digest
        for target in targets
        for _ in range(max(target.replicas - len(of_target[target.digest]), 0))
    ]
    if not old:
        stop = [name for target in targets for name in _spare(of_target[target.digest], target.replicas)]
        return Steps(tuple(lacking), tuple(stop))
    if all(sum(one.ready for one in of_target[target.digest]) >= target.replicas for target in targets):
        stop = [one.name for one in old]
    else:
        stop = [one.name for one in old if one.ready and _replaceable(one, members, targets)][:1]
    budget = max(sum(target.replicas for target in targets) + 1 - len(members), 0)
    if not budget and not stop and all(one.ready for one in members):
        budget = 1
    return Steps(tuple(lacking[:budget]), tuple(stop))


def _spare(members: Sequence[ReplicaMember], wanted: int) -> list[str]:
    """Returns the names of the surplus replicas. Prefers replicas that do not accept requests."""
    ordered = sorted(members, key=lambda one: one.ready)
    return [one.name for one in ordered[: max(len(members) - wanted, 0)]]


def _replaceable(
    leaving: ReplicaMember, members: Sequence[ReplicaMember], targets: Sequence[ShardTarget]
) -> bool:
    """Returns whether enough other replicas accept requests for the models of the replica `leaving`."""
    others = [one for one in members if one.ready and one is not leaving]
    return all(
        sum(serves(one, target) for one in others) >= target.replicas
        for target in targets
        if target.models is None or target.models & leaving.models
    )


def serves(member: ReplicaMember, target: ShardTarget) -> bool:
    """Returns whether a replica has all models of a target's shard."""
    return member.digest == target.digest or target.models is None or target.models <= member.models
