"""A client's HTTP/1.1 connection, which carries one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import cast

import httptools

from backline.client.errors import ConnectionFailed, ConnectionLost, DeadlineExceeded, ProtocolError
from backline.engine.values.tensor import Buffer

#: Bodies above this size are received straight into their own buffer, bypassing the parser.
DIRECT_BODY = 32 * 1024
#: Requests up to this size are joined into one buffer: a copy is cheaper than a second system call.
JOINED_REQUEST = 32 * 1024
RECEIVE_BUFFER = 64 * 1024
MAX_HEAD = 256 * 1024
#: The maximum size of a response body in bytes, so that a hostile server cannot exhaust its clients' memory.
MAX_BODY = 4 << 30
#: Alignment in memory of the tensors after the JSON header, so that numpy can use them in place.
ALIGNMENT = 64


class HttpAnswer:
    """An answer: its status, its header fields by lower-case name, and its body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], body: memoryview | bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class HttpConnection(asyncio.BufferedProtocol):
    """Sends one request at a time, and receives the body of each answer into one buffer.

    `reusable` says whether another request may follow, `idle_since` when the last request ended
    (time.monotonic()).
    """

    def __init__(self, url: str, advice: str = "") -> None:
        """`advice` is appended to the error if the server closes the connection without sending a byte."""
        self._url = url
        self._advice = advice
        self._loop = asyncio.get_running_loop()
        self._receive = memoryview(bytearray(RECEIVE_BUFFER))
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[HttpAnswer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._lost = False
        self._one_by_one = False
        self._timeout = 0.0
        self.reusable = True
        self.idle_since = monotonic()
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._body: bytearray | None = None
        self._start = 0
        self._filled = 0
        self._direct: memoryview | None = None
        self._chunks: list[bytes] = []
        self._chunked = 0
        self._answered = False
        self._head_size = 0
        self._headless = True
        self._status = 0

    # sending a request

    async def request(
        self, parts: Sequence[Buffer], size: int, timeout: float, spent: float = 0.0
    ) -> HttpAnswer:
        """Sends the buffers of a request in order, `size` bytes in total, and waits for the answer.

        `spent` is the part of `timeout` already used; both are in seconds.
        Raises DeadlineExceeded, ConnectionFailed or ProtocolError, after closing the connection.
        """
        transport = self._transport
        if transport is None or self._lost:
            raise ConnectionFailed(f"the connection to {self._url} is closed; nothing was sent")
        self._timeout = timeout
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(max(timeout - spent, 0.001), self._expire)
        if len(parts) == 1:
            transport.write(parts[0])
        elif size <= JOINED_REQUEST:
            transport.write(b"".join(parts))
        elif self._one_by_one:
            for part in parts:
                transport.write(part)
        else:
            transport.writelines(parts)
        try:
            answer: HttpAnswer = await waiter
            return answer
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._waiter = None
            self.idle_since = monotonic()

    def _expire(self) -> None:
        self._fail(
            DeadlineExceeded(
                f"no complete answer from {self._url} within {self._timeout:.3g} s; the request was given up"
            )
        )

    def _fail(self, error: Exception) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self.abort()

    def _too_large(self) -> None:
        self._chunks = []
        self._fail(ProtocolError(f"{self._url} sent an answer of more than {MAX_BODY >> 30} GiB"))

    def abort(self) -> None:
        """Closes the connection at once, so that the server notices that its client is gone."""
        self.reusable = False
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    # callbacks of asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # asyncio's writelines copies the parts (Python 3.11), or hangs after an empty one (3.12, 3.13).
        self._one_by_one = type(transport).__module__.startswith("asyncio.")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receive if self._direct is None else self._direct[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._advice = ""
        if self._direct is not None:
            self._filled += nbytes
            if self._filled == len(self._direct):
                self._direct = None
                self._parser = httptools.HttpResponseParser(self)  # the old parser still expects this body
                self._finish()
            return
        if self._waiter is None:
            self.abort()  # unsolicited bytes could be taken for the next answer
            return
        if self._headless:
            self._head_size += nbytes
            if self._head_size > MAX_HEAD:
                self._fail(ProtocolError(f"{self._url} sent a response head of more than {MAX_HEAD} bytes"))
                return
        try:
            self._parser.feed_data(self._receive[:nbytes])
        except httptools.HttpParserError as error:
            sent = bytes(self._receive[: min(nbytes, 40)])
            self._fail(
                ProtocolError(
                    f"{self._url} does not answer in HTTP/1.1 ({error}), it sent {sent!r}. Is this the right"
                    " port?"
                )
            )

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self.reusable = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if (
            self._answered
            and b"content-length" not in self._headers
            and b"transfer-encoding" not in self._headers
        ):
            self._finish()  # the end of the connection ends the body
            return
        why = f": {error}" if error else ""
        got = "in the middle of its answer" if self._answered else "before it answered"
        waiter.set_exception(
            ConnectionLost(
                f"{self._url} closed the connection {got}{why}; the request may have run.{self._advice}"
            )
        )

    # callbacks of the parser (httptools)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._headless = False
        self._status = self._parser.get_status_code()
        if 100 <= self._status < 200:
            return
        self._answered = True
        length = self._headers.get(b"content-length")
        if length is None or b"transfer-encoding" in self._headers:
            return
        size = int(length)
        if size > MAX_BODY:
            self._too_large()
        elif size > DIRECT_BODY:
            header = self._headers.get(b"inference-header-content-length", b"0")
            self._start = -int(header) % ALIGNMENT if header.isdigit() else 0
            self._body = bytearray(self._start + size)
            self._direct = memoryview(self._body)
            self._filled = self._start

    def on_body(self, chunk: bytes) -> None:
        if self._direct is None:
            self._chunks.append(chunk)
            self._chunked += len(chunk)
            if self._chunked > MAX_BODY:
                self._too_large()
        else:
            end = self._filled + len(chunk)
            self._direct[self._filled : end] = chunk
            self._filled = end

    def on_message_complete(self) -> None:
        if not self._answered:  # this is an interim response: the final one follows
            self._begin()
            return
        self._direct = None
        self._finish()

    def _finish(self) -> None:
        waiter, headers, chunks, status = self._waiter, self._headers, self._chunks, self._status
        if headers.get(b"connection", b"").lower() == b"close":
            self.reusable = False
        body: memoryview | bytes = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._body is not None:
            body = memoryview(self._body)[self._start :]
        self._begin()
        if waiter is not None and not waiter.done():
            waiter.set_result(HttpAnswer(status, headers, body))
