"""Unary gRPC calls, the hot path of the server."""

from __future__ import annotations

from struct import Struct

from backline.wire.application import Buffer, Fields, RpcError, UnaryCall, UnaryMethod
from backline.wire.body import NO_ROOM
from backline.wire.compression import GRPC_CODINGS, INLINE, CodingError, compress, inflate_small
from backline.wire.grpc.exchange import GrpcExchange, log
from backline.wire.grpc.messages import (
    COMPRESSED_RESPONSE_BLOCKS,
    INTERNAL,
    INVALID_ARGUMENT,
    OK_BLOCK,
    PREFIX,
    PREFIX_SIZE,
    RESPONSE_BLOCK,
    MessageAssembler,
    as_rpc_error,
    overfull,
)
from backline.wire.http2 import frames
from backline.wire.http2.frames import LARGE_BODY
from backline.wire.http2.stream import CRUMB

_HEADERS_START = frames.FRAME_HEADER.pack(len(RESPONSE_BLOCK) << 8 | frames.HEADERS, frames.END_HEADERS, 0)[
    :5
]
#: Packs a response's HEADERS frame, DATA frame header and message prefix in one call. The arguments are
#: _HEADERS_START, the stream, the header block, the DATA length << 8, the stream and the message length.
_HEADERS_AND_PREFIX = Struct(f">5sI{len(RESPONSE_BLOCK)}sIxIxI").pack
_OK_START = frames.FRAME_HEADER.pack(
    len(OK_BLOCK) << 8 | frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0
)[:5]
_TRAILERS = Struct(f">5sI{len(OK_BLOCK)}s").pack


