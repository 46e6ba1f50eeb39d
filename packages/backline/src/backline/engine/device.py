"""The devices that models run on, and the placement of instances on the devices."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from backline.engine.config.instance_group import InstanceGroup


class Device(Struct, frozen=True):
    """The CPU, a GPU with the number that the runtime gives it, or the device that the model file
    specifies.
    """

    kind: Literal["cpu", "gpu", "model"] = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return {"cpu": "CPU", "gpu": f"GPU {self.index}", "model": "its own"}[self.kind]


CPU: Final = Device()


class Gpus(Struct, frozen=True):
    """The numbers of the GPUs that a runtime can use, as the runtime numbers them.

    If there are no GPUs, `reason` says why, and what to do. Unless `by_default` is set, the GPUs are used
    only if a configuration asks for a GPU.
    """

    indexes: tuple[int, ...] = ()
    reason: str = ""
    by_default: bool = True


class Place(Struct, frozen=True):
    """The device that an instance runs on.

    `name` is Triton's name for the instance ("model_0_1"). Instances of a group on different GPUs may have
    the same name.
    """

    device: Device
    name: str
    group: InstanceGroup


class PlacedGroup(Struct, frozen=True):
    """A group of instances, with the group's `index` in the configuration, and the group's devices.

    Each device has as many instances as the group specifies.
    """

    index: int
    name: str
    group: InstanceGroup
    devices: tuple[Device, ...]


class Places(Struct, frozen=True):
    """The devices that a model's instances run on. `missing` says why some instances run on the CPU instead
    of a GPU; it is empty if there are no such instances.
    """

    groups: tuple[PlacedGroup, ...]
    missing: str = ""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices, without duplicates."""
        if len(self.groups) == 1 and len(self.groups[0].devices) == 1:  # the usual case
            return self.groups[0].devices
        return tuple(dict.fromkeys(device for placed in self.groups for device in placed.devices))

    @property
    def counted(self) -> bool:
        """Whether the configuration sets the number of instances."""
        return all(placed.group.count for placed in self.groups)

    def spread(self, count: int | None = None) -> tuple[Place, ...]:
        """Returns the places of the instances, in the order in which the instances are created. The instances
        of a group alternate between its devices.

        `count` is the total number of instances for a group that does not set a number; the default is one
        per device.
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


#: The places of a model whose instances have not been assigned to devices yet.
NOWHERE: Final = Places(())


def name_devices(places: Places) -> str:
    """Returns a text that says where a model runs: "GPU 0, GPU 1", or "CPU, no GPU" if the model should run
    on a GPU but cannot.
    """
    return ", ".join(map(str, places.devices)) + (", no GPU" if places.missing else "")
