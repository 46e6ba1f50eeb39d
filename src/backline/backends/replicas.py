"""A model that was loaded on several devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from backline.backends.backend import LoadedModel
from backline.engine.device import Device


class Replicas:
    """A LoadedModel on each of several devices, which are alike except for that: what is asked of all is asked of the first."""

    def __init__(self, models: Mapping[Device, LoadedModel]) -> None:
        self._models = dict(models)
        first = next(iter(self._models.values()))
        self.signature = first.signature
        self.threads_per_run = first.threads_per_run
        self.warnings = tuple(
            dict.fromkeys(warning for model in self._models.values() for warning in model.warnings)
        )
        self._first = first

    def on(self, device: Device) -> LoadedModel:
        """The one on a device."""
        return self._models[device]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See LoadedModel."""
        return self._first.run(inputs, outputs)

    def close(self) -> None:
        """See LoadedModel."""
        for model in self._models.values():
            model.close()

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())


Model = TypeVar("Model")


def each_replica(model: Model) -> Sequence[Model | LoadedModel]:
    """The models that a model consists of, mostly itself alone."""
    return list(model) if isinstance(model, Replicas) else [model]


def replica_on(model: LoadedModel, device: Device) -> LoadedModel:
    """What runs on a device of a model, which may have only one."""
    return model.on(device) if isinstance(model, Replicas) else model
