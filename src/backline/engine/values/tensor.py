"""Named tensors, and their conversion from and to the bytes on the wire."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias, TypeVar

import numpy as np

from backline.engine.errors import InvalidArgument
from backline.engine.values.datatypes import DataType

#: The maximum time in seconds that `in_pieces` works per turn of the event loop.
_PIECE = 0.0005

Piece = TypeVar("Piece")


async def in_pieces(work: Iterable[Piece]) -> list[Piece]:
    """Returns all items of `work`, each of which should take microseconds, without blocking the event loop.

    Data that `work` reads may change between turns.
    """
    done = []
    turn = monotonic() + _PIECE
    for piece in work:
        done.append(piece)
        if monotonic() > turn:
            await asyncio.sleep(0)
            turn = monotonic() + _PIECE
    return done


Buffer: TypeAlias = bytes | bytearray | memoryview
Shape: TypeAlias = tuple[int, ...]

_LENGTH = struct.Struct("<I")


class StringsMismatch(InvalidArgument):
    """Raised for BYTES data that does not match its shape. Triton's text names the model in the middle, so
    the message is completed by `in_request`.
    """

    def __init__(self, start: str, end: str) -> None:
        super().__init__(f"{start}, {end}")
        self._start = start
        self._end = end

    def in_request(self, prefix: str, model: str) -> InvalidArgument:
        """Returns the error for an input of a request to `model`; `prefix` names the request."""
        return InvalidArgument(f"{prefix}{self._start} for model '{model}', {self._end}")


def wrong_count(name: str, expected: int, got: int, detail: str = "") -> StringsMismatch:
    """Returns the error for an input with `got` strings where its shape needs `expected`."""
    if got < expected:
        return StringsMismatch(
            f"expected {expected} string elements for inference input '{name}'", f"got {got}{detail}"
        )
    return StringsMismatch(
        f"unexpected number of string elements {got} for inference input '{name}'",
        f"expecting {expected}{detail}",
    )


@dataclass(slots=True, eq=False, repr=False)
class Tensor:
    """A named array.

    `shape` equals `data.shape` and has no negative dimensions. `data` is a numpy array of `datatype.dtype`,
    often a read-only view of received bytes: copy before writing. BYTES are object arrays of `bytes`, BF16
    are uint16 arrays of bits.
    """

    name: str
    datatype: DataType
    shape: Shape
    data: np.ndarray

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype.name}, {list(self.shape)})"


def element_count(shape: Sequence[int]) -> int:
    """Returns the number of elements, 1 for rank 0. Uses Python integers, so that no shape overflows."""
    return math.prod(shape)


def fits(expected: Shape, got: Shape) -> bool:
    """Returns whether a shape fits an expected one, in which -1 is any size."""
    return len(got) == len(expected) and all(a in (-1, b) for a, b in zip(expected, got, strict=True))


def decode_tensor(name: str, datatype: DataType, shape: Shape, raw: Buffer) -> Tensor:
    """Returns the tensor with the row-major little-endian bytes `raw`, without a copy.

    BYTES have a 4-byte length before each element.

    Raises InvalidArgument, before allocating the array, if the size of `raw` does not match the shape, or
    StringsMismatch for BYTES if the error text names the model. The texts about BYTES are Triton's
    (core/src/infer_request.cc, and its Python backend for the data of the last string).
    """
    count = element_count(shape)
    if datatype is DataType.BYTES:
        return Tensor(name, datatype, shape, _decode_bytes(name, count, raw).reshape(shape))
    size = count * datatype.itemsize
    if len(raw) != size:
        raise InvalidArgument(
            f"input byte size mismatch for input '{name}': expected {size} bytes for shape {list(shape)}"
            f" of {datatype.name}, got {len(raw)}"
        )
    return Tensor(name, datatype, shape, np.frombuffer(raw, datatype.dtype).reshape(shape))


def encode_tensor(tensor: Tensor) -> Buffer:
    """Returns the bytes of a tensor, as read by `decode_tensor`; a view if the array is contiguous."""
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
    lengths = _LENGTH.unpack_from
    found: list[bytes] = []
    offset = 0
    for index in range(count):
        start = offset + 4
        if offset == total:
            raise wrong_count(name, count, index)
        if start > total:
            raise _cut_length(name, total - offset, f" (element {index} of {count})")
        (length,) = lengths(view, offset)
        offset = start + length
        if offset > total:
            left = f"string of length {length} but only {total - start} bytes available"
            if index == count - 1:
                raise InvalidArgument(
                    f"incomplete string data for inference input '{name}', expecting {left}"
                )
            # Triton counts the string that is cut.
            raise wrong_count(name, count, index + 1, f" (element {index}: {left})")
        found.append(bytes(view[start:offset]) if length else b"")
    if 0 < total - offset < 4:
        raise _cut_length(name, total - offset, f" (after {count} elements)")
    if offset != total:
        raise wrong_count(name, count, count + 1, f" ({total - offset} bytes follow them)")
    elements = np.empty(count, np.object_)
    elements[:] = found
    return elements


def _cut_length(name: str, left: int, detail: str) -> StringsMismatch:
    return StringsMismatch(
        f"incomplete string length indicator for inference input '{name}'",
        f"expecting 4 bytes but only {left} bytes available. Please make sure the string length indicator is"
        f" in one buffer.{detail}",
    )


def _encode_bytes(data: np.ndarray) -> bytes:
    parts: list[bytes] = []
    for element in data.reshape(-1).tolist():
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts.append(_LENGTH.pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)
