"""Tensors of one or several requests as columns of a frame or of shared memory, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.tensor import Tensor, decode_tensor, element_count, encode_tensor
from backline.workers.channel.arena import INLINE_LIMIT, Arena
from backline.workers.channel.protocol import Buffer, Column

#: Columns in shared memory are aligned to this, for vector instructions.
_ALIGNMENT: Final = 64


def pack_columns(
    parts: Sequence[Sequence[Sequence[Tensor]]], arena: Arena
) -> tuple[list[list[Column]], list[Buffer], int]:
    """Packs tensors into columns. Returns the columns of each part, the payload that holds small batches, and
    the block of shared memory that holds large ones (-1 for none).

    A part is a list of columns, a column the tensors of one name to be concatenated, in order. Raises
    MemoryError.
    """
    packed: list[list[Column]] = []
    encoded: list[tuple[Column, Sequence[Tensor], list[Buffer] | None]] = []
    total = 0
    for part in parts:
        columns = []
        for tensors in part:
            first = tensors[0]
            shape = list(first.shape)
            if len(tensors) > 1:
                shape[0] = sum(tensor.shape[0] for tensor in tensors)
            buffers: list[Buffer] | None = None
            if first.datatype is DataType.BYTES:
                buffers = [encode_tensor(tensor) for tensor in tensors]
                size = sum(map(len, buffers))
            else:
                size = (
                    first.data.nbytes if len(tensors) == 1 else sum(tensor.data.nbytes for tensor in tensors)
                )
            column = Column(first.name, first.datatype.name, shape, size)
            columns.append(column)
            encoded.append((column, tensors, buffers))
            total += size
        packed.append(columns)
    if total < INLINE_LIMIT:
        payload: list[Buffer] = []
        for _, tensors, buffers in encoded:
            payload += [encode_tensor(tensor) for tensor in tensors] if buffers is None else buffers
        return packed, payload, -1
    block, space = arena.borrow(total + _ALIGNMENT * len(encoded))
    offset = 0
    for column, tensors, buffers in encoded:
        column.at = block + offset
        place = space[offset : offset + column.size]
        offset += -(-column.size // _ALIGNMENT) * _ALIGNMENT
        if buffers is not None:
            _write_buffers(place, buffers)
        else:
            _write_tensors(place, tensors)
    return packed, [], block


def _write_buffers(place: np.ndarray, buffers: Sequence[Buffer]) -> None:
    at = 0
    for buffer in buffers:
        place[at : at + len(buffer)] = np.frombuffer(buffer, np.uint8)
        at += len(buffer)


def _write_tensors(place: np.ndarray, tensors: Sequence[Tensor]) -> None:
    at = 0
    for tensor in tensors:
        data = tensor.data
        np.copyto(place[at : at + data.nbytes].view(data.dtype).reshape(data.shape), data)
        at += data.nbytes


def unpack_columns(
    columns: Sequence[Column], payload: memoryview, offset: int, block: np.ndarray | None, start: int
) -> tuple[dict[str, Tensor], int]:
    """The tensors of columns by name, as views, and the payload offset where the next part begins.

    `offset` is where this part begins in the payload; `block` is the shared memory from `start` on. Raises
    InvalidArgument or ValueError if a column lies about its size, or points outside of its block: columns
    come from the other process.
    """
    tensors: dict[str, Tensor] = {}
    for name, type_name, dims, size, at in ((c.name, c.datatype, c.shape, c.size, c.at) for c in columns):
        datatype = DataType.from_name(type_name)
        shape = tuple(dims)
        if at < 0:
            raw = payload[offset : offset + size]
            offset += size
            tensors[name] = decode_tensor(name, datatype, shape, raw)
            continue
        if block is None or not (start <= at and at + size <= start + block.nbytes):
            raise ValueError(f"column '{name}' is not in the block of shared memory of its message")
        place = block[at - start : at - start + size]
        if datatype is DataType.BYTES:
            tensors[name] = decode_tensor(name, datatype, shape, place.data)
            continue
        if min(shape, default=0) < 0 or element_count(shape) * datatype.itemsize != size:
            raise InvalidArgument(
                f"column '{name}' has {size} bytes for shape {list(shape)} of {datatype.name}"
            )
        # A numpy view, not a memoryview: it keeps `block` alive, which is how its last use is noticed.
        tensors[name] = Tensor(name, datatype, shape, place.view(datatype.dtype).reshape(shape))
    return tensors, offset
