"""Large request bodies, received directly into one buffer each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backline.wire.connection import BufferReader

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection
    from backline.wire.http1.receiver import Receiver


#: The number of bytes per read. A socket may hold megabytes, and copying them at once would block the event
#: loop.
READ = 256 * 1024
#: The maximum number of bytes in the last read of a body. It exceeds READ because a separate read for a small
#: remainder would cost more.
LAST_READ = READ * 3 // 2


class LargeBody(BufferReader["Http1Connection"]):
    """The transport's asyncio protocol until `size` bytes have arrived. After that, a HeadReader takes over.

    The transport writes directly into the final buffer, which saves a copy. `numpy.empty` does not touch the
    buffer's pages (a bytearray would write zeros), so a client that announces a large body but sends little
    costs little memory.
    """

    __slots__ = ("_receiver", "filled", "size", "view")

    def __init__(self, receiver: Receiver, connection: Http1Connection, size: int) -> None:
        super().__init__(connection)
        self._receiver = receiver
        self.view = np.empty(size, np.uint8).data
        self.size = size
        self.filled = 0

    def append(self, data: memoryview | bytes) -> None:
        """Copies bytes of the body that arrived before the transport began to write into this buffer."""
        end = self.filled + len(data)
        self.view[self.filled : end] = data
        self.filled = end

    def take(self) -> memoryview:
        """Returns the body and drops this object's reference to the body. Transports keep references to their
        previous protocol, which would keep the body in memory.
        """
        view, self.view = self.view, memoryview(b"")
        return view

    def get_buffer(self, sizehint: int) -> memoryview:
        begin = self.filled
        return self.view[begin:] if self.size - begin <= LAST_READ else self.view[begin : begin + READ]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        self._receiver.large_body_grew(nbytes)
        if nbytes == READ and self.size - self.filled > LAST_READ:  # one more read costs less than a pause
            self._connection.rest()
        self._connection.wire.poll.note_input()


class HeadReader(BufferReader["Http1Connection"]):
    """The transport's asyncio protocol after a large body. It expects another large body, as clients usually
    send several.

    It reads into the short `wire.read_buffer`, so that only the beginning of the next large body has to be
    copied. If a read fills this buffer but begins no large body, the connection becomes the transport's
    protocol again, because its reads are longer.
    """

    __slots__ = ("_buffer",)

    def __init__(self, connection: Http1Connection) -> None:
        super().__init__(connection)
        self._buffer = memoryview(connection.wire.read_buffer)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        connection = self._connection
        connection.data_received(bytes(self._buffer[:nbytes]))
        if nbytes == len(self._buffer) and connection.transport.get_protocol() is self:
            connection.transport.set_protocol(connection)
