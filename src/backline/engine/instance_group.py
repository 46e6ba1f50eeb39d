"""A group of instances of a model that are alike (Triton's instance_group), and what each takes for a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What its instances are to run on: what there is, the processor, GPUs, or what the model's file says.
Kind = Literal["auto", "cpu", "gpu", "model"]


@dataclass(frozen=True, slots=True)
class Resource:
    """So many of a resource, which are taken while an instance runs: of the device that it runs on, or `everywhere`, of the server's."""

    name: str
    count: int
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """So many instances, on each GPU of `gpus` where those are meant; 0 where the server or the model decides how many.

    `resources` and `priority` have an effect where the server limits the rate of executions: an instance of priority 2 gets half the turns
    of one of priority 1. Those of a `passive` group get no requests.
    """

    count: int
    resources: tuple[Resource, ...] = ()
    priority: int = 1
    kind: Kind = "auto"
    #: By the runtime's numbers; empty for all that it has.
    gpus: tuple[int, ...] = ()
    #: Empty for Triton's name of it, <model>_<index>.
    name: str = ""
    passive: bool = False

    @property
    def limited(self) -> bool:
        """Whether its instances take anything, or have fewer turns than others."""
        return bool(self.resources) or self.priority > 1
