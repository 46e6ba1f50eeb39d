"""Devices that models run on, and the placement of instances on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from backline.engine.config.instance_group import InstanceGroup


@dataclass(frozen=True, slots=True)
class Device:
    """The CPU, a GPU as its runtime numbers it, or whatever the model file specifies."""

    kind: Literal["cpu", "gpu", "model"] = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return {"cpu": "CPU", "gpu": f"GPU {self.index}", "model": "its own"}[self.kind]


CPU: Final = Device()


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that a runtime can use, as it numbers them.

    If there are none, `reason` says why and what to do.
    Unless `by_default`, they are used only if a configuration asks for a GPU.
    """

    indexes: tuple[int, ...] = ()
    reason: str = ""
    by_default: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where one instance runs.

    `name` is Triton's name for it ("model_0_1"), which instances of a group on different GPUs share.
    """

    device: Device
    name: str
    group: InstanceGroup


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """A group of instances, by its `index` in the configuration, and its devices.

    Each device has as many instances as the group says.
    """

    index: int
    name: str
    group: InstanceGroup
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Where a model's instances run. `missing` says why some are on the CPU instead of a GPU, or is empty."""

    groups: tuple[PlacedGroup, ...]
    missing: str = ""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices, without duplicates."""
        return tuple(dict.fromkeys(device for placed in self.groups for device in placed.devices))

    @property
    def counted(self) -> bool:
        """Whether the configuration sets the number of instances."""
        return all(placed.group.count for placed in self.groups)

    def spread(self, count: int | None = None) -> tuple[Place, ...]:
        """Returns the instances in the order of creation; those of a group alternate between its devices.

        `count` is the total for a group that does not set a number; by default one per device.
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


#: The places of a model whose instances have no devices yet.
NOWHERE: Final = Places(())


def name_devices(places: Places) -> str:
    """Says where a model runs: "GPU 0, GPU 1", or "CPU, no GPU" if it should run on a GPU but cannot."""
    return ", ".join(map(str, places.devices)) + (", no GPU" if places.missing else "")
