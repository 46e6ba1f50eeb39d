"""Converts lists of numbers and booleans in JSON to and from arrays, at the speed of orjson."""

from __future__ import annotations

import struct
from itertools import chain
from typing import Final

import numpy as np
import orjson

from backline.dialects.off_loop import PIECE
from backline.engine.values.datatypes import DataType

#: The maximum depth of nested lists.
MAX_DEPTH: Final = 100
#: The format of one element, for the module struct, which refuses numbers out of range.
_FORMATS: Final = {
    DataType.BOOL: "?",
    DataType.UINT8: "B",
    DataType.UINT16: "H",
    DataType.UINT32: "I",
    DataType.UINT64: "Q",
    DataType.INT8: "b",
    DataType.INT16: "h",
    DataType.INT32: "i",
    DataType.INT64: "q",
    DataType.FP32: "f",
    DataType.FP64: "d",
}


def read_numbers(datatype: DataType, text: bytes) -> np.ndarray | None:
    """Returns the elements of a list, possibly nested, in row-major order, as a flat read-only array.

    Returns None for anything else: malformed JSON, a list that has no elements or is nested unevenly or more
    than MAX_DEPTH levels deep, numbers out of range, other values. The caller finds out what is wrong, and
    compares the number of elements with the shape.
    """
    element = _FORMATS.get(datatype)
    if element is None:
        return None
    if datatype is not DataType.BOOL and (b"r" in text or b"l" in text):  # true, false, null
        return None
    try:
        values = orjson.loads(text)
        for _ in range(MAX_DEPTH):
            if type(values) is not list or not values:
                return None
            if type(values[0]) is not list:
                break
            if not all(values):  # an empty list
                return None
            values = list(chain.from_iterable(values))
        else:
            return None
        if datatype is DataType.BOOL and set(map(type, values)) != {bool}:
            return None
        packed = struct.pack(f"={len(values)}{element}", *values)
    except (ValueError, TypeError, OverflowError, struct.error):
        return None
    return np.frombuffer(packed, datatype.dtype)


def write_numbers(data: np.ndarray) -> bytes:
    """Writes the elements of an array as a flat list. An FP32 gets only the digits that distinguish it from
    others.

    The elements must be finite. Large arrays are written in pieces, between which other threads can run.
    """
    flat = np.ascontiguousarray(data.reshape(-1))
    if flat.size <= PIECE:
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    pieces = (
        memoryview(orjson.dumps(flat[start : start + PIECE], option=orjson.OPT_SERIALIZE_NUMPY))[1:-1]
        for start in range(0, flat.size, PIECE)
    )
    return b"".join((b"[", b",".join(pieces), b"]"))
