"""The specification of a deployment's replicas, and the state that a replica reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """The repositories that each replica serves, and the resources that Ray reserves for it.

    `actor_options` are Ray's actor options, such as num_cpus, num_gpus, memory and resources. `revision` is
    any text: replicas with another revision are replaced even if nothing else here has changed, for example
    because files in the repository have changed. `target_in_flight` is as for `backline serve`.
    """

    repositories: tuple[str, ...]
    actor_options: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    target_in_flight: float | None = None

    @property
    def digest(self) -> str:
        """A short hash that differs between specifications."""
        parts = (
            self.repositories,
            sorted((name, repr(value)) for name, value in self.actor_options.items()),
            self.revision,
            self.target_in_flight,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The address and the scaling signal that a replica reports."""

    url: str
    ready: bool
    utilisation: float
    desired_replicas: float
    pid: int
    node: str
