"""Requests over HTTP/1.1: one connection each, a deadline for all of it, and every byte kept for the report."""

from __future__ import annotations

import contextlib
import http.client
import json
import shlex
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
        sent = time.monotonic()
        try:
            with contextlib.closing(self._connect(deadline)) as connection:
                connection.putrequest(method, path, skip_accept_encoding=True)
                for name, value in (("Connection", "close"), *request.headers):
                    connection.putheader(name, value)
                # A server may refuse a body before it has read all of it; its answer is then what counts.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.endheaders(body)
                return request, _read(connection, sent, deadline, stop_after)
        except TimeoutError:
            raise NoAnswer("an answer", f"none before the row's time was over: {request.curl()}") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer("a complete answer", f"{error!r}: {request.curl()}") from None

    def leave(self, path: str, body: bytes, deadline: float) -> None:
        """Sends a POST request and closes the connection at once."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n"
        fields = "".join(f"{name}: {value}\r\n" for name, value in self._headers)
        with contextlib.closing(self._connect(deadline)) as connection:
            connection.send(f"{head}{fields}Content-Type: application/json\r\n\r\n".encode() + body)

    def _connect(self, deadline: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=max(0.01, deadline - time.monotonic()))
        connection.connect()
        return connection


def _read(connection: http.client.HTTPConnection, sent: float, deadline: float, stop_after: int | None) -> Answer:
    transport = connection.sock
    transport.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        response = connection.getresponse()
    except http.client.RemoteDisconnected:
        raise
    except http.client.BadStatusLine as error:
        raise Failure("an HTTP/1.1 status line", str(error)[:100]) from None
    pieces: list[tuple[float, bytes]] = []
    size = 0
    while stop_after is None or size < stop_after:
        transport.settimeout(max(0.001, deadline - time.monotonic()))
        piece = response.read1(1 << 18)
        if not piece:
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            break
        pieces.append((time.monotonic() - sent, piece))
        size += len(piece)
        if size > ANSWER_LIMIT:
            raise Failure(f"an answer of at most {ANSWER_LIMIT} bytes", "more")
    body = b"".join(piece for _, piece in pieces)
    return Answer(response.status, tuple(response.getheaders()), body, tuple(pieces))
