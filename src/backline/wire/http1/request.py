"""One HTTP/1.1 request and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backline.wire.application import Buffer, Fields, HttpRequest, ResponseStream
from backline.wire.compression import ResponseCoding, compress, compress_in_steps, negotiate
from backline.wire.http1.head import has_no_body, response_head

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection

#: Up to this size a response is joined into one write; above, its buffers go to the transport one by one.
JOINED_SIZE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the wire itself found, waiting for its turn behind earlier answers."""

    status: int
    message: str
    close: bool
    fields: Fields = ()


class Http1Request(HttpRequest):
    """A request over HTTP/1.1 or HTTP/1.0."""

    __slots__ = ("_connection", "counted_bytes", "keep_alive", "version_1_0")

    def __init__(
        self,
        connection: Http1Connection,
        method: bytes,
        target: bytes,
        headers: dict[bytes, bytes],
        body: Buffer,
        keep_alive: bool,
        version_1_0: bool,
    ) -> None:
        self.method = method
        if b"?" in target:
            self.path, _, self.query = target.partition(b"?")
        else:
            self.path = target
            self.query = b""
        self.headers = headers
        self.body = body
        self.on_disconnect = None
        #: None when the request was answered, or the client is gone.
        self._connection: Http1Connection | None = connection
        #: False when the connection is closed behind the answer.
        self.keep_alive = keep_alive
        self.version_1_0 = version_1_0
        #: Bytes of the body that count against the limit of all buffered bytes.
        self.counted_bytes = 0

    def respond(self, status: int, fields: Fields, body: Sequence[Buffer] = ()) -> None:
        connection = self._connection
        if connection is None:
            return
        size = 0
        for part in body:
            size += len(part) if type(part) is bytes else memoryview(part).nbytes
        if size >= 1024 and b"accept-encoding" in self.headers:
            coding = negotiate(self.headers[b"accept-encoding"], fields)
            if coding is not None and self._respond_compressed(connection, coding, status, fields, body, size):
                return
        self._connection = None
        head = response_head(status)
        for name, value in fields:
            head = b"%b%b: %b\r\n" % (head, name, value)
        if not self.keep_alive or connection.last_answer:
            self.keep_alive = False
            head = b"%bconnection: close\r\n" % head
        elif self.version_1_0:
            head = b"%bconnection: keep-alive\r\n" % head
        if has_no_body(status):
            head = b"%b\r\n" % head
            size = 0
        else:
            head = b"%bcontent-length: %d\r\n\r\n" % (head, size)
        transport = connection.transport
        if size == 0 or self.method == b"HEAD":
            transport.write(head)
        elif size <= JOINED_SIZE:
            transport.write(b"".join((head, *body)))
        else:
            transport.writelines([head, *body])
        connection.answered(self)

    def _respond_compressed(
        self, connection: Http1Connection, coding: ResponseCoding, status: int, fields: Fields, body: Sequence[Buffer], size: int
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
        connection.run(self._send_compressed(connection, stream, coding, body))
        return True

    async def _send_compressed(
        self, connection: Http1Connection, stream: ResponseStream, coding: ResponseCoding, body: Sequence[Buffer]
    ) -> None:
        async for piece in compress_in_steps(connection.wire.loop, coding, body):
            await stream.send(piece)
        stream.close()

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        connection = self._connection
        self._connection = None
        stream = Http1Stream(connection, self)
        if connection is None:
            return stream
        lines = [response_head(status), *(b"%b: %b\r\n" % field for field in fields)]
        if self.version_1_0:
            # HTTP/1.0 knows no chunks: the end of the connection ends the body.
            self.keep_alive = False
        elif not has_no_body(status):
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive or connection.last_answer:
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        connection.transport.write(b"".join(lines))
        stream.bodiless = self.method == b"HEAD" or has_no_body(status)
        connection.open_stream = stream
        return stream

    def gone(self) -> None:
        """The client went away: nobody waits for the answer any more."""
        if self._connection is None:
            return
        self._connection = None
        if self.on_disconnect is not None:
            self.on_disconnect()

    @property
    def unanswered(self) -> bool:
        return self._connection is not None


class Http1Stream(ResponseStream):
    """A response body of unknown length: chunked, or until the connection closes."""

    __slots__ = ("_connection", "_request", "bodiless")

    def __init__(self, connection: Http1Connection | None, request: Http1Request) -> None:
        self._connection = connection
        self._request = request
        #: Whether the response has no body, as for HEAD: chunks are dropped.
        self.bodiless = False

    async def send(self, chunk: Buffer) -> None:
        connection = self._connection
        if connection is None or connection.transport.is_closing():
            raise ConnectionResetError("The client is gone")
        size = memoryview(chunk).nbytes
        # An empty chunk would end the body.
        if not self.bodiless and size:
            connection.sent_chunks += 1
            if self._request.version_1_0:
                connection.transport.write(chunk)
            elif size <= JOINED_SIZE:
                connection.transport.write(b"".join((b"%x\r\n" % size, chunk, b"\r\n")))
            else:
                connection.transport.writelines([b"%x\r\n" % size, chunk, b"\r\n"])
        await connection.writable(size)
        if self._connection is None:
            raise ConnectionResetError("The client is gone")

    def close(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        connection.open_stream = None
        if not self.bodiless and not self._request.version_1_0:
            connection.transport.write(b"0\r\n\r\n")
        connection.answered(self._request)

    def gone(self) -> None:
        """The client went away: the next chunk raises."""
        self._connection = None
        if self._request.on_disconnect is not None:
            self._request.on_disconnect()
