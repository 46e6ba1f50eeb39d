"""The DATA that a connection receives: receive windows, and payloads that arrive in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backline.wire.http2 import frames
from backline.wire.http2.frames import (
    LARGE_BODY,
    LARGE_MAX_FRAME_SIZE,
    OUR_CONNECTION_WINDOW,
    OUR_STREAM_WINDOW,
    ConnectionFailure,
    StreamFailure,
)
from backline.wire.http2.output import Output
from backline.wire.http2.stream import Stream, StreamTable
from backline.wire.uploads import FREE

if TYPE_CHECKING:
    from backline.wire.http2.frame_reader import FrameHandler

#: The connection's window is replenished when fewer bytes than this are left.
REPLENISH_AT = OUR_CONNECTION_WINDOW // 2


class DataReceiver:
    """Passes payloads of DATA frames to their streams as they arrive, and drops payloads that no stream
    takes.

    `FrameReader` handles complete DATA frames of open streams inline, on the hot path. All other DATA frames,
    and padded and empty ones, start with `begin` and continue with `read`.

    Invariant: each DATA frame is subtracted from the connection's window, and from its stream's window if the
    stream is open, before its payload is used. The connection's window is replenished as bytes arrive. A
    stream's window is replenished only by `grant`, when the stream can hold more, and by `promise`, which
    makes large bodies take turns.
    """

    __slots__ = (
        "_handler",
        "_output",
        "_streams",
        "ends",
        "left",
        "length",
        "max_frame_size",
        "padding_left",
        "stream",
        "window_in",
    )

    def __init__(self, handler: FrameHandler, output: Output, streams: StreamTable) -> None:
        self._handler = handler
        self._output = output
        self._streams = streams
        #: The number of bytes that the client may still send on the connection.
        self.window_in = OUR_CONNECTION_WINDOW
        #: The maximum size of a frame that the client may send.
        self.max_frame_size = frames.MIN_MAX_FRAME_SIZE
        #: The number of bytes that are still missing from the current payload and from the padding after it.
        self.left = 0
        self.padding_left = 0
        #: The stream that receives the payload; None if it is dropped.
        self.stream: Stream | None = None
        #: The payload length of the current frame, and its END_STREAM flag.
        self.length = 0
        self.ends = 0

    def lose(self) -> None:
        """Drops the reference to the stream when the connection is closed."""
        self.stream = None

    def check_windows(self, stream: Stream | None) -> None:
        """Raises ConnectionFailure or StreamFailure if the client has exceeded a window. Replenishes the
        connection's window if little of it is left.
        """
        if self.window_in < 0:
            raise ConnectionFailure(frames.FLOW_CONTROL_ERROR, "DATA exceeds the connection's window")
        if self.window_in < REPLENISH_AT:
            self._output.write(frames.window_update(0, OUR_CONNECTION_WINDOW - self.window_in))
            self.window_in = OUR_CONNECTION_WINDOW
        if stream is not None and stream.window_in < 0:
            raise StreamFailure(frames.FLOW_CONTROL_ERROR, "DATA exceeds the stream's window")

    def begin(self, data: bytes, begin: int, length: int, flags: int, number: int) -> int:
        """Starts a DATA frame that is padded, empty or incomplete, or belongs to no open stream.

        Returns the position at which its data begins. Raises ConnectionFailure or StreamFailure if the frame
        is not allowed. The whole frame, padding included, counts toward both windows, even if it is dropped
        (RFC 9113, section 6.1).
        """
        padding = 0
        payload = length
        if flags & frames.PADDED:
            padding = data[begin] if length else 0
            if padding >= length:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "padding is longer than the frame")
            begin += 1
            payload -= 1 + padding
        stream = self._streams.open.get(number)
        if stream is None:
            self._streams.check_not_idle(number)
            if not self._streams.was_reset(number):
                raise ConnectionFailure(frames.STREAM_CLOSED, "DATA on a closed stream")
        ends = flags & frames.END_STREAM
        self.window_in -= length
        self.drop(0)
        self.left = payload
        self.padding_left = padding
        if not payload and not ends:
            # Security: padding carries nothing, so the client is charged for it by length.
            self._handler.spend(1 + (padding >> 6))
        if stream is None or not stream.remote_open:
            self.check_windows(None)
            self._handler.spend(1)
            if stream is not None:
                raise StreamFailure(frames.STREAM_CLOSED, "DATA after the end of the stream")
            if self._streams.was_reset_by_client(number):
                self._handler.send_reset(number, frames.STREAM_CLOSED)
            return begin
        stream.window_in -= length
        self.stream = stream
        self.length = length
        self.ends = ends
        self.check_windows(stream)
        if length != payload:
            # The stream never consumes padding, so its part of the window is returned here.
            self.grant(stream, length - payload)
        if not payload and ends:
            self.stream = None
            stream.feed(b"", 0, 0, 1)
        return begin

    def drop(self, length: int) -> None:
        """Drops the next `length` bytes."""
        self.left = length
        self.padding_left = 0
        self.stream = None
        self.ends = 0

    def read(self, data: bytes, at: int, size: int) -> int:
        """Consumes the part of the current payload in data[at:size]. Returns the position after it."""
        if self.left:
            take = min(self.left, size - at)
            self.left -= take
            stream = self.stream
            if stream is not None and take:
                try:
                    if not stream.closed and stream.remote_open:
                        stream.feed(data, at, at + take, self.ends and not self.left)
                except StreamFailure as failure:
                    self._handler.fail_stream(stream.number, failure)
            at += take
        if not self.left and self.padding_left:
            take = min(self.padding_left, size - at)
            self.padding_left -= take
            at += take
        return at

    def placed(self, size: int) -> None:
        """Accounts for `size` bytes of the current payload that were received into the stream's `room`."""
        stream = self.stream
        assert stream is not None, "it has room"
        self.left -= size
        try:
            self.check_windows(stream)
            stream.placed(size, self.ends and not self.left)
        except StreamFailure as failure:
            self._handler.fail_stream(stream.number, failure)

    def continues(self, length: int, ends: int) -> None:
        """Accounts for frames of the current stream that follow a complete frame, as if they were a single
        frame.

        `placed` checks the flow-control windows.
        """
        assert self.stream is not None, "it has room"
        self.window_in -= length
        self.stream.window_in -= length
        self.left = length
        self.ends = ends

    def expect(self, stream: Stream, size: int) -> None:
        """Prepares for an announced body of `size` bytes: allows large frames, and extends the stream's
        window.

        The window then covers the whole body, unless the body has to wait for other large bodies.
        """
        if size > LARGE_BODY and self.max_frame_size < LARGE_MAX_FRAME_SIZE:
            self.max_frame_size = LARGE_MAX_FRAME_SIZE
            self._output.write(frames.settings({frames.MAX_FRAME_SIZE: LARGE_MAX_FRAME_SIZE}))
            self._handler.expect_acknowledgement()
        self.promise(stream, size, size - OUR_STREAM_WINDOW)

    def promise(self, stream: Stream, size: int, more: int) -> None:
        """Promises the client a window for the last `more` bytes of a body of `size` bytes: the part that the
        current window does not cover.

        For a small body, the window is extended immediately. For a large one, it is extended now by as many
        bytes as other large bodies leave room for, and by the rest later.
        """
        if size <= FREE:
            self.grant(stream, more)
        elif more > 0:
            stream.upload_size = size
            stream.ungranted = more
            self.grant_room(stream)

    def grant_room(self, stream: Stream) -> None:
        """Grants as many of the promised bytes as there is room for."""
        room = stream.connection.wire.uploads.room(stream, stream.upload_size)
        more = room - (stream.upload_size - stream.ungranted)
        if more > 0:
            stream.ungranted -= more
            self.grant(stream, more)

    def grant(self, stream: Stream, size: int) -> None:
        """Extends the stream's window by `size` bytes."""
        if size > 0 and not stream.closed and stream.remote_open:
            stream.window_in += size
            self._output.write(frames.window_update(stream.number, size))
