"""A named tensor, and its bytes on the wire."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument

Buffer: TypeAlias = bytes | bytearray | memoryview
Shape: TypeAlias = tuple[int, ...]

_LENGTH = struct.Struct("<I")


class Tensor:
    """A named array.

    `shape` has no negative dimension and `data.shape == shape`. `data` is a numpy array of `datatype.dtype`, often a read-only view of
    received bytes: whoever writes must copy. BYTES are object arrays of `bytes`, BF16 are uint16 arrays of bits.
    """

    __slots__ = ("data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: DataType, shape: Shape, data: np.ndarray) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype.name}, {list(self.shape)})"


def element_count(shape: Sequence[int]) -> int:
    """The number of elements; Python's integers, so no shape overflows. A rank-0 tensor has one."""
    return math.prod(shape)


def decode_tensor(name: str, datatype: DataType, shape: Shape, raw: Buffer) -> Tensor:
    """The tensor whose row-major little-endian bytes are `raw` (BYTES: a 4-byte length before each element), without a copy.

    Raises InvalidArgument when the size of `raw` is not that of the shape; nothing is allocated before that is known.
    """
    count = element_count(shape)
    if datatype is DataType.BYTES:
        return Tensor(name, datatype, shape, _decode_bytes(name, count, raw).reshape(shape))
    size = count * datatype.itemsize
    if len(raw) != size:
        raise InvalidArgument(
            f"input byte size mismatch for input '{name}': expected {size} bytes for shape {list(shape)} of {datatype.name}, got {len(raw)}"
        )
    return Tensor(name, datatype, shape, np.frombuffer(raw, datatype.dtype).reshape(shape))


def encode_tensor(tensor: Tensor) -> Buffer:
    """The bytes of a tensor, as `decode_tensor` reads them: a view where the array is contiguous."""
    if tensor.datatype is DataType.BYTES:
        return _encode_bytes(tensor.data)
    data = tensor.data
    if data.size == 0:
        return b""
    if not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    if data.nbytes <= 4096:
        return data.tobytes()
    return data.reshape(-1).view(np.uint8).data


def _decode_bytes(name: str, count: int, raw: Buffer) -> np.ndarray:
    view = memoryview(raw).cast("B")
    total = len(view)
    if (
        count * 4 > total
    ):  # every element has a length of 4 bytes: a shape that dwarfs the data is refused before allocation
        raise InvalidArgument(
            f"input '{name}' declares {count} BYTES elements, but its {total} bytes cannot hold as many"
        )
    lengths = _LENGTH.unpack_from
    found: list[bytes] = []
    offset = 0
    for index in range(count):
        start = offset + 4
        if start > total:
            raise InvalidArgument(
                f"input '{name}' ends within the length of BYTES element {index} of {count}"
            )
        (length,) = lengths(view, offset)
        offset = start + length
        if offset > total:
            raise InvalidArgument(f"input '{name}' ends within BYTES element {index} of {count}")
        found.append(bytes(view[start:offset]) if length else b"")
    if offset != total:
        raise InvalidArgument(f"input '{name}' has {total - offset} bytes after its {count} BYTES elements")
    elements = np.empty(count, np.object_)
    elements[:] = found
    return elements


def _encode_bytes(data: np.ndarray) -> bytes:
    parts: list[bytes] = []
    for element in data.reshape(-1).tolist():
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts.append(_LENGTH.pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)
