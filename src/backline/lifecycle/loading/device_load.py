"""A model's file, loaded on each device that its instances run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backline.backends.agreement import agree
from backline.backends.arrangement import ArrangedModel, is_arranged
from backline.backends.backend import Backend, LoadedModel, StreamingModel, load_on
from backline.backends.hosted import HostedModel
from backline.backends.replicas import Replicas
from backline.engine.device import Device
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.lifecycle.loading.joined import as_the_model_sees
from backline.lifecycle.loading.reshaped import as_reshaped, reshaped
from backline.lifecycle.loading.sequence_states import with_hidden_tensors


def load_on_devices(
    path: Path, backend: Backend, config: ModelConfig, devices: Sequence[Device]
) -> LoadedModel | StreamingModel | HostedModel:
    """The model on each of the devices; what runs elsewhere, or streams, is loaded once."""
    models: dict[Device, LoadedModel] = {}
    try:
        for device in devices:
            model = _load_on(path, backend, config, device)
            if isinstance(model, StreamingModel | HostedModel):
                return model
            models[device] = model
    except BaseException:
        for loaded in models.values():
            loaded.close()
        raise
    return models[devices[0]] if len(devices) == 1 else Replicas(models)


def _load_on(
    path: Path, backend: Backend, config: ModelConfig, device: Device
) -> LoadedModel | StreamingModel | HostedModel:
    seen = as_the_model_sees(with_hidden_tensors(as_reshaped(config)))
    if is_arranged(config):
        return reshaped(_arranged(path, backend, config, seen, device), config)
    model = load_on(backend, path, seen, device)
    return model if isinstance(model, HostedModel) else reshaped(model, config)


def _arranged(
    path: Path, backend: Backend, config: ModelConfig, seen: ModelConfig, device: Device
) -> LoadedModel:
    """The model as its configuration arranges it, `seen` as it has it then: the backend loads what the file says."""
    model = load_on(backend, path, replace(config, inputs=(), outputs=(), max_batch_size=None), device)
    if isinstance(model, HostedModel):
        raise InvalidArgument(
            f"model '{config.name}': {config.source} gives batch_axis or constant_input, which Python models do not take"
        )
    if isinstance(model, StreamingModel):
        model.close()
        raise InvalidArgument(
            f"model '{config.name}': {config.source} gives batch_axis or constant_input, which streams do not take"
        )
    try:
        arranged = ArrangedModel(model, config)
        arranged.signature = agree(path, arranged.signature, seen)
    except BacklineError:
        model.close()
        raise
    return arranged
