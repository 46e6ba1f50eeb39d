"""A body that comes in pieces, gathered without gluing."""

from __future__ import annotations

import numpy as np

from backline.wire.application import Buffer
from backline.wire.growing_buffer import GrowingBuffer


class Body:
    """Bytes in the order they come. With a known size they go into one buffer, whose pages are taken only as they are written."""

    __slots__ = ("_buffer", "_growing", "filled", "size")

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.filled = 0
        self._growing = GrowingBuffer()
        self._buffer = np.empty(size, np.uint8).data if size is not None else None

    def add(self, data: Buffer, begin: int, end: int) -> None:
        """Appends data[begin:end], which must fit."""
        piece = memoryview(data)[begin:end]
        if self._buffer is None:
            self._growing.append(piece)
        else:
            self._buffer[self.filled : self.filled + end - begin] = piece
        self.filled += end - begin

    @property
    def missing(self) -> int:
        """Bytes still to come; of a body of unknown size, 0."""
        return 0 if self.size is None else self.size - self.filled

    @property
    def complete(self) -> bool:
        return self.filled == self.size

    def take(self) -> Buffer:
        return self._growing.take() if self._buffer is None else self._buffer
