"""Builds the complete inference.ModelConfig that clients see, with all defaults and the server's decisions.

The configuration has Triton's form. `explained_configuration` adds what Triton has no field for, as
parameters `backline.*`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backline.backends.plugin import BACKENDS
from backline.backends.registry import FORMATS
from backline.dialects.open_inference.metadata import SCALAR
from backline.engine.config.model_config import VersionPolicy
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.repository.configuration import native
from backline.repository.configuration.completion import fill_defaults, fill_places
from backline.repository.configuration.origins import Value, document_of, origins
from backline.repository.configuration.override import SOURCE
from backline_client.protos import message
from backline_client.values.private_places import for_clients
from backline_client.values.signature import TensorSpec

#: The platforms that Triton shows. For models of other backends, Triton shows only the backend's name.
_PLATFORMS = {"ensemble", *(entry.platform for entry in BACKENDS.built_in if "_" in entry.platform)}


def model_configuration(engine: Engine, name: str, version: str) -> Any:
    """Returns a version's inference.ModelConfig.

    Raises NotFound for an unknown model or version, and Unavailable if the version is not ready.
    """
    return complete(describe(engine.find_ready(name, version)))


def explained_configuration(engine: Engine, name: str, version: str) -> Any:
    """Returns the configuration, with parameters that say where and how the model runs, and why."""
    model = engine.find_ready(name, version)
    return complete(explained(model, describe(model)))


def configuration_origins(engine: Engine, name: str, version: str) -> list[Value]:
    """Returns where each value of a version's configuration comes from: its file, a load request, the model's
    file, the server's decisions, or a default. Raises the same errors as `model_configuration`.
    """
    model = engine.find_ready(name, version)
    described = explained(model, describe(model))
    values = origins(
        document_of(model.config), described, complete(described), override=model.config.source == SOURCE
    )
    return [replace(value, where=for_clients(value.where)) for value in values]


def complete(described: Any) -> Any:
    """Returns a copy of a configuration with Triton's defaults filled in."""
    config = message("inference.ModelConfig").FromString(described.SerializeToString())
    fill_defaults(config, config.name, _filename(config.backend))
    return config


def describe(model: Model) -> Any:
    """Returns the configuration in the model's files, completed with what the server detected and decided."""
    given = model.config
    config = message("inference.ModelConfig").FromString(given.declared)
    config.name = model.name
    config.backend = config.backend or model.backend
    config.platform = config.platform or (model.platform if model.platform in _PLATFORMS else "")
    config.max_batch_size = model.max_batch_size
    config.default_model_filename = given.default_model_filename or model.filename or _named_file(model)
    if not config.HasField("version_policy") and given.version_policy != VersionPolicy():
        _fill_version_policy(config.version_policy, given.version_policy)
    if model.decoupled or given.ensemble is not None:  # an ensemble is decoupled if one of its steps is
        config.model_transaction_policy.decoupled = model.decoupled
    batched = model.max_batch_size > 0
    for tensors, specs in ((config.input, model.signature.inputs), (config.output, model.signature.outputs)):
        if not tensors:
            for spec in specs:
                _fill_tensor(tensors.add(), spec, batched=batched)
    placement = model.placement
    if placement is not None:
        if not config.instance_group and placement.instances:
            each = -(-placement.instances // max(1, len(placement.places.devices)))
            config.instance_group.add(name=model.name, count=each)
        fill_places(config, placement.places)
    if batched and given.max_batch_size is None and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()  # the server batches even if the files do not say so
    for key, value in given.parameters.items():
        config.parameters[key].string_value = value
    return config


def _named_file(model: Model) -> str:
    """Returns the file name that Triton shows for a model without files whose name says its backend; see
    with_backend_of_name.
    """
    said = message("inference.ModelConfig").FromString(model.config.declared)
    _, _, backend = model.name.partition(".")
    return f"model.{backend}" if backend == model.backend and not said.backend and not said.platform else ""


def explained(model: Model, config: Any) -> Any:
    """Returns `config`, the result of `describe`, with parameters that say where and how the server runs the
    model.

    Parameters are where people and tools already look for backend settings.
    """
    if model.placement is not None:
        config.parameters[native.parameter("lane")].string_value = model.placement.lane
        config.parameters[native.PLACEMENT].string_value = model.placement.reason
    if model.scheduling:
        config.parameters[native.SCHEDULING].string_value = model.scheduling
    return config


def _fill_version_policy(policy: Any, given: VersionPolicy) -> None:
    if given.specific is not None:
        # The field holds only numbers, so versions with other names are left out.
        policy.specific.versions.extend(int(version) for version in given.specific if version.isdecimal())
    elif given.latest is not None:
        policy.latest.num_versions = given.latest
    else:
        policy.all.SetInParent()


def _fill_tensor(entry: Any, spec: TensorSpec, *, batched: bool) -> None:
    entry.name = spec.name
    datatypes = entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    entry.data_type = datatypes[spec.datatype.config_name].number
    is_input = hasattr(entry, "optional")
    if is_input:
        entry.optional = spec.optional
    if not spec.shape and is_input:  # a scalar input, see metadata.SCALAR
        entry.dims.extend(SCALAR)
        entry.reshape.SetInParent()
    else:
        entry.dims.extend(spec.shape[1:] if batched else spec.shape)


def _filename(backend: str) -> str:
    """Returns the default file name of a backend's models; empty if there is none."""
    return next(
        (filename for known in FORMATS if known.backend == backend for filename in known.filenames), ""
    )
