"""A small HTTP/1.1 client: one connection per request, a deadline for all of it, and every byte kept for the report."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from oip_conformance.row import Failure, NoAnswer

#: Nothing that the suite asks for has a longer answer.
ANSWER_LIMIT = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was sent."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def curl(self) -> str:
        """The request as a command line."""
        words = ["curl -si"] if self.method != "HEAD" else ["curl -sI"]
        if self.method not in ("GET", "HEAD") and not (self.method == "POST" and self.body):
            words.append(f"-X {self.method}")
        words.append(shlex.quote(self.url))
        words += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in self.headers]
        if not self.body:
            return " ".join(words)
        if len(self.body) > 4096:
            return " ".join([*words, f"--data-binary @body  # {len(self.body)} bytes"])
        if all(byte in b"\n" or 32 <= byte < 127 for byte in self.body):
            return " ".join([*words, f"--data-binary {shlex.quote(self.body.decode())}"])
        octal = "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b"\\%'" else f"\\{byte:03o}" for byte in self.body
        )
        return f"printf '{octal}' | " + " ".join([*words, "--data-binary @-"])


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    #: The pieces in which the body came, with the seconds since the request was sent.
    pieces: tuple[tuple[float, bytes], ...] = field(default=(), repr=False)

    def header(self, name: str) -> str | None:
        """The value of a header field, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """The body as JSON, or for an answer of the binary extension its JSON part."""
        length = self.header("Inference-Header-Content-Length")
        body = self.body
        if length is not None:
            if not length.isdigit() or int(length) > len(body):
                raise Failure(f"an Inference-Header-Content-Length of at most {len(body)}, the body's length", length)
            body = body[: int(length)]
        try:
            return json.loads(body)
        except ValueError as error:
            raise Failure(f"a body of JSON ({error})", body[:200].decode(errors="replace") or "an empty body") from None

    def text(self) -> str:
        """The response as a person reads it."""
        body = self.body[:2000].decode(errors="backslashreplace")
        lines = [f"HTTP {self.status}", *(f"{name}: {value}" for name, value in self.headers), "", body]
        return "\n".join(lines) + (f"... ({len(self.body)} bytes)" if len(self.body) > 2000 else "")


class HttpClient:
    """Sends requests to one server.

    Raises ValueError if the URL is not one of an HTTP server.
    """

    def __init__(self, url: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"'{url}' is not the URL of a server: write http://host:port, without a path")
        self.tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.tls else 80)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._headers = headers

    def send(
        self,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
        deadline: float,
        stop_after: int | None = None,
    ) -> tuple[Request, Answer]:
        """Sends a request and reads its response until the deadline (of time.monotonic).

        With `stop_after`, the connection is closed once the body has that many bytes, as a client does that leaves.

        Raises NoAnswer if there is no complete response in time.
        """
        own = {name.lower() for name, _ in headers}
        if (body or method == "POST") and not own & {"content-length", "transfer-encoding"}:
            headers = (*headers, ("Content-Length", str(len(body))))
        request = Request(method, self.url + path, (*self._headers, *headers), body)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in request.headers]
        head = "\r\n".join([*lines, "", ""]).encode()
        try:
            with contextlib.closing(self._connect(deadline)) as connection:
                # A server may refuse a body before it has read all of it; its answer is then what counts.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(head + body)
                return request, _Reader(connection, deadline, method, stop_after).read()
        except TimeoutError:
            raise NoAnswer("an answer", f"none before the row's time was over: {request.curl()}") from None
        except OSError as error:
            raise NoAnswer("an answer", f"{error}: {request.curl()}") from None

    def leave(self, path: str, body: bytes, deadline: float) -> None:
        """Sends a POST request and closes the connection at once."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n"
        fields = "".join(f"{name}: {value}\r\n" for name, value in self._headers)
        with contextlib.closing(self._connect(deadline)) as connection:
            connection.sendall(f"{head}{fields}Content-Type: application/json\r\n\r\n".encode() + body)

    def _connect(self, deadline: float) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=max(0.01, deadline - time.monotonic()))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=self.host)
        return connection


class _Reader:
    """Reads one response."""

    def __init__(self, connection: socket.socket, deadline: float, method: str, stop_after: int | None) -> None:
        self._connection = connection
        self._deadline = deadline
        self._method = method
        self._stop_after = stop_after
        self._sent = time.monotonic()
        self._buffer = b""
        self._pieces: list[tuple[float, bytes]] = []

    def read(self) -> Answer:
        status, headers = self._head()
        while 100 <= status < 200:
            status, headers = self._head()
        fields = {name.lower(): value for name, value in headers}
        if self._method == "HEAD" or status in (204, 304):
            return Answer(status, headers, b"")
        if "chunked" in fields.get("transfer-encoding", "").lower():
            self._chunks()
        elif "content-length" in fields:
            if not fields["content-length"].isdigit():
                raise Failure("a Content-Length of digits", fields["content-length"])
            self._exactly(int(fields["content-length"]))
        else:
            while self._buffer or self._more(must=False):
                self._take(len(self._buffer))
        return Answer(status, headers, b"".join(piece for _, piece in self._pieces), tuple(self._pieces))

    def _more(self, must: bool = True) -> bool:
        self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        data = self._connection.recv(1 << 18)
        if not data and must:
            got = self._buffer[:200].decode(errors="replace")
            raise NoAnswer("a complete response", f"the server closed the connection after {got!r}")
        self._buffer += data
        return bool(data)

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _head(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        start = self._line().split(b" ", 2)
        if not start[0].startswith(b"HTTP/1.") or len(start) < 2 or not start[1].isdigit():
            raise Failure("an HTTP/1.1 status line", b" ".join(start)[:100])
        headers = []
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name.strip(), value.strip()))
        return int(start[1]), tuple(headers)

    def _take(self, count: int) -> None:
        self._pieces.append((time.monotonic() - self._sent, self._buffer[:count]))
        self._buffer = self._buffer[count:]
        if sum(len(piece) for _, piece in self._pieces) > ANSWER_LIMIT:
            raise Failure(f"an answer of at most {ANSWER_LIMIT} bytes", "more")

    def _exactly(self, count: int) -> None:
        while count and not self._stopped():
            if not self._buffer:
                self._more()
            taken = min(count, len(self._buffer))
            self._take(taken)
            count -= taken

    def _chunks(self) -> None:
        while not self._stopped():
            line = self._line().split(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                raise Failure("the length of a chunk in hexadecimal digits", line[:60]) from None
            if not size:
                while self._line():
                    pass
                return
            self._exactly(size)
            if not self._stopped():
                self._line()

    def _stopped(self) -> bool:
        return self._stop_after is not None and sum(len(piece) for _, piece in self._pieces) >= self._stop_after
