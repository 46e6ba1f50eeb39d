"""Recognises what a configuration of a load request only restates, so that it causes no new load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device
from backline.engine.model import Model
from backline_client.values.signature import TensorSpec


class InForce(Struct, frozen=True):
    """The `loaded` configuration of a model, and the `models` that it serves: one for each version."""

    loaded: ModelConfig
    models: Sequence[Model]

    def without_restated(self, new: ModelConfig) -> ModelConfig:
        """Returns the configuration `new` without what the loaded configuration leaves open and `new` sets to
        what is in force already.

        Clients read a model's configuration from the server, which completes it, change a field, and load the
        model with the result. Such a load must not load files again that the change does not concern.
        """
        unset = ModelConfig(new.name)
        same: dict[str, Any] = {}
        for field, in_force in _IN_FORCE.items():
            value, before, default = (getattr(config, field) for config in (new, self.loaded, unset))
            if before == default != value and all(in_force(model, value) for model in self.models):
                same[field] = before
        groups = tuple(
            _as_placed(group, index, self.models) for index, group in enumerate(new.instance_groups)
        )
        return replace(new, instance_groups=groups, **same)


def _describes(model: Model, specs: Sequence[TensorSpec], served: Sequence[TensorSpec]) -> bool:
    first = (-1,) if model.max_batch_size else ()
    return [
        (spec.name, spec.datatype, (*first, *spec.shape), spec.optional, spec.labels) for spec in specs
    ] == [(spec.name, spec.datatype, spec.shape, spec.optional, spec.labels) for spec in served] and all(
        spec.reshape is None for spec in specs
    )


#: For each field that a load completes, a function that returns whether a value is in force in a model.
_IN_FORCE: Final[dict[str, Callable[[Model, Any], bool]]] = {
    "backend": lambda model, value: value == model.backend,
    "platform": lambda model, value: value == model.platform,
    "max_batch_size": lambda model, value: value == model.max_batch_size,
    "inputs": lambda model, value: _describes(model, value, model.signature.inputs),
    "outputs": lambda model, value: _describes(model, value, model.signature.outputs),
    "default_model_filename": lambda model, value: value == model.filename,
}


def _as_placed(group: InstanceGroup, index: int, models: Sequence[Model]) -> InstanceGroup:
    """Returns the group with the kind and the GPUs of the served group in its place, if both mean the same
    devices.
    """
    for model in models:
        placed = () if model.placement is None else model.placement.places.groups
        served = next((one for one in placed if one.index == index), None)
        if served is None or served.devices != _devices(group):
            return group
        group = replace(group, kind=served.group.kind, gpus=served.group.gpus)
    return group


def _devices(group: InstanceGroup) -> tuple[Device, ...]:
    if group.kind == "gpu":
        return tuple(Device("gpu", index) for index in group.gpus)
    return {"cpu": (CPU,), "model": (Device("model"),)}.get(group.kind, ())
