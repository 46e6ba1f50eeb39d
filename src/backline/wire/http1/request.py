"""One HTTP/1.1 request and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from backline.wire.application import Buffer, Fields, HttpRequest, ResponseStream
from backline.wire.compression import ResponseCoding, compress, compress_in_steps, negotiate
from backline.wire.connection import peer_address
from backline.wire.http1.head import has_no_body, response_head
from backline.wire.http1.stream import Http1Stream

if TYPE_CHECKING:
    from backline.wire.http1.pipeline import Pipeline

#: Up to this size a response is joined into one write; above, its buffers go to the transport one by one.
JOINED_SIZE = 16 * 1024
#: Bodies below this are not worth compressing.
WORTH_COMPRESSING = 1024


class Http1Request(HttpRequest):
    """A request over HTTP/1.1 or HTTP/1.0."""

    __slots__ = ("_pipeline", "counted_bytes", "keep_alive", "version_1_0")

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
        self.on_disconnect = None
        #: None when the request was answered, or the client is gone.
        self._pipeline: Pipeline | None = pipeline
        #: False when the connection is closed behind the answer.
        self.keep_alive = True
        self.version_1_0 = False
        #: Bytes of the body that count against the limit of all buffered bytes.
        self.counted_bytes = 0

    @property
    def unanswered(self) -> bool:
        return self._pipeline is not None

    @property
    def peer(self) -> str:
        return "" if self._pipeline is None else peer_address(self._pipeline.transport)

    def respond(self, status: int, fields: Fields, body: Sequence[Buffer] = ()) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            return
        size = 0
        for part in body:
            size += len(part) if type(part) is bytes else memoryview(part).nbytes
        if size >= WORTH_COMPRESSING and b"accept-encoding" in self.headers:
            coding = negotiate(self.headers[b"accept-encoding"], fields)
            if coding is not None and self._respond_compressed(pipeline, coding, status, fields, body, size):
                return
        self._pipeline = None
        self.on_disconnect = None  # it often knows what knows this request: no cycle is left behind
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
        """Answers compressed, if that can be done; small bodies here and now, large ones on a thread."""
        if has_no_body(status) or self.method == b"HEAD":
            return False
        coded = (*fields, (b"content-encoding", coding.name), (b"vary", b"accept-encoding"))
        if size <= coding.INLINE_SIZE:
            packed = compress(coding, body)
            # Not compressed again: the fields name a coding now.
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
            # HTTP/1.0 knows no chunks: the end of the connection ends the body.
            self.keep_alive = False
        elif not has_no_body(status):
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive or pipeline.last_answer:
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        pipeline.transport.write(b"".join(lines))
        stream.bodiless = self.method == b"HEAD" or has_no_body(status)
        pipeline.open_stream = stream
        return stream

    def gone(self) -> None:
        """The client went away: nobody waits for the answer any more."""
        if self._pipeline is None:
            return
        self._pipeline = None
        if self.on_disconnect is not None:
            self.on_disconnect()
