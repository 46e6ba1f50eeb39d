"""Memory that the server and one worker share: an unnamed file that both map, in memory on Linux. Also packs
tensors into columns, which are sent in this memory or, if they are small, in a frame.

Each side writes only to its own half. A side lends a block of its half to the other side by sending the
block's offset in a message, and reuses the block once the other side has returned it. These messages lend and
return blocks:

    server's block  lent by EXECUTE, returned by RESULT, or by PONG or CALL if the model kept views
                    lent by RESPONSE, returned by PONG or CALL
    worker's block  lent by RESULT, CALL or ASK, returned by EXECUTE, RESPONSE or PING

A returned block keeps its pages, so that the next batch need not allocate them again. The file is sparse:
pages that were never written take no memory. When a worker ends, the server drops its reference to the
mapping; the memory is freed with the last array that refers to it.

Neither side trusts offsets that it receives: `read` checks that they are in the other side's half, and that a
worker has written as much as it claims, and `give_back` ignores a block that is not lent. On Linux the file
is sealed against truncation. A worker can still change a block while the server reads it. So the server must
treat the contents of tensors as untrusted input that may change at any time, and must not rely on an earlier
check of them.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from backline.workers.channel.protocol import Buffer, Column
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Tensor, decode_tensor, element_count, encode_tensor

#: The size of each half in bytes (of address space, not of memory).
HALF = 1 << 35
#: Batches below this size in bytes are sent in their frame, because two copies through the socket then cost
#: no more than lending a block. The break-even point depends on the machine, and was higher than this on all
#: machines that were measured.
INLINE_LIMIT = 1 << 15
#: The size of the smallest block, in bytes.
_SMALLEST = 1 << 16
#: The maximum number of bytes in free blocks whose pages are kept for reuse. The pages of further blocks are
#: returned to the system.
_KEPT = 1 << 28
#: The server reads ranges of up to this many bytes without checking that the worker has written them.
_SMALL_CLAIM = 1 << 20
#: The alignment of columns in shared memory, in bytes. Vector instructions need this alignment.
_ALIGNMENT: Final = 64


def create() -> int:
    """Creates the file of an arena. Returns its descriptor, which the worker inherits."""
    if hasattr(os, "memfd_create"):
        import fcntl

        descriptor = os.memfd_create("backline", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, 2 * HALF)
        # The worker may write to the file and could therefore truncate it; the server's next access to its
        # mapping would then raise SIGBUS. F_SEAL_SEAL keeps the worker from adding seals that would forbid
        # MADV_REMOVE.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return descriptor
    import tempfile

    with tempfile.TemporaryFile(prefix="backline-") as file:
        os.ftruncate(file.fileno(), 2 * HALF)
        return os.dup(file.fileno())


class Arena:
    """One side's view of the shared memory. `lower` is True for the server, which writes to the lower half,
    and False for the worker, which writes to the upper half. Not thread-safe.
    """

    def __init__(self, descriptor: int, *, lower: bool) -> None:
        """Maps the shared memory; the caller may then close the descriptor. Raises MemoryError if not enough
        address space is free.
        """
        try:
            self._map = mmap.mmap(descriptor, 2 * HALF)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryError(
                f"{2 * HALF >> 30} GiB of address space, most of which will take no memory, cannot be"
                " reserved: raise the limit on address space (ulimit -v)"
            ) from None
        #: The descriptor with which the server checks sizes that the worker claims; -1 in the worker.
        self._file = os.dup(descriptor) if lower else -1
        if lower:
            weakref.finalize(self, os.close, self._file)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._start = 0 if lower else HALF
        self._next = self._start
        self._free: dict[int, list[int]] = defaultdict(list)
        self._free_bytes = 0
        self._sizes: dict[int, int] = {}

    @property
    def lent(self) -> int:
        """The total size in bytes of this side's blocks that are lent to the other side."""
        return sum(self._sizes.values())

    def borrow(self, size: int) -> tuple[int, np.ndarray]:
        """Lends a block of at least `size` bytes. Returns its offset, and a writable view of its first `size`
        bytes. Raises MemoryError if this side's half is full.
        """
        whole = max(_SMALLEST, 1 << (size - 1).bit_length())
        free = self._free[whole]
        if free:
            at = free.pop()
            self._free_bytes -= whole
        else:
            at = self._next
            if at + whole > self._start + HALF:
                raise MemoryError(f"{size} bytes of tensors do not fit into the memory shared with a worker")
            self._next += whole
        self._sizes[at] = whole
        return at, self._bytes[at : at + size]

    def give_back(self, at: int) -> None:
        """Takes back a block of this side. Ignores the offset of a block that is not lent: if the other side
        returned a block twice, two batches would otherwise get the same block.
        """
        size = self._sizes.pop(at, 0)
        if not size:
            return
        self._free[size].append(at)
        self._free_bytes += size
        if self._free_bytes > _KEPT and hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE, at, size)

    def read(self, at: int, size: int, *, writable: bool = False) -> np.ndarray:
        """Returns a view of bytes in the other side's half. Raises ValueError for a range outside that half
        and, on the server, for a large range that the worker cannot have written completely.

        Security: the server may copy the range, and reading pages that were never written allocates them.
        Without the check, a worker could make the server use 32 GiB of memory without using any itself.
        """
        start = HALF - self._start
        if not (start <= at and size >= 0 and at + size <= start + HALF):
            raise ValueError(f"{size} bytes at {at} are outside the other side's half of the shared memory")
        if size > _SMALL_CLAIM and self._file >= 0:
            written = os.fstat(self._file).st_blocks * 512
            if 0 < written < size:  # 0 if the system does not count the blocks
                raise ValueError(f"{size} bytes at {at} are more than the shared memory holds ({written})")
        found = np.frombuffer(self._map, np.uint8, size, at)
        found.flags.writeable = writable
        return found


