"""Divides the models of a deployment among its replicas, without any I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final

#: Ray's names for the resources whose amounts are added up over models: memory in bytes, GPUs and CPUs.
MEMORY: Final = "memory"
GPUS: Final = "num_gpus"
AMOUNTS: Final = (MEMORY, "num_cpus", GPUS)


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """The resources that a model needs in a replica, by the names that Ray gives to resources. `steps` are
    the models that an ensemble calls. They must be in the same replica as the ensemble.
    """

    name: str
    amounts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """The sorted names of models that share a replica, and the resources to reserve for that replica."""

    models: tuple[str, ...]
    reserved: Mapping[str, float]


def place(needs: Sequence[ModelNeed], room: Mapping[str, float]) -> tuple[Shard, ...]:
    """Divides models into as few shards as a simple rule finds (first fit decreasing).

    `room` contains the resources of one replica. Without an entry for memory in `room`, memory is not
    limited. A model that needs more than `room`, for example a GPU where `room` has none, gets a separate
    shard, for which as much is reserved as the model needs. Models that need a GPU do not share a replica
    with models that need none. The result does not depend on the order of `needs`.
    """
    shards: list[tuple[list[str], dict[str, float]]] = []
    for models, amounts in sorted(_together(needs), key=_largest_first):
        for members, used in shards:
            if bool(used[GPUS]) == bool(amounts[GPUS]) and _fits(used, amounts, room):
                members += models
                for name in AMOUNTS:
                    used[name] += amounts[name]
                break
        else:
            shards.append((list(models), amounts))
    return tuple(Shard(tuple(sorted(members)), _reserved(used, room)) for members, used in shards)


def _together(needs: Iterable[ModelNeed]) -> list[tuple[list[str], dict[str, float]]]:
    """Returns groups of models that must share a replica, each with the sum of the needs of its models."""
    known = {need.name: need for need in needs}
    neighbours: dict[str, set[str]] = defaultdict(set)
    for need in known.values():
        for step in need.steps:
            if step in known:
                neighbours[need.name].add(step)
                neighbours[step].add(need.name)
    groups = []
    left = dict.fromkeys(sorted(known))
    while left:
        group, reached = [], [next(iter(left))]
        while reached:
            name = reached.pop()
            if name in left:
                del left[name]
                group.append(name)
                reached += neighbours[name]
        total = {
            amount: float(sum(known[name].amounts.get(amount, 0) for name in group)) for amount in AMOUNTS
        }
        groups.append((sorted(group), total))
    return groups


def _largest_first(group: tuple[list[str], dict[str, float]]) -> tuple[object, ...]:
    models, amounts = group
    return (*(-amounts[name] for name in AMOUNTS), models)


def _fits(used: Mapping[str, float], more: Mapping[str, float], room: Mapping[str, float]) -> bool:
    return all(
        used[name] + more[name] <= room.get(name, inf if name == MEMORY else 0.0)
        for name in AMOUNTS
        if more[name]
    )


def _reserved(used: Mapping[str, float], room: Mapping[str, float]) -> dict[str, float]:
    names = [name for name in AMOUNTS if name in room or (used[name] and name != MEMORY)]
    return {name: max(used[name], room.get(name, 0.0)) for name in names}
