"""What models run on: processors and GPUs, and which instances of a model are where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from backline.engine.instance_group import InstanceGroup


@dataclass(frozen=True, slots=True)
class Device:
    """The processor, a GPU by the number that its runtime gives it, or what the model's own file says."""

    kind: Literal["cpu", "gpu", "model"] = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return {"cpu": "CPU", "gpu": f"GPU {self.index}", "model": "its own"}[self.kind]


CPU: Final = Device()


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that a runtime can run a model on, by its own numbers. Without any, `reason` says why, and what to do about it.

    Those that are not there `by_default` are used where a configuration asks for a GPU.
    """

    indexes: tuple[int, ...] = ()
    reason: str = ""
    by_default: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where one instance runs. `name` is the instance's, as Triton gives it ("model_0_1"); two of a group on different GPUs share one."""

    device: Device
    name: str
    group: InstanceGroup


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """A group of instances, the `index`th of the configuration, with the devices of which each has as many as the group says."""

    index: int
    name: str
    group: InstanceGroup
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the instances of a model run. `missing` says why some that were to be on a GPU are on the CPU, and is empty otherwise."""

    groups: tuple[PlacedGroup, ...]
    missing: str = ""

    @property
    def devices(self) -> tuple[Device, ...]:
        """Each device once."""
        return tuple(dict.fromkeys(device for placed in self.groups for device in placed.devices))

    @property
    def counted(self) -> bool:
        """Whether the configuration says how many instances there are."""
        return all(placed.group.count for placed in self.groups)

    def spread(self, count: int | None = None) -> tuple[Place, ...]:
        """The instances in the order in which they are made: those of a group take turns on its devices.

        `count` is how many there are in a group that does not say, on all of its devices; without it there is one on each.
        """
        places: list[Place] = []
        for placed in self.groups:
            devices = placed.devices
            total = placed.group.count * len(devices) or count or len(devices)
            places += [
                Place(devices[number % len(devices)], f"{placed.name}_{number // len(devices)}", placed.group)
                for number in range(total)
            ]
        return tuple(places)


#: Of what was not placed yet.
NOWHERE: Final = Places(())


def name_devices(places: Places) -> str:
    """Where a model runs, for people: "GPU 0, GPU 1"; "CPU, no GPU" where it was to be on one."""
    return ", ".join(map(str, places.devices)) + (", no GPU" if places.missing else "")
