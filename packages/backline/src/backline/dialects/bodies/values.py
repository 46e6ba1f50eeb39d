"""Converts tensors from and to JSON as people write it: nested lists of numbers, true and false, or strings.

Unlike in the Open Inference Protocol, the nesting gives the shape, and every datatype can be written. NaN and
the infinities are written as the strings "NaN", "Infinity" and "-Infinity", because browsers cannot read them
as words, and a string that is not UTF-8 is {"b64": "..."}.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
import numpy as np

from backline.dialects.input_plan import check_bytes_elements
from backline.dialects.json_data import NOT_FINITE, in_pieces, json_text
from backline.dialects.off_loop import PIECE
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape, Tensor

#: The maximum depth of nested lists: the limit of numpy 1.26.
MAX_RANK = 32
#: What the values stand for that are no numbers in JSON, in inputs of floats.
NON_FINITE = {None: float("nan")} | {word: float(word) for word in NOT_FINITE}
_NUMBERS = frozenset((int, float))
_FLOATS = (DataType.FP16, DataType.FP32, DataType.FP64, DataType.BF16)
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
#: The kind of element that each datatype needs, for error texts. Datatypes that are not listed need whole
#: numbers.
_EXPECTED = {DataType.BOOL: "true or false", DataType.BYTES: 'a string or {"b64": "..."}'} | dict.fromkeys(
    _FLOATS, "a number"
)
_encode = msgspec.json.encode
_decode = msgspec.json.decode


def tensor_of(spec: TensorSpec, value: Any) -> Tensor:
    """Returns the tensor of a decoded JSON value, in the shape that the nesting implies.

    Raises InvalidArgument for lists of different lengths at one level, and for elements that the datatype
    cannot hold.
    """
    if _is_document(spec, value):
        return Tensor(spec.name, spec.datatype, (), _strings([_encode(value)], ()))
    shape = _shape_of(spec, value)
    elements: list[Any] = []
    _flatten(spec, value, shape, elements)
    return Tensor(spec.name, spec.datatype, shape, _array(spec, elements, shape))


def value_of(tensor: Tensor, *, json: bool = False) -> Any:
    """Returns a tensor as nested lists that msgspec can encode, or a scalar as itself.

    A large tensor is returned as JSON that was encoded in pieces, between which other threads can run. With
    `json`, each element is the text of a JSON value and is replaced by that value. Raises Internal for an
    element that is not valid JSON.
    """
    if tensor.data.size <= PIECE:
        return _lists(tensor, json, tensor.data)
    return msgspec.Raw(in_pieces(tensor.data, lambda part: _encode(_lists(tensor, json, part))))


def _lists(tensor: Tensor, json: bool, data: np.ndarray) -> Any:
    """Returns `data`, a part of the tensor's data, as nested lists or a scalar."""
    if tensor.datatype is DataType.BYTES:
        convert = _json_value if json else _string
        elements = np.empty(data.shape, np.object_)
        elements.reshape(-1)[:] = [convert(tensor.name, element) for element in data.reshape(-1).tolist()]
        return elements.tolist()
    if tensor.datatype is DataType.BF16:
        data = widened(data)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        plain = data.astype(np.object_)
        plain[np.isnan(data)] = "NaN"
        plain[data == np.inf] = "Infinity"
        plain[data == -np.inf] = "-Infinity"
        return plain.tolist()
    return data.tolist()


def widened(bits: np.ndarray) -> np.ndarray:
    """Returns the FP32 values of BF16 numbers, whose bits are the upper half of FP32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bytes_tensor(spec: TensorSpec, element: bytes) -> Tensor:
    """Returns a BYTES tensor without dimensions, which fits every shape of one element."""
    return Tensor(spec.name, DataType.BYTES, (), _strings([element], ()))


def _shape_of(spec: TensorSpec, value: Any) -> Shape:
    """Returns the lengths of the first list at each level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_RANK:
            raise InvalidArgument(f"input '{spec.name}' is nested more than {MAX_RANK} levels deep")
        if not value:
            break
        value = value[0]
    # An empty list does not show how deeply it is meant to be nested.
    if shape and shape[-1] == 0:
        shape += [max(0, dimension) for dimension in spec.shape[len(shape) :]]
    return tuple(shape)


