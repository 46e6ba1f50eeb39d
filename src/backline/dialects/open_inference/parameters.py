"""The parameters of requests: which are the protocol's own, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backline.dialects.open_inference.plan import InferPlan
from backline.engine.errors import InvalidArgument, Unsupported
from backline.engine.messages import Parameter, SequenceStep

RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
#: Asks for an empty last answer on a stream where the last answer with content does not say that it is the last.
EMPTY_FINAL = "triton_enable_empty_final_response"
#: The parameter of an answer on a stream that says whether it is the last one to its request.
FINAL = "triton_final_response"
MAX_CLASSES = 1_000_000
SEQUENCE = frozenset({"sequence_id", "sequence_start", "sequence_end"})
#: The characters of a sequence's id.
MAX_SEQUENCE_ID = 128
#: Characters of a value that an error repeats.
_LONGEST_SHOWN = 64


def apply_parameters(plan: InferPlan, given: Mapping[str, Any]) -> None:
    """Notes the parameters of a request on its plan: the protocol's own where they belong, the others for the model.

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
            raise InvalidArgument(f"parameter '{key[:64]}' must fit into 64 bits, got {_shown(value)}")
        else:
            parameters[key] = value
    plan.sequence = take_sequence(parameters)
    plan.parameters = parameters or None


def take_sequence(parameters: dict[str, Parameter]) -> SequenceStep | None:
    """Takes the parameters of sequences out of those of a request. Raises InvalidArgument; Unsupported for an id that is too long."""
    if not parameters.keys() & SEQUENCE:
        return None
    id = parameters.pop("sequence_id", 0)
    start = boolean("sequence_start", parameters.pop("sequence_start", False))
    end = boolean("sequence_end", parameters.pop("sequence_end", False))
    if not isinstance(id, str):
        unsigned("sequence_id", id)
    elif len(id) > MAX_SEQUENCE_ID:  # Triton's code and words
        raise Unsupported(f"string correlation ID cannot be longer than {MAX_SEQUENCE_ID} characters")
    return SequenceStep(id, start, end)  # type: ignore[arg-type]  # it is a text or a number


def unsigned(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise InvalidArgument(
            f"parameter '{key}' must be an unsigned integer of 64 bits, got {_shown(value)}"
        )
    return value


def boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter '{key}' must be true or false, got {_shown(value)}")
    return value


def class_count(output: str, value: object) -> int:
    """The number of classes wanted of an output. Raises InvalidArgument unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(
            f"parameter 'classification' of output '{output}' must be a positive integer, got {_shown(value)}"
        )
    return min(value, MAX_CLASSES)


def _shown(value: object) -> str:
    """A value as JSON has it, not longer than a line of an error."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
