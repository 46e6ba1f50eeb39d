"""gRPC calls to another server, with one request message each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

from backline.wire.application import RpcError
from backline.wire.grpc.messages import PREFIX, PREFIX_SIZE, MessageAssembler
from backline.wire.http2.frames import OUR_STREAM_WINDOW
from backline.wire.http2.header_blocks import FieldBlocks
from backline.wire.limits import BodyLimit
from backline_client.client.errors import DeadlineExceeded, ProtocolError, from_grpc_code, from_http_status
from backline_client.values.errors import BacklineError
from backline_client.values.tensor import Buffer

if TYPE_CHECKING:
    from backline.plugins.fleet.rpc_connection import RpcConnection

#: The maximum size of a response message in bytes: gRPC's length prefix has 32 bits.
_LIMIT = BodyLimit(2**32 - 1)
_MOST_DIGITS = 9
#: The receive window of a stream is extended whenever the caller has taken this many bytes of messages. So
#: once the caller has taken all messages, the other side may send at least the rest of the window, _GRANTED
#: bytes.
_OWED = OUR_STREAM_WINDOW // 8
_GRANTED = OUR_STREAM_WINDOW - _OWED


class ResponseHead:
    """The contents of a response's header block.

    `code` is the gRPC status; None unless the block ends the call. `retry_after` is in seconds; None if the
    other side does not say when to retry.
    """

    __slots__ = ("code", "message", "retry_after", "status")

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = 0
        self.code: int | None = None
        self.message = ""
        self.retry_after: float | None = None
        for name, value in fields:
            if name == b":status" and _is_number(value):
                self.status = int(value)
            elif name == b"grpc-status" and _is_number(value):
                self.code = int(value)
            elif name == b"grpc-message":
                self.message = unquote(value.decode("ascii", "replace"), errors="replace")
            elif name == b"grpc-retry-pushback-ms" and _is_number(value):
                self.retry_after = int(value) / 1000


def _is_number(value: bytes) -> bool:
    """Returns whether the value of a header field is a number that is short enough to be parsed safely."""
    return value.isdigit() and len(value) <= _MOST_DIGITS


class ResponseBlocks(FieldBlocks[ResponseHead]):
    """A decoder for the header blocks of responses."""

    def response(self, block: bytes) -> ResponseHead:
        head = ResponseHead(self.fields(block))
        self.keep(block, head)
        return head


class RpcCall:
    """A call with one response message. `on_end` is called once, with the response or the error.

    `parts` is the request message, split into buffers of bytes. `header` is the header block of the request.
    `timeout` is in seconds.
    """

    __slots__ = (
        "_assembler",
        "_message",
        "_on_end",
        "_url",
        "answered",
        "attempts",
        "closed",
        "connection",
        "header",
        "method",
        "number",
        "parts",
        "pending",
        "pending_bytes",
        "queue",
        "size",
        "timeout",
        "window_in",
        "window_out",
    )
    #: Whether the response is a stream of any number of messages.
    _many = False

    def __init__(
        self,
        url: str,
        method: str,
        header: bytes,
        parts: Sequence[Buffer],
        timeout: float,
        on_end: Callable[[Buffer | None, BacklineError | None], None] | None,
    ) -> None:
        self._url = url
        self._on_end = on_end
        self.method = method
        self.header = header
        self.parts = parts
        self.size = sum(map(len, parts))
        self.timeout = timeout
        #: Both are true once the call has ended. `Deadlines` reads both of them.
        self.closed = self.answered = False
        #: The number of times that the call was sent on a connection that then closed, or refused the call,
        #: without handling it.
        self.attempts = 0
        #: The calls that wait for a connection, if this call is among them.
        self.queue: dict[RpcCall, None] | None = None
        self.restart()

    def restart(self) -> None:
        """Resets the call before it is sent or sent again."""
        self.connection: RpcConnection | None = None
        self.number = 0
        #: The part of the request that has not been sent yet.
        self.pending: deque[memoryview] | None = None
        self.pending_bytes = 0
        #: The number of bytes that the other side may still send on this call.
        self.window_in = OUR_STREAM_WINDOW
        #: The number of bytes that this side may still send on this call, minus the initial window size that
        #: the other side has set for all calls of the connection.
        self.window_out = 0
        self._message: Buffer | None = None
        self._assembler: MessageAssembler | None = None

    # receiving

    def feed(self, data: bytes, begin: int, end: int) -> None:
        """Processes data[begin:end] of the response. Raises RpcError if the response is malformed."""
        if self._message is None and self._assembler is None and end - begin >= PREFIX_SIZE:
            flag, size = PREFIX.unpack_from(data, begin)
            if not flag and size == end - begin - PREFIX_SIZE:
                self._message = data[begin + PREFIX_SIZE : end]
                return
        self._assemble(data, begin, end)

    def _assemble(self, data: bytes, begin: int, end: int) -> None:
        assembler = self._assembler
        if assembler is None:
            assembler = self._assembler = MessageAssembler(b"identity", _LIMIT, self._announced)
        while begin < end:
            begin, complete = assembler.feed(data, begin, end)
            if complete is not None:
                self._received(complete[1])

    def _announced(self, size: int, at_hand: int) -> None:
        assert self.connection is not None, "the call was sent"
        self.connection.grant(self, size - at_hand - self.window_in)

    def _received(self, message: Buffer) -> None:
        if self._message is not None:
            raise RpcError(13, "the response has more than one message")
        self._message = message

    # the end of the call

    def finish(self, head: ResponseHead) -> None:
        """Ends the call with the outcome in `head`, the last header block that the other side has sent."""
        if head.code is None:
            if head.status != 200:
                self.fail(
                    from_http_status(head.status, f"{self._url} answered with HTTP status {head.status}")
                )
            else:
                self.fail(ProtocolError(f"{self._url} ended a call of {self.method} without a gRPC status"))
        elif head.code:
            text = head.message or f"{self._url} answered {self.method} with gRPC status {head.code}"
            self.fail(from_grpc_code(head.code, text, head.retry_after))
        elif self._message is None and not self._many:
            self.fail(ProtocolError(f"{self._url} ended a call of {self.method} without a response"))
        else:
            self._end(self._message, None)

    def fail(self, error: BacklineError) -> None:
        """Ends the call with an error."""
        self._end(None, error)

    def _end(self, message: Buffer | None, error: BacklineError | None) -> None:
        self.closed = self.answered = True
        # `Deadlines` may refer to the call for a while longer, but must not keep the messages of the call in
        # memory.
        self.parts = ()
        self._message = None
        self.connection = None
        report, self._on_end = self._on_end, None
        if report is not None:
            report(message, error)

    def expire(self) -> None:
        """Ends the call because its time limit has passed."""
        self._leave()
        self.fail(DeadlineExceeded(f"no response from {self._url} within {self.timeout:.3g} s"))

    def abandon(self) -> None:
        """Ends the call without calling `on_end`, because nobody waits for the response any more."""
        self._on_end = None
        if not self.closed:
            self._leave()
            self._end(None, None)

    def _leave(self) -> None:
        connection, self.connection = self.connection, None
        queue, self.queue = self.queue, None
        if connection is not None:
            connection.reset(self)
        elif queue is not None:
            # The call leaves the queue now, because the server may never take another call from it.
            del queue[self]


class RpcStream(RpcCall):
    """A call with many response messages, which `receive` returns one by one.

    Backpressure: the other side may send at most one flow-control window of data that `receive` has not
    returned yet. For a larger message, the window is extended.
    """

    __slots__ = ("_arrived", "_error", "_messages", "_owed")
    _many = True

    def __init__(self, url: str, method: str, header: bytes, parts: Sequence[Buffer], timeout: float) -> None:
        super().__init__(url, method, header, parts, timeout, self._ended)
        self._messages: deque[Buffer] = deque()
        self._arrived = asyncio.Event()
        self._error: BacklineError | None = None
        #: The size of the messages that `receive` has returned since it last extended the window.
        self._owed = 0

    async def receive(self) -> Buffer | None:
        """Returns the next message; None after the last one.

        Raises the error that ended the call, or DeadlineExceeded if no message arrives in time.
        """
        while not self._messages:
            if self.closed:
                if self._error is not None:
                    raise self._error
                return None
            self._arrived.clear()
            try:
                async with asyncio.timeout(self.timeout):
                    await self._arrived.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"no response from {self._url} within {self.timeout:.3g} s") from None
        message = self._messages.popleft()
        self._owed += min(memoryview(message).nbytes + PREFIX_SIZE, _GRANTED)
        # The window is not extended for each message. Otherwise a server that sends small messages and reads
        # nothing could fill this process's memory with WINDOW_UPDATE frames.
        if self._owed >= _OWED and self.connection is not None:
            self.connection.grant(self, self._owed)
            self._owed = 0
        return message

    def feed(self, data: bytes, begin: int, end: int) -> None:
        self._assemble(data, begin, end)

    def _announced(self, size: int, at_hand: int) -> None:
        # Invariant: once `receive` has returned all earlier messages, the window has at least _GRANTED bytes.
        # A message that is larger than that can arrive only if the window is extended by the difference.
        assert self.connection is not None, "the call was sent"
        self.connection.grant(self, size + PREFIX_SIZE - _GRANTED)

    def _received(self, message: Buffer) -> None:
        self._messages.append(message)
        self._arrived.set()

    def _ended(self, message: Buffer | None, error: BacklineError | None) -> None:
        self._error = error
        self._arrived.set()
