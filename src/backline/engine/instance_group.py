"""A group of instances of a model that are alike (Triton's instance_group), and what each takes for a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """So many of a resource, which are taken while an instance runs: of the device that it runs on, or `everywhere`, of the server's."""

    name: str
    count: int
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """So many instances. `resources` and `priority` have an effect where the server limits the rate of executions.

    An instance of priority 2 gets half the turns of one of priority 1.
    """

    count: int
    resources: tuple[Resource, ...] = ()
    priority: int = 1

    @property
    def limited(self) -> bool:
        """Whether its instances take anything, or have fewer turns than others."""
        return bool(self.resources) or self.priority > 1
