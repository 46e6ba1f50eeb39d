"""A client's HTTP/1.1 connection, which carries one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias, cast

import httptools

from backline_client.client.errors import ConnectionFailed, ConnectionLost, DeadlineExceeded, ProtocolError
from backline_client.values.errors import BacklineError
from backline_client.values.memo import Memo
from backline_client.values.tensor import Buffer

if TYPE_CHECKING:
    from backline_client.system.busy_poll import BusyPoll

#: Bodies of more bytes than this, if they have a Content-Length, bypass the parser: each is received straight
#: into its own buffer.
DIRECT_BODY = 32 * 1024
#: The parts of a request of at most this many bytes are joined into one buffer, because a copy takes less
#: time than a second system call.
JOINED_REQUEST = 32 * 1024
RECEIVE_BUFFER = 64 * 1024
MAX_HEAD = 256 * 1024
#: The maximum number of received bytes per byte of a body in chunks. A chunk with one byte takes six bytes.
CHUNK_OVERHEAD = 8
#: The maximum size of a response body in bytes, so that a hostile server cannot exhaust a client's memory.
MAX_BODY = 4 << 30
#: The maximum number of heads that a connection remembers, and the maximum size of each in bytes.
_REMEMBERED = 64
_LONGEST_HEAD = 2048
#: The tensors after the JSON header are aligned to this many bytes in memory, so that numpy can use them in
#: place.
ALIGNMENT = 64


class HttpAnswer:
    """An HTTP response: its status, its header fields by lower-case name, and its body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], body: memoryview | bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


#: Receives the response to a request, or the error that ended the request.
OnAnswer: TypeAlias = Callable[["HttpAnswer | None", BacklineError | None], None]


