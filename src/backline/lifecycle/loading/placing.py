"""Which devices the instances of a model run on: decided by its configuration and the GPUs that its runtime
can use.

Rules and error texts are Triton's (core/src/model_config_utils.cc), with one difference: if no GPU can be
used, a model that asks for one runs on the CPU with a warning, unless the server is strict.
"""

from __future__ import annotations

from backline.engine.device import CPU, Device, Gpus, PlacedGroup, Places
from backline.engine.errors import InvalidArgument
from backline.engine.instance_group import InstanceGroup
from backline.engine.model_config import ModelConfig


def asks_for_devices(config: ModelConfig) -> bool:
    """Whether the available GPUs matter."""
    return config.lane != "inline" and any(
        group.kind in ("auto", "gpu") for group in config.instance_groups or (InstanceGroup(0),)
    )


def place(config: ModelConfig, gpus: Gpus, *, strict: bool = False) -> Places:
    """The devices of each active instance group. Without groups there is one, wherever the runtime runs by
    default.

    Raises InvalidArgument for a GPU that `gpus` lacks while it has others, for any GPU if it has none and the
    server is `strict`, if all groups are passive, and for a GPU in lane inline: the event loop must not wait
    for a device.
    """
    if not config.instance_groups:
        only = InstanceGroup(config.instance_count or 0)
        return Places((PlacedGroup(0, _name(config, 0, only), only, _automatic(config, gpus)),))
    active = [(index, group) for index, group in enumerate(config.instance_groups) if not group.passive]
    if not active:
        raise InvalidArgument(
            f"all instance groups of model '{config.name}' are passive, so nothing would run it"
        )
    placed, missing = [], ""
    for index, group in active:
        name = _name(config, index, group)
        devices = _devices(config, name, group, gpus, strict=strict)
        if not devices:
            devices, missing = (CPU,), missing or f"{_where(config, name)} asks for a GPU, but {gpus.reason}"
        placed.append(PlacedGroup(index, name, group, devices))
    return Places(tuple(placed), missing)


def place_again(config: ModelConfig, placed: Places) -> Places:
    """The same with other instance counts; a change of devices needs a new load."""
    devices = {(one.group.kind, one.group.gpus): one.devices for one in placed.groups}
    groups = config.instance_groups or (InstanceGroup(config.instance_count or 0),)
    return Places(
        tuple(
            PlacedGroup(index, _name(config, index, group), group, devices[group.kind, group.gpus])
            for index, group in enumerate(groups)
            if not group.passive
        ),
        placed.missing,
    )


def _devices(
    config: ModelConfig, name: str, group: InstanceGroup, gpus: Gpus, *, strict: bool
) -> tuple[Device, ...]:
    """The devices of a group; none if it asks for a GPU and none can be used."""
    if group.kind == "model":
        return (Device("model"),)
    if group.kind == "cpu":
        return (CPU,)
    if group.kind == "auto" and not group.gpus:
        return _automatic(config, gpus)
    if config.lane == "inline":
        raise InvalidArgument(
            f"model '{config.name}': lane inline and {_kind(group)} contradict each other: the event loop"
            " waits for no GPU"
        )
    wrong = [index for index in group.gpus if index not in gpus.indexes]
    if gpus.indexes and wrong:
        there = ", ".join(map(str, gpus.indexes))
        raise InvalidArgument(
            f"{_where(config, name)} specifies invalid or unsupported gpu id {wrong[0]}. GPUs that this model"
            f" can run on are: {there}"
        )
    if wrong or not gpus.indexes:
        if strict:
            raise InvalidArgument(
                f"{_where(config, name)} has kind KIND_GPU but no GPUs are available: {gpus.reason}"
            )
        return ()
    return tuple(Device("gpu", index) for index in group.gpus or gpus.indexes)


def _automatic(config: ModelConfig, gpus: Gpus) -> tuple[Device, ...]:
    if not gpus.indexes or not gpus.by_default or config.lane == "inline":
        return (CPU,)
    return tuple(Device("gpu", index) for index in gpus.indexes)


def _name(config: ModelConfig, index: int, group: InstanceGroup) -> str:
    """The group's name as in Triton; without groups, the model's."""
    return group.name or (f"{config.name}_{index}" if config.instance_groups else config.name)


def _where(config: ModelConfig, group: str) -> str:
    return f"instance group {group} of model {config.name}"


def _kind(group: InstanceGroup) -> str:
    return "KIND_GPU" if group.kind == "gpu" else "gpus"
