"""A streamed answer over HTTP/1.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backline.wire.application import Buffer, ResponseStream

if TYPE_CHECKING:
    from backline.wire.http1.pipeline import Pipeline
    from backline.wire.http1.request import Http1Request

#: Up to this size a chunk is joined with its framing into one write; above, it is not copied.
JOINED_SIZE = 16 * 1024


class Http1Stream(ResponseStream):
    """A response body of unknown length: chunked, or until the connection closes."""

    __slots__ = ("_pipeline", "_request", "bodiless")

    def __init__(self, pipeline: Pipeline | None, request: Http1Request) -> None:
        #: None when the body was ended, or the client is gone.
        self._pipeline = pipeline
        self._request = request
        #: Whether the response has no body, as for HEAD: chunks are dropped.
        self.bodiless = False

    async def send(self, chunk: Buffer) -> None:
        pipeline = self._pipeline
        if pipeline is None or pipeline.transport.is_closing():
            raise ConnectionResetError("The client is gone")
        size = memoryview(chunk).nbytes
        # An empty chunk would end the body.
        if not self.bodiless and size:
            pipeline.sent_chunks += 1
            if self._request.version_1_0:
                pipeline.transport.write(chunk)
            elif size <= JOINED_SIZE:
                pipeline.transport.write(b"".join((b"%x\r\n" % size, chunk, b"\r\n")))
            else:
                pipeline.transport.writelines([b"%x\r\n" % size, chunk, b"\r\n"])
        await pipeline.writable(size)
        if self._pipeline is None:
            raise ConnectionResetError("The client is gone")

    def close(self) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            return
        self._pipeline = None
        pipeline.open_stream = None
        if not self.bodiless and not self._request.version_1_0:
            pipeline.transport.write(b"0\r\n\r\n")
        pipeline.answered(self._request)

    def gone(self) -> None:
        """The client went away: the next chunk raises."""
        self._pipeline = None
        if self._request.on_disconnect is not None:
            self._request.on_disconnect()
