"""Named tensors, and their conversion from and to the bytes in requests and responses."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TypeAlias, TypeVar

import numpy as np
from msgspec import Struct

from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument

#: The time, in seconds, after which `in_pieces` lets the event loop do other work.
_PIECE = 0.0005

Piece = TypeVar("Piece")


async def in_pieces(work: Iterable[Piece]) -> list[Piece]:
    """Returns all items of `work`. Lets the event loop do other work in between; each item should take
    microseconds.

    Other work on the event loop may change the data that `work` reads.
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
    """Raised if BYTES data does not match its shape. The message is completed by `in_request`, because
    Triton's message names the model in the middle.
    """

    def __init__(self, start: str, end: str) -> None:
        super().__init__(f"{start}, {end}")
        self._start = start
        self._end = end

    def in_request(self, prefix: str, model: str) -> InvalidArgument:
        """Returns the error with the complete message for a request to `model`; `prefix` names the
        request.
        """
        return InvalidArgument(f"{prefix}{self._start} for model '{model}', {self._end}")


def wrong_count(name: str, expected: int, got: int, detail: str = "") -> StringsMismatch:
    """Returns the error for an input that has `got` strings, although its shape requires `expected`
    strings.
    """
    if got < expected:
        return StringsMismatch(
            f"expected {expected} string elements for inference input '{name}'", f"got {got}{detail}"
        )
    return StringsMismatch(
        f"unexpected number of string elements {got} for inference input '{name}'",
        f"expecting {expected}{detail}",
    )


class Tensor(Struct, eq=False):
    """A named array.

    `shape` equals `data.shape` and has no negative dimensions. `data` is a numpy array of `datatype.dtype`.
    The array is often a read-only view of received bytes, so copy it before you modify it. For BYTES, it is
    an object array of `bytes`; for BF16, a uint16 array of the bits.

    This is a msgspec struct, because several tensors are created for every request, and creating a dataclass
    takes more than twice as long.
    """

    name: str
    datatype: DataType
    shape: Shape
    data: np.ndarray

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype.name}, {list(self.shape)})"


def element_count(shape: Sequence[int]) -> int:
    """Returns the number of elements in a tensor of this shape; 1 for rank 0. Uses Python integers, which
    cannot overflow.
    """
    return math.prod(shape)


def fits(expected: Shape, got: Shape) -> bool:
    """Returns whether the shape `got` fits the shape `expected`, in which -1 means any size."""
    return len(got) == len(expected) and all(a in (-1, b) for a, b in zip(expected, got, strict=True))


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raises ValueError if a dimension of the tensor `name` is negative."""
    if shape and min(shape) < 0:
        raise ValueError(f"'{name}' has the negative dimension {min(shape)} in its shape {list(shape)}")


def decode_tensor(name: str, datatype: DataType, shape: Shape, raw: Buffer) -> Tensor:
    """Returns the tensor whose data are the bytes `raw`, in row-major order and little-endian. The bytes are
    not copied, except for BYTES.

    For BYTES, each element is preceded by its length, as a 4-byte integer.

    If the size of `raw` does not match the shape, raises InvalidArgument before allocating the array; for
    BYTES, raises StringsMismatch if Triton's message names the model. The messages about BYTES are Triton's:
    from core/src/infer_request.cc or, for the data of the last string, from its Python backend.
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
    """Returns the bytes of a tensor, in the form that `decode_tensor` reads. Except for BYTES, the result is
    a view of the array if the array is contiguous and larger than 4 KiB.
    """
    if tensor.datatype is DataType.BYTES:
        return _encode_bytes(tensor.data)
    data = tensor.data
    if data.nbytes <= 4096:  # `tobytes` also handles arrays that are empty or not contiguous
        return data.tobytes()
    if not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
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
            # The truncated string is counted too, as in Triton.
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
