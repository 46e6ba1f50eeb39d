"""Reads and writes TensorProto, TensorFlow's form of a tensor.

Bytes, floats and strings, by far the largest part of a message, go straight into arrays and out of them. The
protobuf runtime handles the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from backline.dialects.input_plan import MAX_RANK, check_bytes_elements, checked_count, too_many_dimensions
from backline.dialects.off_loop import LARGE, MANY, PIECE, LargeRequest, stop_if_abandoned
from backline.dialects.open_inference.grpc.wire_format import (
    MAX_STRINGS,
    MAX_VARINTS,
    count_varints,
    length_prefix,
    read_varint,
    whole_fields,
)
from backline.plugins.dialects.tensorflow_serving.texts import NAMES
from backline_client.protos import Messages
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer, Shape, Tensor, encode_tensor

MESSAGES: Final = Messages(Path(__file__).with_name("descriptors.binpb"))
#: The maximum number of elements of an input with fewer values than elements, whose last value stands for the
#: others: otherwise a request of a few bytes could ask for gigabytes.
MAX_FILLED: Final = 1 << 20
_CODES: Final = {
    datatype: MESSAGES.pool().FindEnumTypeByName("tensorflow.DataType").values_by_name[name].number
    for datatype, name in ((one, f"DT_{text.upper()}") for one, text in NAMES.items())
}
_DATATYPES: Final = {code: datatype for datatype, code in _CODES.items()}
#: The fields with the values of datatypes that are not here: those narrower than 32 bits are in int_val.
_FIELDS: Final = {
    DataType.FP32: "float_val",
    DataType.FP64: "double_val",
    DataType.INT64: "int64_val",
    DataType.BOOL: "bool_val",
    DataType.FP16: "half_val",
    DataType.BF16: "half_val",
    DataType.UINT32: "uint32_val",
    DataType.UINT64: "uint64_val",
}
_NARROW: Final = "int_val"
_HALVES: Final = (DataType.FP16, DataType.BF16)
#: The tags of values whose packed form in a message is the form in memory.
_PACKED: Final = {DataType.FP32: 5 << 3 | 2, DataType.FP64: 6 << 3 | 2, DataType.BOOL: 11 << 3 | 2}
_CONTENT, _STRING = 4 << 3 | 2, 8 << 3 | 2
_FLOATS: Final = (_PACKED[DataType.FP32], _PACKED[DataType.FP64])
_TENSOR: Final = MESSAGES.message("tensorflow.TensorProto")


def read_tensor(name: str, message: Buffer, start: int, end: int, *, on_loop: bool) -> Tensor:
    """Reads the TensorProto in `message[start:end]`. The array is a view of the message if it has
    tensor_content or packed floats.

    Raises InvalidArgument if it is malformed or does not fit its shape, PayloadTooLarge for too many values,
    and LargeRequest if `on_loop` is true and reading would block the event loop for too long.
    """
    content: tuple[int, int] | None = None
    packed: dict[int, list[Buffer]] = {}
    strings: list[bytes] = []
    rest: list[Buffer] = []
    before = start
    for number, (tag, first, last) in enumerate(whole_fields(message, start, end)):
        if number == MANY and on_loop:
            raise LargeRequest
        if number == MAX_STRINGS:
            raise PayloadTooLarge(
                f"input '{name}' has more than {MAX_STRINGS} strings, or numbers that are not packed; divide"
                " it among several requests"
            )
        if tag == _STRING:
            strings.append(bytes(message[first:last]))
            if not number % PIECE:
                stop_if_abandoned()
        elif tag == _CONTENT:
            content = first, last
        elif tag in _FLOATS:
            packed.setdefault(tag, []).append(message[first:last])
        else:
            rest.append(message[before:last])
        before = last
    described = b"".join(rest)
    if len(described) > LARGE:
        if on_loop:
            raise LargeRequest
        if count_varints(described, 0, len(described)) > MAX_VARINTS:
            raise PayloadTooLarge(
                f"input '{name}' has more than {MAX_VARINTS} numbers that are not in tensor_content: use it"
            )
    try:
        given = _TENSOR.FromString(described)
    except DecodeError:
        raise _broken(name, "it is malformed") from None
    datatype = _DATATYPES.get(given.dtype)
    if datatype is None:
        known = ", ".join(f"DT_{text.upper()}" for text in NAMES.values())
        raise _broken(name, f"its dtype {given.dtype} is none of {known}")
    if given.tensor_shape.unknown_rank:
        raise _broken(name, "its shape has an unknown rank")
    if len(given.tensor_shape.dim) > MAX_RANK:
        raise too_many_dimensions(name, len(given.tensor_shape.dim))
    shape = tuple([dim.size for dim in given.tensor_shape.dim])
    count = checked_count(name, datatype.dtype, shape)
    if datatype is DataType.BYTES:
        check_bytes_elements(count)
        if content is not None and content[0] < content[1]:
            strings = _strings(name, count, message, *content)
        values = np.empty(len(strings), np.object_)
        values[:] = strings
    elif content is not None and content[0] < content[1]:
        size = content[1] - content[0]
        if size != count * datatype.itemsize:
            raise _broken(
                name,
                f"its tensor_content has {size} bytes, but its shape {list(shape)} needs"
                f" {count * datatype.itemsize}",
            )
        array = np.ndarray(shape, datatype.dtype, message, content[0])
        return Tensor(name, datatype, shape, array)
    else:
        values = _values(name, datatype, packed, given)
    return Tensor(name, datatype, shape, _filled(name, values, count, shape).reshape(shape))


def _broken(name: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"tensor parsing error: {name}: {reason}")


def _strings(name: str, count: int, message: Buffer, position: int, end: int) -> list[bytes]:
    """Reads strings in tensor_content: all their lengths, as varints, then all their bytes."""
    lengths = []
    try:
        for number in range(count):
            length, position = read_varint(message, position)
            lengths.append(length)
            if not number % PIECE:
                stop_if_abandoned()
    except (IndexError, InvalidArgument):
        lengths, position = [], end + 1
    if position + sum(lengths) != end:
        raise _broken(name, f"its tensor_content does not have {count} strings")
    found = []
    for length in lengths:
        found.append(bytes(message[position : position + length]))
        position += length
    return found


def _values(name: str, datatype: DataType, packed: dict[int, list[Buffer]], given: Any) -> np.ndarray:
    """Returns the numbers in the field of a datatype, as an array with one dimension."""
    dtype = datatype.dtype
    typed = getattr(given, _FIELDS.get(datatype, _NARROW))
    pieces = packed.get(_PACKED.get(datatype, 0), [])
    if pieces:
        raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(raw) % datatype.itemsize:
            raise _broken(name, f"its {_FIELDS[datatype]} is cut short")
        return np.frombuffer(raw, dtype)
    if datatype in _HALVES:
        return np.array(typed, np.int32).astype(np.uint16).view(dtype)
    try:
        return np.array(typed, dtype)
    except OverflowError:
        raise _broken(name, f"a value of its int_val is out of range for {NAMES[datatype]}") from None


def _filled(name: str, values: np.ndarray, count: int, shape: Shape) -> np.ndarray:
    """Returns `count` values. The last one stands for those that are missing, as in TensorFlow; zero or the
    empty string does so if there are none.
    """
    if len(values) == count:
        return values
    if len(values) > count:
        raise _broken(name, f"it has {len(values)} values, but its shape {list(shape)} has {count} elements")
    if count > MAX_FILLED:
        raise PayloadTooLarge(
            f"input '{name}' has {len(values)} values for {count} elements; one value stands for at most"
            f" {MAX_FILLED} elements: send all"
        )
    full = np.empty(count, values.dtype)
    full[: len(values)] = values
    full[len(values) :] = values[-1] if len(values) else b"" if values.dtype == np.object_ else 0
    return full


def is_slow(tensor: Tensor) -> bool:
    """Returns whether the values of a tensor are encoded one by one."""
    return tensor.datatype not in _PACKED


@lru_cache(maxsize=1024)
def _head(datatype: DataType, shape: Shape) -> bytes:
    """Returns a TensorProto without values."""
    dims = [{"size": size} for size in shape]
    written: bytes = _TENSOR(dtype=_CODES[datatype], tensor_shape={"dim": dims}).SerializeToString()
    return written


def write_tensor(tensor: Tensor) -> Sequence[Buffer]:
    """Returns the parts of a TensorProto, with the values in their field, as TensorFlow Serving sends it."""
    head = _head(tensor.datatype, tensor.shape)
    data = tensor.data
    if not data.size:
        return (head,)
    tag = _PACKED.get(tensor.datatype)
    if tag is not None:
        raw = encode_tensor(tensor)
        return head + bytes((tag,)) + length_prefix(len(raw)), raw
    if tensor.datatype is DataType.BYTES:
        parts = [head]
        for number, element in enumerate(data.reshape(-1).tolist()):
            string = element if isinstance(element, bytes) else str(element).encode()
            parts += (b"\x42", length_prefix(len(string)), string)
            if not number % PIECE:
                stop_if_abandoned()
        return (b"".join(parts),)
    if tensor.datatype in _HALVES:
        data = np.ascontiguousarray(data).view(np.uint16)
    field = _FIELDS.get(tensor.datatype, _NARROW)
    return head, _TENSOR(**{field: data.reshape(-1).tolist()}).SerializeToString()
