"""The model configuration that clients see: an inference.ModelConfig of what the server does with a model, everything filled in."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from backline.dialects.open_inference.metadata import SCALAR
from backline.engine.engine import Engine, Model
from backline.engine.model_config import VersionPolicy
from backline.engine.signature import TensorSpec
from backline.protos import message


def model_configuration(engine: Engine, name: str, version: str) -> Any:
    """The inference.ModelConfig of a model version. Raises NotFound, or Unavailable when the version is not ready."""
    model = engine.find_ready(name, version)
    config = message("inference.ModelConfig")()
    config.name = model.name
    config.platform = model.platform
    config.backend = model.backend
    config.max_batch_size = model.max_batch_size
    config.default_model_filename = model.config.default_model_filename
    _fill_version_policy(config.version_policy, model.config.version_policy)
    batched = model.max_batch_size > 0
    for spec in model.signature.inputs:
        entry = config.input.add()
        _fill_tensor(entry, spec, batched=batched)
        entry.optional = spec.optional
    for spec in model.signature.outputs:
        _fill_tensor(config.output.add(), spec, batched=batched)
    placement = model.placement
    group = config.instance_group.add()
    group.name = f"{model.name}_0"
    group.kind = message("inference.ModelInstanceGroup").KIND_CPU
    group.count = placement.instances if placement else 1
    if batched:
        _fill_batching(config.dynamic_batching, model)
    for key, value in model.config.parameters.items():
        config.parameters[key].string_value = value
    if model.placement is not None:
        # What the server chose, where people and tools already look for backends' own values.
        config.parameters["backline.lane"].string_value = model.placement.lane
        config.parameters["backline.placement"].string_value = model.placement.reason
    return config


def configuration_json(configuration: Any) -> dict[str, Any]:
    """A message as plain data with the fields' own names; fields without a value too, but not unset messages. 64-bit integers are numbers,
    not strings as in protobuf's own JSON form, because clients of this protocol expect so."""
    document: dict[str, Any] = {}
    for field in configuration.DESCRIPTOR.fields:
        name = field.name
        if field.has_presence:
            if configuration.HasField(name):
                document[name] = _json(field, getattr(configuration, name))
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            document[name] = {str(key): _json(entry, value) for key, value in getattr(configuration, name).items()}
        elif field.is_repeated:
            document[name] = [_json(field, value) for value in getattr(configuration, name)]
        else:
            document[name] = _json(field, getattr(configuration, name))
    return document


def _json(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return configuration_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value


def _fill_version_policy(policy: Any, given: VersionPolicy) -> None:
    if given.specific is not None:
        # The field holds numbers only; versions with other names cannot be told there.
        policy.specific.versions.extend(int(version) for version in given.specific if version.isdecimal())
    elif given.latest is not None:
        policy.latest.num_versions = given.latest
    else:
        policy.all.SetInParent()


def _fill_tensor(entry: Any, spec: TensorSpec, *, batched: bool) -> None:
    entry.name = spec.name
    entry.data_type = entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[spec.datatype.config_name].number
    if not spec.shape and hasattr(entry, "optional"):  # a scalar input, see metadata.SCALAR
        entry.dims.extend(SCALAR)
        entry.reshape.SetInParent()
    else:
        entry.dims.extend(spec.shape[1:] if batched else spec.shape)


def _fill_batching(batching: Any, model: Model) -> None:
    batching.preferred_batch_size.extend(model.config.preferred_batch_sizes or (model.max_batch_size,))
    batching.max_queue_delay_microseconds = model.config.max_queue_delay_us
    policy = batching.default_queue_policy
    policy.default_timeout_microseconds = model.config.default_timeout_us
    policy.allow_timeout_override = True
    policy.max_queue_size = model.config.max_queue_size or 0
