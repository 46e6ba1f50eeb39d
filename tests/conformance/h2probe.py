"""A tiny synchronous HTTP/2 client for tests: sends any bytes, valid or not, and reports the outcome.

It shares no code with the server; only HPACK comes from a library. It judges outcomes as the public suite
h2spec does: a connection error is a GOAWAY with one of the codes, or a close; a stream error is that, or a
RST_STREAM with one of the codes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65535
#: h2spec's default timeout, in seconds.
TIMEOUT = 2.0

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
TYPE_NAMES = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

(
    HEADER_TABLE_SIZE,
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
) = range(1, 7)

Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as received."""

    type: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        return self.type in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    @property
    def is_ack(self) -> bool:
        return bool(self.flags & ACK)

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        at = 4 if self.type == GOAWAY else 0
        return struct.unpack_from(">I", self.payload, at)[0]

    def __str__(self) -> str:
        name = TYPE_NAMES[self.type] if self.type < len(TYPE_NAMES) else f"type {self.type}"
        code = f", code {self.code:#x}" if self.type in (GOAWAY, RST_STREAM) else ""
        return f"{name}(stream {self.stream}, flags {self.flags:#x}, {len(self.payload)} bytes{code})"


@dataclass(frozen=True, slots=True)
class End:
    """Why the wait ended: the connection was closed, nothing came in time, or the bytes are not HTTP/2."""

    why: str

    def __str__(self) -> str:
        return self.why


CLOSED = End("connection closed")
TIMED_OUT = End("time-out")
NOT_HTTP2 = End("bytes that are not HTTP/2")

Event = Frame | End


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request. `ended` says how it was cut short, empty for a complete response."""

    fields: dict[str, str]
    body: bytes
    ended: str
    #: Seconds until the outcome was known.
    seconds: float

    @property
    def answered(self) -> bool:
        """Whether the server responded; a timeout is not a response."""
        return self.ended != TIMED_OUT.why

    @property
    def refused(self) -> bool:
        if self.ended:
            return self.answered
        return self.fields.get("grpc-status", "0") != "0" or self.fields.get(":status", "200")[0] in "45"

    def __str__(self) -> str:
        told = {
            name: value
            for name, value in self.fields.items()
            if name in (":status", "grpc-status", "grpc-message")
        }
        return f"{told} {self.ended}"


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def frame(type: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a frame; `length` may differ from the payload's."""
    return (
        struct.pack(">I", len(payload) if length is None else length)[1:]
        + struct.pack(">BBI", type, flags, stream)
        + payload
    )


def settings_payload(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">HI", identifier, value) for identifier, value in pairs)


def priority_payload(depends_on: int, weight: int = 255, exclusive: bool = False) -> bytes:
    return struct.pack(">IB", depends_on | (0x80000000 if exclusive else 0), weight)