def when_unused(block: np.ndarray, done: Callable[[], None]) -> None:
    """Calls `done` when the last view of a block is freed, on the thread that frees it. `block` must come
    from `Arena.read`: NumPy views keep the block alive as their base.
    """
    finalizer = weakref.finalize(block, done)
    finalizer.atexit = False


def pack_columns(
    parts: Sequence[Sequence[Sequence[Tensor]]], arena: Arena
) -> tuple[list[list[Column]], list[Buffer], int]:
    """Packs tensors into columns. Returns the columns of each part; the payload, if the tensors are small;
    and the offset of the block of shared memory that holds them, or -1 if they are in the payload.

    `parts` has a list of columns for each part, and each column is the list of tensors to concatenate, in
    order. Raises MemoryError if the shared memory is full.
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
                shape[0] = sum([tensor.shape[0] for tensor in tensors])
            buffers: list[Buffer] | None = None
            if first.datatype is DataType.BYTES:
                buffers = [encode_tensor(tensor) for tensor in tensors]
                size = sum(map(len, buffers))
            else:
                size = element_count(shape) * first.data.itemsize
            column = Column(first.name, first.datatype.name, shape, size)
            columns.append(column)
            encoded.append((column, tensors, buffers))
            total += size
        packed.append(columns)
    if total < INLINE_LIMIT:
        payload: list[Buffer] = []
        for _, tensors, buffers in encoded:
            if buffers is not None:
                payload += buffers
            elif len(tensors) > 1:
                payload.append(np.concatenate([tensor.data for tensor in tensors]).tobytes())
            else:
                payload.append(encode_tensor(tensors[0]))
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
    """Returns the tensors of one part by name, as views, and the payload offset where the next part begins.

    `offset` is where this part begins in the payload, and `block` is the shared memory from `start` on.
    Raises InvalidArgument or ValueError if a column, which comes from the other process, has the wrong size
    or is outside the block.
    """
    tensors: dict[str, Tensor] = {}
    for column in columns:
        name, size, at = column.name, column.size, column.at
        datatype = DataType.from_name(column.datatype)
        shape = tuple(column.shape)
        if at < 0:
            raw = payload[offset : offset + size]
            offset += size
            tensors[name] = decode_tensor(name, datatype, shape, raw)
            continue
        if block is None or not (start <= at and at + size <= start + block.nbytes):
            raise ValueError(f"column '{name}' is outside the block of shared memory that its message names")
        place = block[at - start : at - start + size]
        if datatype is DataType.BYTES:
            tensors[name] = decode_tensor(name, datatype, shape, place.data)
            continue
        if min(shape, default=0) < 0 or element_count(shape) * datatype.itemsize != size:
            raise InvalidArgument(
                f"column '{name}' has {size} bytes for shape {list(shape)} of {datatype.name}"
            )
        # The tensor is a NumPy view rather than a memoryview, because a NumPy view keeps `block` alive, so
        # `when_unused` notices when the last view is freed.
        tensors[name] = Tensor(name, datatype, shape, place.view(datatype.dtype).reshape(shape))
    return tensors, offset