def _flatten(spec: TensorSpec, value: Any, shape: Shape, elements: list[Any]) -> None:
    if not shape:
        elements.append(value)
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"a list of {len(value)}" if isinstance(value, list) else _kind(value)
        raise InvalidArgument(
            f"input '{spec.name}' has {got} where a list of {shape[0]} was expected: all lists at one level"
            " must have as many elements as the first one"
        )
    if len(shape) == 1:
        elements.extend(value)
        return
    for part in value:
        _flatten(spec, part, shape[1:], elements)


def _array(spec: TensorSpec, elements: list[Any], shape: Shape) -> np.ndarray:
    datatype = spec.datatype
    if datatype is DataType.BYTES:
        check_bytes_elements(len(elements))
        return _strings([_element_bytes(spec, element) for element in elements], shape)
    if datatype in _FLOATS:
        return _floats(spec, elements).reshape(shape)
    wanted = bool if datatype is DataType.BOOL else int
    if spec.column:
        elements = [_whole(element) for element in elements] if wanted is int else elements
    for element in elements:
        if type(element) is not wanted:
            raise _wrong_element(spec, element)
    try:
        return np.array(elements, datatype.dtype).reshape(shape)
    except OverflowError:
        raise InvalidArgument(f"input '{spec.name}' has a number that {datatype.name} cannot hold") from None


def _floats(spec: TensorSpec, elements: list[Any]) -> np.ndarray:
    values = elements
    if not _NUMBERS.issuperset(map(type, elements)):
        values = [_number(spec, element) for element in elements]
    bfloat = spec.datatype is DataType.BF16
    dtype = np.dtype(np.float32) if bfloat else spec.datatype.dtype
    try:
        exact = np.array(values, np.float64)
        with np.errstate(over="ignore"):
            array = exact.astype(dtype)
            if bfloat:
                array = _narrowed(array)
    except OverflowError:
        raise _too_large(spec) from None
    if (np.isinf(widened(array) if bfloat else array) & np.isfinite(exact)).any():
        raise _too_large(spec)
    return array


def _number(spec: TensorSpec, element: Any) -> int | float:
    if type(element) in _NUMBERS:
        return element  # type: ignore[no-any-return]
    if (element is None or isinstance(element, str)) and element in NON_FINITE:
        return NON_FINITE[element]
    if spec.column and isinstance(element, bool):
        return int(element)
    raise _wrong_element(spec, element)


def _whole(element: Any) -> Any:
    """Returns an element of a column of integers as an integer, if it is one in another form: 3.0 or true."""
    if isinstance(element, bool) or (isinstance(element, float) and element.is_integer()):
        return int(element)
    return element


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Returns the BF16 bits of FP32 values, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    # If a NaN were rounded, its mantissa would overflow into its sign.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _element_bytes(spec: TensorSpec, element: Any) -> bytes:
    if _is_document(spec, element):
        return _encode(element)
    if isinstance(element, str):
        return element.encode()
    if element is None and spec.column:
        return b""
    if isinstance(element, dict) and element.keys() == {"b64"} and isinstance(element["b64"], str):
        try:
            return base64.b64decode(element["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument(f"a string of input '{spec.name}' is not valid base64") from None
    raise _wrong_element(spec, element)


def _is_document(spec: TensorSpec, value: Any) -> bool:
    """Returns whether `value` is an object or list for an input that takes such documents as JSON text."""
    return (spec.json == "object" and isinstance(value, dict)) or (
        spec.json == "list" and isinstance(value, list)
    )


def _string(_: str, element: Any) -> Any:
    if not isinstance(element, bytes):
        return str(element)
    try:
        return json_text(element.decode())
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}


def _json_value(name: str, element: Any) -> Any:
    try:
        return _decode(element)
    except (ValueError, RecursionError) as error:
        raise Internal(f"output '{name}' must be JSON, but the model returned other text: {error}") from None


def _strings(elements: list[bytes], shape: Shape) -> np.ndarray:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")


def _wrong_element(spec: TensorSpec, element: Any) -> InvalidArgument:
    expected = _EXPECTED.get(spec.datatype, "a whole number")
    kind = "a number with a fraction" if isinstance(element, float) else _kind(element)
    return InvalidArgument(f"input '{spec.name}' has {kind} where {spec.datatype.name} needs {expected}")


def _too_large(spec: TensorSpec) -> InvalidArgument:
    return InvalidArgument(f"input '{spec.name}' has a number that {spec.datatype.name} cannot hold")
