"""Sends streams of prepared requests. Each stream sends its next request when the previous one is answered.

This is for servers that answer faster than a client library can send. One thread serves all streams. A stream
uses HTTP/1.1 on its own connection, or gRPC on a connection shared with other streams. Answers are only
checked for success, and the last bytes of each are kept. A `StreamingCall` sends all its messages in one call
of a streaming gRPC method.
"""

from __future__ import annotations

import re
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

_RECEIVE = 1 << 18
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_LARGEST_WINDOW = (1 << 31) - 1


class BadAnswer(Exception):
    """Raised when the server answers with an error."""


class Stream:
    """The requests of one stream, and the last `kept` bytes of each answer received so far."""

    def __init__(self, requests: Sequence[bytes], kept: int) -> None:
        self.requests = requests
        self.kept = kept
        self.answers: list[bytes] = []

    def take(self, answer: bytes) -> bytes | None:
        """Records an answer. Returns the next request, or None after the last."""
        self.answers.append(answer[-self.kept :])
        return self.requests[len(self.answers)] if len(self.answers) < len(self.requests) else None


class Connection(Protocol):
    """One connection to the server."""

    socket: socket.socket

    def start(self) -> None:
        """Sends the first requests."""

    def readable(self) -> bool:
        """Receives what has arrived, and sends the next requests. Returns whether all are answered."""


class Http:
    """One stream over HTTP/1.1. Its requests are complete HTTP requests."""

    def __init__(self, port: int, stream: Stream) -> None:
        self.socket = _connect(port)
        self._stream = stream
        self._received = b""

    def start(self) -> None:
        self.socket.sendall(self._stream.requests[0])

    def readable(self) -> bool:
        received = self.socket.recv(_RECEIVE)
        if not received:
            raise BadAnswer("the server closed a connection")
        self._received += received
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return False
        length = _LENGTH.search(self._received, 0, head)
        if length is None or not self._received.startswith(b"HTTP/1.1 200"):
            raise BadAnswer(repr(self._received[:500]))
        if len(self._received) < head + 4 + int(length[1]):
            return False
        answer, self._received = self._received, b""
        following = self._stream.take(answer)
        if following is None:
            return True
        self.socket.sendall(following)
        return False


class Grpc:
    """Several streams over one HTTP/2 connection. Their requests are gRPC messages for one method."""

    def __init__(self, port: int, path: str, streams: Sequence[Stream]) -> None:
        self.socket = _connect(port)
        self._streams = streams
        self._head = _head(path)
        self._next_id = 1
        self._open: dict[int, tuple[Stream, bytearray]] = {}
        self._received = b""
        self._window = 65_535
        self._waiting: list[Stream] = []

    def start(self) -> None:
        self.socket.sendall(_OPENING)
        self._waiting = list(self._streams)
        self._send()

    def _send(self) -> None:
        out = []
        while self._waiting:
            message = self._waiting[-1].requests[len(self._waiting[-1].answers)]
            if len(message) + 5 > self._window:
                break
            stream = self._waiting.pop()
            self._window -= len(message) + 5
            out.append(_frame(_HEADERS, 4, self._next_id, self._head))
            out.append(_frame(_DATA, 1, self._next_id, b"\0" + len(message).to_bytes(4, "big") + message))
            self._open[self._next_id] = (stream, bytearray())
            self._next_id += 2
        if out:
            self.socket.sendall(b"".join(out))

    def readable(self) -> bool:
        received = self.socket.recv(_RECEIVE)
        if not received:
            raise BadAnswer("the server closed a connection")
        frames, self._received = _split(self._received + received)
        for frame in frames:
            self._frame(*frame)
        self._send()
        return not self._open and not self._waiting

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _DATA:
            self._open[number][1].extend(payload)
        elif kind == _HEADERS and flags & 1:
            stream, answer = self._open.pop(number)
            if len(answer) < 5:
                raise BadAnswer(f"a call has failed: {payload!r}")
            if stream.take(bytes(answer)) is not None:
                self._waiting.append(stream)
        elif kind == _WINDOW_UPDATE and number == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _SETTINGS and not flags & 1:
            self.socket.sendall(_frame(_SETTINGS, 1, 0, b""))
        elif kind == _PING and not flags & 1:
            self.socket.sendall(_frame(_PING, 1, 0, payload))
        elif kind in (_GOAWAY, _RST_STREAM):
            raise BadAnswer(f"the server ended a connection or a call: {payload!r}")


class StreamingCall:
    """One call of a streaming gRPC method, in which each message has one answer. The call's flow-control
    window is never used up: the server has received each message, and extends the window, before the next one
    is sent.
    """

    def __init__(self, port: int, path: str) -> None:
        self._socket = _connect(port)
        self._received = b""
        self._socket.sendall(_OPENING + _frame(_HEADERS, 4, 1, _head(path)))

    def exchange(self, message: bytes) -> bytes:
        """Sends a message, and returns the answer. Raises BadAnswer if the call or the connection ends."""
        self._socket.sendall(_frame(_DATA, 0, 1, b"\0" + len(message).to_bytes(4, "big") + message))
        answer = b""
        while len(answer) < 5 or len(answer) < 5 + int.from_bytes(answer[1:5], "big"):
            answer += b"".join(self._data())
        return answer[5:]

    def _data(self) -> Iterator[bytes]:
        received = self._socket.recv(_RECEIVE)
        frames, self._received = _split(self._received + received)
        if not received:
            raise BadAnswer("the server closed a connection")
        for kind, flags, number, payload in frames:
            if kind == _DATA:
                yield payload
            elif kind == _SETTINGS and not flags & 1:
                self._socket.sendall(_frame(_SETTINGS, 1, 0, b""))
            elif kind == _PING and not flags & 1:
                self._socket.sendall(_frame(_PING, 1, 0, payload))
            elif kind in (_GOAWAY, _RST_STREAM) or (kind == _HEADERS and flags & 1):
                raise BadAnswer(f"the server ended call {number}: {payload!r}")

    def close(self) -> None:
        self._socket.close()


def _connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload


def _split(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """Splits received bytes into frames (type, flags, stream and payload) and the incomplete rest."""
    frames = []
    at = 0
    while len(data) - at >= 9:
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            break
        number = int.from_bytes(data[at + 5 : at + 9], "big")
        frames.append((data[at + 3], data[at + 4], number, data[at + 9 : end]))
        at = end
    return frames, data[at:]


#: What a client sends first: the preface, and windows that never limit the server.
_OPENING = (
    _PREFACE
    + _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, _LARGEST_WINDOW))
    + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535))
)


def _head(path: str) -> bytes:
    """Returns the header block of a call, encoded in literals without indexing (RFC 7541, 6.2.2)."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields
    )


def run(connections: Sequence[Connection], timeout: float = 300.0) -> float:
    """Sends all requests on all connections. Returns the seconds taken. Raises BadAnswer and TimeoutError."""
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    began = time.perf_counter()
    for connection in connections:
        connection.start()
    left = len(connections)
    while left:
        ready = selector.select(timeout)
        if not ready:
            raise TimeoutError(f"no answer for {timeout:g} s")
        for key, _ in ready:
            if key.data.readable():
                selector.unregister(key.fileobj)
                left -= 1
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.socket.close()
    return seconds
