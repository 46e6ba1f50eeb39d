"""The request parameters that the server itself interprets, rather than passing them to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from backline_client.values.errors import InvalidArgument, Unsupported
from backline_client.values.messages import Parameter, SequenceStep

RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
#: The parameter that requests outputs in binary form over REST.
BINARY_OUTPUT = "binary_data_output"
#: The parameter that requests an empty final response at the end of a stream, if the last response with
#: outputs is not marked as the last.
EMPTY_FINAL = "triton_enable_empty_final_response"
#: Triton's error message for a reserved parameter over gRPC.
RESERVED_BUT = (
    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting"
    f" with 'triton_' are allowed: {EMPTY_FINAL}"
)
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_LONGEST_SEQUENCE_ID = 128
#: The maximum number of characters of a value that an error quotes.
_LONGEST_SHOWN = 64


class WrongType(InvalidArgument):
    """Raised if the parameter `key` has the wrong type. `kind` is the expected type: "unsigned-integer",
    "boolean" or "string".

    Dialects prefix the message with Triton's wording for their protocol.
    """

    def __init__(self, key: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.kind = kind


class RequestParameters(Struct, frozen=True):
    """Parsed parameters of a request. `timeout` is in seconds or None; `priority` and `sequence` are as in
    InferRequest.

    `binary_output` and `empty_final` only affect how a dialect writes responses. `others` are the parameters
    for the model; None if there are none.
    """

    binary_output: bool = False
    empty_final: bool = False
    priority: int = 0
    timeout: float | None = None
    sequence: SequenceStep | None = None
    others: dict[str, Parameter] | None = None


def read_parameters(given: Mapping[str, Any]) -> RequestParameters:
    """Reads the parameters that a client sent, in which `timeout` is in microseconds. Raises InvalidArgument
    for an invalid parameter, and Unsupported for a sequence id that is too long.
    """
    binary_output = empty_final = False
    priority, timeout = 0, None
    others: dict[str, Parameter] = {}
    for key, value in given.items():
        if key == BINARY_OUTPUT:
            binary_output = boolean(key, value)
        elif key == "priority":
            priority = _unsigned(key, value)
        elif key == "timeout":
            timeout = _unsigned(key, value) / 1e6 or None
        elif key == EMPTY_FINAL:
            empty_final = boolean(key, value)
        elif key.startswith("triton_"):
            raise InvalidArgument(RESERVED)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise InvalidArgument(f"parameter '{key[:64]}' must fit in 64 bits, got {shown(value)}")
        else:
            others[key] = value
    sequence = _take_sequence(others)
    return RequestParameters(binary_output, empty_final, priority, timeout, sequence, others or None)


def _take_sequence(parameters: dict[str, Parameter]) -> SequenceStep | None:
    """Removes the parameters about sequences, and returns the request's place in its sequence; None if there
    are no such parameters.
    """
    if parameters.keys().isdisjoint(SEQUENCE):
        return None
    id = parameters.pop("sequence_id", 0)
    start = boolean("sequence_start", parameters.pop("sequence_start", False))
    end = boolean("sequence_end", parameters.pop("sequence_end", False))
    if not isinstance(id, str):
        id = _unsigned("sequence_id", id, "string")
    elif len(id) > _LONGEST_SEQUENCE_ID:  # Triton's status code and text
        raise Unsupported(f"string correlation ID cannot be longer than {_LONGEST_SEQUENCE_ID} characters")
    return SequenceStep(id, start, end)


def _unsigned(key: str, value: object, otherwise: str = "unsigned-integer") -> int:
    """Returns the value of a parameter that must be an unsigned integer. If it is not, raises WrongType with
    the kind `otherwise`.

    `otherwise` is "string" if the parameter may also be a string.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        or_text = " or a string" if otherwise == "string" else ""
        text = f"parameter '{key}' must be an unsigned integer of 64 bits{or_text}, got {shown(value)}"
        raise WrongType(key, otherwise, text)
    return value


def boolean(key: str, value: object) -> bool:
    """Returns the value of a parameter that must be a boolean. Raises WrongType if it is not."""
    if not isinstance(value, bool):
        raise WrongType(key, "boolean", f"parameter '{key}' must be true or false, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """Formats a value for an error message. Long values are truncated."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
