"""A plain HTTP request on an HTTP/2 stream."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backline.wire.application import Buffer, Fields, HttpRequest, ResponseStream
from backline.wire.body import Body
from backline.wire.compression import (
    INLINE,
    WORTH_COMPRESSING,
    CodingError,
    ResponseCoding,
    compress,
    compress_in_steps,
    inflate_small,
    negotiate,
    overfull,
)
from backline.wire.connection import RETRY_AFTER, http_date
from backline.wire.http2 import frames
from backline.wire.http2.frames import OUR_STREAM_WINDOW
from backline.wire.http2.request_head import RequestHead
from backline.wire.http2.stream import Stream

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection

log = logging.getLogger("backline.wire")

#: Fields that an application may set for HTTP/1.1, but that HTTP/2 forbids or the wire sets itself.
_NOT_IN_HTTP2 = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-connection",
        b"content-length",
        b"date",
    )
)


class HttpExchange(Stream, HttpRequest):
    """One HTTP request, from its head to the end of its response."""

    body: Buffer
    _gathered: Body | None = None
    _responding = False

    def __init__(self, connection: Http2Connection, number: int, head: RequestHead) -> None:
        Stream.__init__(self, connection, number, head)
        HttpRequest.__init__(self, head.method, head.path, head.query, head.headers, b"")

    # Receiving

    def begin(self) -> None:
        connection = self.connection
        wire = connection.wire
        head = self.head
        if head.too_large is not None:
            self.refuse(431, head.too_large)
        elif head.refusal is not None:
            wire.application.gate.refused(head.refusal, head.method, head.path, self.peer)
            self.refuse(head.refusal.status, head.refusal.message, head.refusal.fields)
        elif wire.requests > connection.max_requests and not head.vital and (what := connection.overload()):
            self.refuse(503, f"The server has too many {what}; try again later", RETRY_AFTER)
        elif head.is_grpc:
            self.refuse(405, "gRPC calls must use POST", ((b"allow", b"POST"),))
        elif head.rpc is not None:
            self.refuse(415, "This path is a gRPC method; it requires content-type application/grpc")
        elif head.content_length is not None and not self._fits(
            head.content_length, f"The request body of {head.content_length} bytes"
        ):
            pass  # the request has been refused
        elif head.headers.get(b"expect", b"").lower() == b"100-continue":
            self.connection.output.write(
                self.connection.header_frames(self.number, frames.encode_status(100))
            )

    def feed(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        self.count_piece(end - begin, ended)
        if self.answered:
            return
        if begin < end and not self._gather(data, begin, end):
            return
        if ended:
            if self._gathered is not None:
                self.body = self._gathered.take()
                self._gathered = None
            size = len(self.body)
            coded = self.head.coding != b""
            if coded or size > self.connection.admission.passes:
                self.connection.admission.offer(self, size, coded)
            else:
                self._handle()

    def _fits(self, size: int, what: str) -> bool:
        """Refuses the request and returns False if a body of `size` bytes is too large. `what` names the body
        in the error text.
        """
        denial = self.connection.wire.refusal_of_body(size, what, self.method, self.path)
        if denial is not None:
            self.refuse(denial.status, denial.message, denial.fields)
        return denial is None

    def _gather(self, data: Buffer, begin: int, end: int) -> bool:
        connection = self.connection
        gathered = self._gathered
        if gathered is None:
            size = self.head.content_length
            try:
                gathered = self._gathered = Body(size)
            except MemoryError:
                self._refuse_overfull()
                return False
            if size is not None:
                connection.reader.data.expect(self, size)
        if not self._fits(gathered.filled + end - begin, "The request body"):
            return False
        if not self.buffer(end - begin):
            self._refuse_overfull()
            return False
        gathered.add(data, begin, end)
        # For a body of unknown length, the window is replenished whenever half of the window is used.
        if self.head.content_length is None and self.window_in < OUR_STREAM_WINDOW // 2:
            connection.reader.data.promise(
                self, self.buffered + OUR_STREAM_WINDOW, OUR_STREAM_WINDOW - self.window_in
            )
        return True

    def dispatch(self) -> None:
        coding = self.head.coding
        if coding:
            try:
                inflated = inflate_small(coding, self.body, self.connection.wire.body_limit)
                if inflated is not None and not self.reserve(len(inflated)):
                    raise overfull()
            except CodingError as error:
                self.refuse(error.status, error.message)
                return
            if inflated is None:
                self.run(self._inflate_in_turn(coding))
                return
            self.body = inflated
        self._handle()

    async def _inflate_in_turn(self, coding: bytes) -> None:
        wire = self.connection.wire
        bound = wire.application.body_limit(self.method, self.path)
        try:
            inflated = await wire.inflation.inflate(coding, self.body, self.reserve, self.wanted, bound)
        except CodingError as error:
            self.refuse(error.status, error.message, error.fields)
            return
        if inflated is not None and self.wanted():
            self.body = inflated
            self._handle()

    def _handle(self) -> None:
        try:
            self.connection.wire.application.http(self)
        except Exception:
            log.exception("a handler of HTTP requests failed")
            self.refuse(500, "The server failed on this request; see its log")

    # Responding

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        if self._responding or self.closed:
            return
        self._responding = True
        self.on_abandon = None  # breaks a reference cycle: the callback usually refers to this request
        size = sum(memoryview(part).nbytes for part in body)
        admission = self.connection.admission
        if size > admission.passes or self.kind:
            admission.learn(self, size)
        coding = None
        worth = compressible and size >= WORTH_COMPRESSING and self.method != b"HEAD"
        if worth and b"accept-encoding" in self.headers:
            coding = negotiate(self.headers[b"accept-encoding"], fields)
        if coding is None:
            self._send(status, fields, body, size)
        elif size <= INLINE:
            packed = compress(coding, body)
            self._send(status, _with_coding(fields, coding), (packed,), len(packed))
        else:
            self.run(self._send_compressed(coding, status, fields, body))

    def _send(self, status: int, fields: Fields, body: Sequence[Buffer], size: int) -> None:
        self.answered = True
        head = self._response_head(
            status, fields, size if status >= 200 and status not in (204, 304) else None
        )
        if not size or self.method == b"HEAD" or status in (204, 304):
            self._end(head)
            return
        connection = self.connection
        output = connection.output
        output.write(connection.header_frames(self.number, head))
        self.ends_with_data = True
        if output.has_room(self, size):
            output.window -= size
            output.unwritten += size
            output.data_frames += 1
            output.parts.append(frames.FRAME_HEADER.pack(size << 8, frames.END_STREAM, self.number))
            output.parts += body
            connection.finished(self)
        else:
            output.send(self, body)

    def _end(self, head: bytes) -> None:
        self.connection.output.write(self.connection.header_frames(self.number, head, frames.END_STREAM))
        self.connection.finished(self)

    async def _send_compressed(
        self, coding: ResponseCoding, status: int, fields: Fields, body: Sequence[Buffer]
    ) -> None:
        stream = self._start(status, _with_coding(fields, coding))
        async for piece in compress_in_steps(self.connection.loop, coding, body):
            await stream.send(piece)
        stream.close()

    def count_as_stream(self) -> None:
        if not self.closed:
            connection = self.connection
            connection.admit_stream()
            if self.counted_apart is not None:
                self.counted_apart()
            else:
                connection.wire.requests -= 1
                connection.peer.requests -= 1
            self.counted_apart = connection.stream_ends
            self.lasting = True

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        if self._responding:
            raise RuntimeError("the request already has a response")
        self._responding = True
        if self.closed:
            return HttpBody(self)
        # A streamed response waits for the client to read, so it takes little memory. Its expected size is 0.
        self.connection.admission.learn(self, 0)
        return self._start(status, fields)

    def _start(self, status: int, fields: Fields) -> HttpBody:
        if not self.closed:
            self.connection.output.write(
                self.connection.header_frames(self.number, self._response_head(status, fields, None))
            )
        return HttpBody(self)

    def refuse(self, status: int, message: str, fields: Fields = ()) -> None:
        """Responds with an error that the wire has detected."""
        if self._responding or self.closed:
            return
        self._responding = True
        # The client may take a long time to read the response. Meanwhile, the body must neither take up
        # memory nor make other large bodies wait.
        self._gathered, self.body = None, b""
        self.release(self.buffered)
        if self.upload_size:
            self.leave_line()
        application = self.connection.wire.application
        kind, body = application.render_error(status, message)
        self.connection.admission.learn(self, len(body))
        sharing = application.gate.sharing(self.headers)
        self._send(status, [(b"content-type", kind), *fields, *sharing], (body,), len(body))

    def _refuse_overfull(self) -> None:
        error = overfull()
        self.refuse(error.status, error.message, RETRY_AFTER)

    def _response_head(self, status: int, fields: Fields, size: int | None) -> bytes:
        block = frames.encode_status(status) + frames.encode_fields(
            [field for field in fields if field[0] not in _NOT_IN_HTTP2]
        )
        if size is not None:
            block += frames.encode_fields([(b"content-length", b"%d" % size)])
        return block + frames.encode_fields([(b"date", http_date())])

    # Cancellation and timeouts

    def lost(self) -> None:
        self.answered = True
        self._gathered = None
        callback, self.on_abandon = self.on_abandon, None
        if callback is not None:
            try:
                callback()
            except Exception:
                log.exception("the on_abandon callback of an HTTP request failed")

    def awaits_client(self) -> bool:
        return self.remote_open and not self.answered

    def timed_out(self) -> None:
        self.refuse(408, "The request body did not arrive in time")


class VitalExchange(HttpExchange):
    """A vital request. It is answered as soon as its head has arrived, and its body is dropped."""

    _handled = False

    def begun_without_body(self) -> None:
        if not self._handled:
            self._handled = True
            self._handle()

    def feed(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        self.count_piece(end - begin, ended)
        self.begun_without_body()

    def awaits_client(self) -> bool:
        return False


class HttpBody(ResponseStream):
    """The body of a streamed response. Its chunks are queued on the HTTP/2 stream."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: HttpExchange) -> None:
        self._exchange = exchange

    async def send(self, chunk: Buffer) -> None:
        exchange = self._exchange
        if exchange.closed or exchange.answered:
            raise ConnectionResetError("the client has disconnected")
        if exchange.method != b"HEAD":
            exchange.connection.output.send(exchange, (chunk,))
        await exchange.wait_drained()

    def send_now(self, chunk: Buffer) -> bool:
        exchange = self._exchange
        if exchange.closed or exchange.answered or exchange.pending_bytes:
            return False
        if exchange.method != b"HEAD":
            exchange.connection.output.send(exchange, (chunk,))
        return True

    def close(self) -> None:
        exchange = self._exchange
        if not exchange.closed and not exchange.answered:
            exchange.answered = True
            exchange.ends_with_data = True
            exchange.connection.output.finish(exchange)


def _with_coding(fields: Fields, coding: ResponseCoding) -> Fields:
    return [*fields, (b"content-encoding", coding.name), (b"vary", b"accept-encoding")]
