"""A tiny synchronous HTTP/1.1 client for tests: sends any bytes and reads responses one by one."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: From the end of sending to the last byte, in seconds.
    seconds: float = 0.0

    @property
    def error(self) -> str:
        """The message of an error, which must have the dialect's shape."""
        document: Any = json.loads(self.body)
        assert isinstance(document, dict), f"an error must be an object, got: {self.body[:200]!r}"
        assert list(document) == ["error"], (
            f"an error must have the single key 'error', got: {self.body[:200]!r}"
        )
        assert isinstance(document["error"], str)
        assert document["error"]
        return document["error"]


class HttpProbe:
    """One connection: to a port, or the one that is given."""

    def __init__(
        self, host: str, port: int, timeout: float = 2.0, connected: socket.socket | None = None
    ) -> None:
        self.host = f"{host}:{port}"
        self.timeout = timeout
        if connected is None:
            connected = socket.create_connection((host, port), timeout=timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self._buffer = b""
        self._sent = time.monotonic()
        self.closed = False

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes. If the server has already closed, reading will show it."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)
        self._sent = time.monotonic()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Sends a well-formed request and returns its response, which must come."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}"]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        answer = self.read(head_only=method == "HEAD")
        assert answer is not None, "the connection was closed without an answer"
        return answer

    def _more(self, deadline: float) -> bool:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("no complete answer in time")
        self.socket.settimeout(remaining)
        try:
            received = self.socket.recv(1 << 20)
        except ConnectionResetError:
            received = b""
        if not received:
            self.closed = True
            return False
        self._buffer += received
        return True

    def read(self, head_only: bool = False) -> Answer | None:
        """The next final response, None if the connection ends first. Raises TimeoutError."""
        deadline = time.monotonic() + self.timeout
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if not self._more(deadline):
                    assert not self._buffer, f"an answer was cut off: {self._buffer[:200]!r}"
                    return None
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            first, *rest = head.decode("latin-1").split("\r\n")
            assert first.startswith("HTTP/1."), f"not an HTTP/1 answer: {first!r}"
            status = int(first.split(" ")[1])
            if status >= 200:
                break
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = b"" if head_only or status in (204, 304) else self._body(headers, deadline)
        return Answer(status, headers, body, time.monotonic() - self._sent)

    def _body(self, headers: dict[str, str], deadline: float) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return self._chunks(deadline)
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"]), deadline)
        while self._more(deadline):
            pass
        body, self._buffer = self._buffer, b""
        return body

    def _exactly(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            assert self._more(deadline), "the body of an answer was cut off"
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return body

    def _chunks(self, deadline: float) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                assert self._more(deadline), "a chunked answer was cut off"
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += self._exactly(size, deadline)
            assert self._exactly(2, deadline) == b"\r\n"
            if size == 0:
                return body

    def answers(self) -> list[Answer]:
        """All responses until the connection ends or nothing arrives within the timeout."""
        found = []
        try:
            while (answer := self.read()) is not None:
                found.append(answer)
        except TimeoutError:
            pass
        return found
