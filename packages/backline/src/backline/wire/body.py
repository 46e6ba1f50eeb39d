"""Assembles request bodies from pieces, in memory that grows only as bytes arrive."""

from __future__ import annotations

import mmap

import numpy as np

from backline.wire.application import Buffer
from backline.wire.limits import KIB

#: Bodies up to this size are held in a bytearray; larger ones are moved to a memory map.
SMALL = 64 * KIB
#: The initial size of the memory map.
FIRST_MAP = 256 * KIB
NO_ROOM = memoryview(b"")


class GrowingBuffer:
    """A body of unknown size. Memory is committed page by page as bytes arrive.

    Invariants:

    * A full map grows to the next power of two. Linux moves the map's pages instead of copying them
      (mremap(2)), so `append` blocks the event loop only while it copies one piece (and, once, the first
      SMALL bytes). Pages beyond `size` are never touched, so they take no memory.
    * No view of the map exists while the map grows, because a map with exported buffers cannot be resized. So
      `take` must be the last call.
    * A map is returned to the system as soon as its last view is freed; the C library's allocator is not
      involved.
    """

    __slots__ = ("_map", "_small", "size")

    def __init__(self) -> None:
        self.size = 0
        self._small = bytearray()
        self._map: mmap.mmap | None = None

    def append(self, piece: Buffer) -> None:
        end = self.size + len(piece)
        if self._map is None and end <= SMALL:
            self._small += piece
        else:
            self._room_for(end)[self.size : end] = piece
        self.size = end

    def take(self) -> Buffer:
        """Returns the whole body. Nothing can be appended afterwards."""
        return self._small if self._map is None else memoryview(self._map)[: self.size]

    def _room_for(self, end: int) -> mmap.mmap:
        current = self._map
        if current is None:
            current = self._map = _map(max(FIRST_MAP, _power_of_two(end)))
            current[: self.size] = self._small
            self._small = bytearray()
        elif end > len(current):
            try:
                current.resize(_power_of_two(end))
            except SystemError:
                # This system has no mremap.
                smaller, current = current, _map(_power_of_two(end))
                current[: self.size] = memoryview(smaller)[: self.size]
                self._map = current
        return current


def _map(size: int) -> mmap.mmap:
    # The map is private, because a shared map (the default) cannot grow: a write beyond its initial size
    # raises SIGBUS.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


class Body:
    """A body that arrives in pieces. If its size is known, all pieces go into one preallocated buffer."""

    __slots__ = ("_buffer", "filled", "size")

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.filled = 0
        self._buffer = GrowingBuffer() if size is None else np.empty(size, np.uint8).data

    def add(self, data: Buffer, begin: int, end: int) -> None:
        """Appends data[begin:end], which must fit into the body."""
        piece = memoryview(data)[begin:end]
        buffer = self._buffer
        if isinstance(buffer, GrowingBuffer):
            buffer.append(piece)
        else:
            buffer[self.filled : self.filled + end - begin] = piece
        self.filled += end - begin

    @property
    def room(self) -> memoryview:
        """The unfilled part of the buffer, or an empty view if the size of the body is unknown."""
        buffer = self._buffer
        return NO_ROOM if isinstance(buffer, GrowingBuffer) else buffer[self.filled :]

    def placed(self, size: int) -> None:
        """Reports that `size` bytes were written to the beginning of `room`."""
        self.filled += size

    def beginning(self, size: int) -> Buffer:
        """Returns a copy of the first bytes, at most `size`, of a body of known size."""
        buffer = self._buffer
        assert not isinstance(buffer, GrowingBuffer), "the size is known"
        return bytes(buffer[: min(size, self.filled)])

    @property
    def missing(self) -> int:
        """The number of bytes that have not arrived yet, or 0 if the size is unknown."""
        return 0 if self.size is None else self.size - self.filled

    @property
    def complete(self) -> bool:
        return self.filled == self.size

    def take(self) -> Buffer:
        buffer = self._buffer
        return buffer.take() if isinstance(buffer, GrowingBuffer) else buffer
