"""The parameters of requests: those that the protocol defines, and those for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backline.dialects.open_inference.plan import InferPlan
from backline.engine.errors import InvalidArgument, Unsupported
from backline.engine.messages import Parameter, SequenceStep

RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
#: Requests an empty final response on a stream whose last response with content is not marked as final.
EMPTY_FINAL = "triton_enable_empty_final_response"
#: Marks the final response to a request on a stream.
FINAL = "triton_final_response"
MAX_CLASSES = 1_000_000
SEQUENCE = frozenset({"sequence_id", "sequence_start", "sequence_end"})
#: The most characters in the id of a sequence.
MAX_SEQUENCE_ID = 128
#: The most characters of a value that an error repeats.
_LONGEST_SHOWN = 64


def apply_parameters(plan: InferPlan, given: Mapping[str, Any]) -> None:
    """Puts the parameters of a request on its plan: the protocol's in their own fields, the others for the
    model.

    `timeout` is in microseconds on the wire. Raises InvalidArgument.
    """
    parameters: dict[str, Parameter] = {}
    for key, value in given.items():
        if key == "binary_data_output":
            plan.binary_default = boolean(key, value)
        elif key == "priority":
            plan.priority = unsigned(key, value)
        elif key == "timeout":
            plan.timeout = unsigned(key, value) / 1e6 or None
        elif key == EMPTY_FINAL:
            plan.empty_final = boolean(key, value)
        elif key.startswith("triton_"):
            raise InvalidArgument(RESERVED)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise InvalidArgument(f"parameter '{key[:64]}' must fit in 64 bits, got {_shown(value)}")
        else:
            parameters[key] = value
    plan.sequence = take_sequence(parameters)
    plan.parameters = parameters or None


def take_sequence(parameters: dict[str, Parameter]) -> SequenceStep | None:
    """Removes the sequence parameters from `parameters`.

    Raises InvalidArgument; Unsupported for too long an id.
    """
    if not parameters.keys() & SEQUENCE:
        return None
    id = parameters.pop("sequence_id", 0)
    start = boolean("sequence_start", parameters.pop("sequence_start", False))
    end = boolean("sequence_end", parameters.pop("sequence_end", False))
    if not isinstance(id, str):
        unsigned("sequence_id", id)
    elif len(id) > MAX_SEQUENCE_ID:  # Triton's status and text
        raise Unsupported(f"string correlation ID cannot be longer than {MAX_SEQUENCE_ID} characters")
    return SequenceStep(id, start, end)  # type: ignore[arg-type]  # a string or a number


def unsigned(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise InvalidArgument(
            f"parameter '{key}' must be an unsigned integer below 2**64, got {_shown(value)}"
        )
    return value


def boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter '{key}' must be true or false, got {_shown(value)}")
    return value


def class_count(output: str, value: object) -> int:
    """The number of classes requested of an output.

    Raises InvalidArgument unless it is a positive integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(
            f"parameter 'classification' of output '{output}' must be a positive integer, got {_shown(value)}"
        )
    return min(value, MAX_CLASSES)


def _shown(value: object) -> str:
    """A value as in JSON, cut to a length fit for an error text."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
