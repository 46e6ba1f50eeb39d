"""The specification of a deployment's replicas, and the state that a replica reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """The models that each replica serves, and the resources that Ray reserves for the replica.

    `actor_options` are Ray's actor options, such as num_cpus, num_gpus, memory and resources. `revision` is
    any text. A new text causes all replicas to be replaced even if nothing else here has changed, which is
    useful when files in the repository have changed. `target_in_flight` means the same as for
    `backline serve`. `models` are the models of a shard; None means all models of the repositories. `states`
    is the name of the actor that keeps the states of sequences; empty if there is no such actor.
    """

    repositories: tuple[str, ...]
    actor_options: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    target_in_flight: float | None = None
    models: tuple[str, ...] | None = None
    states: str = ""

    @property
    def digest(self) -> str:
        """A short hash that differs between specifications."""
        parts = (
            self.repositories,
            sorted((name, repr(value)) for name, value in self.actor_options.items()),
            self.revision,
            self.target_in_flight,
            self.models,
            self.states,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The address and the scaling signal that a replica reports. `models` contains the name and the version
    of each model version that is ready. `socket` is the path of the replica's Unix socket, which programs on
    the same node can use; empty if it has none.
    """

    url: str
    ready: bool
    utilisation: float
    desired_replicas: float
    pid: int
    node: str
    models: tuple[tuple[str, str], ...] = ()
    socket: str = ""
