"""The frames of an HTTP/2 connection, out of whatever pieces the socket gives."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from time import perf_counter

from backline.wire.connection import Connection, Wire
from backline.wire.http2 import frames, settings
from backline.wire.http2.closed_streams import ClosedStreams
from backline.wire.http2.frames import FRAME_HEADER, PREFACE, ConnectionFailure, StreamFailure
from backline.wire.http2.header_blocks import HeaderBlocks
from backline.wire.http2.output import Output
from backline.wire.http2.request_head import RequestHead
from backline.wire.http2.settings import (
    LARGE_BODY,
    LARGE_MAX_FRAME_SIZE,
    OUR_CONNECTION_WINDOW,
    OUR_STREAM_WINDOW,
)
from backline.wire.http2.stream import Stream
from backline.wire.limits import KIB
from backline.wire.turns import LARGE_READ, peer_is_gone

log = logging.getLogger("backline.wire")

#: CONTINUATION frames of one header block.
_MAX_CONTINUATIONS = 8
#: The connection's window is opened again when this much of it was used.
_REPLENISH_AT = OUR_CONNECTION_WINDOW // 2
#: A connection that had to wait for its turn waits again when the socket gives more than this at once.
_SMALL_READ = 8 * KIB
#: A client that sent this much at once may have left meanwhile.
_ASK_FROM = 32 * KIB


class FrameReader(Connection):
    """The reading half of an HTTP/2 connection: cuts bytes into frames, gives DATA to the streams in pieces, all else to the connection.

    A DATA frame is never put together: its payload goes to the stream as it comes. Of every other frame at most one is waited for.
    """

    transport: asyncio.Transport
    output: Output

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.loop = wire.loop
        self.streams: dict[int, Stream] = {}
        self.last_stream = 0
        self._blocks = HeaderBlocks(wire.application, wire.limits)
        self._closed_streams = ClosedStreams()
        self._window_in = OUR_CONNECTION_WINDOW
        self._max_frame_size = frames.MIN_MAX_FRAME_SIZE
        self._preface_done = False
        #: An incomplete frame, and the size at which it goes on.
        self._pending = bytearray()
        self._needed = 0
        #: Bytes that wait for the next turn of this connection: (data, position).
        self._held: tuple[bytes, int] | None = None
        #: Its last bytes did not fit into one turn.
        self._busy = False
        #: Reading is paused until the next turn.
        self._resting = False
        #: What is left of a frame whose payload goes to a stream, or nowhere, as it comes.
        self.payload_left = 0
        self._padding_left = 0
        self._payload_stream: Stream | None = None
        self._payload_ends = 0
        #: A header block that goes on in CONTINUATION frames of this stream.
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = 0
        self._continuations = 0
        self._write_blocked = False
        self._read_paused = False
        self._closing = False
        self._lost = False
        #: Calls of data_received, for the sweep.
        self._reads = 0

    @abstractmethod
    def _open(self, number: int, head: RequestHead, ends: int) -> None:
        """A request on a new stream."""

    @abstractmethod
    def _headers(self, number: int, block: bytes, ends: int) -> None:
        """A complete header block."""

    @abstractmethod
    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A complete frame of another type."""

    @abstractmethod
    def _fail(self, failure: ConnectionFailure) -> None:
        """Ends the connection."""

    @abstractmethod
    def _fail_stream(self, number: int, failure: StreamFailure) -> None:
        """Ends a stream."""

    @abstractmethod
    def _send_reset(self, number: int, code: int) -> None:
        """Sends RST_STREAM."""

    @abstractmethod
    def _check_not_idle(self, number: int) -> None:
        """Raises ConnectionFailure for a stream that was never opened."""

    @abstractmethod
    def spend(self, cost: float) -> None:
        """Pays for a frame that carries nothing. Raises ConnectionFailure when the client floods."""

    @abstractmethod
    def expect_acknowledgement(self) -> None:
        """SETTINGS were sent, which the client must acknowledge."""

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._reads += 1
        if type(data) is not bytes:
            # TLS may give other buffers; header blocks are keys of a dictionary.
            data = bytes(data)
        if self._held is not None:
            held, at = self._held
            self._held = (held[at:] + data, 0)
            return
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            data = bytes(self._pending)
            self._pending = bytearray()
        if self._busy or len(data) >= _ASK_FROM:
            if len(data) >= _ASK_FROM and peer_is_gone(self.transport):
                self.abort()
                return
            if len(data) >= LARGE_READ:
                self._rest()
            if self._busy and len(data) > _SMALL_READ:
                self._hold(data, 0)
                return
            self._busy = False
        self._read_safely(data, 0)

    def _read_safely(self, data: bytes, at: int) -> None:
        try:
            self._read(data, at)
        except ConnectionFailure as failure:
            self._fail(failure)
        except Exception:
            log.exception("a fault of the server closes an HTTP/2 connection")
            self._fail(ConnectionFailure(frames.INTERNAL_ERROR, "a fault of the server"))
        if self.output.parts:
            self.output.flush()

    def _read(self, data: bytes, at: int) -> None:
        """Handles the frames in `data` from `at` on, as many as one turn may have."""
        size = len(data)
        if not self._preface_done:
            at = self._read_preface(data, size)
            if at < 0:
                return
        streams = self.streams
        known = self._blocks.known
        budget = self.wire.limits.frames_per_turn
        limit = at + self.wire.limits.bytes_per_turn
        # The clock is read every few frames, and first after a few: most reads have no more.
        end_of_turn = 0.0
        unpack = FRAME_HEADER.unpack_from
        needed = 9
        while True:
            if self.payload_left or self._padding_left:
                at = self._read_payload(data, at, size)
                if self.payload_left or self._padding_left:
                    return
            if size - at < 9:
                break
            if not budget or at > limit:
                self._hold(data, at)
                return
            budget -= 1
            if not budget & 3:
                now = perf_counter()
                if not end_of_turn:
                    end_of_turn = now + self.wire.limits.seconds_per_turn
                elif now > end_of_turn:
                    self._hold(data, at)
                    return
            word, flags, number = unpack(data, at)
            kind = word & 0xFF
            length = word >> 8
            number &= 0x7FFFFFFF
            if length > self._max_frame_size:
                raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "a frame above MAX_FRAME_SIZE")
            begin = at + 9
            end = begin + length
            try:
                if self._block is not None and (kind != frames.CONTINUATION or number != self._block_stream):
                    raise ConnectionFailure(frames.PROTOCOL_ERROR, "a header block is interrupted")
                if not kind:  # DATA
                    stream = streams.get(number)
                    if (
                        length
                        and end <= size
                        and stream is not None
                        and stream.remote_open
                        and not flags & frames.PADDED
                    ):
                        at = end
                        self._window_in -= length
                        stream.window_in -= length
                        if self._window_in < _REPLENISH_AT or stream.window_in < 0:
                            self._check_windows(stream)
                        stream.feed(data, begin, end, flags & 1)
                    elif flags & frames.PADDED and length and size == begin:
                        needed = 10
                        break
                    else:
                        at = self._begin_payload(data, begin, length, flags, number)
                    continue
                if end > size:
                    if self._is_streamed(kind, length):
                        at = begin
                        self._drop_payload(length)
                        continue
                    needed = 9 + length
                    break
                at = end
                if kind == frames.HEADERS and flags & 0x2C == frames.END_HEADERS:
                    block = data[begin:end]
                    head = known.get(block)
                    if head is not None and number > self.last_stream and number & 1:
                        self._open(number, head, flags & 1)
                    else:
                        self._headers(number, block, flags & 1)
                        # Decoding may have been expensive: the clock is looked at next.
                        if budget > 3:
                            budget = budget & ~3 | 1
                elif kind == frames.HEADERS:
                    self._headers_in_parts(flags, number, data[begin:end])
                elif kind == frames.CONTINUATION:
                    self._continuation(flags, number, data[begin:end])
                else:
                    self._control(kind, flags, number, data[begin:end])
            except StreamFailure as failure:
                self._fail_stream(number, failure)
        if at < size:
            self._pending = bytearray(data[at:] if at else data)
            self._needed = needed

    def _read_preface(self, data: bytes, size: int) -> int:
        if size < 24 + 4:
            if not PREFACE.startswith(data[:24]):
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "not the preface of HTTP/2")
            self._pending = bytearray(data)
            self._needed = size + 1
            return -1
        if data[:24] != PREFACE or data[27] != frames.SETTINGS:
            raise ConnectionFailure(
                frames.PROTOCOL_ERROR, "not the preface of HTTP/2, or no SETTINGS after it"
            )
        self._preface_done = True
        return 24

    def _forget_received(self) -> None:
        """Nothing more is read: frees what would otherwise wait for the collector of cycles."""
        self._held = None
        self._pending = bytearray()
        self._payload_stream = None
        self._block = None

    def _hold(self, data: bytes, at: int) -> None:
        """Lets other connections have their turn first."""
        self._held = (data, at)
        self._busy = True
        self._update_reading()
        if not self._write_blocked:
            self.wire.turns.wait(self)

    def _rest(self) -> None:
        """Reads no more until the next turn."""
        self._resting = True
        self._update_reading()
        self.wire.turns.wait(self)

    def take_turn(self) -> bool:
        paused, self._resting = self._read_paused, False
        if self._held is not None and not self._closing and not self._write_blocked:
            if peer_is_gone(self.transport):
                # Nobody will read the answers.
                self.abort()
                return False
            data, at = self._held
            self._held = None
            self._read_safely(data, at)
        self._update_reading()
        return paused and not self._read_paused

    def _update_reading(self) -> None:
        pause = not self._closing and (self._resting or self._write_blocked or self._held is not None)
        if pause != self._read_paused and not self._lost and not self.transport.is_closing():
            self._read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # DATA

    def _check_windows(self, stream: Stream | None) -> None:
        if self._window_in < 0:
            raise ConnectionFailure(frames.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        if self._window_in < _REPLENISH_AT:
            self.output.write(frames.window_update(0, OUR_CONNECTION_WINDOW - self._window_in))
            self._window_in = OUR_CONNECTION_WINDOW
        if stream is not None and stream.window_in < 0:
            raise StreamFailure(frames.FLOW_CONTROL_ERROR, "more DATA than the stream's window")

    def _begin_payload(self, data: bytes, begin: int, length: int, flags: int, number: int) -> int:
        """A DATA frame that is not simply a whole one of an open stream."""
        padding = 0
        payload = length
        if flags & frames.PADDED:
            padding = data[begin] if length else 0
            if padding >= length:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "padding longer than the frame")
            begin += 1
            payload -= 1 + padding
        stream = self.streams.get(number)
        if stream is None:
            self._check_not_idle(number)
            if not self._closed_streams.was_reset(number):
                raise ConnectionFailure(frames.STREAM_CLOSED, "DATA on a closed stream")
        ends = flags & frames.END_STREAM
        self._window_in -= length
        self._drop_payload(0)
        self.payload_left = payload
        self._padding_left = padding
        if not payload and not ends:
            self.spend(1 + (padding >> 6))
        if stream is None or not stream.remote_open:
            self._check_windows(None)
            self.spend(1)
            if stream is not None:
                raise StreamFailure(frames.STREAM_CLOSED, "DATA after the end of the stream")
            if self._closed_streams.by_client(number):
                self._send_reset(number, frames.STREAM_CLOSED)
            return begin
        stream.window_in -= length
        self._payload_stream = stream
        self._payload_ends = ends
        self._check_windows(stream)
        if length != payload:
            # Padding is of no use to the stream: the client gets that part of the window back.
            self.grant(stream, length - payload)
        if not payload and ends:
            self._payload_stream = None
            stream.feed(b"", 0, 0, 1)
        return begin

    def _drop_payload(self, length: int) -> None:
        self.payload_left = length
        self._padding_left = 0
        self._payload_stream = None
        self._payload_ends = 0

    def _read_payload(self, data: bytes, at: int, size: int) -> int:
        if self.payload_left:
            take = min(self.payload_left, size - at)
            self.payload_left -= take
            stream = self._payload_stream
            if stream is not None and take:
                try:
                    if not stream.closed and stream.remote_open:
                        stream.feed(data, at, at + take, self._payload_ends and not self.payload_left)
                except StreamFailure as failure:
                    self._fail_stream(stream.number, failure)
            at += take
        if not self.payload_left and self._padding_left:
            take = min(self._padding_left, size - at)
            self._padding_left -= take
            at += take
        return at

    def _is_streamed(self, kind: int, length: int) -> bool:
        """Whether a frame's payload is dropped as it comes. Raises ConnectionFailure if it is larger than its type may be."""
        if kind > frames.CONTINUATION:
            self.spend(1 + (length >> 14))
            return True
        if kind in (frames.HEADERS, frames.CONTINUATION):
            too_long = length > self.wire.limits.max_header_size + 1024
        else:
            too_long = length > settings.MAX_SETTINGS_FRAME
        if too_long:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "a control frame or header block that is too long"
            )
        return False

    def expect(self, stream: Stream, size: int) -> None:
        """A body of this size is announced: lets it come without waiting for windows, and in large frames."""
        if size > LARGE_BODY and self._max_frame_size < LARGE_MAX_FRAME_SIZE:
            self._max_frame_size = LARGE_MAX_FRAME_SIZE
            self.output.write(frames.settings({frames.MAX_FRAME_SIZE: LARGE_MAX_FRAME_SIZE}))
            self.expect_acknowledgement()
        self.grant(stream, size - OUR_STREAM_WINDOW)

    def grant(self, stream: Stream, size: int) -> None:
        """Lets the client send `size` more on a stream."""
        if size > 0 and not stream.closed and stream.remote_open:
            stream.window_in += size
            self.output.write(frames.window_update(stream.number, size))

    # Header blocks

    def _note(self, number: int) -> None:
        if number > self.last_stream + 2:
            self._closed_streams.skip(range(self.last_stream + 1, number))
        self.last_stream = number

    def _headers_in_parts(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "HEADERS on stream 0")
        begin, end = 0, len(payload)
        if flags & frames.PADDED:
            begin = 1
            end -= payload[0] if payload else 0
        priority = begin
        if flags & frames.PRIORITISED:
            begin += 5
        if begin > end:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "padding or priority longer than the frame")
        # RFC 9113 knows no priorities any more, but a stream that depends on itself ends the block's stream, not the decoder's state.
        failure = None
        if flags & frames.PRIORITISED:
            try:
                check_dependency(payload[priority:begin], number)
            except StreamFailure as caught:
                failure = caught
        block = payload[begin:end]
        ends = flags & frames.END_STREAM
        if failure is not None:
            if number > self.last_stream:
                self._note(number)
            if flags & frames.END_HEADERS:
                self._blocks.fields(block)
                raise failure
            raise ConnectionFailure(failure.code, failure.reason)
        if flags & frames.END_HEADERS:
            self._headers(number, block, ends)
        else:
            self._block = bytearray(block)
            self._block_stream = number
            self._block_ends = ends
            self._continuations = 0

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS before it")
        block += payload
        self._continuations += 1
        if self._continuations > _MAX_CONTINUATIONS or len(block) > self.wire.limits.max_header_size:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "a header block in too many or too large frames"
            )
        if flags & frames.END_HEADERS:
            self._block = None
            self._headers(number, bytes(block), self._block_ends)


def check_dependency(priority: bytes, number: int) -> None:
    if int.from_bytes(priority[:4], "big") & 0x7FFFFFFF == number:
        raise StreamFailure(frames.PROTOCOL_ERROR, "a stream that depends on itself")
