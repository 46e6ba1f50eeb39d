"""Reads the frames of an HTTP/2 connection."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Protocol

from backline.wire.body import NO_ROOM
from backline.wire.connection import LostTransport, Wire
from backline.wire.http2 import frames
from backline.wire.http2.data import REPLENISH_AT, DataReceiver
from backline.wire.http2.frames import FRAME_HEADER, PREFACE, ConnectionFailure, StreamFailure
from backline.wire.http2.header_blocks import HeaderBlocks
from backline.wire.http2.output import Output
from backline.wire.http2.read_ahead import READ, read_ahead
from backline.wire.http2.request_head import RequestHead
from backline.wire.http2.stream import StreamTable
from backline.wire.limits import KIB
from backline.wire.turns import LARGE_READ, SocketState, peer_is_gone

log = logging.getLogger("backline.wire")

#: The maximum number of CONTINUATION frames per header block.
_MAX_CONTINUATIONS = 8
#: A connection that has used up its turn handles reads above this size only in its next turn.
_SMALL_READ = 8 * KIB
#: After a read of this many bytes or more, the reader checks whether the client has already disconnected.
_ASK_FROM = 16 * KIB


class FrameHandler(Protocol):
    """The methods of a connection that its reader calls. They may raise ConnectionFailure or
    StreamFailure.
    """

    def open(self, number: int, head: RequestHead, ends: int) -> None:
        """Opens a stream for a request whose header block repeats one that was decoded before."""

    def headers(self, number: int, block: bytes, ends: int) -> None:
        """Handles a complete header block for which the reader did not call `open`."""

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Handles a complete frame of any type but DATA, HEADERS and CONTINUATION."""

    def spend(self, cost: float) -> None:
        """Charges the client for a frame that carries nothing. Raises ConnectionFailure if the client has
        sent too many such frames.
        """

    def send_reset(self, number: int, code: int) -> None: ...

    def expect_acknowledgement(self) -> None:
        """Called when the reader has sent SETTINGS, which the client must acknowledge."""

    def fail_stream(self, number: int, failure: StreamFailure) -> None: ...

    def fail(self, failure: ConnectionFailure) -> None: ...

    def abort(self) -> None: ...


