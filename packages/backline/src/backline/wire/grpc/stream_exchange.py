"""A streaming gRPC call, handled by a coroutine. Flow control bounds the memory that its messages take."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from backline.wire.application import Buffer, RpcError, StreamCall, StreamMethod
from backline.wire.body import NO_ROOM
from backline.wire.compression import GRPC_CODINGS, INLINE, CodingError, compress, inflate_small
from backline.wire.grpc.exchange import GrpcExchange, log
from backline.wire.grpc.messages import (
    CANCELLED,
    COMPRESSED_RESPONSE_BLOCKS,
    INTERNAL,
    INVALID_ARGUMENT,
    OK,
    PREFIX,
    PREFIX_SIZE,
    RESPONSE_BLOCK,
    UNAVAILABLE,
    MessageAssembler,
    as_rpc_error,
    overfull,
)
from backline.wire.http2.frames import FRAME_HEADER, LARGE_BODY, OUR_STREAM_WINDOW
from backline.wire.http2.stream import HIGH_WATER

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection
    from backline.wire.http2.request_head import RequestHead

#: The maximum number of buffers that a handler queues before it yields to the event loop.
_PARTS_WITHOUT_PAUSE = 128
#: The maximum number of messages that a handler takes before it yields to the event loop.
_MESSAGES_WITHOUT_PAUSE = 8
#: A message below this size, in bytes, counts as a frame that carries nothing. Inference requests are larger.
_TINY = 16


class StreamExchange(GrpcExchange, StreamCall):
    """A streaming call.

    Invariant: received messages wait in `_messages`, and the stream's window is replenished only when the
    handler takes a message. So a client can make the server hold at most one window of data, plus one large
    message for which the window was extended.
    """

    streaming = True

    def __init__(self, connection: Http2Connection, number: int, head: RequestHead) -> None:
        GrpcExchange.__init__(self, connection, number, head)
        self._messages: deque[tuple[bool, Buffer, int]] = deque()
        self._assembler = MessageAssembler(
            head.encoding, connection.wire.body_limit, self._announced, self.begun
        )
        #: Bytes granted in advance, beyond the ordinary window, for a large message. They are not granted a
        #: second time when the handler takes the message.
        self._borrowed = 0
        self._consumed = 0
        #: The number of messages that the handler has taken since it last waited.
        self._taken = 0
        self._receiver: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._compress_with: bytes | None = None

    def begin(self) -> None:
        super().begin()
        if not self.closed:
            self._task = self.connection.loop.create_task(self._run())

    async def _run(self) -> None:
        rpc = self.head.rpc
        assert isinstance(rpc, StreamMethod)
        try:
            await rpc.handler(self)
        except RpcError as error:
            self.end(error.code, error.message)
        except asyncio.CancelledError:
            # Either the call has ended already, so that `end` does nothing, or the server is stopping, and
            # the client must get a status.
            self.end(CANCELLED, "the call was cancelled by the server")
        except ConnectionResetError:
            self.end(CANCELLED, "the call was cancelled")
        except Exception:
            log.exception("the handler of %s failed", self.head.path.decode("utf-8", "replace"))
            self.end(INTERNAL, "the handler of this method failed; see the server's log")
        else:
            self._start_response()
            self.end(OK, "")

    # Receiving

    def feed(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        self.check_length(end - begin, ended)
        if end - begin < PREFIX_SIZE and not ended:
            # Security: a piece smaller than a message prefix counts as a frame that carries nothing.
            self.connection.spend(1)
        self._received(data, begin, end, ended)

    def room(self) -> memoryview:
        return NO_ROOM if self.answered or self.closed else self._assembler.room

    def placed(self, size: int, ended: int) -> None:
        self.received += size
        self.check_length(0, ended)
        if size < PREFIX_SIZE and not ended:
            self.connection.spend(1)
        try:
            if not self.buffer(size):
                raise overfull()
            self._assembler.placed(size)
        except RpcError as error:
            self._refuse(error)
        self._received(b"", 0, 0, ended)

    def _received(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        if ended:
            self.remote_open = False
        if self.answered:
            # The call has ended, so the data is dropped. The stream is reset once the response has been sent.
            return
        try:
            self._take(data, begin, end, ended)
        except RpcError as error:
            self._refuse(error)
            return
        if self._receiver is not None and (self._messages or ended) and not self._receiver.done():
            self._receiver.set_result(None)

    def _take(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        if not self.buffer(end - begin):
            raise overfull()
        while begin < end or self._assembler.filled:
            begin, complete = self._assembler.feed(data, begin, end)
            if complete is not None:
                if self.upload_size:
                    self.leave_line()
                compressed, message = complete
                if len(message) < _TINY:
                    # Security: a waiting message takes about a hundred bytes of memory, even if it is empty.
                    self.connection.spend(1)
                self._messages.append((compressed, message, len(message) + PREFIX_SIZE))
        if ended and not self._assembler.between_messages:
            raise RpcError(INVALID_ARGUMENT, "the call ended in the middle of a message")

    def _refuse(self, error: RpcError) -> None:
        self._assembler.close()
        self.end(error.code, error.message)
        self.cancelled()

    def _announced(self, size: int, at_hand: int) -> None:
        if size > LARGE_BODY:
            self.connection.receive_directly()
        self.connection.reader.data.expect(self, min(size, OUR_STREAM_WINDOW))
        # Security: only bytes that are neither received nor covered by the window are granted. Otherwise each
        # announced length would also let in the beginning of the next message, so the window would grow with
        # every message.
        missing = size - at_hand - self.connection.reader.data.left - max(0, self.window_in)
        if missing > 0:
            self._borrowed += missing
            self.connection.reader.data.promise(self, size, missing)

    async def receive(self) -> Buffer | None:
        self._taken += 1
        if self._taken > _MESSAGES_WITHOUT_PAUSE:
            # A handler that awaits nothing else must not block the loop.
            self._taken = 0
            await asyncio.sleep(0)
        while not self._messages:
            self._taken = 0
            self._check_alive()
            if not self.remote_open:
                return None
            self._receiver = self.connection.loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        compressed, message, size = self._messages[0]
        if not compressed and size <= LARGE_BODY and self.pending_bytes <= HIGH_WATER:
            return self._next()[1]
        # A message that the handler has taken no longer counts toward any limit. So a connection hands over
        # large messages one at a time, and only while the client reads its responses.
        async with self.connection.large_messages:
            try:
                await self.wait_drained()
            except ConnectionResetError:
                raise asyncio.CancelledError("the call is over") from None
            await self.connection.admission.room()
            compressed, message = self._next()
            return await self._inflate(message) if compressed else message

    def _next(self) -> tuple[bool, Buffer]:
        self._check_alive()
        compressed, message, size = self._messages.popleft()
        self.release(size)
        self._return_window(size)
        return compressed, message

    def _check_alive(self) -> None:
        if self.answered or self.closed:
            raise asyncio.CancelledError("the call is over")

    def _return_window(self, size: int) -> None:
        """Extends the window by the `size` bytes that the handler has taken, minus the bytes that were
        granted in advance.
        """
        borrowed = min(size, self._borrowed)
        self._borrowed -= borrowed
        self._consumed += size - borrowed
        # Bytes of small messages are granted together: a WINDOW_UPDATE for each message would be as large as
        # the message.
        if self._consumed >= 128 * 1024:
            self.connection.reader.data.grant(self, self._consumed)
            self._consumed = 0

    async def _inflate(self, message: Buffer) -> Buffer:
        wire = self.connection.wire
        try:
            inflated = inflate_small(self.head.encoding, message, wire.body_limit)
            if inflated is None:
                inflated = await wire.inflation.inflate(
                    self.head.encoding,
                    message,
                    self._has_room_for,
                    self.wanted,
                    self.inflation_bound(message),
                )
        except CodingError as error:
            raise as_rpc_error(error) from None
        if inflated is None:
            raise asyncio.CancelledError("the call is over")
        return inflated

    def _has_room_for(self, size: int) -> bool:
        # This only checks that there is room. The inflated bytes are not counted, because the handler owns
        # the message as soon as it is inflated.
        wire = self.connection.wire
        return wire.buffered_bytes + size <= wire.limits.max_buffered_bytes

    # Responding

    def _start_response(self) -> None:
        if self.started or self.answered or self.closed:
            return
        self.started = True
        encoding = self.head.encoding
        block = RESPONSE_BLOCK
        if encoding in GRPC_CODINGS and encoding in self.head.accept_encoding:
            self._compress_with = encoding
            block = COMPRESSED_RESPONSE_BLOCKS[encoding]
        self.connection.output.write(self.connection.header_frames(self.number, block))

    async def send(self, message: Buffer) -> None:
        self._check_alive()
        self._start_response()
        size = memoryview(message).nbytes
        flag = 0
        if self._compress_with is not None:
            flag = 1
            coding = GRPC_CODINGS[self._compress_with]
            if size <= INLINE:
                message = compress(coding, (message,))
            else:
                message = await self.connection.loop.run_in_executor(None, compress, coding, (message,))
                self._check_alive()
            size = len(message)
        output = self.connection.output
        if output.has_room(self, size + PREFIX_SIZE):
            framed = size + PREFIX_SIZE
            output.window -= framed
            output.unwritten += framed
            self.credit -= framed
            self.sent += framed
            output.data_frames += 1
            output.write(FRAME_HEADER.pack(framed << 8, 0, self.number) + PREFIX.pack(flag, size))
            output.parts.append(message)
            if len(output.parts) > _PARTS_WITHOUT_PAUSE:
                # A handler that awaits nothing else must neither block the loop nor queue more than the
                # socket can take.
                output.flush()
                await asyncio.sleep(0)
            return
        output.send(self, (PREFIX.pack(flag, size), message))
        try:
            await self.wait_drained()
        except ConnectionResetError:
            raise asyncio.CancelledError("the call is over") from None

    # Cancellation and timeouts

    def cancelled(self) -> None:
        super().cancelled()
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def lost(self) -> None:
        super().lost()
        self._messages.clear()
        self._assembler.close()

    def idle_too_long(self) -> None:
        timeout = self.connection.wire.limits.stream_idle_timeout
        self.end(UNAVAILABLE, f"no message in either direction for {timeout:g} s; open the stream again")
        self.cancelled()

    def awaits_client(self) -> bool:
        return self.remote_open and not self.answered and not self._assembler.between_messages
