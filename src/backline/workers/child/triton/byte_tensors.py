"""Arrays of bytes in one piece, as they are on the wire: a length of 4 bytes, little-endian, before each element."""

from __future__ import annotations

import numpy as np

from backline.engine.datatypes import DataType
from backline.engine.tensor import Tensor, encode_tensor


def serialize_byte_tensor(input_tensor: np.ndarray) -> bytes | tuple[()] | None:
    """The elements in C order; () for none, and None for an array of something else, as in Triton."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return bytes(encode_tensor(Tensor("", DataType.BYTES, input_tensor.shape, input_tensor)))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> np.ndarray:
    """A flat array of the elements. Raises ValueError for bytes that end within one."""
    view = memoryview(encoded_tensor).cast("B")
    elements: list[bytes] = []
    at = 0
    while at < len(view):
        start = at + 4
        at = start + int.from_bytes(view[at:start], "little")
        if start > len(view) or at > len(view):
            raise ValueError(f"the bytes end within element {len(elements)}")
        elements.append(bytes(view[start:at]))
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array
