"""A WebSocket: messages in both directions over a connection that began as HTTP/1.1."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from backline.wire.application import Buffer, WebSocket
from backline.wire.turns import LARGE_READ, peer_is_gone
from backline.wire.uploads import FREE, Pace
from backline.wire.websocket.frames import (
    CloseCode,
    MessageReader,
    Opcode,
    Received,
    WebSocketError,
    close_payload,
    frame,
)

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection
    from backline.wire.http1.request import Http1Request

#: The maximum number of control frames that a client may send between two messages.
_MOST_CONTROL = 1000
#: Seconds within which a client must respond to a close frame.
_CLOSE_TIME = 2.0
#: Messages up to this size, in bytes, are joined with their frame header into one write.
_JOINED_SIZE = 16 * 1024


class WebSocketConnection(asyncio.Protocol, WebSocket):
    """The transport's asyncio protocol after the handshake. The HTTP/1.1 connection remains the one that is
    registered in `wire.connections`.

    The connection takes turns with others (see `Turns`). After a large read, and when bytes are left at the
    end of its turn, it handles and reads no more until its next turn.

    Invariant of backpressure: the socket is not read while a message waits for the application, or while the
    client leaves messages unread. So for each client, the server holds at most one message, and the bytes of
    one read.
    """

    def __init__(self, connection: Http1Connection, request: Http1Request) -> None:
        self._connection = connection
        self._request = request
        self._wire = connection.wire
        self._transport = connection.transport
        self._reader = MessageReader(self._excess)
        self._waiting: deque[Received] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._write_paused = False
        self._reading = True
        #: The time, in seconds of perf_counter(), at which the current turn ends.
        self._turn_ends = 0.0
        #: Whether the connection waits for its next turn.
        self._resting = False
        #: Whether a close frame was sent.
        self._closing = False
        #: Whether receiving has ended.
        self._ended = False
        self._lost = False
        self._draining = False
        self._control = 0
        #: Limits the pace at which a large message is read; None while there is no large message.
        self._pace: Pace | None = None
        #: This connection's share of `wire.buffered_bytes`.
        self._counted = 0
        #: The time when a message was last received or sent.
        self._active = monotonic()
        #: For a message that has partly arrived: the time when the message was last found to arrive fast
        #: enough, and the number of its bytes at that time. Otherwise None.
        self._incomplete: tuple[float, int] | None = None

    # called by the application

    async def receive(self) -> str | bytes | None:
        while not self._waiting:
            if self._ended or self._draining:
                return None
            self._receiver = self._wire.loop.create_future()
            await self._receiver
        message = self._waiting.popleft()
        self._count()
        self._read_on()
        return message.data.decode() if message.opcode is Opcode.TEXT else message.data

    async def send(self, message: str | Buffer) -> None:
        if self._closing or self._lost:
            raise ConnectionResetError("the client has disconnected")
        if isinstance(message, str):
            self._write(Opcode.TEXT, message.encode())
        else:
            self._write(Opcode.BINARY, message)
        self._active = monotonic()
        self._connection.pipeline.sent_chunks += 1
        if self._write_paused:
            writer = self._wire.loop.create_future()
            self._writers.append(writer)
            await writer
        if self._lost:
            raise ConnectionResetError("the client has disconnected")

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        if self._closing or self._lost:
            return
        if self._draining and code == CloseCode.NORMAL:
            code = CloseCode.GOING_AWAY
        self._send_close(close_payload(CloseCode(code), reason))
        # Reading continues until the client sends its own close frame, because closing a socket with unread
        # bytes would reset the connection.
        self._wire.loop.call_later(_CLOSE_TIME, self._transport.close)

    def _send_close(self, payload: bytes) -> None:
        self._closing = True
        self._write(Opcode.CLOSE, payload)
        self._end()
        self._waiting.clear()
        self._count()
        self._read_on()

    def _write(self, opcode: Opcode, payload: Buffer) -> None:
        size = memoryview(payload).nbytes
        head = frame(opcode, size)
        if size <= _JOINED_SIZE:
            self._transport.write(b"".join((head, payload)))
        else:
            self._transport.writelines([head, payload])
            self._wire.unsent.watch(self._connection)

    # called by the transport

    def data_received(self, data: bytes) -> None:
        self._wire.poll.note_input()
        if self._lost:
            return
        self._reader.feed(data)
        if len(data) >= LARGE_READ:
            self._rest()
        if self._resting:
            self._update_reading()
        else:
            self._begin_turn()

    def _begin_turn(self) -> None:
        self._turn_ends = 0.0
        self._read_on()

    def _rest(self) -> None:
        self._resting = True
        self._wire.turns.wait(self)

    def take_turn(self) -> bool:
        if self._lost:
            return False
        reading, self._resting = self._reading, False
        self._begin_turn()
        return self._reading and not reading

    def abort(self) -> None:
        self._transport.abort()

    def _turn_is_over(self, now: float) -> bool:
        if not self._turn_ends:
            self._turn_ends = self._wire.turns.turn_ends(now)
        return now >= self._turn_ends

    def _read_on(self) -> None:
        """Handles the bytes that have arrived, until a message waits for the application or the turn ends."""
        reader = self._reader
        try:
            while not self._waiting and not self._resting:
                found = reader.next()
                if found is not None:
                    self._take(found)
                elif not reader.stopped:
                    break
                if reader.within and self._turn_is_over(perf_counter()):
                    self._rest()
        except WebSocketError as error:
            self.close(error.code, str(error))
            self._transport.close()
            return
        now = monotonic()
        if not self._reader.within or self._waiting:
            self._incomplete = None
        elif self._incomplete is None or not (
            0 <= self._reader.held - self._incomplete[1] < self._wire.limits.least_sent
        ):
            self._incomplete = now, self._reader.held
        self._count()
        self._update_reading()

    def _excess(self, size: int) -> str | None:
        """Returns why a message of `size` bytes is too large, or None if it is not."""
        request = self._request
        denial = self._wire.refusal_of_body(size, f"a message of {size} bytes", request.method, request.path)
        return None if denial is None else denial.message

    def _take(self, found: Received) -> None:
        if found.opcode is Opcode.CLOSE:
            if not self._closing:
                self._send_close(found.data[:2] if _is_valid(found.data) else b"")
            self._transport.close()
        elif self._closing:
            pass  # messages after our close frame are dropped
        elif found.opcode in (Opcode.PING, Opcode.PONG):
            self._control += 1
            if self._control > _MOST_CONTROL:
                raise WebSocketError(CloseCode.POLICY, "too many control frames without a message")
            if found.opcode is Opcode.PING:
                self._write(Opcode.PONG, found.data)
        else:
            self._control = 0
            self._active = monotonic()
            self._waiting.append(found)
            self._wake()

    def _wake(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None and not receiver.done():
            receiver.set_result(None)

    def _end(self) -> None:
        """Makes `receive` return None after the messages that have already arrived."""
        self._ended = True
        self._wake()

    def _count(self) -> None:
        """Counts received bytes toward max_buffered_bytes. Ends the connection if the limit is exceeded."""
        size = self._reader.held + sum(len(one.data) for one in self._waiting)
        self._wire.buffered_bytes += size - self._counted
        self._counted = size
        if size and self._wire.buffered_bytes > self._wire.limits.max_buffered_bytes:
            self._transport.abort()
        held = 0 if self._waiting else self._reader.held
        if held > FREE:
            if self._pace is None:
                self._pace = Pace(self._wire.uploads, self._update_reading)
            self._pace.grew(held)
        elif self._pace is not None:
            pace, self._pace = self._pace, None
            pace.ended()

    @property
    def _paused(self) -> bool:
        """Whether a large message waits for other large bodies."""
        return self._pace is not None and self._pace.waits

    def _update_reading(self) -> None:
        waits = self._waiting or self._write_paused or self._paused
        reading = not self._resting and (self._closing or not waits)
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    def pause_writing(self) -> None:
        self._write_paused = True
        self._wire.unsent.count(self._connection)
        self._update_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wire.unsent.count(self._connection)
        self._wake_writers()
        self._update_reading()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._waiting.clear()
        # With an empty reader and no messages, `_count` takes this connection's bytes out of the server's
        # total.
        self._reader = MessageReader(lambda size: None)  # without a reference cycle
        self._count()
        self._end()
        self._wake_writers()
        request = self._request
        self._connection.pipeline.release(request)
        on_abandon, request.on_abandon = request.on_abandon, None
        self._connection.pipeline.current = None  # the pipeline must not count the request again
        self._connection.connection_lost(exc)
        if on_abandon is not None:
            on_abandon()

    # called by the wire

    def drain(self) -> None:
        """Makes `receive` return None after the message that has already arrived, so that the application
        closes the connection.
        """
        self._draining = True
        self._wake()

    def sweep(self, now: float) -> None:
        """Ends the connection if it has been idle, or a message incomplete, for too long. `now` is
        time.monotonic().
        """
        limits = self._wire.limits
        if not self._reading and peer_is_gone(self._transport):
            self._transport.abort()  # the transport does not notice a disconnect while reading is paused
        elif self._paused:
            self._incomplete = now, self._reader.held
        elif self._incomplete is not None and now - self._incomplete[0] >= limits.progress_timeout:
            self.close(CloseCode.POLICY, "a message did not arrive in time")
            self._transport.close()
        elif self._receiver is not None and now - self._active >= limits.stream_idle_timeout:
            self.close(CloseCode.GOING_AWAY, "no message in either direction for too long")


def _is_valid(payload: bytes) -> bool:
    """Returns whether a close frame's payload starts with a code that clients may send (section 7.4)."""
    if len(payload) < 2:
        return False
    code = int.from_bytes(payload[:2], "big")
    return code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011) or 3000 <= code < 5000
