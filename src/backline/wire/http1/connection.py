"""One HTTP/1.1 connection: bytes in, requests to the application, answers in their order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any

import httptools

from backline.wire.application import Buffer, Fields
from backline.wire.compression import ACCEPTED, CodingError, Inflater
from backline.wire.connection import Connection, Wire
from backline.wire.http1.body import LargeBody
from backline.wire.http1.head import CONTINUE, response_head
from backline.wire.http1.request import Http1Request, Http1Stream, Refusal

logger = logging.getLogger(__name__)

KIB = 1024
#: Bytes given to the parser at a time: bounds how many pipelined requests one step can yield, since the parser cannot be paused.
SLICE = 4 * KIB
#: A body above this size is received into one buffer of its size.
LARGE = 64 * KIB
#: Bodies up to this size are not counted against max_buffered_bytes: the limit of concurrent requests bounds their sum.
UNCOUNTED = 4 * KIB
#: Framing of a chunked body that is allowed beyond as many bytes as the body itself has.
CHUNK_OVERHEAD = 64 * KIB
#: After a refusal the client may still be sending: its bytes are dropped for so long (seconds) and so many, so that it sees the answer.
LINGER_TIME = 2.0
LINGER_BYTES = 16 * KIB * KIB
#: A draining connection that is idle waits so long (seconds) for a request that is already under way.
DRAIN_GRACE = 0.1
#: Fields of which any takes a request off the fast path.
SPECIAL_FIELDS = frozenset((b"connection", b"proxy-connection", b"upgrade", b"expect", b"transfer-encoding", b"content-encoding"))


class Refused(Exception):
    """Ends the parsing: the connection takes no more requests. The answer has been arranged already."""


class Http1Connection(Connection):
    """Speaks HTTP/1.1 and HTTP/1.0 as a server (RFC 9112).

    One request is with the application at a time; pipelined ones wait, and while some wait nothing is read. A request's bytes are bounded
    while they arrive. The parser (llhttp, strict) refuses malformed messages; what it lets pass is refused here.
    """

    __slots__ = (
        "_answers",
        "_body",
        "_chunked",
        "_continue_due",
        "_current",
        "_fed",
        "_head",
        "_head_size",
        "_headers",
        "_held",
        "_http",
        "_in_body",
        "_inflating",
        "_input_closed",
        "_keep_alive",
        "_large",
        "_length",
        "_lingered",
        "_mark",
        "_mark_since",
        "_parser",
        "_raw_size",
        "_reading",
        "_refusal",
        "_repeated",
        "_running",
        "_sent_in_turn",
        "_slice",
        "_special",
        "_tasks",
        "_turn",
        "_upgrade",
        "_url",
        "_version_1_0",
        "_waiting",
        "_write_paused",
        "_writers",
        "last_answer",
        "open_stream",
        "sent_chunks",
        "transport",
        "wire",
    )

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by attach
        self._http = wire.application.http
        self._parser = httptools.HttpRequestParser(self)
        self._slice = min(SLICE, wire.limits.max_header_size)
        # the request that is being received
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head: dict[bytes, bytes] | None = None
        self._repeated = 0
        self._head_size = 0
        self._fed = 0
        self._in_body = False
        self._body: bytes | bytearray | None = None
        self._length = 0
        self._chunked = False
        self._raw_size = 0
        self._large: LargeBody | None = None
        self._keep_alive = True
        self._version_1_0 = False
        self._special = False
        self._upgrade = False
        self._continue_due = False
        #: The answer to a request that is received only to be refused.
        self._refusal: Refusal | None = None
        # requests behind each other
        self._current: Http1Request | None = None
        self._waiting: deque[Http1Request | Refusal] = deque()
        self._running = False
        self._answers = 0
        #: Whether the answer to the current request is the last one of this connection.
        self.last_answer = False
        self.open_stream: Http1Stream | None = None
        self.sent_chunks = 0
        self._sent_in_turn = 0
        # the transport
        self._held: memoryview | None = None
        self._turn: asyncio.Handle | None = None
        self._reading = True
        self._input_closed = False
        self._lingered = -1
        self._write_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # the sweep
        self._mark: tuple[object, ...] = ()
        self._mark_since = 0.0

    # life

    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        self.transport = transport
        self.wire.connections.add(self)
        transport.set_write_buffer_limits(high=self.wire.limits.max_unsent_bytes)
        if self.wire.draining:
            self.drain()
        if received:
            self.data_received(received)

    def connection_lost(self, exc: Exception | None) -> None:
        wire = self.wire
        wire.connections.discard(self)
        self._input_closed = True
        self._held = None
        if self._turn is not None:
            self._turn.cancel()
        current, self._current = self._current, None
        waiting, self._waiting = self._waiting, deque()
        stream, self.open_stream = self.open_stream, None
        if self._in_body:
            self._drop_incoming()
        for entry in (current, *waiting):
            if isinstance(entry, Http1Request):
                self._release(entry)
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)
        if stream is not None:
            stream.gone()
        elif current is not None:
            current.gone()
        for task in self._tasks:
            task.cancel()
        # The parser and its connection refer to each other.
        del self._parser

    def eof_received(self) -> bool | None:
        # A client that closes its side is taken to be gone: a request in flight is cancelled. What was answered is still flushed.
        return None

    def abort(self) -> None:
        self.transport.abort()

    def drain(self) -> None:
        self.last_answer = True
        if self._current is None and not self._waiting:
            self.wire.loop.call_later(DRAIN_GRACE, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._current is None and not self._waiting and not self._in_body and not self._url and not self._input_closed:
            self._close()

    def _close(self) -> None:
        self._input_closed = True
        self._held = None
        self.transport.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine that answers the current request; it is cancelled when the client goes away."""
        task = self.wire.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ConnectionResetError):
            logger.error("A response could not be completed", exc_info=error)
            self.transport.abort()

    # bytes in

    def data_received(self, data: bytes) -> None:
        if self._input_closed:
            self._linger(len(data))
            return
        if len(data) > self._slice or self._waiting or self._held is not None:
            self._held = memoryview(data if self._held is None else b"".join((self._held, data)))
            if self._turn is None:
                self._feed_held()
            return
        self._fed = len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._parse_stopped(error, data)
            return
        # The target is set from its first byte until the message is complete.
        if self._url:
            self._incomplete()

    def _feed_held(self) -> None:
        """Gives held bytes to the parser until some request waits for its turn, or the others' turn has come."""
        self._turn = None
        while (held := self._held) is not None and not self._waiting and not self._write_paused and not self._input_closed:
            if self._large is not None:
                self._fill_large(held)
                continue
            size = self._slice
            if self._in_body and not self._chunked:
                size = max(size, self._length)
            piece, rest = held[:size], held[size:]
            self._held = rest if len(rest) else None
            answers = self._answers
            self._fed = len(piece)
            try:
                self._parser.feed_data(piece)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self._parse_stopped(error, piece)
                continue
            if self._url:
                self._incomplete()
            if self._held is not None and self._answers != answers:
                if self._turn is None:
                    self._turn = self.wire.loop.call_soon(self._feed_held)
                break
        self._update_reading()

    def _incomplete(self) -> None:
        """Some bytes of a request were parsed, and more are to come."""
        if not self._in_body:
            self._head_size += self._fed
            self._check_head_size(self._head_size)
        elif self._chunked:
            self._raw_size += self._fed
            size = self._length
            if self._raw_size > 2 * size + CHUNK_OVERHEAD:
                self._refuse(400, f"The chunked request body is almost only framing: {self._raw_size} bytes for {size}")
        elif self._large is not None and self._held is None:
            self.transport.set_protocol(self._large)

    def _check_head_size(self, size: int) -> None:
        limits = self.wire.limits
        if size > limits.max_header_size:
            self._refuse(431, f"The request's header exceeds the maximum of {limits.max_header_size} bytes")
        elif len(self._headers) + self._repeated > limits.max_header_fields:
            self._refuse(431, f"The request has more than {limits.max_header_fields} header fields")

    def _parse_stopped(self, error: Exception, data: Buffer) -> None:
        if isinstance(error, httptools.HttpParserUpgrade):
            self._ignore_upgrade(memoryview(data)[error.args[0] :])
            return
        if self._input_closed:
            return
        context = error.__context__
        if isinstance(error, httptools.HttpParserCallbackError) and context is not None:
            logger.error("A request could not be read", exc_info=context)
        if self._answers == 0 and not self._url and not _speaks_http(data):
            # Not HTTP at all; an answer in HTTP would be noise (RFC 9113, 3.4 leads here for a broken preface).
            self._input_closed = True
            self.transport.abort()
            return
        self._refuse(400, f"The request is malformed: {error}")

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """Parses the request again without its Upgrade field: the parser takes what follows for another protocol."""
        headers = {
            name: value
            for name, value in self._headers.items()
            if name not in (b"upgrade", b"connection", b"proxy-connection", b"http2-settings")
        }
        if b"close" in self._headers.get(b"connection", b"").lower():
            headers[b"connection"] = b"close"
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (
            self._parser.get_method(),
            self._url,
            b"".join(b"%b: %b\r\n" % field for field in headers.items()),
        )
        self._parser = httptools.HttpRequestParser(self)
        self._reset()
        held = self._held
        self._held = None
        self.data_received(b"".join((head, rest) if held is None else (head, rest, held)))

    # the parser's callbacks

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        if name in headers:
            self._repeat(name, value)
        else:
            headers[name] = value

    def _repeat(self, name: bytes, value: bytes) -> None:
        self._repeated += 1
        if self._repeated > self.wire.limits.max_header_fields:
            self._check_head_size(0)
            raise Refused
        if name == b"host":
            self._refuse(400, "The request has more than one Host field")
            raise Refused
        self._headers[name] = b"%b, %b" % (self._headers[name], value)

    def on_headers_complete(self) -> None:
        if self._input_closed:
            raise Refused
        limits = self.wire.limits
        headers = self._headers
        if self._head_size + self._fed > limits.max_header_size:
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers.items())
            self._check_head_size(size)
        if len(headers) + self._repeated > limits.max_header_fields:
            self._check_head_size(0)
        if self._url[0] != 0x2F or b"#" in self._url:
            self._unusual_target()
        if b"host" not in headers or not self._parser.should_keep_alive() or not SPECIAL_FIELDS.isdisjoint(headers):
            self._special_request()
        if self._input_closed:
            raise Refused
        if self._upgrade:
            return
        self._in_body = True
        self._head_size = 0
        wire = self.wire
        if wire.requests >= limits.max_concurrent_requests and self._refusal is None:
            self._refuse_request(503, "The server has too many requests in flight; try again later", ((b"retry-after", b"1"),))
        wire.requests += 1
        length = headers.get(b"content-length")
        if length is not None:
            self._announced(int(length))
        if self._continue_due:
            self._send_continue()

    def on_body(self, body: bytes) -> None:
        if self._body is None and not self._chunked:
            self._body = body
        else:
            self._append_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        if self._input_closed:
            raise Refused
        body = self._body
        self._complete(b"" if body is None else body)

    # the request that is being received

    def _unusual_target(self) -> None:
        method = self._parser.get_method()
        target = self._url
        if b"#" in target:
            self._refuse(400, "The request's target must not have a fragment ('#')")
        elif method == b"CONNECT":
            self._refuse(400, "CONNECT is refused: this server is not a proxy")
        elif target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
            # RFC 9112, 3.2.2: the absolute form, as sent to proxies, must be understood.
            slash = target.find(b"/", 8)
            self._url = target[slash:] if slash > 0 else b"/"
        elif target != b"*" or method != b"OPTIONS":
            self._refuse(400, "The request's target must be a path that begins with '/'")

    def _special_request(self) -> None:
        """All that most requests do not have: other versions, and fields that concern the connection or the body."""
        parser = self._parser
        headers = self._headers
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(400, f"HTTP version {version} is not supported on this connection; use 1.1")
            return
        self._special = True
        self._version_1_0 = version == "1.0"
        self._keep_alive = parser.should_keep_alive()
        if not self._version_1_0 and b"host" not in headers:
            self._refuse(400, "The request has no Host field")
            return
        if parser.should_upgrade():
            upgrade = headers.get(b"upgrade", b"")
            if self._version_1_0 or any(name.strip().lower() not in (b"h2c", b"h2", b"") for name in upgrade.split(b",")):
                self._refuse(400, f"Upgrade to '{upgrade.decode('latin-1')[:64]}' is refused; leave the Upgrade field out")
            self._upgrade = True
            return
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            if self._version_1_0 or coding.strip().lower() != b"chunked":
                self._refuse(400, "Transfer-Encoding must be 'chunked', in HTTP/1.1")
                return
            self._chunked = True
            self._body = bytearray()
            # Trailer fields must not pass for header fields: they are parsed into a dict of their own, and dropped.
            self._head = headers
            self._headers = {}
        expect = headers.get(b"expect")
        if expect is not None and not self._version_1_0:
            if expect.lower() == b"100-continue":
                self._continue_due = self._chunked or headers.get(b"content-length", b"0") != b"0"
            else:
                self._refuse(417, f"Expect: {expect.decode('latin-1')[:64]} is not supported; only 100-continue is")

    def _announced(self, length: int) -> None:
        """A body of this length is to come."""
        wire = self.wire
        if length > wire.limits.max_body_size:
            self._refuse(413, f"The request body of {length} bytes exceeds the maximum of {wire.limits.max_body_size} bytes")
        elif length > UNCOUNTED and wire.buffered_bytes + length > wire.limits.max_buffered_bytes:
            self._refuse(503, "The server holds too many request bodies; try again later", ((b"retry-after", b"1"),))
        elif length > LARGE:
            if self._refusal is not None:
                # Receiving it only to drop it would cost more than a new connection.
                self._refuse(self._refusal.status, self._refusal.message, self._refusal.fields)
            else:
                self._large = LargeBody(self, length)
                self._body = b""
        elif self._refusal is not None and self._continue_due:
            self._refuse(self._refusal.status, self._refusal.message, self._refusal.fields)
        if self._input_closed:
            raise Refused
        self._length = length

    def _append_body(self, body: bytes) -> None:
        if self._large is not None:
            self._large.append(body)
            self.wire.buffered_bytes += len(body)
            return
        if self._chunked:
            self._length += len(body)
            limits = self.wire.limits
            if self._length > limits.max_body_size:
                self._refuse(413, f"The chunked request body exceeds the maximum of {limits.max_body_size} bytes")
                raise Refused
            if self.wire.buffered_bytes + len(body) > limits.max_buffered_bytes:
                self._refuse(503, "The server holds too many request bodies; try again later", ((b"retry-after", b"1"),))
                raise Refused
        if self._refusal is not None:
            return
        if self._chunked:
            self.wire.buffered_bytes += len(body)
        if not isinstance(self._body, bytearray):
            self._body = bytearray(self._body or b"")
        self._body += body

    def _fill_large(self, held: memoryview) -> None:
        large = self._large
        assert large is not None
        taken = min(len(held), large.size - large.filled)
        large.append(held[:taken])
        self._held = held[taken:] if taken < len(held) else None
        self.large_body_grew(taken, attached=False)

    def large_body_grew(self, nbytes: int, *, attached: bool = True) -> None:
        """So many bytes more of the large body are there."""
        large = self._large
        if large is None:
            # Refused or closed meanwhile: what still arrives is dropped.
            return
        wire = self.wire
        wire.buffered_bytes += nbytes
        if large.filled < large.size:
            if wire.buffered_bytes > wire.limits.max_buffered_bytes:
                if attached:
                    self.transport.set_protocol(self)
                self._refuse(503, "The server holds too many request bodies; try again later", ((b"retry-after", b"1"),))
            elif not attached and self._held is None:
                self.transport.set_protocol(large)
            return
        if attached:
            self.transport.set_protocol(self)
        # The old parser still expects the body.
        method = self._parser.get_method()
        self._parser = httptools.HttpRequestParser(self)
        self._complete(large.view, method)

    def _complete(self, body: Buffer, method: bytes | None = None) -> None:
        """The request is complete: to the application, or behind those before it."""
        entry: Http1Request | Refusal
        if self._refusal is not None:
            entry = self._refusal
            self.wire.requests -= 1
        else:
            entry = Http1Request(
                self,
                method or self._parser.get_method(),
                self._url,
                self._headers if self._head is None else self._head,
                body,
                self._keep_alive,
                self._version_1_0,
            )
            if self._chunked or self._large is not None:
                entry.counted_bytes = self._length
            elif self._length > UNCOUNTED:
                entry.counted_bytes = self._length
                self.wire.buffered_bytes += self._length
        if not self._keep_alive:
            # What follows the last request is not ours to read.
            self._input_closed = True
            self._held = None
        special = self._special
        self._url = b""
        self._headers = {}
        self._body = None
        self._in_body = False
        self._length = 0
        if special or self._repeated or self._large is not None or self._refusal is not None:
            self._reset()
        if self._current is not None or self._waiting or self._write_paused:
            self._waiting.append(entry)
        elif type(entry) is Http1Request and not special:
            self._current = entry
            try:
                self._http(entry)
            except Exception:
                self._application_failed(entry)
        else:
            self._waiting.append(entry)
            self._advance()

    def _reset(self) -> None:
        self._url = b""
        self._headers = {}
        self._head = None
        self._repeated = 0
        self._head_size = 0
        self._in_body = False
        self._body = None
        self._length = 0
        self._chunked = False
        self._raw_size = 0
        self._large = None
        self._keep_alive = True
        self._version_1_0 = False
        self._special = False
        self._upgrade = False
        self._continue_due = False
        self._refusal = None

    def _drop_incoming(self) -> None:
        """Forgets the request that is being received, and what was counted for it."""
        self.wire.requests -= 1
        if self._large is not None:
            self.wire.buffered_bytes -= self._large.filled
        elif self._chunked and isinstance(self._body, bytearray):
            self.wire.buffered_bytes -= len(self._body)
        self._reset()

    # answers

    def _advance(self) -> None:
        """Gives the next waiting requests to the application, one after another."""
        if self._running:
            return
        self._running = True
        while self._waiting and self._current is None and not self._write_paused:
            entry = self._waiting.popleft()
            if isinstance(entry, Refusal):
                self._send_refusal(entry)
                continue
            self._current = entry
            if b"content-encoding" in entry.headers and len(entry.body):
                self._inflate(entry)
            else:
                self._dispatch(entry)
        self._running = False
        if self._current is None and not self._waiting:
            if self._continue_due:
                self._send_continue()
            if self._held is not None and self._turn is None:
                self._turn = self.wire.loop.call_soon(self._feed_held)
        self._update_reading()

    def _dispatch(self, request: Http1Request) -> None:
        try:
            self._http(request)
        except Exception:
            self._application_failed(request)

    def _application_failed(self, request: Http1Request) -> None:
        logger.exception("The application failed on %s %s", request.method.decode(), request.path.decode("latin-1"))
        if request.unanswered:
            kind, body = self.wire.application.render_error(500, "The server failed on this request; its log says why")
            request.respond(500, ((b"content-type", kind),), (body,))
        elif self.open_stream is not None:
            self.transport.abort()

    def answered(self, request: Http1Request) -> None:
        """The answer to the current request is written."""
        self._answers += 1
        if self._current is not request:
            return
        self._current = None
        self.wire.requests -= 1
        if request.counted_bytes:
            self.wire.buffered_bytes -= request.counted_bytes
            request.counted_bytes = 0
        if not request.keep_alive:
            self._last_answered()
        elif (self._waiting or self._held is not None or self._continue_due) and not self._running:
            self._advance()

    def _release(self, request: Http1Request) -> None:
        self.wire.requests -= 1
        self.wire.buffered_bytes -= request.counted_bytes
        request.counted_bytes = 0

    def _last_answered(self) -> None:
        """Closes behind an answer that said so."""
        for entry in self._waiting:
            if isinstance(entry, Http1Request):
                self._release(entry)
        self._waiting.clear()
        if self._in_body:
            self._drop_incoming()
        if self.last_answer:
            self._begin_linger()
        else:
            self._close()

    def _refuse(self, status: int, message: str, fields: Fields = ()) -> None:
        """Refuses what is being received and takes no more; the answer waits for those before it."""
        if self._input_closed:
            return
        self._input_closed = True
        self._held = None
        if self._in_body:
            self._drop_incoming()
        else:
            self._reset()
        self._waiting.append(Refusal(status, message, close=True, fields=fields))
        self._advance()

    def _refuse_request(self, status: int, message: str, fields: Fields = ()) -> None:
        """Refuses the request that is being received; the connection stays."""
        self._refusal = Refusal(status, message, close=not self._keep_alive, fields=fields)

    def _send_refusal(self, refusal: Refusal) -> None:
        kind, body = self.wire.application.render_error(refusal.status, refusal.message)
        close = refusal.close or self.last_answer
        lines = [response_head(refusal.status), b"content-type: %b\r\n" % kind]
        if refusal.status == 415:
            lines.append(b"accept-encoding: %b\r\n" % ACCEPTED)
        lines += (b"%b: %b\r\n" % field for field in refusal.fields)
        if close:
            lines.append(b"connection: close\r\n")
        lines += (b"content-length: %d\r\n\r\n" % len(body), body)
        self.transport.write(b"".join(lines))
        self._answers += 1
        if close:
            self._waiting.clear()
            self._begin_linger()

    def _begin_linger(self) -> None:
        """Ends our side, and drops what the client still sends until it closes or the time is up."""
        self._input_closed = True
        self._held = None
        self._lingered = 0
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self._update_reading()

    def _linger(self, size: int) -> None:
        """Drops what a refused client still sends: closing with unread bytes would reset the connection and lose the answer."""
        if self._lingered >= 0:
            self._lingered += size
            if self._lingered > LINGER_BYTES:
                self.transport.abort()

    def _send_continue(self) -> None:
        if self._current is None and not self._waiting:
            self._continue_due = False
            self.transport.write(CONTINUE)

    # content codings

    def _inflate(self, request: Http1Request) -> None:
        """Replaces the body by what it contains; small ones here, large ones on a thread."""
        limit = min(self.wire.limits.max_body_size, self.wire.limits.max_buffered_bytes - self.wire.buffered_bytes)
        coding = request.headers[b"content-encoding"]
        if coding.strip().lower() == b"identity":
            self._dispatch(request)
            return
        try:
            inflater = Inflater(coding, request.body, limit)
            done = len(request.body) <= LARGE and inflater.step()
        except CodingError as error:
            self._inflate_failed(request, error)
            return
        if done:
            self._inflated(request, inflater.output)
        else:
            self.run(self._inflate_on_thread(request, inflater))

    async def _inflate_on_thread(self, request: Http1Request, inflater: Inflater) -> None:
        try:
            body = await self.wire.loop.run_in_executor(None, inflater.finish)
        except CodingError as error:
            self._inflate_failed(request, error)
        else:
            self._inflated(request, body)

    def _inflated(self, request: Http1Request, body: bytearray) -> None:
        request.body = body
        self.wire.buffered_bytes += len(body) - request.counted_bytes
        request.counted_bytes = len(body)
        self._dispatch(request)

    def _inflate_failed(self, request: Http1Request, error: CodingError) -> None:
        kind, body = self.wire.application.render_error(error.status, error.message)
        fields = [(b"content-type", kind)]
        if error.status == 415:
            fields.append((b"accept-encoding", ACCEPTED))
        request.respond(error.status, fields, (body,))

    # flow control

    def pause_writing(self) -> None:
        self._write_paused = True
        self._update_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)
        self._advance()

    async def writable(self, sent: int) -> None:
        """Waits while the client does not read; after so many bytes sent in a row, lets the other connections have their turn."""
        self._sent_in_turn += sent
        if self._sent_in_turn >= self.wire.limits.bytes_per_turn:
            self._sent_in_turn = 0
            await asyncio.sleep(0)
        if self._write_paused and not self.transport.is_closing():
            writer = self.wire.loop.create_future()
            self._writers.append(writer)
            await writer

    def _update_reading(self) -> None:
        """Reads unless bytes are held back or the client does not read; what follows a refusal is always read, to be dropped."""
        reading = self._lingered >= 0 or (self._held is None and not self._write_paused)
        if reading != self._reading and not self.transport.is_closing():
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # time limits

    def sweep(self, now: float) -> None:
        limits = self.wire.limits
        unsent = self.transport.get_write_buffer_size()
        large = self._large
        if unsent:
            mark: tuple[object, ...] = ("unsent", unsent, self._answers, self.sent_chunks)
            limit = limits.progress_timeout
        elif self._lingered >= 0:
            mark = ("linger",)
            limit = LINGER_TIME
        elif self._current is not None or self._waiting:
            mark = ("application",)
            limit = float("inf")
        elif self._in_body:
            mark = ("body", self._answers, large.filled if large is not None else len(self._body or b""), self._raw_size)
            limit = limits.progress_timeout
        elif self._url:
            mark = ("head", self._answers)
            limit = limits.header_timeout
        else:
            mark = ("idle", self._answers)
            limit = limits.idle_timeout if self._answers else limits.header_timeout
        if mark != self._mark:
            self._mark = mark
            self._mark_since = now
        elif now - self._mark_since >= limit:
            self._time_is_up(str(mark[0]))

    def _time_is_up(self, phase: str) -> None:
        if phase in ("body", "head"):
            self.transport.set_protocol(self)
            self._refuse(408, f"The request's {phase} did not arrive in time")
        elif phase == "unsent":
            self.transport.abort()
        else:
            self._close()


def _speaks_http(data: Buffer) -> bool:
    """Whether the third word of the first line begins like a version of HTTP."""
    words = bytes(data[:8192]).split(b"\n", 1)[0].split()
    return len(words) >= 3 and words[2].startswith(b"HTTP/")
