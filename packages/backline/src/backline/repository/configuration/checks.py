"""Checks a configuration for contradictions, in Triton's order and, for rules that Triton has too, with its
error messages (core/src/model_config_utils.cc).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from math import isfinite
from typing import Any

from backline.repository.configuration import native
from backline.repository.configuration.document import Document, data_type, suggest
from backline.repository.configuration.ensemble_checks import ensemble_faults
from backline.repository.configuration.sequences import sequence_faults, state_faults

#: The description of a fault, and the path of the field that has the fault.
Fault = tuple[str, str]

_DELAY = 1
#: Matches a valid metric tag, which becomes part of the name of a Prometheus label. Triton exits if a tag has
#: another form.
_TAG = re.compile(r"[a-zA-Z0-9_]+")
#: The numbers of TYPE_INT32 and TYPE_FP32.
_BATCH_INPUT_TYPES = frozenset({8, 11})
#: The platforms that Triton knows. If this server has no backend for one of them, the load reports that.
_PLATFORMS = frozenset(
    {
        "ensemble",
        "onnxruntime_onnx",
        "pytorch_libtorch",
        "tensorflow_graphdef",
        "tensorflow_savedmodel",
        "tensorrt_plan",
    }
)
_OBJECTIVE = native.parameter("objective.p99_ms")


def check(document: Document, name: str, *, whole: bool = True) -> None:
    """Raises InvalidArgument for the first rule that the configuration of the model `name` breaks.

    The error is a CreationFault if Triton checks the rule only after it has read the configuration. Unless
    `whole` is set, tensors may lack a datatype or dims, because the model's code may add them.
    """
    message = document.message
    for reason, path in chain(_unknown_values(message), _faults(message, name)):
        raise document.error(reason, path)
    for reason, path in _creation_faults(message, name, whole):
        raise document.creation_fault(reason, path)


def check_samples(document: Document, name: str) -> None:
    """Raises CreationFault for the first invalid warm-up sample or initial state.

    Triton checks samples and initial states last, after it has read the label files.
    """
    message = document.message
    for reason, path in chain(_warm_up_faults(message, name), state_faults(message.sequence_batching)):
        raise document.creation_fault(reason, path)


def check_complete(document: Document, name: str) -> None:
    """Raises InvalidArgument unless the configuration names the inputs and outputs of the model `name`."""
    for kind in ("input", "output"):
        if not getattr(document.message, kind):
            reason = (
                f"must specify at least one {kind} for {name}, as configurations are not completed from the"
                " model"
            )
            raise document.error(reason)


def check_platform(document: Document, name: str, known: frozenset[str]) -> None:
    """Raises InvalidArgument for a platform that is neither in `known` nor known to Triton, unless the
    configuration names a backend.

    Triton makes this check before all others.
    """
    platform = document.message.platform
    if platform and not document.message.backend and platform not in known | _PLATFORMS:
        said = document.message.name or name
        near = suggest(platform, sorted(known))
        raise document.error(f"unexpected platform type '{platform}' for {said}{near}", "platform")


def _unknown_values(section: Any, prefix: str = "") -> Iterator[Fault]:
    """Yields the fields that are set to a number that is not a value of their enumeration. The text format
    accepts such numbers.
    """
    for field, value in section.ListFields():
        path = prefix + field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _unknown_values(value[key], f"{path}[{key}].")
        elif field.message_type is not None:
            for index, part in enumerate(value if field.is_repeated else (value,)):
                yield from _unknown_values(part, f"{path}[{index}]." if field.is_repeated else f"{path}.")
        elif field.enum_type is not None and value not in field.enum_type.values_by_number:
            reason = (
                f"unknown value {value}; expected one of"
                f" {', '.join(kind.name for kind in field.enum_type.values)}"
            )
            yield reason, path


def _faults(message: Any, name: str) -> Iterator[Fault]:
    limit = message.max_batch_size
    said = message.name or name  # Triton checks the name last, but uses it in earlier error messages
    if limit < 0:
        yield f"'max_batch_size' must be non-negative value for {said}", "max_batch_size"
    yield from _metric_faults(message, name)
    if message.HasField("dynamic_batching"):
        yield from _batching_faults(message.dynamic_batching, limit, said)
    if message.HasField("sequence_batching"):
        if message.response_cache.enable:
            reason = (
                f"Response Cache does not currently support model {said} with sequence batching scheduler."
            )
            yield f"{reason} Please disable the response cache.", "response_cache"
        yield from sequence_faults(message.sequence_batching, limit, said)
    yield from _ensemble_faults(message, said)
    yield from _objective_faults(message, name)
    if message.response_cache.enable and message.model_transaction_policy.decoupled:
        reason = (
            f"Response Cache does not currently support model {said} with 'decoupled' transaction policy."
        )
        yield f"{reason} Please disable the response cache.", "response_cache"
    if said != name:
        reason = (
            f"unexpected directory name '{name}' for model '{said}', directory name must equal model name"
        )
        yield reason, "name"


def _metric_faults(message: Any, name: str) -> Iterator[Fault]:
    for tag in message.metric_tags:
        if not _TAG.fullmatch(tag):
            reason = (
                f"metric_tags has '{tag}', which the name of a Prometheus label cannot contain: use only"
                " letters, digits and _"
            )
            yield reason, "metric_tags"
    for index, control in enumerate(message.model_metrics.metric_control):
        path = f"model_metrics.metric_control[{index}]"
        if not control.metric_identifier.family:
            yield f"metric_control must specify the 'family' of its metric for {name}", path
        buckets = list(control.histogram_options.buckets)
        if buckets != sorted(set(buckets)) or not all(map(isfinite, buckets)):
            reason = (
                f"metric_control has buckets {buckets}, expected finite upper bounds in ascending order for"
                f" {name}"
            )
            yield reason, path


def _creation_faults(message: Any, name: str, whole: bool) -> Iterator[Fault]:
    limit = message.max_batch_size
    yield from _instance_faults(message, name)
    for kind in ("input", "output"):
        for index, tensor in enumerate(getattr(message, kind)):
            if whole or not tensor.name or is_whole(tensor):
                yield from _tensor_faults(kind, f"{kind}[{index}]", tensor, batched=limit > 0, name=name)
        yield from _repeated_names(kind, getattr(message, kind))
    yield from _batch_tensor_faults(message, name)


def _batching_faults(batching: Any, limit: int, name: str) -> Iterator[Fault]:
    section = "dynamic_batching"
    for size in batching.preferred_batch_size:
        if size <= 0:
            yield (
                f"dynamic batching preferred size must be positive for {name}",
                f"{section}.preferred_batch_size",
            )
        if size > limit:
            yield (
                f"dynamic batching preferred size must be <= max batch size for {name}",
                f"{section}.preferred_batch_size",
            )
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            yield (
                f"default priority level must be in range [1, {levels}] for {name}",
                f"{section}.default_priority_level",
            )
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                reason = f"priority queue policy must have priority level in range [1, {levels}] for {name}"
                yield reason, f"{section}.priority_queue_policy[{level}]"
    if batching.preserve_ordering:
        if levels > 1:
            reason = f"Only one priority level is allowed when 'preserve_ordering' is true for {name}"
            yield reason, f"{section}.priority_levels"
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        if any(
            p.timeout_action == _DELAY and (p.default_timeout_microseconds or p.allow_timeout_override)
            for p in policies
        ):
            reason = (
                "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for"
                f" {name}"
            )
            yield reason, f"{section}.preserve_ordering"


def _tensor_faults(kind: str, path: str, tensor: Any, *, batched: bool, name: str) -> Iterator[Fault]:
    what = f"model {kind} '{tensor.name}'"
    if not tensor.name:
        yield f"model {kind} must specify 'name' for {name}", path
    if not tensor.data_type:
        yield f"{what} must specify 'data_type' for {name}", path
    if not tensor.dims:
        yield f"{what} must specify 'dims' for {name}", path
    if any(dim < 1 and dim != -1 for dim in tensor.dims):
        reason = (
            f"{what} dimension must be integer >= 1, or -1 to indicate a variable-size dimension for {name}"
        )
        yield reason, f"{path}.dims"
    if tensor.HasField("reshape"):
        yield from _reshape_faults(what, f"{path}.reshape", tensor, batched=batched, name=name)
    if kind == "input" and tensor.format and len(tensor.dims) != 3:
        yield f"model input NHWC/NCHW require 3 dims for {name}", f"{path}.format"
    if tensor.is_shape_tensor:
        yield f"shape tensors are only supported for TensorRT platform for {name}", f"{path}.is_shape_tensor"


def is_whole(tensor: Any) -> bool:
    """Returns whether an input or output has a datatype and dims."""
    return bool(tensor.data_type and tensor.dims)


def _reshape_faults(what: str, path: str, tensor: Any, *, batched: bool, name: str) -> Iterator[Fault]:
    shape = list(tensor.reshape.shape)
    dims = list(tensor.dims)
    if not batched and not shape:
        reason = (
            f"{what} cannot have empty reshape for non-batching model as scalar tensors are not supported"
            f" for {name}"
        )
        yield reason, path
    if any(dim < 1 and dim != -1 for dim in shape):
        reason = (
            f"{what} reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"
            f" for {name}"
        )
        yield reason, path
    if -1 in dims and -1 in shape and dims.count(-1) != shape.count(-1):
        yield f"{what} has different number of variable-size dimensions for dims and reshape for {name}", path
    if _sizes_between_variable(dims) != _sizes_between_variable(shape):
        yield f"{what} has different size for dims and reshape for {name}", path


def _sizes_between_variable(dims: list[int]) -> list[int]:
    """Returns the numbers of elements before, between and after the variable dimensions. A reshape must
    preserve each of these numbers.
    """
    sizes = [1]
    for dim in dims:
        if dim == -1:
            sizes.append(1)
        else:
            sizes[-1] *= dim
    return sizes


def _repeated_names(kind: str, tensors: Any) -> Iterator[Fault]:
    seen = set()
    for index, tensor in enumerate(tensors):
        if tensor.name in seen:
            yield f"model {kind} '{tensor.name}' is given more than once", f"{kind}[{index}]"
        seen.add(tensor.name)


def _batch_tensor_faults(message: Any, name: str) -> Iterator[Fault]:
    inputs = {tensor.name for tensor in message.input}
    outputs = {tensor.name for tensor in message.output}
    for what, tensors in (("input", message.batch_input), ("output", message.batch_output)):
        for index, tensor in enumerate(tensors):
            path = f"batch_{what}[{index}]"
            kind = tensor.Kind.Name(tensor.kind)
            if len(tensor.source_input) != 1:
                reason = (
                    f"batch {what} kind '{kind}' expects 1 source input, got {len(tensor.source_input)} for"
                    f" {name}"
                )
                yield reason, path
            if what == "input" and tensor.data_type not in _BATCH_INPUT_TYPES:
                yield f"batch input data type must be TYPE_INT32 or TYPE_FP32 for {name}", f"{path}.data_type"
            for source in tensor.source_input:
                if source not in inputs:
                    yield f"unknown source input name '{source}' for {name}", f"{path}.source_input"
            for target in tensor.target_name if what == "output" else ():
                if target not in outputs:
                    yield f"unknown target output name '{target}' for {name}", f"{path}.target_name"


def _ensemble_faults(message: Any, name: str) -> Iterator[Fault]:
    if message.HasField("ensemble_scheduling"):
        if message.instance_group:
            yield f"instance group should not be specified for ensemble '{name}'", "instance_group"
        yield from ensemble_faults(message, name)
    elif "ensemble" in (message.platform, message.backend):
        place = "platform" if message.platform == "ensemble" else "backend"
        yield f"ensemble scheduling must be set for ensemble {name} whose {place} is ensemble", place


def _objective_faults(message: Any, name: str) -> Iterator[Fault]:
    """Yields a fault for each setting that conflicts with the model's latency objective, if the model has
    one.
    """
    if _OBJECTIVE not in message.parameters:
        return
    batching = message.dynamic_batching
    why = f"the objective of {name} decides how long requests wait and how large batches are"
    if batching.max_queue_delay_microseconds:
        yield f"{why}: remove max_queue_delay_microseconds", "dynamic_batching.max_queue_delay_microseconds"
    if any(size != message.max_batch_size for size in batching.preferred_batch_size):
        yield f"{why}: remove preferred_batch_size", "dynamic_batching.preferred_batch_size"
    if any(
        policy.timeout_action == _DELAY
        for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values())
    ):
        yield (
            f"{why}: late requests are refused, so timeout_action cannot be DELAY",
            "dynamic_batching",
        )
    path = f"parameters[{_OBJECTIVE}]"
    if message.HasField("sequence_batching"):
        reason = (
            f"an objective may refuse some requests, which would break the sequences of {name}: remove it"
            " or sequence_batching"
        )
        yield reason, path
    if message.HasField("ensemble_scheduling"):
        yield f"ensemble {name} runs nothing itself: set the objective for the models of its steps", path
    if message.model_transaction_policy.decoupled:
        reason = (
            f"an objective needs one response per request, and {name} sends any number: remove it or"
            " 'decoupled'"
        )
        yield reason, path


def _instance_faults(message: Any, name: str) -> Iterator[Fault]:
    for index, group in enumerate(message.instance_group):
        kind = group.Kind.Name(group.kind)
        group_name = group.name or f"{name}_{index}"
        if group.gpus and kind not in ("KIND_GPU", "KIND_AUTO"):
            reason = (
                f"instance group {group_name} of model {name} has kind {kind} but specifies one or more GPUs"
            )
            yield reason, f"instance_group[{index}].gpus"
        if any(gpu < 0 for gpu in group.gpus):
            yield (
                f"instance group {group_name} of model {name} has a negative GPU number",
                f"instance_group[{index}].gpus",
            )
        if group.profile:
            of = f"instance group {group_name} of model {name} and platform {message.platform}".rstrip()
            yield (
                f"{of} specifies profile field which is only supported for TensorRT models",
                f"instance_group[{index}].profile",
            )
        if group.count < 0:
            yield (
                f"instance_group has count {group.count}; it must be positive",
                f"instance_group[{index}].count",
            )


def _warm_up_faults(message: Any, name: str) -> Iterator[Fault]:
    """Yields the faults in warm-up samples that can be found without the model. The other rules are checked
    when the warm-up runs.
    """
    for index, sample in enumerate(message.model_warmup):
        for tensor, given in sorted(sample.inputs.items()):
            path = f"model_warmup[{index}].inputs[{tensor}]"
            if not given.data_type:
                wanted = next((one for one in message.input if one.name == tensor), None)
                reason = f"model warmup input '{tensor}' must specify 'data_type' for {name}"
                if wanted is not None and wanted.data_type:  # Triton reports this when it runs the sample
                    reason = (
                        f"[request id: <id_unknown>] inference input '{tensor}' data-type is '<invalid>', but"
                        f" model '{name}' expects '{data_type(wanted).name}': {reason}"
                    )
                yield reason, path
            if any(dim < 0 for dim in given.dims):
                yield (
                    f"warmup setting expects all variable-size dimensions are specified for input '{tensor}'",
                    f"{path}.dims",
                )
            if given.WhichOneof("input_data_type") is None:
                reason = f"warmup setting expects input '{tensor}' to have input_data_type set"
                yield f"[request id: <id_unknown>] {reason}", path
