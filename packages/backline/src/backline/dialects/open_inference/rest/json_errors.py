"""Builds the errors for a request body that is not a valid inference request in JSON: Triton's text, then
what is wrong and where.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from backline.engine.parameters import RESERVED
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Buffer

_MISSING: Final = r"missing required field `(\w+)`"
_PLACE: Final = r" - at `\$(.*)`$"
_ELEMENT: Final = r"\.(in|out)puts\[(\d+|\.\.\.)\]"
_FIELD: Final = r"\.(\w+)"
#: Triton's words for the type of a field's value.
_KINDS: Final = {
    "inputs": "array",
    "outputs": "array",
    "shape": "unsigned-integer",
    "id": "string",
    "name": "string",
    "datatype": "string",
}
#: Triton's words for the types of the parameters that Triton interprets.
_PARAMETER_KINDS: Final = {
    "sequence_id": "string",
    "sequence_start": "boolean",
    "sequence_end": "boolean",
    "priority": "unsigned-integer",
    "timeout": "unsigned-integer",
    "binary_data_output": "boolean",
}
#: The start of the error for an input without data, or with more than one source of data.
ONE_SOURCE: Final = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters',"
    " 'shared_memory_region' in 'parameters'. But"
)


def unreadable(error: Exception, document: Buffer) -> InvalidArgument:
    """Returns the error for a `document` that a decoder has rejected with `error`."""
    if not isinstance(error, msgspec.ValidationError):
        return InvalidArgument(f"failed to parse the request JSON buffer: {error}")
    try:
        return InvalidArgument(f"{_begin(str(error), document)}: {error}")
    except (msgspec.DecodeError, RecursionError) as malformed:  # malformed after the rejected part
        return InvalidArgument(f"failed to parse the request JSON buffer: {malformed}")


def _begin(text: str, document: Buffer) -> str:
    if missing := re.search(_MISSING, text):
        return _no_member(missing[1])
    place = re.search(_PLACE, text)
    if place is None:  # the document itself is not an object
        return _no_member("inputs")
    if place[1] == ".parameters[...]":
        parameter = _odd_parameter(document)
        if parameter in _PARAMETER_KINDS:
            return _other_kind(parameter, _PARAMETER_KINDS[parameter])
        if parameter.startswith("triton_"):
            return RESERVED
        return f"parameter '{parameter}' has invalid type. It should be either 'int', 'bool', or 'string'."
    if place[1] == ".parameters":
        return "failed to get request params.: attempt to get members for non-object"
    if element := re.fullmatch(_ELEMENT, place[1]):  # an input or output that is not an object
        return f"{ONE_SOURCE} no field is set" if element[1] == "in" else _no_member("name")
    field = (re.findall(_FIELD, place[1]) or [""])[-1]
    if field in _KINDS:
        return _other_kind(field, _KINDS[field])
    return "failed to parse the request JSON"


def _other_kind(name: str, kind: str) -> str:
    return f"Unable to parse '{name}': attempt to access JSON non-{kind} as {kind}"


def _no_member(name: str) -> str:
    return f"Unable to parse '{name}': attempt to access non-existing object member '{name}'"


@decodable
class _Given(msgspec.Struct):
    parameters: dict[str, msgspec.Raw] = {}


def _odd_parameter(document: Buffer) -> str:
    """Returns the first parameter of a request whose value is not a number, a boolean or a string.

    Empty if there is none, or if the document is malformed after the parameter: the decoder that rejected the
    parameter did not read that part.
    """
    try:
        given = msgspec.json.decode(document, type=_Given).parameters
    except (ValueError, RecursionError):
        return ""
    return next((key[:64] for key, value in given.items() if bytes(value)[:1] in (b"{", b"[", b"n")), "")
