"""Reads a JSON value straight into an array: nested lists of numbers or strings, whose nesting is the shape.

Numbers never become a tree of Python lists: the brackets give the shape, and the rest is read as a flat list.
"""

from __future__ import annotations

from math import prod

import msgspec
import numpy as np

from backline.dialects.bodies.json_text import check_json
from backline.dialects.bodies.values import MAX_RANK, tensor_of
from backline.dialects.input_plan import InputPlan, check_bytes_elements
from backline.dialects.json_data import decode_data, pack_numbers
from backline.dialects.json_scan import STEP, count_elements
from backline.dialects.off_loop import LARGE
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape, Tensor

#: All bytes but those that show how lists are nested.
_VALUES = bytes(byte for byte in range(256) if byte not in b"[],")
_TREES = (DataType.FP16, DataType.BF16)


def read_array(spec: TensorSpec, text: bytes) -> Tensor:
    """Returns the tensor of an input in the well-formed JSON `text`, in the shape that the nesting implies.

    Raises InvalidArgument for lists of different lengths at one level, and for elements that the datatype
    cannot hold, and PayloadTooLarge for text that is too costly to read. Text above LARGE may be read only
    off the event loop.
    """
    datatype = spec.datatype
    if datatype is DataType.BYTES:
        return _read_strings(spec, text)
    shape = None if datatype in _TREES else _shape_of(text)
    if shape is None:  # uneven lists: the error needs the whole value
        return _read_tree(spec, text)
    flat = b"[%b]" % _without(text, b"[]")
    if len(flat) <= LARGE:
        packed = pack_numbers(datatype, flat)
        if packed is not None and len(packed) == prod(shape) * datatype.itemsize:
            return Tensor(spec.name, datatype, shape, np.ndarray(shape, datatype.dtype, packed))
        return _read_tree(spec, text)
    read = decode_data(InputPlan(spec.name, datatype.name, (prod(shape),)), flat, "$")
    return Tensor(spec.name, datatype, shape, read.data.reshape(shape))


def _read_tree(spec: TensorSpec, text: bytes) -> Tensor:
    check_json(f"the JSON of input '{spec.name}'", text)
    return tensor_of(spec, msgspec.json.decode(text))


def _read_strings(spec: TensorSpec, text: bytes) -> Tensor:
    inner = text[1:].lstrip()[:1] if text[:1] == b"[" else b""
    if len(text) <= LARGE or inner not in (b'"', b"{"):
        return _read_tree(spec, text)
    count = count_elements(text)
    check_bytes_elements(count)
    return decode_data(InputPlan(spec.name, "BYTES", (count,)), text, "$")


def _shape_of(text: bytes) -> Shape | None:
    """Returns the shape of evenly nested lists, or () for a single value; None if they are not even.

    A list without elements looks like one with a single element; reading its elements fails then.
    """
    marks = _without(text, _VALUES)
    depth = len(marks) - len(marks.lstrip(b"["))
    if depth > MAX_RANK:
        raise InvalidArgument(f"the lists are nested more than {MAX_RANK} levels deep")
    shape: list[int] = []
    inside = 1
    for level in range(1, depth + 1):
        # The elements up to the first place where this many lists end are those of one list of the level.
        elements = marks.count(b",", 0, marks.find(b"]" * level)) + 1
        length, rest = divmod(elements, inside)
        if rest or not length:
            return None
        shape.insert(0, length)
        inside = elements
    even = tuple(shape)
    return even if marks == _marks_of(even) else None


def _marks_of(shape: Shape) -> bytes:
    """Returns the brackets and commas of lists of this shape."""
    marks = b""
    for length in reversed(shape):
        marks = b"[%b]" % (b",".join([marks] * length) if marks else b"," * (length - 1))
    return marks


def _without(text: bytes, characters: bytes) -> bytes:
    """Returns a text without some characters. A long text is read in steps, between which others can run."""
    if len(text) <= STEP:
        return text.translate(None, characters)
    steps = range(0, len(text), STEP)
    return b"".join([text[start : start + STEP].translate(None, characters) for start in steps])