class Probe:
    """One connection: to a port, or the one that is given.

    `send` and methods named after frames write; `expect_*` read the outcome or fail.
    """

    def __init__(
        self, host: str, port: int, timeout: float = TIMEOUT, connected: socket.socket | None = None
    ) -> None:
        self.authority = f"{host}:{port}"
        self.timeout = timeout
        if connected is None:
            connected = socket.create_connection((host, port), timeout=timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        #: The server's settings.
        self.settings: dict[int, int] = {}
        self.received: list[Event] = []
        self.update_windows = True
        self._windows: dict[int, int] = {0: DEFAULT_WINDOW}
        self._buffer = b""
        self._first = True

    def close(self) -> None:
        self.socket.close()

    # writing

    def send(self, data: bytes) -> None:
        """Sends bytes. If the server has already closed, reading will show it."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def frame(self, type: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.send(frame(type, flags, stream, payload))

    def handshake(self) -> None:
        """Sends preface and SETTINGS and waits for the SETTINGS of both sides."""
        self.send(PREFACE)
        self.set((INITIAL_WINDOW_SIZE, DEFAULT_WINDOW))
        seen = acknowledged = False
        while not (seen and acknowledged):
            event = self.wait()
            assert isinstance(event, Frame), f"the handshake ended with: {event}"
            if event.type != SETTINGS:
                continue
            if event.is_ack:
                acknowledged = True
                continue
            seen = True
            self.settings.update(struct.iter_unpack(">HI", event.payload))
            self.frame(SETTINGS, ACK, 0)

    def set(self, *pairs: tuple[int, int]) -> None:
        self.frame(SETTINGS, 0, 0, settings_payload(*pairs))

    def fields(self, method: str = "GET", path: str = "/", extra: Sequence[Field] = ()) -> list[Field]:
        """The fields of a plain request, in the order :method, :scheme, :path, :authority, then `extra`."""
        return [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", self.authority),
            *extra,
        ]

    def encode(self, fields: Sequence[Field]) -> bytes:
        """A header block in this connection's compression context."""
        return self.encoder.encode(fields)

    @staticmethod
    def filler(count: int) -> list[Field]:
        """`count` fields of 4,000 characters, as h2spec sends to make header blocks long."""
        return [(f"x-dummy{number}", "x" * 4000) for number in range(count)]

    def headers(
        self,
        stream: int,
        block: bytes | Sequence[Field] | None = None,
        *,
        end: bool = True,
        end_headers: bool = True,
        padding: int | None = None,
        priority: bytes = b"",
    ) -> None:
        """A HEADERS frame: of `GET /` when no block or fields are given."""
        if block is None:
            block = self.fields()
        if not isinstance(block, bytes):
            block = self.encode(block)
        flags = (END_STREAM if end else 0) | (END_HEADERS if end_headers else 0)
        payload = priority + block
        if priority:
            flags |= PRIORITY_FLAG
        if padding is not None:
            flags |= PADDED
            payload = bytes([padding]) + payload + bytes(padding)
        self.frame(HEADERS, flags, stream, payload)

    def continuation(self, stream: int, block: bytes | Sequence[Field], *, end_headers: bool = True) -> None:
        if not isinstance(block, bytes):
            block = self.encode(block)
        self.frame(CONTINUATION, END_HEADERS if end_headers else 0, stream, block)

    def data(
        self, stream: int, payload: bytes = b"test", *, end: bool = True, padding: bytes | None = None
    ) -> None:
        flags = END_STREAM if end else 0
        if padding is not None:
            flags |= PADDED
            payload = bytes([len(padding)]) + payload + padding
        self.frame(DATA, flags, stream, payload)

    def priority(self, stream: int, depends_on: int = 0, weight: int = 255, exclusive: bool = False) -> None:
        self.frame(PRIORITY, 0, stream, priority_payload(depends_on, weight, exclusive))

    def reset(self, stream: int, code: int = CANCEL) -> None:
        self.frame(RST_STREAM, 0, stream, struct.pack(">I", code))

    def ping(self, payload: bytes = bytes(8), *, ack: bool = False) -> None:
        self.frame(PING, ACK if ack else 0, 0, payload)

    def window_update(self, stream: int, increment: int) -> None:
        self.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))

    def goaway(self, code: int = NO_ERROR, debug: bytes = b"") -> None:
        self.frame(GOAWAY, 0, 0, struct.pack(">II", 0, code) + debug)

    # reading

    def wait(self, timeout: float | None = None) -> Event:
        """The next frame, or the reason for its absence."""
        event = self._read(time.monotonic() + (self.timeout if timeout is None else timeout))
        self.received.append(event)
        if isinstance(event, Frame) and event.type == DATA and self.update_windows:
            self._give_back(event.stream, len(event.payload))
            self._give_back(0, len(event.payload))
        return event

    def _read(self, deadline: float) -> Event:
        while True:
            if self._first and self._buffer and self._buffer[:4] == b"HTTP"[: len(self._buffer)]:
                return NOT_HTTP2
            if len(self._buffer) >= 9:
                length = int.from_bytes(self._buffer[:3], "big")
                if len(self._buffer) >= 9 + length:
                    type, flags, stream = struct.unpack_from(">BBI", self._buffer, 3)
                    payload = self._buffer[9 : 9 + length]
                    self._buffer = self._buffer[9 + length :]
                    self._first = False
                    return Frame(type, flags, stream & 0x7FFFFFFF, payload)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return TIMED_OUT
            self.socket.settimeout(remaining)
            try:
                received = self.socket.recv(65536)
            except TimeoutError:
                return TIMED_OUT
            except ConnectionResetError:
                return CLOSED
            finally:
                self.socket.settimeout(self.timeout)
            if not received:
                return NOT_HTTP2 if self._buffer else CLOSED
            self._buffer += received

    def _give_back(self, stream: int, size: int) -> None:
        """Reopens an exhausted window, as h2spec does."""
        left = self._windows.get(stream, DEFAULT_WINDOW) - size
        if left <= 0:
            self.window_update(stream, DEFAULT_WINDOW - left)
            left = DEFAULT_WINDOW
        self._windows[stream] = left

    def _story(self) -> str:
        return "; ".join(map(str, self.received[-12:])) or "nothing"

    def _fail(self, expected: str) -> None:
        raise AssertionError(f"expected {expected}, received: {self._story()}")

    def expect(self, type: int) -> Frame:
        """Reads until a frame of a type comes."""
        while isinstance(event := self.wait(), Frame):
            if event.type == type:
                return event
        self._fail(f"a frame {TYPE_NAMES[type]}")
        raise AssertionError

    def expect_headers(self, stream: int = 1) -> Frame:
        answer = self.expect(HEADERS)
        assert answer.stream == stream, f"expected HEADERS on stream {stream}, received: {answer}"
        return answer

    def expect_settings_ack(self) -> None:
        answer = self.expect(SETTINGS)
        assert answer.is_ack, f"expected an acknowledgement of SETTINGS, received: {answer}"

    def expect_ping_ack(self, payload: bytes = bytes(8)) -> None:
        answer = self.expect(PING)
        assert answer.is_ack, f"expected an acknowledgement of PING, received: {answer}"
        assert answer.payload == payload

    def expect_ping_ack_or_close(self, payload: bytes = bytes(8)) -> None:
        while isinstance(event := self.wait(), Frame):
            if event.type == PING and event.is_ack and event.payload == payload:
                return
        if event is not CLOSED:
            self._fail("an acknowledgement of PING, or a close")

    def expect_closed(self) -> None:
        """Expects the end of the connection, after any frames."""
        while isinstance(event := self.wait(), Frame):
            pass
        if event is not CLOSED:
            self._fail("a close")

    def expect_connection_error(self, *codes: int) -> None:
        while isinstance(event := self.wait(), Frame):
            if event.type == GOAWAY and event.code in codes:
                return
        if event is not CLOSED:
            self._fail(f"GOAWAY with a code of {codes}, or a close")

    def expect_stream_error(self, *codes: int) -> None:
        while isinstance(event := self.wait(), Frame):
            if event.type in (GOAWAY, RST_STREAM) and event.code in codes:
                return
        if event is not CLOSED:
            self._fail(f"RST_STREAM or GOAWAY with a code of {codes}, or a close")

    def expect_stream_closed(self) -> None:
        """Expects a complete response."""
        while isinstance(event := self.wait(), Frame):
            if event.ends_stream or (event.type == RST_STREAM and event.code == NO_ERROR):
                return
        self._fail("the end of a stream")

    def outcome(self, stream: int, timeout: float | None = None) -> Outcome:
        """The outcome of a request: the response's fields and trailers, or how it was refused."""
        fields: dict[str, str] = {}
        body = b""
        started = time.monotonic()
        deadline = started + (self.timeout if timeout is None else timeout)
        while isinstance(event := self.wait(max(0.0, deadline - time.monotonic())), Frame):
            if event.type == HEADERS:
                # Every block must be decoded, or the compression context is lost.
                decoded = {_text(name): _text(value) for name, value in self.decoder.decode(event.payload)}
                if event.stream == stream:
                    fields.update(decoded)
            if event.type == DATA and event.stream == stream:
                body += event.payload
            if event.type == GOAWAY and event.code != NO_ERROR:
                return Outcome(fields, body, f"GOAWAY {event.code:#x}", time.monotonic() - started)
            if event.stream != stream:
                continue
            if event.type == RST_STREAM and not (event.code == NO_ERROR and "grpc-status" in fields):
                return Outcome(fields, body, f"reset {event.code:#x}", time.monotonic() - started)
            if event.ends_stream:
                return Outcome(fields, body, "", time.monotonic() - started)
        return Outcome(fields, body, str(event), time.monotonic() - started)

    def outcomes(self, streams: Sequence[int], *, calls: bool = False) -> dict[int, Outcome]:
        """The outcomes of several requests. With `calls`, the first message ends the wait for a stream."""
        fields: dict[int, dict[str, str]] = {stream: {} for stream in streams}
        bodies: dict[int, bytes] = dict.fromkeys(streams, b"")
        found: dict[int, Outcome] = {}
        started = time.monotonic()

        def end(stream: int, why: str = "") -> None:
            if stream in fields and stream not in found:
                found[stream] = Outcome(fields[stream], bodies[stream], why, time.monotonic() - started)

        while len(found) < len(fields):
            event = self.wait(max(0.0, started + self.timeout - time.monotonic()))
            if not isinstance(event, Frame) or event.type == GOAWAY:
                for stream in fields:
                    end(stream, str(event))
                continue
            if event.type == HEADERS:
                decoded = {_text(name): _text(value) for name, value in self.decoder.decode(event.payload)}
                fields.get(event.stream, {}).update(decoded)
            elif event.type == DATA and event.stream in bodies:
                bodies[event.stream] += event.payload
            elif event.type == RST_STREAM:
                end(event.stream, f"reset {event.code:#x}")
            if event.ends_stream or (calls and event.type == DATA):
                end(event.stream)
        return found

    def response_length(self) -> int:
        """The length of the body of `GET /`, over a separate connection."""
        self.handshake()
        self.headers(1)
        length = 0
        while isinstance(event := self.wait(), Frame):
            if event.type == DATA:
                length += len(event.payload)
            if event.ends_stream:
                return length
        self._fail("a complete answer to GET /")
        raise AssertionError
