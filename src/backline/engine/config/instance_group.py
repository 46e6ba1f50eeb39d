"""A group of similar instances of a model (Triton's instance_group), and what each needs to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a group's instances run on: whatever is available, the CPU, GPUs, or what the model file specifies.
Kind = Literal["auto", "cpu", "gpu", "model"]


@dataclass(frozen=True, slots=True)
class Resource:
    """An amount of a named resource that an instance holds during a run.

    The resource belongs to the instance's device or, if `everywhere`, to the server.
    """

    name: str
    count: int
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """A group of `count` instances, or of `count` per GPU if it names GPUs.

    With a `count` of 0 the server or the model decides.

    `resources` and `priority` matter only where the server limits the rate of executions: an instance of
    priority 2 runs half as often as one of priority 1. Instances of a `passive` group get no requests.
    """

    count: int
    resources: tuple[Resource, ...] = ()
    priority: int = 1
    kind: Kind = "auto"
    #: The GPUs, as the runtime numbers them; empty for all.
    gpus: tuple[int, ...] = ()
    #: The name of the group's instances; empty for Triton's default, <model>_<index>.
    name: str = ""
    passive: bool = False

    @property
    def limited(self) -> bool:
        """Whether the instances need resources, or run less often than others."""
        return bool(self.resources) or self.priority > 1
