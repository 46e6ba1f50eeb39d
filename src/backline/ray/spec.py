"""What the replicas of a deployment are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What each replica serves, and what Ray reserves for it.

    `actor_options` are options of Ray's actors, such as num_cpus, num_gpus, memory and resources. `revision`
    is any text: replicas of another revision are replaced although nothing else has changed, as when files
    of the repository have. `target_in_flight` is as for `backline serve`.
    """

    repositories: tuple[str, ...]
    actor_options: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    target_in_flight: float | None = None

    @property
    def digest(self) -> str:
        """A short text that differs between specifications."""
        parts = (
            self.repositories,
            sorted((name, repr(value)) for name, value in self.actor_options.items()),
            self.revision,
            self.target_in_flight,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica as it describes itself: its address, and the signal for scaling."""

    url: str
    ready: bool
    utilisation: float
    desired_replicas: float
    pid: int
    node: str