class FrameReader:
    """A reader that splits received bytes into frames. It passes each DATA payload to its stream, and all
    other frames to the handler.

    The reader does not read the socket while the client leaves responses unread, or while other connections
    have their turn.

    Invariants: a DATA frame is never assembled, since its payload is passed on as it arrives. At most one
    frame of any other type is buffered, up to the size limit for its type.
    """

    __slots__ = (
        "_block",
        "_block_ends",
        "_block_stream",
        "_blocks",
        "_busy",
        "_continuations",
        "_handler",
        "_held",
        "_limits",
        "_lost",
        "_needed",
        "_output",
        "_pending",
        "_poll",
        "_read_paused",
        "_resting",
        "_socket",
        "_stopped",
        "_streams",
        "_transport",
        "_turns",
        "data",
        "descriptor",
        "preface_done",
        "reads",
        "write_blocked",
    )

    def __init__(
        self,
        handler: FrameHandler,
        wire: Wire,
        transport: asyncio.Transport,
        output: Output,
        streams: StreamTable,
        blocks: HeaderBlocks,
    ) -> None:
        self._handler = handler
        self._limits = wire.limits
        self._turns = wire.turns
        self._poll = wire.poll
        self._transport = transport
        self._output = output
        self._streams = streams
        self._blocks = blocks
        self.data = DataReceiver(handler, output, streams)
        self.preface_done = False
        #: The bytes of an incomplete frame, and the number of bytes needed to handle the frame.
        self._pending = bytearray()
        self._needed = 0
        #: Bytes that wait for this connection's next turn: (data, position).
        self._held: tuple[bytes, int] | None = None
        #: Whether the previous turn ended with bytes left to handle.
        self._busy = False
        #: Whether reading is paused until the next turn.
        self._resting = False
        #: A header block that is continued in CONTINUATION frames, and its stream.
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = 0
        self._continuations = 0
        #: Whether the client leaves responses unread.
        self.write_blocked = False
        self._read_paused = False
        #: Whether arriving bytes are dropped.
        self._stopped = False
        self._lost = False
        #: The descriptor of the socket from which large messages are received directly, or -1 if they are
        #: received like everything else.
        self.descriptor = -1
        self._socket: SocketState | None = None
        #: The number of reads that delivered bytes. The periodic check of time limits compares it with its
        #: earlier value, to see whether the client makes progress.
        self.reads = 0

    @property
    def mid_frame(self) -> bool:
        """Whether the client has sent only part of a frame or header block."""
        return not self.preface_done or self._block is not None or bool(self._pending)

    def receive_directly(self, descriptor: int) -> None:
        """Makes the reader receive large messages directly from this socket from now on."""
        self.descriptor = descriptor
        self._socket = SocketState(descriptor)

    def stop(self) -> None:
        """Makes the reader drop all further bytes. They must not stay unread, because closing a socket with
        unread bytes would reset the connection.
        """
        self._stopped = True
        self._update_reading()

    def lose(self, lost: LostTransport) -> None:
        """Frees the memory of a closed connection immediately, rather than when the cycle collector runs."""
        self._transport = lost
        self._lost = self._stopped = True
        self._held = None
        self._pending = bytearray()
        self.data.lose()
        self._block = None

    def pause_for_writes(self) -> None:
        """Stops accepting requests while the client leaves responses unread."""
        self.write_blocked = True
        self._update_reading()

    def end_write_pause(self) -> None:
        self.write_blocked = False

    def resume(self) -> None:
        """Resumes reading after `end_write_pause`, unless the queued responses that were sent in between have
        filled the socket again.
        """
        self._update_reading()
        if self._held is not None and not self.write_blocked:
            self._turns.wait(self)

    def data_received(self, data: bytes) -> None:
        if self._stopped:
            if len(data) >= LARGE_READ:  # with TLS, bytes are decrypted even if they are dropped
                self._rest()
            return
        self.reads += 1
        if type(data) is not bytes:
            # TLS may deliver buffers of other types. Header blocks must be bytes, because they are used as
            # dictionary keys.
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
            if len(data) >= _ASK_FROM and self._peer_is_gone():
                self._handler.abort()
                return
            if len(data) >= LARGE_READ:
                self._rest()
            if self._busy and len(data) > _SMALL_READ:
                self._hold(data, 0)
                return
            self._busy = False
        self._read_safely(data, 0)

    def room(self) -> memoryview:
        """Returns the buffer for the next bytes, if the transport can write them directly into a large
        message.
        """
        payload = self.data
        stream = payload.stream
        if stream is None or not payload.left or self._stopped or self._held is not None:
            return NO_ROOM
        return stream.room()[: min(payload.left, READ)]

    def placed(self, size: int) -> None:
        """Handles `size` bytes that the transport has written to `room`."""
        self.reads += 1
        if size >= LARGE_READ:
            self._rest()
        self._read_safely(b"", 0, size)

    def _read_ahead(self) -> None:
        """Receives the part of a large message that has already reached the socket."""
        stream = self.data.stream
        if stream is None or self._pending or self._held is not None or self._resting:
            return
        missing = stream.room().nbytes
        if not missing:
            return
        if missing <= READ and self._peer_is_gone():
            self._handler.abort()
            return
        more, rest = read_ahead(self.descriptor, self.data)
        if rest:
            self._read(rest, 0)
        # Most clients send nothing more until they have their response, so for them reading need not pause.
        if more and not self._stopped and self._socket is not None and self._socket.has_bytes():
            self._rest()

    def _peer_is_gone(self) -> bool:
        state = self._socket
        return peer_is_gone(self._transport) if state is None else state.peer_is_gone()

    def _read_safely(self, data: bytes, at: int, placed: int = 0) -> None:
        """Handles `placed` bytes that were written to `room` or, if `placed` is 0, the bytes data[at:]. An
        error closes the connection.
        """
        try:
            if placed:
                self.data.placed(placed)
            else:
                self._read(data, at)
            if self.descriptor >= 0 and not self._stopped:
                self._read_ahead()
        except ConnectionFailure as failure:
            self._handler.fail(failure)
        except Exception:
            log.exception("closing an HTTP/2 connection after an internal error")
            self._handler.fail(ConnectionFailure(frames.INTERNAL_ERROR, "internal error"))
        if self._output.parts:
            self._output.flush()
        self._poll.note_input()

    def _read(self, data: bytes, at: int) -> None:
        """Handles the frames in data[at:], within one turn."""
        size = len(data)
        if not self.preface_done:
            at = self._read_preface(data, size)
            if at < 0:
                return
        table = self._streams
        streams = table.open
        known = self._blocks.known
        handler = self._handler
        payload = self.data
        budget = self._limits.frames_per_turn
        limit = at + self._limits.bytes_per_turn
        # The clock is read only at every fourth frame: most reads contain fewer than four.
        end_of_turn = 0.0
        unpack = FRAME_HEADER.unpack_from
        needed = 9
        while True:
            if payload.left or payload.padding_left:
                at = payload.read(data, at, size)
                if payload.left or payload.padding_left:
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
                    end_of_turn = self._turns.turn_ends(now)
                if now > end_of_turn:
                    self._hold(data, at)
                    return
            word, flags, number = unpack(data, at)
            kind = word & 0xFF
            length = word >> 8
            number &= 0x7FFFFFFF  # the reserved bit is ignored (RFC 9113, section 4.1)
            if length > payload.max_frame_size:
                raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "a frame is larger than MAX_FRAME_SIZE")
            begin = at + 9
            end = begin + length
            try:
                if self._block is not None and (kind != frames.CONTINUATION or number != self._block_stream):
                    raise ConnectionFailure(frames.PROTOCOL_ERROR, "another frame interrupts a header block")
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
                        # Both windows are charged before the payload is used; see DataReceiver.
                        payload.window_in -= length
                        stream.window_in -= length
                        if payload.window_in < REPLENISH_AT or stream.window_in < 0:
                            payload.check_windows(stream)
                        stream.feed(data, begin, end, flags & 1)
                    elif flags & frames.PADDED and length and size == begin:
                        # The byte with the length of the padding has not arrived.
                        needed = 10
                        break
                    else:
                        at = payload.begin(data, begin, length, flags, number)
                    continue
                if end > size:
                    if self._is_dropped(kind, length):
                        at = begin
                        payload.drop(length)
                        continue
                    needed = 9 + length
                    break
                at = end
                # 0x2C is END_HEADERS, PADDED and PRIORITY: the payload is exactly one whole block.
                if kind == frames.HEADERS and flags & 0x2C == frames.END_HEADERS:
                    block = data[begin:end]
                    head = known.get(block)
                    if head is not None and number > table.last and number & 1:
                        handler.open(number, head, flags & 1)
                    else:
                        self._handler.headers(number, block, flags & 1)
                        # Decoding a header block can be expensive, so the clock is read at the next frame.
                        if budget > 3:
                            budget = budget & ~3 | 1
                elif kind == frames.HEADERS:
                    self._headers_in_parts(flags, number, data[begin:end])
                elif kind == frames.CONTINUATION:
                    self._continuation(flags, number, data[begin:end])
                else:
                    self._handler.control(kind, flags, number, data[begin:end])
            except StreamFailure as failure:
                self._handler.fail_stream(number, failure)
        if at < size:
            self._pending = bytearray(data[at:] if at else data)
            self._needed = needed

    def _read_preface(self, data: bytes, size: int) -> int:
        if size < 24 + 4:
            if not PREFACE.startswith(data[:24]):
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "the HTTP/2 preface is wrong")
            self._pending = bytearray(data)
            self._needed = size + 1
            return -1
        if data[:24] != PREFACE or data[27] != frames.SETTINGS:
            raise ConnectionFailure(
                frames.PROTOCOL_ERROR, "the HTTP/2 preface is wrong, or no SETTINGS frame follows it"
            )
        self.preface_done = True
        return 24

    def _hold(self, data: bytes, at: int) -> None:
        """Keeps data[at:] for the next turn."""
        self._held = (data, at)
        self._busy = True
        self._update_reading()
        if not self.write_blocked:
            self._turns.wait(self)

    def _rest(self) -> None:
        """Stops reading until the next turn."""
        self._resting = True
        self._update_reading()
        self._turns.wait(self)

    def take_turn(self) -> bool:
        paused, self._resting = self._read_paused, False
        reads = False
        if self._held is not None and not self._stopped and not self.write_blocked:
            if self._peer_is_gone():
                # The client has disconnected, so nobody would read the responses.
                self._handler.abort()
                return False
            data, at = self._held
            self._held = None
            self._read_safely(data, at)
        elif self.descriptor >= 0 and not self._stopped and not self.write_blocked:
            reads = True
            self._read_safely(b"", 0)
        self._update_reading()
        return reads or (paused and not self._read_paused)

    def abort(self) -> None:
        self._handler.abort()

    def _update_reading(self) -> None:
        pause = self._resting or (not self._stopped and (self.write_blocked or self._held is not None))
        if pause != self._read_paused and not self._lost and not self._transport.is_closing():
            self._read_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _is_dropped(self, kind: int, length: int) -> bool:
        """Returns whether the payload of a frame is dropped as it arrives, because the frame's type is
        unknown.

        Raises ConnectionFailure if a frame of a known type is too large: its payload would have to be
        buffered.
        """
        if kind > frames.CONTINUATION:
            self._handler.spend(1 + (length >> 14))
            return True
        if kind in (frames.HEADERS, frames.CONTINUATION):
            too_long = length > self._limits.max_header_size + 1024
        else:
            too_long = length > frames.MAX_SETTINGS_FRAME
        if too_long:
            raise ConnectionFailure(frames.ENHANCE_YOUR_CALM, "a control frame or header block is too long")
        return False

    # Header blocks

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
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "padding or priority is longer than the frame")
        block = payload[begin:end]
        ends = flags & frames.END_STREAM
        if flags & frames.PRIORITISED:
            try:
                check_dependency(payload[priority:begin], number)
            except StreamFailure as failure:
                if number > self._streams.last:
                    self._streams.note(number)
                if not flags & frames.END_HEADERS:
                    # The rest of the block would have to be decoded, but has not arrived.
                    raise ConnectionFailure(failure.code, failure.reason) from None
                # Only the stream fails, so the block must still be decoded: otherwise the HPACK tables of
                # both sides would differ.
                self._blocks.fields(block)
                raise
        if flags & frames.END_HEADERS:
            self._handler.headers(number, block, ends)
        else:
            self._block = bytearray(block)
            self._block_stream = number
            self._block_ends = ends
            self._continuations = 0

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "CONTINUATION without preceding HEADERS")
        block += payload
        self._continuations += 1
        if self._continuations > _MAX_CONTINUATIONS or len(block) > self._limits.max_header_size:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "a header block has too many frames or is too large"
            )
        if flags & frames.END_HEADERS:
            self._block = None
            self._handler.headers(number, bytes(block), self._block_ends)


def check_dependency(priority: bytes, number: int) -> None:
    """Raises StreamFailure if the priority makes the stream depend on itself (RFC 7540, section 5.3.1)."""
    if int.from_bytes(priority[:4], "big") & 0x7FFFFFFF == number:
        raise StreamFailure(frames.PROTOCOL_ERROR, "a stream depends on itself")
