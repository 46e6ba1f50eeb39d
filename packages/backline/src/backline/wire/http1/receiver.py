"""Builds requests from what the parser finds in the bytes of one connection."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import httptools
from msgspec.structs import replace

from backline.wire.application import REMOTE, Buffer, Fields, Ingress, SpelledFields
from backline.wire.body import GrowingBuffer
from backline.wire.connection import RETRY_AFTER, Wire
from backline.wire.http1.body import LargeBody
from backline.wire.http1.head import (
    SPECIAL_FIELDS,
    Refusal,
    check_size,
    check_special,
    find_path,
    head_without_upgrade,
    is_websocket,
    speaks_http,
)
from backline.wire.http1.pipeline import Continue, Pipeline
from backline.wire.http1.request import Http1Request
from backline.wire.limits import KIB
from backline.wire.uploads import FREE, Pace

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection

logger = logging.getLogger(__name__)

#: Bodies whose announced size is above this are received directly into one preallocated buffer.
LARGE = 64 * KIB
#: Bodies up to this size do not count toward max_buffered_bytes, because max_concurrent_requests already
#: bounds their total size.
UNCOUNTED = 4 * KIB
#: The framing of a chunked body may be as large as the body itself, plus this number of bytes.
CHUNK_OVERHEAD = 65_536 * 4 + 8 * KIB
#: The head of a request: method, path, query, header fields and length of the body.
Head: TypeAlias = tuple[bytes, bytes, bytes, Mapping[bytes, bytes], int]


class Refused(Exception):
    """Raised to stop the parser. The parser may replace this exception with another, so the refusal itself is
    stored in `Receiver._fault`.
    """


class Receiver:
    """The part of a connection that assembles requests, and passes each request to the pipeline or refuses
    it.

    The parser (llhttp in strict mode) rejects malformed messages; the receiver rejects what the parser
    accepts but RFC 9112 or a limit forbids. The parser calls the methods named `on_...`.

    Invariant: heads, bodies and chunk framing are checked against their limits as they arrive.
    """

    #: Limits the pace at which a large body is read; None while there is no large body.
    _pace: Pace | None = None

    def __init__(self, connection: Http1Connection, wire: Wire, pipeline: Pipeline) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._wire = wire
        self._small = min(UNCOUNTED, wire.limits.max_body_size)
        self._gate = wire.application.gate
        self._own_hosts = self._gate.own_hosts
        self._ingress = REMOTE
        self._parser = httptools.HttpRequestParser(self)
        #: The size of the piece being parsed, in bytes.
        self._fed = 0
        #: Whether the piece being parsed has already completed a request. A piece can hold a hundred
        #: pipelined requests, and the parser cannot be paused. So the first request is dispatched
        #: immediately, and the others are queued and dispatched in turns.
        self._put = False
        #: The refusal that stopped the parser, or None.
        self._fault: Refusal | None = None
        #: The last head that was parsed completely, or None if something about its request was unusual.
        self.last_head: Head | None = None
        self._forget()

    def _forget(self) -> None:
        """Resets the state for the next request."""
        #: The target of the request being received; empty between requests.
        self.target = b""
        self._headers = self._new_headers()
        #: The number of repeated header fields.
        self._repeated = 0
        #: The number of bytes of the incomplete head so far.
        self._head_size = 0
        #: The request whose body is being received; a refusal if the body is dropped.
        self._entry: Http1Request | Refusal | None = None
        self._body: bytes | GrowingBuffer | None = None
        #: The announced size of the body, or the number of bytes of a chunked body so far.
        self._length = 0
        self._chunked = False
        #: The number of bytes of a chunked body and its framing so far.
        self._raw_size = 0
        self.large: LargeBody | None = None
        self._upgrade = False
        #: Whether this request is anything other than a plain head in one piece with a small body of known
        #: size.
        self._unusual = False
        if self._pace is not None:
            pace, self._pace = self._pace, None
            pace.ended()

    def enter(self, ingress: Ingress) -> None:
        """Records how the connection reached the server."""
        self._ingress = ingress
        if ingress.metrics_only:
            # Security: the shared set `own_hosts` holds hosts that were admitted on other ports. The metrics
            # port must not trust it, and checks each host itself.
            self._own_hosts = set()

    def close(self) -> None:
        """Frees the parser, which refers to this receiver."""
        self.abandon()
        del self._parser

    def abandon(self) -> None:
        """Drops the request being received, and stops counting it."""
        if isinstance(self._entry, Http1Request):
            self._pipeline.release(self._entry)
        self._forget()

    def refuse(self, refusal: Refusal) -> Refusal:
        """Drops the request being received because it is refused, and with it the parser's copy of the head.

        Clients may keep refused connections open for a long time, so the copies would add up. Returns the
        refusal, with the fields of `Gate.sharing` added.
        """
        if isinstance(self._entry, Http1Request):
            sharing = self._gate.sharing(self._entry.headers)
            refusal = replace(refusal, fields=(*refusal.fields, *sharing))
        self.abandon()
        self._parser = httptools.HttpRequestParser(self)
        return refusal

    # state that the connection reads

    @property
    def in_body(self) -> bool:
        return self._entry is not None

    @property
    def waits(self) -> bool:
        """Whether the body being received must wait for other large bodies, so that no more of it may be
        read.
        """
        return self._pace is not None and self._pace.waits

    @property
    def announced(self) -> int:
        """The size announced for the body being received, or 0 if there is no body or no announced size."""
        return 0 if self._chunked or self._entry is None else self._length

    @property
    def progress(self) -> int:
        """The number of bytes of the request's body that have arrived, including the framing of chunks."""
        if self.large is not None:
            return self.large.filled
        body = self._body
        return max(body.size if isinstance(body, GrowingBuffer) else len(body or b""), self._raw_size)

    # parsing

    def feed(self, data: bytes | memoryview) -> Head | None:
        """Parses bytes of one or more requests. Returns the last head that was completed, or None if there is
        none or it was unusual.
        """
        self._fed = len(data)
        self._put = False
        self.last_head = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The parser also raises this exception after CONNECT was refused.
            if self._upgrade:
                self._parse_without_upgrade(memoryview(data)[upgrade.args[0] :])
            else:
                self._stopped(upgrade, data)
        except httptools.HttpParserError as error:
            self._stopped(error, data)
        else:
            if self.target:
                self._incomplete()
        if self._pipeline.waiting:
            self._pipeline.advance()
        return self.last_head

    def _incomplete(self) -> None:
        """Checks a request that has not arrived completely against the limits."""
        if self._entry is None:
            self._head_size += self._fed
            self._unusual = True
            refusal = check_size(self._wire.limits, self._head_size, len(self._headers) + self._repeated)
            if refusal is not None:
                self._connection.refuse(refusal)
        elif isinstance(self._entry, Http1Request) and self._entry.counted_apart is not None:
            self._complete_without_body(self._entry)
        elif self._chunked:
            self._raw_size += self._fed
            if self._raw_size > 2 * self._length + CHUNK_OVERHEAD:
                message = (
                    f"The chunked request body takes {self._raw_size} bytes for {self._length} bytes of "
                    "data; send larger chunks"
                )
                self._connection.refuse(Refusal(400, message))
        elif self.large is not None:
            self._connection.receive_into(self.large)

    def _refused(self, refusal: Refusal) -> Refused:
        """Returns the exception that a parser callback raises to refuse the request. The connection closes
        after the refusal has been sent.
        """
        self._fault = refusal
        return Refused()

    def _stopped(self, error: Exception, data: Buffer) -> None:
        fault, self._fault = self._fault, None
        connection = self._connection
        if connection.input_closed:
            return
        if fault is None:
            context = error.__context__
            # An error in the bytes after an ignored upgrade has HttpParserUpgrade as its context.
            if context is not None and not isinstance(context, (Refused, httptools.HttpParserUpgrade)):
                logger.error("reading a request failed", exc_info=context)
            if self._pipeline.answers == 0 and not self.target and not speaks_http(data):
                # The bytes are not HTTP/1 at all (an example is a malformed HTTP/2 preface), so the client
                # would not understand a response.
                connection.close_input()
                connection.abort()
                return
            fault = Refusal(400, f"The request is malformed: {error}")
        connection.refuse(fault)

    # the parser's callbacks

    def on_url(self, url: bytes) -> None:
        self.target = self.target + url if self.target else url

    def _new_headers(self) -> dict[bytes, bytes]:
        return {}

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        if name in headers:
            self._repeat(name, value)
        else:
            headers[name] = value

    def _repeat(self, name: bytes, value: bytes) -> None:
        self._repeated += 1
        self._unusual = True
        refusal = check_size(self._wire.limits, 0, len(self._headers) + self._repeated)
        if refusal is not None:
            raise self._refused(refusal)
        if name == b"host":
            raise self._refused(Refusal(400, "The request must have exactly one Host field"))
        self._headers[name] = b"%b, %b" % (self._headers[name], value)

    def on_headers_complete(self) -> None:
        if self._connection.input_closed:
            raise Refused
        wire = self._wire
        headers = self._headers
        limits = wire.limits
        fields = len(headers) + self._repeated
        if self._head_size + self._fed > limits.max_header_size or fields > limits.max_header_fields:
            size = len(self.target) + sum(len(name) + len(value) + 4 for name, value in headers.items())
            refusal = check_size(limits, size, fields)
            if refusal is not None:
                raise self._refused(refusal)
        parser = self._parser
        method = parser.get_method()
        path = self.target
        # CONNECT is checked first, because the parser accepts an empty target for this method only, and
        # `path[0]` would fail.
        if method == b"CONNECT" or path[0] != 0x2F or b"#" in path:
            found = find_path(method, path)
            if isinstance(found, Refusal):
                raise self._refused(found)
            path = found
        query = b""
        if b"?" in path:
            path, _, query = path.partition(b"?")
        request = Http1Request(self._pipeline, method, path, query, headers, b"")
        # From here on, the request is counted. If it is refused below, `abandon` stops counting the entry.
        self._entry = request
        if method != b"POST" and wire.application.is_vital(method, path):
            request.counted_apart = partial(wire.vital.end, request)
            wire.vital.begin(request, self._connection.peer)
            # The connection must not remember the head: requests with a remembered head count as requests in
            # flight.
            self._unusual = True
        else:
            wire.requests += 1
            self._connection.peer.requests += 1
        # Security: trailer fields must not be taken for header fields. They go to another dict, which is
        # dropped.
        self._headers = self._new_headers()
        if b"host" not in headers or not parser.should_keep_alive() or not SPECIAL_FIELDS.isdisjoint(headers):
            self._unusual = True
            self._special(request)
            if self._upgrade:
                return  # the request is parsed again without Upgrade
        # Security: a head that the connection remembers skips this check. That is safe because admission
        # depends only on the head, and because a refused head counts as unusual, so it is never remembered.
        if (self._unusual or headers[b"host"] not in self._own_hosts) and (
            denial := self._gate.refusal(method, path, headers, self._ingress)
        ) is not None:
            self._gate.refused(denial, method, path, request.peer)
            self._turn_away(request, denial.status, denial.message, denial.fields)
        elif (
            wire.requests > self._connection.max_requests
            and request.counted_apart is None
            and (what := self._connection.overload())
        ):
            self._turn_away(request, 503, f"The server has too many {what}; try again later", RETRY_AFTER)
        length = headers.get(b"content-length")
        if length is not None:
            # The parser has already rejected signs and underscores, which `int` would accept. So `int` fails
            # only for a repeated field.
            try:
                self._length = int(length)
            except ValueError:
                raise self._refused(Refusal(400, "Content-Length is not a number of bytes")) from None
            if self._length > self._small and request.counted_apart is None:
                self._announced(self._length)
        if self._unusual:
            self.last_head = None
            if (
                b"expect" in headers
                and not request.version_1_0
                and (self._chunked or self._length)
                and request.counted_apart is None
            ):
                self._expected()
        else:
            self.last_head = (method, path, query, headers, self._length)

    def on_body(self, data: bytes) -> None:
        if self._body is None:
            self._body = data
            if len(data) > UNCOUNTED:
                self._count(len(data))
        else:
            self._append(data)

    def on_message_complete(self) -> None:
        entry = self._entry
        assert entry is not None
        if self._unusual:
            if not self._upgrade:
                self._complete(entry)
            return
        if self._body is not None:
            # `entry` is not a Refusal here, since a refusal counts as unusual.
            body = self._body
            entry.body = body if type(body) is bytes else body.take()  # type: ignore[union-attr]
            self._body = None
        self.target = b""
        self._entry = None
        self._length = 0
        if self._put:
            self._pipeline.queue(entry)
        else:
            self._put = True
            self._pipeline.put(entry)

    # unusual requests

    def _special(self, request: Http1Request) -> None:
        """Handles HTTP/1.0, and header fields about the connection or the framing of the body."""
        parser = self._parser
        version = parser.get_http_version()
        upgrades = parser.should_upgrade()
        websocket = (
            upgrades
            and is_websocket(request.method, version, request.headers)
            and self._wire.application.takes_websocket(request.path)
        )
        self._upgrade = upgrades and not websocket
        refusal = check_special(version, request.headers, self._upgrade)
        if refusal is not None:
            raise self._refused(refusal)
        request.version_1_0 = version == "1.0"
        # A WebSocket handshake is the last request of a connection, because the client then sends frames.
        request.keep_alive = parser.should_keep_alive() and not websocket
        if b"transfer-encoding" in request.headers:
            self._chunked = True
            self._body = GrowingBuffer()

    def _turn_away(self, request: Http1Request, status: int, message: str, fields: Fields = ()) -> None:
        """Refuses this request after receiving and dropping its body. The connection stays open, unless the
        body is large or the client asked to close the connection.
        """
        self._pipeline.release(request)
        self._entry = Refusal(
            status,
            message,
            close=not request.keep_alive,
            fields=(*fields, *self._gate.sharing(request.headers)),
            head_only=request.method == b"HEAD",
        )
        self._body = GrowingBuffer()
        self._unusual = True

    def _expected(self) -> None:
        """Handles `Expect: 100-continue`: the client waits for a response before it sends the body."""
        if isinstance(self._entry, Refusal):
            raise self._refused(replace(self._entry, close=True))
        self._pipeline.put(Continue())

    def _complete(self, entry: Http1Request | Refusal) -> None:
        """Completes an unusual request, and passes it to the pipeline."""
        if isinstance(entry, Http1Request):
            if self.large is not None:
                entry.body = self.large.take()
            elif self._body is not None:
                entry.body = self._body.take() if isinstance(self._body, GrowingBuffer) else self._body
            if not entry.keep_alive:
                # Bytes after the last request are not parsed.
                self._connection.close_input()
        self._forget()
        if self._put:
            self._pipeline.queue(entry)
        else:
            self._put = True
            self._pipeline.put(entry)

    def _complete_without_body(self, request: Http1Request) -> None:
        """Completes a vital request whose body has not arrived. The connection closes after the response,
        because the next request would begin after the body.
        """
        request.keep_alive = False
        self._connection.body_awaited = False
        self._body = None
        self._complete(request)

    def _parse_without_upgrade(self, rest: memoryview) -> None:
        """Parses the request again without its Upgrade field. With this field, the parser expects another
        protocol after the head.
        """
        request = self._entry
        assert isinstance(request, Http1Request)
        head = head_without_upgrade(request.method, self.target, request.headers)
        self._parser = httptools.HttpRequestParser(self)
        self.abandon()
        self._connection.received_again(b"".join((head, rest)))

    # bodies above the fast path's limit

    def _announced(self, length: int) -> None:
        """Prepares for a body whose announced size is not small. Raises Refused if the size exceeds a
        limit.
        """
        wire = self._wire
        if isinstance(self._entry, Refusal):
            if length > LARGE:
                # The connection closes: receiving a large body only to drop it would cost more than a new
                # connection.
                raise self._refused(replace(self._entry, close=True))
        else:
            self._check_size(length, f"The request body of {length} bytes")
        if wire.buffered_bytes + length > wire.limits.max_buffered_bytes:
            raise self._overfull()
        if length > LARGE:
            try:
                self.large = LargeBody(self, self._connection, length)
            except MemoryError:
                raise self._overfull() from None
            self._body = b""
            self._unusual = True

    def _check_size(self, size: int, what: str) -> None:
        """Raises Refused if a body of `size` bytes is too large. `what` names the body in the error text."""
        entry = self._entry
        assert isinstance(entry, Http1Request)
        denial = self._wire.refusal_of_body(size, what, entry.method, entry.path)
        if denial is not None:
            raise self._refused(Refusal(denial.status, denial.message, fields=denial.fields))

    def _overfull(self) -> Refused:
        # Unread responses may be taking up the memory, so connections with unread responses are checked soon.
        self._wire.unsent.watch(self._connection)
        return self._refused(
            Refusal(503, "The server holds too many request bodies; try again later", fields=RETRY_AFTER)
        )

    def _count(self, size: int) -> None:
        """Counts body bytes toward max_buffered_bytes. Raises Refused above the limit."""
        entry = self._entry
        assert isinstance(entry, Http1Request)
        entry.counted_bytes += size
        self._wire.buffered_bytes += size
        if self._wire.buffered_bytes > self._wire.limits.max_buffered_bytes:
            raise self._overfull()
        if entry.counted_bytes > FREE:
            if self._pace is None:
                self._pace = Pace(self._wire.uploads, self._connection.update_reading)
            self._pace.grew(entry.counted_bytes)

    def _append(self, data: bytes) -> None:
        if self.large is not None:
            self.large.append(data)
            self._count(len(data))
            return
        entry = self._entry
        if self._chunked:
            self._length += len(data)
            if not isinstance(entry, Refusal):
                self._check_size(self._length, "The chunked request body")
            elif self._length > FREE:
                raise self._refused(replace(entry, close=True))
        if isinstance(entry, Refusal):
            return
        self._count(len(data))
        if not isinstance(self._body, GrowingBuffer):
            first, self._body = self._body or b"", GrowingBuffer()
            self._body.append(first)
        self._body.append(data)

    def large_body_grew(self, nbytes: int) -> None:
        """Called when `nbytes` more bytes of the large body have arrived."""
        large = self.large
        if large is None:
            # The request was refused or the connection was closed in the meantime, so the bytes are dropped.
            return
        try:
            self._count(nbytes)
        except Refused:
            fault, self._fault = self._fault, None
            if fault is not None:
                self._connection.refuse(fault)
            return
        if large.filled == large.size:
            self._connection.receive_pieces()
            # The previous parser still expects the body.
            self._parser = httptools.HttpRequestParser(self)
            # The piece with this request's head may also have completed an earlier request, which set `_put`.
            # That piece is done, so nothing would dispatch this request if it were only queued.
            self._put = False
            assert self._entry is not None
            self._complete(self._entry)


class SpellingReceiver(Receiver):
    """A receiver that also records how the client spelled the names of header fields."""

    def _new_headers(self) -> dict[bytes, bytes]:
        return SpelledFields()

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers
        assert isinstance(headers, SpelledFields)
        headers.spelling.setdefault(name.lower(), name)
        super().on_header(name, value)