class HttpConnection(asyncio.BufferedProtocol):
    """Sends one request at a time, and receives the body of each response into one buffer.

    `reusable` says whether another request may follow, `idle_since` when the last request ended
    (time.monotonic()).

    Responses of the same size mostly have the same head, so the connection remembers a head for each size.

    Invariants of the memo: it holds the bytes of heads that the parser accepted, with status 200 and a
    Content-Length, on a connection that stayed open. The complete response arrived in one read. Received data
    match a head only if they begin a response, start with those bytes and have exactly the same size as the
    earlier response, so the parser would produce the same response with another body.
    """

    def __init__(self, url: str, advice: str = "", poll: BusyPoll | None = None) -> None:
        """`advice` is appended to the error if the server closes the connection without sending a byte.

        `poll` is the busy poll of the event loop, to which the connection reports that responses have
        arrived.
        """
        self._url = url
        self._advice = advice
        self._loop = asyncio.get_running_loop()
        self._received = bytearray(RECEIVE_BUFFER)
        self._receive = memoryview(self._received)
        self._transport: asyncio.Transport | None = None
        self._poll = poll
        #: Receives the response to the request in flight, or its error.
        self._on_end: OnAnswer | None = None
        #: The times at which the request in flight fails and at which the timer fires (time.monotonic()). The
        #: timer stays set when a request ends and may fire before the deadline of the next request, because
        #: setting a timer for each request would take longer.
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        #: The remembered heads, as bytes and as header fields, by the size of the whole response.
        self._heads: Memo[int, tuple[bytes, dict[bytes, bytes]]] = Memo(_REMEMBERED)
        #: The complete response, while other bytes of the same read are still being parsed.
        self._complete: HttpAnswer | None = None
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
        #: The number of bytes received since the header, including the framing of chunks and trailer fields.
        self._raw = 0
        self._answered = False
        self._head_size = 0
        self._headless = True
        self._status = 0

    # sending a request

    def start(
        self, parts: Sequence[Buffer], size: int, timeout: float, on_end: OnAnswer, spent: float = 0.0
    ) -> None:
        """Sends the buffers of a request in order, `size` bytes in total.

        `on_end` is called once, unless the request is aborted: with the response or, after the connection was
        closed, with DeadlineExceeded, ConnectionFailed or ProtocolError. `spent` is the part of `timeout`
        already used; both are in seconds.

        Raises ConnectionFailed if the connection is closed.
        """
        transport = self._transport
        if transport is None or self._lost:
            raise ConnectionFailed(f"the connection to {self._url} is closed; nothing was sent")
        self._timeout = timeout
        self._on_end = on_end
        left = max(timeout - spent, 0.001)
        self._deadline = deadline = monotonic() + left
        if self._timer is None or deadline < self._timer_at:
            self._set_timer(deadline, left)
        if len(parts) == 1:
            transport.write(parts[0])
        elif size <= JOINED_REQUEST:
            transport.write(b"".join(parts))
        elif self._one_by_one:
            for part in parts:
                transport.write(part)
        else:
            transport.writelines(parts)

    async def request(
        self, parts: Sequence[Buffer], size: int, timeout: float, spent: float = 0.0
    ) -> HttpAnswer:
        """Sends a request and waits for the response; see `start`. Raises the error that ends the request."""
        answered: asyncio.Future[HttpAnswer] = self._loop.create_future()

        def ended(answer: HttpAnswer | None, error: BacklineError | None) -> None:
            if answered.done():
                return
            if answer is None:
                assert error is not None, "a request ends with an answer or an error"
                answered.set_exception(error)
            else:
                answered.set_result(answer)

        self.start(parts, size, timeout, ended, spent)
        try:
            return await answered
        except asyncio.CancelledError:
            self.abort()
            raise

    def _end(self, answer: HttpAnswer | None, error: BacklineError | None) -> None:
        on_end, self._on_end = self._on_end, None
        self.idle_since = monotonic()
        if on_end is not None:
            on_end(answer, error)

    def _set_timer(self, moment: float, left: float) -> None:
        self._stop_timer()
        self._timer_at = moment
        self._timer = self._loop.call_later(left, self._rings)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rings(self) -> None:
        self._timer = None
        if self._on_end is None:
            return
        left = self._deadline - monotonic()
        if left > 0:
            self._set_timer(self._deadline, left)
        else:
            self._expire()

    def _expire(self) -> None:
        self._fail(
            DeadlineExceeded(
                f"no complete response from {self._url} within {self._timeout:.3g} s; the request was"
                " cancelled"
            )
        )

    def _fail(self, error: BacklineError) -> None:
        on_end = self._on_end
        self.abort()
        self._on_end = on_end
        self._end(None, error)

    def _too_large(self) -> None:
        self._chunks = []
        self._fail(ProtocolError(f"{self._url} sent a response of more than {MAX_BODY >> 30} GiB"))

    def abort(self) -> None:
        """Closes the connection immediately, so that the server notices that the client has disconnected.

        The outcome of a request in flight is no longer reported.
        """
        self._on_end = None
        self._stop_timer()
        self.reusable = False
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Closes the connection immediately. A request in flight fails with ConnectionLost, but not before
        this method has returned.
        """
        on_end = self._on_end
        self.abort()
        if on_end is not None:
            self._on_end = on_end
            error = ConnectionLost(f"the client of {self._url} was closed; the request may have run")
            self._loop.call_soon(self._end, None, error)

    # callbacks of asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # asyncio's writelines copies the parts (Python 3.11), or hangs after an empty part (3.12, 3.13).
        self._one_by_one = type(transport).__module__.startswith("asyncio.")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receive if self._direct is None else self._direct[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        begins = not self._head_size
        same = self._heads.get(nbytes)
        if same is not None and begins and self._on_end is not None and self._received.startswith(same[0]):
            head, headers = same
            self._end(HttpAnswer(200, headers, bytes(self._receive[len(head) : nbytes])), None)
        else:
            self._advice = ""
            self._read(nbytes)
            if self._complete is not None:
                if begins:
                    self._remember(self._complete, nbytes)
                self._deliver()
        if self._poll is not None:
            self._poll.note_input()

    def _remember(self, answer: HttpAnswer, nbytes: int) -> None:
        """Remembers the head of a response that arrived in one read of `nbytes` bytes."""
        length = answer.headers.get(b"content-length")
        size = nbytes - len(answer.body)
        if (
            answer.status == 200
            and self.reusable
            and type(answer.body) is bytes  # larger bodies are aligned for numpy
            and length is not None
            and b"transfer-encoding" not in answer.headers
            and int(length) == len(answer.body)
            and size <= _LONGEST_HEAD
            and self._received.find(b"\r\n\r\n", 0, nbytes) == size - 4
        ):
            self._heads.keep(nbytes, (bytes(self._receive[:size]), answer.headers))

    def _read(self, nbytes: int) -> None:
        if self._direct is not None:
            self._filled += nbytes
            if self._filled == len(self._direct):
                self._direct = None
                self._parser = httptools.HttpResponseParser(self)  # the old parser still expects this body
                self._finish()
            return
        if self._on_end is None:
            self.abort()  # unsolicited bytes could be taken for the next response
            return
        if self._headless:
            self._head_size += nbytes
            if self._head_size > MAX_HEAD:
                self._fail(ProtocolError(f"{self._url} sent a response head of more than {MAX_HEAD} bytes"))
                return
        else:
            self._raw += nbytes
            # Security: MAX_BODY limits only the body, not trailer fields and the headers of chunks.
            if self._raw > CHUNK_OVERHEAD * self._chunked + MAX_HEAD + RECEIVE_BUFFER:
                self._fail(
                    ProtocolError(
                        f"{self._url} sent more than {MAX_HEAD} bytes of chunk headers and trailers"
                    )
                )
                return
        try:
            self._parser.feed_data(self._receive[:nbytes])
        except httptools.HttpParserError as error:
            if self._complete is not None:
                self.reusable = False  # only the bytes after the response are wrong
                return
            sent = bytes(self._receive[: min(nbytes, 40)])
            self._fail(
                ProtocolError(
                    f"{self._url} does not respond in HTTP/1.1 ({error}); it sent {sent!r}. Is this the right"
                    " port?"
                )
            )

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self.reusable = False
        self._stop_timer()
        if self._on_end is None:
            return
        if (
            self._answered
            and b"content-length" not in self._headers
            and b"transfer-encoding" not in self._headers
        ):
            self._finish()  # the end of the connection ends the body
            self._deliver()
            return
        why = f": {error}" if error else ""
        got = "in the middle of its response" if self._answered else "before it answered"
        self._end(
            None,
            ConnectionLost(
                f"{self._url} closed the connection {got}{why}; the request may have run.{self._advice}"
            ),
        )

    # callbacks of the parser (httptools)

    def on_message_begin(self) -> None:
        if self._complete is not None:
            self.reusable = False  # bytes after the response could be taken for the next one

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headless:  # trailer fields must not be taken for header fields (RFC 9110, section 6.5.1)
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
        if self._complete is not None:
            return  # a second response, for which there was no request
        headers, chunks, status = self._headers, self._chunks, self._status
        if headers.get(b"connection", b"").lower() == b"close":
            self.reusable = False
        body: memoryview | bytes = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._body is not None:
            body = memoryview(self._body)[self._start :]
        self._begin()
        self._complete = HttpAnswer(status, headers, body)

    def _deliver(self) -> None:
        answer, self._complete = self._complete, None
        self._end(answer, None)
