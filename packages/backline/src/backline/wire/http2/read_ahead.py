"""Receives large messages without copying them: the kernel writes directly into their buffers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backline.wire.connection import BufferReader
from backline.wire.http2.data import DataReceiver
from backline.wire.http2.frames import END_STREAM, FRAME_HEADER
from backline.wire.limits import KIB, MIB

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection
    from backline.wire.http2.frame_reader import FrameReader

#: The maximum number of bytes of a message per read: receiving more at once would block the event loop for
#: too long.
READ = 1 * MIB
#: The maximum number of bytes per read outside of large messages: about one frame of the usual length.
_PIECE = 16 * KIB
#: The minimum frame size in bytes for direct reads. For shorter frames, passing a list of their buffers to
#: the kernel costs more than copying the frames.
_SHORTEST = 4 * KIB


class DirectProtocol(BufferReader["Http2Connection"]):
    """The transport's asyncio protocol once the client has announced a large message.

    While a large message arrives, the transport writes into the message's buffer. All other bytes go through
    the beginning of `wire.read_buffer`. Such reads are short, so that few bytes have to be copied if a large
    message begins in one of them.
    """

    __slots__ = ("_direct", "_pieces", "_reader")

    def __init__(self, connection: Http2Connection, reader: FrameReader) -> None:
        super().__init__(connection)
        self._reader = reader
        self._pieces = memoryview(connection.wire.read_buffer)[:_PIECE]
        #: Whether the transport currently writes into a message's buffer.
        self._direct = False

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._reader.room()
        self._direct = room.nbytes > 0
        return room if self._direct else self._pieces

    def buffer_updated(self, nbytes: int) -> None:
        if self._direct:
            self._reader.placed(nbytes)
        else:
            self._connection.data_received(bytes(self._pieces[:nbytes]))


def read_ahead(descriptor: int, payload: DataReceiver) -> tuple[bool, bytes]:
    """Reads the rest of the current DATA frame, and the frames that follow it, from a non-blocking socket.

    The payloads go to their places in the message, and the frame headers between them to a separate buffer.
    This relies on a guess: that the message continues in frames of the same length, of which the last one
    ends the stream. Returns whether the socket may have more bytes, and the bytes from the first header that
    does not match the guess; the caller handles these bytes as usual. Errors and the end of the connection
    are left for the transport to detect.

    Raises ConnectionFailure if a flow-control window is exceeded.
    """
    stream = payload.stream
    if stream is None or payload.padding_left:
        return False, b""
    room = stream.room()
    left, length, missing = payload.left, payload.length, room.nbytes
    if left > missing or not missing or length < _SHORTEST:
        return False, b""
    count = 0 if payload.ends else max(0, min(-((left - missing) // length), (READ - left) // length))
    # All frames have the same length, except for the last frame of the message.
    end = min(missing, left + count * length) if count else min(left, READ)
    if not end:
        return False, b""
    headers = memoryview(bytearray(9 * count))
    views = [headers] * (2 * count)
    views[::2] = [headers[begin : begin + 9] for begin in range(0, 9 * count, 9)]
    views[1::2] = [room[begin : begin + length] for begin in range(left, end, length)] if count else []
    if left:
        views.insert(0, room[:left] if count else room[:end])
    try:
        got = os.readv(descriptor, views)
    except OSError:
        return False, b""
    more = got == end + 9 * count
    if got <= left:
        if got:
            payload.placed(got)
        return more, b""
    got -= left
    whole, part = divmod(got, 9 + length)
    begun = min(count, whole + (part >= 9))
    as_guessed = FRAME_HEADER.pack(length << 8, 0, stream.number) * count
    if end == missing:
        last = end - left - (count - 1) * length
        as_guessed = as_guessed[:-9] + FRAME_HEADER.pack(last << 8, END_STREAM, stream.number)
    found = bytes(headers[: 9 * begun])
    if found != as_guessed[: 9 * begun]:
        begun = next(index for index in range(begun) if not _agree(found, as_guessed, index))
        whole = begun
    begins_rest = begun * (9 + length)
    if begun > whole:  # the last frame that began has not arrived completely
        begins_rest = got
    # Bytes after a header that does not match are copied out of the message. They do not count as filled
    # there, so the bytes that really belong to the message overwrite them.
    rest = b"".join(views[int(left > 0) + 2 * begun :])[: got - begins_rest] if got > begins_rest else b""
    if left:
        payload.placed(left)
    if not begun:
        return more, rest
    if stream.closed or not stream.room():
        # The stream has failed or was refused. Its frames are handled as usual, so they are counted and
        # dropped.
        return more, b"".join(views[int(left > 0) :])[:got]
    announced = min(begun * length, end - left)
    payload.continues(announced, END_STREAM if left + announced == missing else 0)
    payload.placed(got - len(rest) - 9 * begun)
    return more, rest


def _agree(found: bytes, guessed: bytes, index: int) -> bool:
    return found[9 * index : 9 * index + 9] == guessed[9 * index : 9 * index + 9]
