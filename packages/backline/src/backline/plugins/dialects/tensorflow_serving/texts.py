"""TensorFlow Serving's error texts, on which clients rely, and its words for JSON values and datatypes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, NotFound
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape

#: The names in error texts and, in capitals after "DT_", in metadata.
NAMES: Final[Mapping[DataType, str]] = {
    DataType.FP16: "half",
    DataType.FP32: "float",
    DataType.FP64: "double",
    DataType.BF16: "bfloat16",
    DataType.BYTES: "string",
} | {one: one.name.lower() for one in DataType if one.dtype.kind in "biu" and one is not DataType.BF16}
DECOUPLED: Final = "the model sends any number of responses; this protocol has one for each request"
_KINDS: Final = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
#: The maximum length of a value in an error text.
_LONGEST: Final = 200
_PLACE: Final = re.compile(r" \(byte (\d+)\)$")


def no_servable(name: str, version: str) -> NotFound:
    """Returns the error for a model or version that is not served."""
    wanted = f"Specific({name}, {version})" if version else f"Latest({name})"
    return NotFound(f"Servable not found for request: {wanted}")


def no_label(label: str) -> InvalidArgument:
    return InvalidArgument(f"Unrecognized servable version label: {label[:64]}")


def no_signature(name: str) -> InvalidArgument:
    return InvalidArgument(f'Serving signature key "{name[:64]}" not found.')


def wrong_inputs(known: Collection[str], given: Collection[str], missing: Collection[str]) -> InvalidArgument:
    """Returns the error for inputs of a gRPC request that are not those of the model."""
    extra = [name for name in given if name not in known]
    if len(given) == len(known) and extra:
        return InvalidArgument(
            f"input tensor alias not found in signature: {extra[0][:64]}. Inputs expected to be in the set"
            f" {_set(known)}."
        )
    return InvalidArgument(
        f"input size does not match signature: {len(given)}!={len(known)} len({_set(given)}) !="
        f" len({_set(known)}). Sent extra: {_set(extra)}. Missing but required: {_set(missing)}."
    )


def wrong_output(name: str, known: Collection[str]) -> InvalidArgument:
    return InvalidArgument(
        f"output tensor alias not found in signature: {name[:64]} Outputs expected to be in the set"
        f" {_set(known)}."
    )


def _set(names: Collection[str]) -> str:
    text = ",".join(sorted(names))
    return f"{{{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}}}"


def unreadable(error: Exception, body: bytes) -> InvalidArgument:
    """Returns the error for a body that is not a JSON object, or whose keys have the wrong types."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        if not body:
            return InvalidArgument("JSON Parse error: The document is empty")
        place = _PLACE.search(text)
        reason = _PLACE.sub("", text).removeprefix("JSON is malformed: ")
        return InvalidArgument(f"JSON Parse error: {reason} at offset: {place[1] if place else len(body)}")
    if "signature_name" in text:
        return InvalidArgument(
            f"JSON Value: {shown(body)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return InvalidArgument(f"JSON Value: {shown(body)} Is not object")


def shown(value: bytes) -> str:
    """Returns the beginning of a JSON text for an error text."""
    text = value[: 4 * _LONGEST].decode(errors="replace")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def mismatch(spec: TensorSpec, value: Any, shape: Shape, level: int = 0) -> str:
    """Returns what TensorFlow Serving says about the first place at which a decoded value does not fit an
    input of this shape; empty if it fits.
    """
    if not isinstance(value, list):
        if level != len(shape):
            return (
                f"JSON Value: {_encoded(value)} found at incorrect level: {level + 1} in the JSON DOM."
                f" Expected at level: {len(shape)}"
            )
        return _wrong_element(spec.datatype, value)
    if level >= len(shape):
        return f"Encountered list at unexpected level: {level} expected < {len(shape)}"
    if len(value) != shape[level]:
        return (
            f"Encountered list at unexpected size: {len(value)} at level: {level}"
            f" expected size: {shape[level]}"
        )
    return next((found for one in value if (found := mismatch(spec, one, shape, level + 1))), "")


def _wrong_element(datatype: DataType, value: Any) -> str:
    kind = datatype.dtype.kind
    if datatype is DataType.BYTES:
        if isinstance(value, dict):
            if value.keys() != {"b64"} or not isinstance(value["b64"], str):
                return f"JSON Value: {_encoded(value)} not formatted correctly for base64 data"
            return "Unable to base64 decode"
        fits = isinstance(value, str)
    elif kind == "b":
        fits = isinstance(value, bool)
    elif kind == "f" or datatype is DataType.BF16:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits:
            return ""
    else:
        fits = type(value) is int and 0 <= value - _least(datatype) < 2 ** (8 * datatype.itemsize)
    if fits:
        return ""
    return f"JSON Value: {_encoded(value)} Type: {_kind(value)} is not of expected type: {NAMES[datatype]}"


def _least(datatype: DataType) -> int:
    return -(2 ** (8 * datatype.itemsize - 1)) if datatype.dtype.kind == "i" else 0


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return _KINDS.get(type(value), "Number")


def _encoded(value: Any) -> str:
    return shown(msgspec.json.encode(value))


def shape_of(value: Any) -> Shape:
    """Returns the lengths of the first list at each level of a decoded value."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)
