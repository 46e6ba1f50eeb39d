"""The sequence batching of a configuration, from the message to what the server works with."""

from __future__ import annotations

from typing import Any

from backline.engine.datatypes import DataType
from backline.engine.sequence_batching import ControlKind, SequenceBatching, SequenceControl, SequenceState

_ONE_SECOND = 1_000_000
_KINDS: dict[str, ControlKind] = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_CORRID": "id",
}
_VALUES = (
    ("int32_false_true", DataType.INT32),
    ("fp32_false_true", DataType.FP32),
    ("bool_false_true", DataType.BOOL),
)


def sequence_batching(message: Any) -> SequenceBatching | None:
    """Of an inference.ModelConfig that was checked; None without one."""
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
        return SequenceControl(kind, name, _datatype(control))
    field, datatype = next((field, datatype) for field, datatype in _VALUES if getattr(control, field))
    return SequenceControl(kind, name, datatype, tuple(getattr(control, field)))


def _state(state: Any) -> SequenceState:
    shape = tuple(state.dims)
    initial = state.initial_state[0] if state.initial_state else None
    return SequenceState(
        state.input_name,
        state.output_name,
        _datatype(state),
        shape,
        # Triton's choice for what varies and is not given.
        tuple(initial.dims) if initial is not None else tuple(1 if dim < 0 else dim for dim in shape),
        initial.data_file if initial is not None else "",
    )


def _datatype(given: Any) -> DataType:
    kinds = given.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return DataType.from_config_name(kinds[given.data_type].name)
