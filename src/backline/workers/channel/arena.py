"""Shared memory between a server and one worker: a file that only exists in memory, mapped by both.

Each side writes to its own half and lends blocks of it to the other, which gives them back. A block is reused as it is: its pages are
there and warm. The file is sparse: what was never written takes no memory.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import defaultdict
from collections.abc import Callable

import numpy as np

#: Bytes of the address space for each side.
HALF = 1 << 35
#: A batch with fewer bytes of tensors travels in its frame: for so little, two copies through the socket cost no more than lending a block
#: and getting it back. Where exactly they cost the same depends on the machine; this is a size that is small on all of them.
INLINE_LIMIT = 1 << 15
#: The smallest block.
_SMALLEST = 1 << 16
#: Free bytes that are kept for the next blocks; beyond it memory goes back to the system.
_KEPT = 1 << 28


def create() -> int:
    """A new file descriptor of an arena, to be passed on to the worker."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("backline", os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile(prefix="backline-") as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, 2 * HALF)
    return descriptor


class Arena:
    """One side's view: `lower` is the half that it writes to. Not for several threads at once: callers lock."""

    def __init__(self, descriptor: int, *, lower: bool) -> None:
        """Maps the file; the descriptor may be closed afterwards."""
        self._map = mmap.mmap(descriptor, 2 * HALF)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._start = 0 if lower else HALF
        self._next = self._start
        self._free: dict[int, list[int]] = defaultdict(list)
        self._free_bytes = 0
        self._sizes: dict[int, int] = {}

    @property
    def lent(self) -> int:
        """The bytes of all blocks that have not come back."""
        return sum(self._sizes.values())

    def borrow(self, size: int) -> tuple[int, np.ndarray]:
        """A block of at least `size` bytes to write to: its offset, and its bytes. Raises MemoryError when there is none."""
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
        """A block of this side came back. One that was not lent is left alone: the other side may say anything."""
        size = self._sizes.pop(at, 0)
        if not size:
            return
        self._free[size].append(at)
        self._free_bytes += size
        if self._free_bytes > _KEPT and hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE, at, size)

    def read(self, at: int, size: int, *, writable: bool = False) -> np.ndarray:
        """Bytes of the other side's half. Raises ValueError for a place that is not in it."""
        start = HALF - self._start
        if not (start <= at and size >= 0 and at + size <= start + HALF):
            raise ValueError(f"{size} bytes at {at} are not in the memory that the other side may write to")
        found = np.frombuffer(self._map, np.uint8, size, at)
        found.flags.writeable = writable
        return found


def when_unused(block: np.ndarray, done: Callable[[], None]) -> None:
    """Calls `done` when no view of a block is left. `block` is what `Arena.read` gave: numpy's views keep it alive."""
    finalizer = weakref.finalize(block, done)
    finalizer.atexit = False
