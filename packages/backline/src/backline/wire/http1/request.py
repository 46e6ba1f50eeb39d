"""One HTTP/1.1 request, and its response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from backline.wire.application import Buffer, Certificate, Fields, HttpRequest, ResponseStream, WebSocket
from backline.wire.compression import (
    ACCEPTED,
    WORTH_COMPRESSING,
    CodingError,
    ResponseCoding,
    compress,
    compress_in_steps,
    inflate_small,
    negotiate,
    overfull,
)
from backline.wire.connection import peer_address
from backline.wire.http1.head import has_no_body, response_head, whole_head
from backline.wire.turns import peer_is_gone

if TYPE_CHECKING:
    from backline.wire.http1.pipeline import Pipeline

#: Responses and chunks up to this size in bytes are joined into one write. Larger buffers are written without
#: a copy.
JOINED_SIZE = 16 * 1024


class Http1Request(HttpRequest):
    """A request over HTTP/1.1 or HTTP/1.0."""

    __slots__ = ("_pipeline", "counted_apart", "counted_bytes", "keep_alive", "version_1_0")

    def __init__(
        self,
        pipeline: Pipeline,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: Mapping[bytes, bytes],
        body: Buffer,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.identity = self.error_form = None
        self.on_abandon = None
        #: None once the request is answered or the client has disconnected.
        self._pipeline: Pipeline | None = pipeline
        #: False if the connection is to be closed after the response.
        self.keep_alive = True
        self.version_1_0 = False
        #: The number of bytes of the body that count toward max_buffered_bytes.
        self.counted_bytes = 0
        #: Stops counting a request that counts as something other than a request in flight; otherwise None.
        self.counted_apart: Callable[[], None] | None = None

    @property
    def unanswered(self) -> bool:
        return self._pipeline is not None

    @property
    def peer(self) -> str:
        return "" if self._pipeline is None else peer_address(self._pipeline.transport)

    @property
    def certificate(self) -> Certificate | None:
        return None if self._pipeline is None else self._pipeline.certificate

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            return
        size = 0
        for part in body:
            size += len(part) if type(part) is bytes else memoryview(part).nbytes
        if compressible and size >= WORTH_COMPRESSING and b"accept-encoding" in self.headers:
            coding = negotiate(self.headers[b"accept-encoding"], fields)
            if coding is not None and self._respond_compressed(pipeline, coding, status, fields, body, size):
                return
        self._pipeline = None
        self.on_abandon = None  # breaks a reference cycle: the callback usually refers to this request
        if (
            status == 200
            and type(fields) is tuple
            and self.keep_alive
            and not pipeline.last_answer
            and not self.version_1_0
        ):
            head = whole_head(fields, size)
        else:
            head = response_head(status)
            for name, value in fields:
                head = b"%b%b: %b\r\n" % (head, name, value)
            if not self.keep_alive or pipeline.last_answer:
                self.keep_alive = False
                head = b"%bconnection: close\r\n" % head
            elif self.version_1_0:
                head = b"%bconnection: keep-alive\r\n" % head
            if has_no_body(status):
                head = b"%b\r\n" % head
                size = 0
            else:
                head = b"%bcontent-length: %d\r\n\r\n" % (head, size)
        if size == 0 or self.method == b"HEAD":
            pipeline.transport.write(head)
        elif size <= JOINED_SIZE:
            pipeline.transport.write(b"".join((head, *body)))
        else:
            pipeline.transport.writelines([head, *body])
            pipeline.wrote_much()
        pipeline.answered(self)

    def _respond_compressed(
        self,
        pipeline: Pipeline,
        coding: ResponseCoding,
        status: int,
        fields: Fields,
        body: Sequence[Buffer],
        size: int,
    ) -> bool:
        """Sends the response compressed. Large responses are compressed on a thread. Returns False, and sends
        nothing, if the response must not be compressed.
        """
        if has_no_body(status) or self.method == b"HEAD":
            return False
        coded = (*fields, (b"content-encoding", coding.name), (b"vary", b"accept-encoding"))
        if size <= coding.INLINE_SIZE:
            packed = compress(coding, body)
            # `respond` does not compress the response again, because the fields now contain a
            # content-encoding.
            self.respond(status, coded, (packed,))
            return True
        if self.version_1_0:
            return False
        stream = self.stream(status, coded)
        pipeline.run(self._send_compressed(pipeline, stream, coding, body))
        return True

    async def _send_compressed(
        self, pipeline: Pipeline, stream: ResponseStream, coding: ResponseCoding, body: Sequence[Buffer]
    ) -> None:
        async for piece in compress_in_steps(pipeline.wire.loop, coding, body):
            await stream.send(piece)
        stream.close()

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        pipeline = self._pipeline
        self._pipeline = None
        stream = Http1Stream(pipeline, self)
        if pipeline is None:
            return stream
        lines = [response_head(status), *(b"%b: %b\r\n" % field for field in fields)]
        if self.version_1_0:
            # HTTP/1.0 has no chunks, so the end of the connection marks the end of the body.
            self.keep_alive = False
        elif not has_no_body(status):
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive or pipeline.last_answer:
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        stream.begin(b"".join(lines))
        stream.bodiless = self.method == b"HEAD" or has_no_body(status)
        pipeline.open_stream = stream
        return stream

    def count_as_stream(self) -> None:
        if self._pipeline is not None:
            self._pipeline.count_as_stream(self)
            self._pipeline.lasting = True

    def accept_websocket(self, protocol: bytes = b"") -> WebSocket | None:
        from backline.wire.websocket.frames import accept_key  # few clients use WebSockets

        pipeline = self._pipeline
        key = accept_key(self.headers) if self.headers.get(b"upgrade", b"").lower() == b"websocket" else None
        if pipeline is None or key is None:
            return None
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n",
            b"sec-websocket-accept: %b\r\n" % key,
            b"sec-websocket-protocol: %b\r\n" % protocol if protocol else b"",
            b"\r\n",
        ]
        accepted = pipeline.upgrade(self, b"".join(lines))
        self._pipeline = None
        return accepted

    def gone(self) -> None:
        """Called when the client has disconnected."""
        if self._pipeline is None:
            return
        self._pipeline = None
        if self.on_abandon is not None:
            self.on_abandon()

    def give_way(self) -> None:
        if self._pipeline is not None:
            self._pipeline.transport.abort()


class Http1Stream(ResponseStream):
    """A response body of unknown length: sent in chunks, or ended by closing the connection."""

    __slots__ = ("_head", "_pipeline", "_request", "bodiless")

    def __init__(self, pipeline: Pipeline | None, request: Http1Request) -> None:
        #: None once the body has ended or the client has disconnected.
        self._pipeline = pipeline
        self._request = request
        #: The response head until it is sent, and empty afterwards.
        self._head = b""
        #: Whether the response has no body, as for HEAD, so that chunks are dropped.
        self.bodiless = False

    def begin(self, head: bytes) -> None:
        """Sends the head together with the first chunk if that chunk is sent within this iteration of the
        event loop; otherwise sends the head alone, at the end of the iteration.
        """
        assert self._pipeline is not None, "it has not ended"
        self._head = head
        self._pipeline.wire.loop.call_soon(self._send_head)

    def _send_head(self) -> None:
        if self._head and self._pipeline is not None:
            self._pipeline.transport.write(self._taken_head())

    def _taken_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    async def send(self, chunk: Buffer) -> None:
        pipeline = self._pipeline
        if pipeline is None or pipeline.transport.is_closing():
            raise ConnectionResetError("the client has disconnected")
        size = memoryview(chunk).nbytes
        self._write(pipeline, chunk, size)
        await pipeline.writable(size)
        if self._pipeline is None:
            raise ConnectionResetError("the client has disconnected")

    def send_now(self, chunk: Buffer) -> bool:
        pipeline = self._pipeline
        size = memoryview(chunk).nbytes
        if pipeline is None or pipeline.transport.is_closing() or not pipeline.may_write(size):
            return False
        self._write(pipeline, chunk, size)
        return True

    def _write(self, pipeline: Pipeline, chunk: Buffer, size: int) -> None:
        if self.bodiless or not size:  # an empty chunk would end the body
            return
        pipeline.sent_chunks += 1
        if self._request.version_1_0:
            self._send_head()
            pipeline.transport.write(chunk)
        elif size <= JOINED_SIZE:
            pipeline.transport.write(b"".join((self._taken_head(), b"%x\r\n" % size, chunk, b"\r\n")))
        else:
            pipeline.transport.writelines([self._taken_head() + b"%x\r\n" % size, chunk, b"\r\n"])

    def close(self) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            return
        self._send_head()
        self._pipeline = None
        pipeline.open_stream = None
        if not self.bodiless and not self._request.version_1_0:
            pipeline.transport.write(b"0\r\n\r\n")
        pipeline.answered(self._request)

    def gone(self) -> None:
        """Called when the client has disconnected: the next `send` raises."""
        self._pipeline = None
        if self._request.on_abandon is not None:
            self._request.on_abandon()


def inflate(pipeline: Pipeline, request: Http1Request) -> None:
    """Dispatches a request after inflating its body, or refuses it. Large bodies wait for their turn."""
    coding = request.headers[b"content-encoding"]
    if coding.strip().lower() == b"identity":
        pipeline.dispatch(request)
        return
    try:
        body = inflate_small(coding, request.body, pipeline.wire.body_limit)
        if body is not None and not _reserve(pipeline, request, len(body)):
            raise overfull()
    except CodingError as error:
        _refuse(pipeline, request, error)
        return
    if body is None:
        pipeline.run(_inflate_in_turn(pipeline, request, coding))
    else:
        request.body = body
        pipeline.dispatch(request)


async def _inflate_in_turn(pipeline: Pipeline, request: Http1Request, coding: bytes) -> None:
    """Inflates a large body in its turn. The coroutine is cancelled when the connection is lost.

    While there are unread bytes, the transport does not notice a disconnect, so `wanted` asks the socket.
    """

    def wanted() -> bool:
        return request.unanswered and not peer_is_gone(pipeline.transport)

    wire = pipeline.wire
    bound = wire.application.body_limit(request.method, request.path)
    try:
        body = await wire.inflation.inflate(
            coding, request.body, lambda size: _reserve(pipeline, request, size), wanted, bound
        )
    except CodingError as error:
        _refuse(pipeline, request, error)
        return
    if body is None:
        pipeline.transport.abort()
    else:
        request.body = body
        pipeline.dispatch(request)


def _reserve(pipeline: Pipeline, request: Http1Request, size: int) -> bool:
    """Counts `size` bytes for the request instead of the size of the compressed body. Returns False, and
    counts nothing, if max_buffered_bytes would be exceeded.
    """
    wire = pipeline.wire
    counted = wire.buffered_bytes - request.counted_bytes + size
    if counted > wire.limits.max_buffered_bytes:
        return False
    wire.buffered_bytes = counted
    request.counted_bytes = size
    return True


def _refuse(pipeline: Pipeline, request: Http1Request, error: CodingError) -> None:
    fields = [*error.fields]
    if error.status == 415:
        fields.append((b"accept-encoding", ACCEPTED))
    pipeline.fail(request, error.status, error.message, fields)
