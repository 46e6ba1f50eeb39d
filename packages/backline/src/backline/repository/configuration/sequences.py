"""Reads sequence_batching and checks it as Triton does (core/src/model_config_utils.cc)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backline.engine.config.sequence_batching import (
    ControlKind,
    SequenceBatching,
    SequenceControl,
    SequenceState,
)
from backline.repository.configuration.document import data_type
from backline_client.values.datatypes import DataType

_ONE_SECOND = 1_000_000
_KINDS: dict[str, ControlKind] = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_CORRID": "id",
}
_VALUES = {
    "int32_false_true": DataType.INT32,
    "fp32_false_true": DataType.FP32,
    "bool_false_true": DataType.BOOL,
}
_EITHER = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"
_CORRELATION = "CONTROL_SEQUENCE_CORRID"
_CORRELATION_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_SECTION = "sequence_batching"
#: The maximum number of slots in a batch of sequences. A slot takes memory even while it is empty.
MAX_PLACES = 65_536


def sequence_batching(message: Any) -> SequenceBatching | None:
    """Returns the sequence batching of a checked inference.ModelConfig; None if the model has none."""
    if not message.HasField("sequence_batching"):
        return None
    given = message.sequence_batching
    oldest = given.WhichOneof("strategy_choice") == "oldest"
    chosen = given.oldest if oldest else given.direct
    return SequenceBatching(
        strategy="oldest" if oldest else "direct",
        idle_us=given.max_sequence_idle_microseconds or _ONE_SECOND,
        controls=tuple(
            _control(tensor.name, control) for tensor in given.control_input for control in tensor.control
        ),
        states=tuple(_state(state) for state in given.state),
        max_candidates=given.oldest.max_candidate_sequences,
        preferred_batch_sizes=tuple(given.oldest.preferred_batch_size),
        max_queue_delay_us=chosen.max_queue_delay_microseconds,
        minimum_slot_utilization=given.direct.minimum_slot_utilization,
        preserve_ordering=given.oldest.preserve_ordering,
        iterative=given.iterative_sequence,
    )


def _control(name: str, control: Any) -> SequenceControl:
    kind = _KINDS[control.Kind.Name(control.kind)]
    if kind == "id":
        return SequenceControl(kind, name, data_type(control))
    field, datatype = next(
        (field, datatype) for field, datatype in _VALUES.items() if getattr(control, field)
    )
    return SequenceControl(kind, name, datatype, tuple(getattr(control, field)))


def _state(state: Any) -> SequenceState:
    shape = tuple(state.dims)
    initial = state.initial_state[0] if state.initial_state else None
    return SequenceState(
        state.input_name,
        state.output_name,
        data_type(state),
        shape,
        # As in Triton, the size of a variable dimension is 1 unless an initial state gives it.
        tuple(initial.dims) if initial is not None else tuple(1 if dim < 0 else dim for dim in shape),
        initial.data_file if initial is not None else "",
    )


def sequence_faults(batching: Any, limit: int, name: str) -> Iterator[tuple[str, str]]:
    """Yields each fault in sequence_batching, with the path of its field, in Triton's order and wording.
    `limit` is max_batch_size.
    """
    if batching.HasField("oldest"):
        for size in batching.oldest.preferred_batch_size:
            path = f"{_SECTION}.oldest.preferred_batch_size"
            if size <= 0:
                yield f"sequence batching preferred batch size must be positive for {name}", path
            if size > limit:
                yield f"sequence batching preferred batch size must be <= max batch size for {name}", path
    if not batching.HasField("oldest") and limit > MAX_PLACES:
        reason = (
            f"max_batch_size is {limit}; a batch of sequences has a slot for each item, so at most"
            f" {MAX_PLACES} is allowed for {name}"
        )
        yield reason, "max_batch_size"
    if batching.HasField("direct") and not 0 <= batching.direct.minimum_slot_utilization <= 1:
        reason = f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}"
        yield reason, f"{_SECTION}.direct.minimum_slot_utilization"
    for kind in _KINDS:
        yield from _control_faults(batching, kind, name)
    yield from _shared_tensor_faults(batching, name)


def state_faults(batching: Any) -> Iterator[tuple[str, str]]:
    """Yields each fault in the initial states, which Triton checks when it creates a version."""
    for index, state in enumerate(batching.state):
        yield from _initial_state_faults(f"{_SECTION}.state[{index}]", state)


def _control_faults(batching: Any, kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Yields the faults in the controls of one kind: a tensor without a name, several tensors of this kind,
    or invalid values.
    """
    seen = False
    for index, control_input in enumerate(batching.control_input):
        path = f"{_SECTION}.control_input[{index}]"
        if not control_input.name:
            yield f"sequence batching control tensor must have a name for {name}", path
        for number, control in enumerate(control_input.control):
            if control.Kind.Name(control.kind) != kind:
                continue
            if seen:
                yield f"sequence batching specifies multiple {kind} tensors for {name}", path
            seen = True
            yield from _value_faults(f"{path}.control[{number}]", control, kind, name)


def _value_faults(path: str, control: Any, kind: str, name: str) -> Iterator[tuple[str, str]]:
    given = [field for field in _VALUES if getattr(control, field)]
    if kind == _CORRELATION:
        types = control.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
        if given:
            yield f"sequence batching must not specify either {_EITHER} for {kind} for {name}", path
        if types[control.data_type].name not in _CORRELATION_TYPES:
            allowed = f"{', '.join(_CORRELATION_TYPES[:-1])} and {_CORRELATION_TYPES[-1]}"
            yield (
                f"unexpected data type for control {kind} for {name}. Allowed data types are {allowed}",
                path,
            )
        return
    if not given:
        yield f"sequence batching must specify either {_EITHER} for {kind} for {name}", path
    if len(given) > 1:
        either = _EITHER.replace(" or ", " and ")
        yield f"sequence batching specifies more than one from {either} for {kind} for {name}", path
    for field in given:
        if len(getattr(control, field)) != 2:
            reason = f"sequence batching control '{field}' must have exactly 2 entries for {kind} for {name}"
            yield reason, f"{path}.{field}"


def _shared_tensor_faults(batching: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yields a fault for each tensor that carries more than one kind of control."""
    kinds: dict[str, set[int]] = {}
    for index, control_input in enumerate(batching.control_input):
        of_tensor = kinds.setdefault(control_input.name, set())
        of_tensor.update(control.kind for control in control_input.control)
        if len(of_tensor) > 1:
            reason = (
                f"sequence batching control tensor '{control_input.name}' is specified for multiple control"
                f" kinds for {name}"
            )
            yield reason, f"{_SECTION}.control_input[{index}]"


def _initial_state_faults(path: str, state: Any) -> Iterator[tuple[str, str]]:
    for index, initial in enumerate(state.initial_state):
        where = f"{path}.initial_state[{index}]"
        if not initial.name:
            yield (
                f"Field 'name' must be set when using initial_state for state input '{state.input_name}'.",
                where,
            )
        if initial.data_type != state.data_type:
            reason = (
                f"The data type used for 'initial_state' field of state '{state.input_name}' does not match"
                " the state data type."
            )
            yield reason, f"{where}.data_type"
        start = (
            f"'initial_state' dim for input name '{state.input_name}' doesn't match 'state' dim description."
        )
        if len(initial.dims) != len(state.dims):
            yield f"{start} {len(initial.dims)} dimensions != {len(state.dims)}", f"{where}.dims"
        for got, expected in zip(initial.dims, state.dims, strict=False):
            if expected not in (-1, got):
                yield f"{start} {got} != {expected}", f"{where}.dims"
