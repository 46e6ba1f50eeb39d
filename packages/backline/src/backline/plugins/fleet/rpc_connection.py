"""The client's side of an HTTP/2 connection (RFC 9113) that carries gRPC calls."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import cast

from backline.plugins.fleet.rpc_call import ResponseBlocks, ResponseHead, RpcCall
from backline.wire.application import Buffer, RpcError
from backline.wire.grpc.messages import PREFIX, PREFIX_SIZE
from backline.wire.http2 import frames
from backline.wire.http2.frames import (
    DEFAULT_WINDOW,
    FRAME_HEADER,
    LARGE_MAX_FRAME_SIZE,
    OUR_CONNECTION_WINDOW,
    OUR_STREAM_WINDOW,
    ConnectionFailure,
)
from backline.wire.limits import KIB, MIB, Limits
from backline_client.client.errors import ConnectionFailed, ConnectionLost, ProtocolError
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError, Cancelled, Unavailable

log = logging.getLogger("backline.plugins.fleet")

_CLIENT_PREFACE = (
    frames.PREFACE
    + frames.settings(
        {
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: OUR_STREAM_WINDOW,
            frames.MAX_FRAME_SIZE: LARGE_MAX_FRAME_SIZE,
        }
    )
    + frames.window_update(0, OUR_CONNECTION_WINDOW - DEFAULT_WINDOW)
)
#: The connection's receive window is replenished when fewer bytes than this are left.
_REPLENISH_AT = OUR_CONNECTION_WINDOW // 2
#: The maximum number of bytes that a call sends before the next call gets its turn.
_QUANTUM = 128 * KIB
#: Queued data of more than this many bytes is written as separate buffers, without waiting for the end of the
#: current turn of the event loop.
_WRITE_AT = 64 * KIB
#: The header of the DATA frame of a call that needs only one, and the prefix of the message in the frame.
_LONE_FRAME = Struct(">IBIBI")
#: The maximum size, in bytes, of a header block that arrives in several frames.
_MAX_BUFFERED_FRAME = 1 * MIB
#: A connection accepts no calls with higher stream numbers. This is well below HTTP/2's maximum of 2^31-1.
_LAST_NUMBER = 2**30
#: Milliseconds after which the kernel closes a connection if the other side does not acknowledge what was
#: sent.
_ACKNOWLEDGE_WITHIN = 10_000
#: The maximum number of acknowledgements that are written while the other side reads nothing, so that its
#: frames cannot fill the memory with replies.
_MOST_UNREAD = 1000


class RpcConnection(asyncio.Protocol):
    """One connection that many calls share. Each call has its own HTTP/2 stream.

    A call that is the only one in flight is written immediately. Other calls that start in the same turn of
    the event loop are written together at the end of that turn, unless they are large.

    `url` names the other side in errors, and `advice` says what may be wrong if the other side closes a new
    connection. `again` is called with each call that must be sent again, because the other side has certainly
    not handled it. `has_room` is called when the connection can take another call, and when it stops taking
    calls.
    """

    def __init__(
        self,
        url: str,
        advice: str,
        poll: BusyPoll,
        again: Callable[[RpcCall], None],
        has_room: Callable[[RpcConnection], None],
    ) -> None:
        self._url = url
        self._advice = advice
        self._poll = poll
        self._again = again
        self._has_room = has_room
        self._loop = asyncio.get_running_loop()
        #: Completes when the other side has sent its SETTINGS, which proves that it speaks HTTP/2.
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        #: The calls in flight, by stream number.
        self.calls: dict[int, RpcCall] = {}
        self._next = 1
        #: Whether the connection still accepts new calls.
        self._open = False
        self._max_calls = 2**31
        # receiving
        self._blocks = ResponseBlocks(Limits())
        self._received = b""
        self._window_in = OUR_CONNECTION_WINDOW
        #: The number of bytes of the current DATA frame that have not arrived yet.
        self._left = 0
        #: The stream number of the current DATA frame or header block.
        self._number = 0
        #: The END_STREAM flag of the current DATA frame or header block.
        self._ends = 0
        self._block: bytearray | None = None
        # sending
        self._parts: list[Buffer] = []
        self._scheduled = False
        self._paused = False
        #: The number of acknowledgements written since the other side stopped reading.
        self._unread = 0
        self._window = DEFAULT_WINDOW
        self._initial_window = DEFAULT_WINDOW
        self._max_frame = frames.MIN_MAX_FRAME_SIZE
        #: Calls with request data that waits for a flow-control window or for the socket.
        self._sending: deque[RpcCall] = deque()

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        connected = transport.get_extra_info("socket")
        if (
            connected is not None
            and connected.family != socket.AF_UNIX
            and hasattr(socket, "TCP_USER_TIMEOUT")
        ):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _ACKNOWLEDGE_WITHIN)
        self._transport.write(_CLIENT_PREFACE)

    def connection_lost(self, error: Exception | None) -> None:
        reason = f": {error}" if error is not None else ""
        self._lose(ConnectionLost(f"the connection to {self._url} broke before the response{reason}"))

    def close(self) -> None:
        """Closes the connection. Calls in flight fail."""
        self._lose(ConnectionFailed(f"the client of {self._url} is closed"))

    @property
    def usable(self) -> bool:
        """Whether the connection accepts new calls, either now or after calls in flight have ended."""
        return self._open and self._next < _LAST_NUMBER

    @property
    def room(self) -> int:
        """The number of further calls that the connection accepts now."""
        return self._max_calls - len(self.calls) if self._open and self._next < _LAST_NUMBER else 0

    def _lose(self, error: BacklineError) -> None:
        self._open = False
        if not self.ready.done():
            self.ready.set_exception(
                ConnectionFailed(
                    f"{self._url} closed a new connection before it answered. Is it a gRPC port?"
                    f"{self._advice}"
                )
            )
            self.ready.exception()  # keeps asyncio from logging the error if nobody waits for `ready`
        if self._transport is not None:
            self._transport.abort()
        # The calls are detached first, because the end of a call may start, reset or abandon other calls.
        calls, self.calls = self.calls, {}
        self._sending.clear()
        for call in calls.values():
            call.fail(error)
        self._has_room(self)

    # sending

    def start(self, call: RpcCall) -> None:
        """Sends a call. Requires `room` to be positive."""
        number = call.number = self._next
        self._next += 2
        call.connection = self
        self.calls[number] = call
        size, header, parts = call.size + PREFIX_SIZE, call.header, self._parts
        if len(header) <= frames.MIN_MAX_FRAME_SIZE:
            word = len(header) << 8 | frames.HEADERS
            parts.append(FRAME_HEADER.pack(word, frames.END_HEADERS, number) + header)
        else:
            parts.append(frames.header_frames(number, header, 0, self._max_frame))
        if (
            size <= self._window
            and size <= self._initial_window
            and size <= self._max_frame
            and size <= _WRITE_AT
            and not self._paused
            and not self._sending
        ):
            self._window -= size
            parts.append(_LONE_FRAME.pack(size << 8, frames.END_STREAM, number, 0, call.size))
            parts += call.parts
            if len(self.calls) == 1 and not self._scheduled:
                self._flush()  # the only call does not wait, because the next one may start much later
                return
        else:
            views = [memoryview(part).cast("B") for part in call.parts]
            call.pending = deque(
                (memoryview(PREFIX.pack(0, call.size)), *(one for one in views if one.nbytes))
            )
            call.pending_bytes = size
            self._sending.append(call)
            self._pump()
        self._schedule()

    def reset(self, call: RpcCall, code: int = frames.CANCEL) -> None:
        """Resets the stream of a call, so that the other side stops working on the call."""
        if self.calls.pop(call.number, None) is None:
            return
        call.pending = None
        self._write(frames.rst_stream(call.number, code))
        self._has_room(self)

    def grant(self, call: RpcCall, size: int) -> None:
        """Extends the receive window of a call by `size` bytes. Has no effect if `size` is not positive."""
        size = min(size, frames.MAX_WINDOW - call.window_in)
        if size > 0:
            call.window_in += size
            self._write(frames.window_update(call.number, size))

    def _pump(self) -> None:
        """Sends as much request data as the flow-control windows and the socket allow. The calls take turns,
        with at most _QUANTUM bytes each.
        """
        sending = self._sending
        unwritten = 0
        stuck = 0
        while sending and not self._paused and self._window > 0 and stuck < len(sending):
            call = sending[0]
            if call.pending is None:  # the call was reset
                sending.popleft()
                continue
            room = min(self._window, self._initial_window + call.window_out, _QUANTUM)
            if room <= 0:
                sending.rotate(-1)
                stuck += 1
                continue
            stuck = 0
            unwritten += self._send_some(call, room)
            if call.pending_bytes:
                sending.rotate(-1)
            else:
                sending.popleft()
                call.pending = None
            if unwritten >= _WRITE_AT:
                unwritten = 0
                self._flush()
        self._schedule()

    def _send_some(self, call: RpcCall, room: int) -> int:
        pending, parts = call.pending, self._parts
        assert pending is not None, "the call has more to send"
        total = left = min(room, call.pending_bytes)
        while left:
            size = min(left, self._max_frame)
            left -= size
            call.pending_bytes -= size
            parts.append(
                FRAME_HEADER.pack(size << 8, 0 if call.pending_bytes else frames.END_STREAM, call.number)
            )
            frames.move(pending, size, parts)
        self._window -= total
        call.window_out -= total
        return total

    def _write(self, frame: bytes) -> None:
        self._parts.append(frame)
        self._schedule()

    def _schedule(self) -> None:
        if self._parts and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_in_turn)

    def _flush_in_turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        parts, transport = self._parts, self._transport
        if not parts or transport is None:
            return
        self._parts = []
        if transport.is_closing():
            return
        if len(parts) > 2 and sum(map(len, parts)) > _WRITE_AT:
            transport.writelines(parts)
        else:
            transport.write(b"".join(parts))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._unread = 0
        self._pump()

    # receiving

    def data_received(self, data: bytes) -> None:
        if type(data) is not bytes:
            data = bytes(data)  # TLS delivers other kinds of buffers, but header blocks must be hashable
        try:
            if self._received:
                data = self._received + data
                self._received = b""
            self._read(data)
        except ConnectionFailure as failure:
            self._fail(failure)
        except Exception:
            log.exception("closing the connection to %s after an internal error", self._url)
            self._fail(ConnectionFailure(frames.INTERNAL_ERROR, "internal error"))
        self._poll.note_input()

    def _fail(self, failure: ConnectionFailure) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.goaway(0, failure.code, failure.reason.encode()))
        self._lose(ConnectionLost(f"{self._url} violated the HTTP/2 protocol: {failure.reason}"))

    def _read(self, data: bytes) -> None:
        at, size = 0, len(data)
        known = self._blocks.known
        while True:
            if self._left:
                end = min(at + self._left, size)
                self._left -= end - at
                self._data(self._number, data, at, end, self._ends and not self._left)
                at = end
            if size - at < FRAME_HEADER.size:
                break
            word, flags, number = FRAME_HEADER.unpack_from(data, at)
            kind, length = word & 0xFF, word >> 8
            begin = at + FRAME_HEADER.size
            end = begin + length
            if length > LARGE_MAX_FRAME_SIZE:
                raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "a frame is larger than MAX_FRAME_SIZE")
            # The payload of DATA is passed on as it arrives, after its window has been charged. Any other
            # frame waits in `_received` until it is complete; the check above limits its size.
            if kind == frames.DATA and not flags & frames.PADDED:
                at = begin
                self._window_in -= length
                self._left, self._number, self._ends = length, number, flags & frames.END_STREAM
                if not length:
                    self._data(number, data, begin, begin, self._ends)
                elif self._window_in < _REPLENISH_AT:
                    self._replenish()
                continue
            if end > size:
                break
            at = end
            if self._block is not None and kind != frames.CONTINUATION:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "another frame interrupts a header block")
            # 0x2C stands for END_HEADERS, PADDED and PRIORITY. With only the first of these flags, the
            # payload is exactly one whole block.
            if kind == frames.HEADERS and flags & 0x2C == frames.END_HEADERS:
                block = data[begin:end]
                self._head(number, known.get(block) or self._blocks.response(block), flags)
            else:
                self._frame(kind, flags, number, data[begin:end])
        self._received = data[at:] if at < size else b""

    def _replenish(self) -> None:
        if self._window_in < 0:
            raise ConnectionFailure(frames.FLOW_CONTROL_ERROR, "DATA exceeds the connection's window")
        self._write(frames.window_update(0, OUR_CONNECTION_WINDOW - self._window_in))
        self._window_in = OUR_CONNECTION_WINDOW

    def _data(self, number: int, data: bytes, begin: int, end: int, ended: int | bool) -> None:
        call = self.calls.get(number)
        if call is None:
            return  # the call was reset
        call.window_in -= end - begin
        # Security: if more data were accepted, the other server could exhaust this server's memory while the
        # caller reads slowly.
        if call.window_in < 0:
            self._refuse(call, ProtocolError(f"{self._url} sent more of a response than it was allowed to"))
            return
        try:
            if begin < end:
                call.feed(data, begin, end)
        except RpcError as error:
            self._refuse(call, ProtocolError(f"{self._url} sent a malformed response: {error.message}"))
            return
        if ended:
            self._end(call)
            call.finish(ResponseHead([(b":status", b"200")]))

    def _head(self, number: int, head: ResponseHead, flags: int) -> None:
        call = self.calls.get(number)
        if call is None or 100 <= head.status < 200:
            return
        if flags & frames.END_STREAM:
            self._end(call)
            call.finish(head)
        elif head.status != 200:
            self.reset(call)
            call.finish(head)

    def _end(self, call: RpcCall) -> None:
        """Removes a call that the other side has ended."""
        del self.calls[call.number]
        if call.pending is not None:  # the other side has responded without reading the whole request
            call.pending = None
            self._write(frames.rst_stream(call.number, frames.NO_ERROR))
        self._has_room(self)

    def _refuse(self, call: RpcCall, error: BacklineError) -> None:
        self.reset(call, frames.PROTOCOL_ERROR)
        call.fail(error)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Handles a complete frame of one of the less frequent kinds."""
        if kind == frames.DATA:
            padding = payload[0] if payload else 0
            if padding >= len(payload):
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "padding is longer than the frame")
            self._window_in -= len(payload)
            if self._window_in < _REPLENISH_AT:
                self._replenish()
            call = self.calls.get(number)
            if call is not None:
                # Padding and its length byte count towards the stream's window (RFC 9113, section 6.1), but
                # no caller takes them, so the window is extended by their size immediately.
                self._count_unread()
                self.grant(call, padding + 1)
                call.window_in -= padding + 1
            self._data(number, payload, 1, len(payload) - padding, flags & frames.END_STREAM)
        elif kind in (frames.HEADERS, frames.CONTINUATION):
            self._headers_in_parts(kind, flags, number, payload)
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._settings(payload)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self._acknowledge(frames.PING, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._widen(number, int.from_bytes(payload, "big") & 0x7FFFFFFF)
        elif kind == frames.RST_STREAM:
            self._was_reset(number, int.from_bytes(payload, "big"))
        elif kind == frames.GOAWAY:
            self._go_away(payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFailure(
                frames.PROTOCOL_ERROR, "the server sent PUSH_PROMISE, although push is disabled"
            )

    def _headers_in_parts(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            begin, end = 0, len(payload)
            if flags & frames.PADDED:
                begin, end = 1, end - (payload[0] if payload else 0)
            if flags & frames.PRIORITISED:
                begin += 5
            if begin > end:
                raise ConnectionFailure(frames.PROTOCOL_ERROR, "padding or priority is longer than the frame")
            self._block = bytearray(payload[begin:end])
            self._number, self._ends = number, flags & frames.END_STREAM
        elif self._block is None or number != self._number:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "CONTINUATION without preceding HEADERS")
        else:
            self._block += payload
            if len(self._block) > _MAX_BUFFERED_FRAME:
                raise ConnectionFailure(frames.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._head(number, self._blocks.response(block), self._ends)

    def _settings(self, payload: bytes) -> None:
        for key, value in frames.parse_settings(payload):
            if key == frames.MAX_CONCURRENT_STREAMS:
                self._max_calls = value
            elif key == frames.INITIAL_WINDOW_SIZE:
                self._initial_window = value
            elif key == frames.MAX_FRAME_SIZE:
                self._max_frame = value
        self._acknowledge(frames.SETTINGS)
        if not self.ready.done():
            self._open = True
            self.ready.set_result(None)
        self._has_room(self)
        self._pump()

    def _acknowledge(self, kind: int, payload: bytes = b"") -> None:
        self._count_unread()
        self._write(frames.frame(kind, frames.ACK, 0, payload))

    def _count_unread(self) -> None:
        """Counts a frame sent in response to a frame of the other side. Raises ConnectionFailure if the other
        side has read none of the last _MOST_UNREAD such frames.
        """
        if self._paused:
            self._unread += 1
            if self._unread > _MOST_UNREAD:
                raise ConnectionFailure(frames.ENHANCE_YOUR_CALM, "it does not read the acknowledgements")

    def _widen(self, number: int, increment: int) -> None:
        if not number:
            self._window += increment
        elif (call := self.calls.get(number)) is not None:
            call.window_out += increment
        self._pump()

    def _was_reset(self, number: int, code: int) -> None:
        call = self.calls.pop(number, None)
        if call is None:
            return
        call.pending = None
        if code == frames.REFUSED_STREAM:
            # A retry is safe, because the other side has not handled the call (RFC 9113, section 8.7).
            self._again(call)
        elif code == frames.CANCEL:
            call.fail(Cancelled(f"{self._url} cancelled the call"))
        elif code == frames.ENHANCE_YOUR_CALM:
            call.fail(Unavailable(f"{self._url} refuses calls: it has too many streams, or is overloaded"))
        else:
            call.fail(ConnectionLost(f"{self._url} reset the call with HTTP/2 error code {code}"))
        self._has_room(self)

    def _go_away(self, payload: bytes) -> None:
        """Handles GOAWAY: accepts no more calls, and retries on other connections the calls that the other
        side has not handled and will not handle (RFC 9113, section 6.8).
        """
        self._open = False
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        refused = [call for number, call in self.calls.items() if number > last]
        for call in refused:
            del self.calls[call.number]
            call.pending = None
        for call in refused:
            self._again(call)
        self._has_room(self)
