"""A large request body, received directly into one buffer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection
    from backline.wire.http1.receiver import Receiver


#: The number of bytes per read. A socket may hold megabytes, and copying them at once would block the event
#: loop.
READ = 256 * 1024


class LargeBody(asyncio.BufferedProtocol):
    """The transport's asyncio protocol until `size` bytes have arrived, when the connection takes over again.

    The kernel writes into the final buffer, so each byte is copied once. `numpy.empty` does not touch the
    buffer's pages (a bytearray would write zeros), so a client that announces a large body but sends little
    costs little memory.
    """

    __slots__ = ("_connection", "_receiver", "filled", "size", "view")

    def __init__(self, receiver: Receiver, connection: Http1Connection, size: int) -> None:
        self._receiver = receiver
        self._connection = connection
        self.view = np.empty(size, np.uint8).data
        self.size = size
        self.filled = 0

    def append(self, data: memoryview | bytes) -> None:
        """Copies bytes that arrived before the transport wrote into this buffer."""
        end = self.filled + len(data)
        self.view[self.filled : end] = data
        self.filled = end

    def take(self) -> memoryview:
        """Returns the body and drops it here, since transports keep references to their previous protocol."""
        view, self.view = self.view, memoryview(b"")
        return view

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view[self.filled : self.filled + READ]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        self._receiver.large_body_grew(nbytes)
        if nbytes == READ and self.size - self.filled > READ:  # one more read costs less than a pause
            self._connection.rest()
        poll = self._connection.wire.poll
        poll.arrived = True
        if poll.asleep:
            poll.wake()

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
