"""A group of similar instances of a model (Triton's instance_group), and the resources that each instance
needs to run.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

#: The devices that the instances of a group run on: whatever is available, the CPU, GPUs, or the devices that
#: the model file specifies.
Kind = Literal["auto", "cpu", "gpu", "model"]
#: The maximum number of instances of a model. It exceeds the number of cores of most machines, and bounds the
#: damage that a typo or a hostile archive can do.
MAX_INSTANCES = 256


class Resource(Struct, frozen=True):
    """An amount of a named resource that an instance holds during a run.

    The resource belongs to the instance's device, or to the whole server if `everywhere` is set.
    """

    name: str
    count: int
    everywhere: bool = False


class InstanceGroup(Struct, frozen=True):
    """A group of `count` instances, or of `count` instances per GPU if the group names GPUs.

    If `count` is 0, the server or the model determines the number of instances.

    `resources` and `priority` have an effect only if the server has a rate limiter: an instance with priority
    2 then runs half as often as an instance with priority 1. Instances of a `passive` group get no
    requests.
    """

    count: int
    resources: tuple[Resource, ...] = ()
    priority: int = 1
    kind: Kind = "auto"
    #: The numbers of the GPUs, as the runtime numbers them; empty for all GPUs.
    gpus: tuple[int, ...] = ()
    #: The name of the group's instances; if it is empty, Triton's default applies, <model>_<index>.
    name: str = ""
    passive: bool = False
    #: Whether the configuration sets `count`; otherwise it is 1, or a runtime's usual number on the CPU.
    counted: bool = True

    @property
    def limited(self) -> bool:
        """Whether the instances need resources, or run less often than instances of priority 1."""
        return bool(self.resources) or self.priority > 1