class UnaryExchange(GrpcExchange, UnaryCall):
    """A call with one request message and one response message.

    An uncompressed message in a single DATA frame that also ends the stream takes the fast path in `feed`.
    """

    _assembler: MessageAssembler | None = None
    _message: Buffer | None = None
    _compressed = False

    # Receiving

    def feed(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        length = end - begin
        if (
            ended
            and self._assembler is None
            and length >= PREFIX_SIZE
            and self.head.content_length in (None, length)
            and not self.answered
        ):
            flag, size = PREFIX.unpack_from(data, begin)
            if not flag and size == length - PREFIX_SIZE and size <= self.connection.wire.small_body:
                self.remote_open = False
                self.buffered = size
                connection = self.connection
                # `Http2Connection.remove` subtracts `self.buffered` from this counter when the stream closes.
                connection.wire.buffered_bytes += size
                if size <= connection.admission.passes:
                    self._handle(data[begin + PREFIX_SIZE : end])
                else:
                    self._message = data[begin + PREFIX_SIZE : end]
                    connection.admission.offer(self, size, compressed=False)
                return
        self._receive_in_parts(data, begin, end, ended)

    def _receive_in_parts(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        self.count_piece(end - begin, ended)
        if self.answered:
            return
        assembler = self._assembler
        if assembler is not None and not ended and assembler.missing > end - begin:
            # The usual case for a large message: this frame neither begins nor completes it.
            try:
                if not self.buffer(end - begin):
                    raise overfull()
                assembler.fill(data, begin, end)
            except RpcError as error:
                self._refuse(error)
            return
        try:
            self._assemble(data, begin, end, ended)
        except RpcError as error:
            self._refuse(error)

    def _assemble(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        assembler = self._assembler
        if assembler is None:
            limit = self.connection.wire.body_limit
            assembler = self._assembler = MessageAssembler(
                self.head.encoding, limit, self._announced, self.begun
            )
        if self._message is None:
            if begin < end and not self.buffer(end - begin):
                raise overfull()
            begin, complete = assembler.feed(data, begin, end)
            if complete is not None:
                self._compressed, self._message = complete
        if begin < end:
            raise RpcError(INVALID_ARGUMENT, "a unary call must send one message, with no bytes after it")
        if not ended:
            return
        if self._message is None:
            raise RpcError(INVALID_ARGUMENT, "the call ended without a complete message")
        self._assembler = None
        self.connection.admission.offer(self, len(self._message), self._compressed)

    def room(self) -> memoryview:
        assembler = self._assembler
        return NO_ROOM if assembler is None or self.answered or self.closed else assembler.room

    def placed(self, size: int, ended: int) -> None:
        assembler = self._assembler
        assert assembler is not None, "it has room"
        try:
            if not self.buffer(size):
                raise overfull()
            assembler.placed(size)
        except RpcError as error:
            self._refuse(error)
        self.received += size
        if ended:
            self._receive_in_parts(b"", 0, 0, ended)
            return
        self.check_length(0, ended)
        if size < CRUMB:
            self.connection.spend(1)

    def dispatch(self) -> None:
        message, self._message = self._message, None
        assert message is not None
        if not self._compressed:
            self._handle(message)
            return
        try:
            self._inflate(message)
        except RpcError as error:
            self._refuse(error)

    def _announced(self, size: int, _: int) -> None:
        self.connection.reader.data.expect(self, size + PREFIX_SIZE)
        if size > LARGE_BODY:
            self.connection.receive_directly()

    def _inflate(self, message: Buffer) -> None:
        try:
            inflated = inflate_small(self.head.encoding, message, self.connection.wire.body_limit)
        except CodingError as error:
            raise as_rpc_error(error) from None
        if inflated is None:
            self.run(self._inflate_in_turn(message))
        elif self.reserve(len(inflated)):
            self._handle(inflated)
        else:
            self._refuse(overfull())

    async def _inflate_in_turn(self, message: Buffer) -> None:
        try:
            inflated = await self.connection.wire.inflation.inflate(
                self.head.encoding, message, self.reserve, self.wanted, self.inflation_bound(message)
            )
        except CodingError as error:
            self._refuse(as_rpc_error(error))
            return
        except RpcError as error:
            self._refuse(error)
            return
        if inflated is not None and self.wanted():
            self._handle(inflated)

    def _handle(self, message: Buffer) -> None:
        rpc = self.head.rpc
        assert isinstance(rpc, UnaryMethod)
        try:
            rpc.handler(self, message)
        except RpcError as error:
            self.end(error.code, error.message)
        except Exception:
            log.exception("the handler of %s failed", self.head.path.decode("utf-8", "replace"))
            self.end(INTERNAL, "the handler of this method failed; see the server's log")

    def _refuse(self, error: RpcError) -> None:
        self._assembler = None  # so that the memory of an incomplete message is freed now
        self.end(error.code, error.message)

    # Responding

    def reply(self, message: Buffer, *rest: Buffer) -> None:
        if self.answered:
            return
        connection = self.connection
        output = connection.output
        size = len(message)
        for buffer in rest:
            size += len(buffer)
        framed = size + PREFIX_SIZE
        if size > connection.admission.passes or self.kind:
            connection.admission.learn(self, size)
        if self._compressed and self.head.encoding in self.head.accept_encoding:
            self._reply_compressed((message, *rest), size)
        elif output.has_room(self, framed) and not connection.block_prefix:
            self.answered = True
            number = self.number
            parts = output.parts
            parts.append(
                _HEADERS_AND_PREFIX(_HEADERS_START, number, RESPONSE_BLOCK, framed << 8, number, size)
            )
            parts.append(message)
            if rest:
                parts += rest
            parts.append(_TRAILERS(_OK_START, number, OK_BLOCK))
            # Only the connection's window is charged: the stream ends here, so its own window no longer
            # matters.
            output.window -= framed
            output.unwritten += framed
            connection.finished(self)
            if not output.scheduled:
                output.schedule()
        else:
            self._reply_in_parts(RESPONSE_BLOCK, (PREFIX.pack(0, size), message, *rest))

    def _reply_in_parts(self, block: bytes, buffers: tuple[Buffer, ...]) -> None:
        self.answered = True
        connection = self.connection
        connection.output.write(connection.header_frames(self.number, block))
        self.tail = connection.header_frames(self.number, OK_BLOCK, frames.END_STREAM)
        connection.output.send(self, buffers)

    def _reply_compressed(self, message: tuple[Buffer, ...], size: int) -> None:
        if size <= INLINE:
            self._send_compressed(compress(GRPC_CODINGS[self.head.encoding], message))
        else:
            self.answered = True
            self.connection.output.compressing(self, size)
            self.run(self._compress_on_thread(message))

    async def _compress_on_thread(self, message: tuple[Buffer, ...]) -> None:
        packed = await self.connection.loop.run_in_executor(
            None, compress, GRPC_CODINGS[self.head.encoding], message
        )
        if not self.closed:
            self.connection.output.compressing(self, 0)
            self._send_compressed(packed)

    def _send_compressed(self, packed: bytes) -> None:
        self._reply_in_parts(
            COMPRESSED_RESPONSE_BLOCKS[self.head.encoding], (PREFIX.pack(1, len(packed)), packed)
        )

    def fail(self, code: int, message: str, trailers: Fields = ()) -> None:
        self.on_abandon = None  # breaks a reference cycle: the callback usually refers to this call
        self.end(code, message, trailers)

    def lost(self) -> None:
        super().lost()
        # This breaks the reference cycle with the assembler.
        self._assembler = None

    def awaits_client(self) -> bool:
        return self.remote_open and not self.answered
