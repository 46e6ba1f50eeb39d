"""Streams of an HTTP/2 connection: the base class of all exchanges, and the table of streams."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from backline.wire.application import Buffer, Certificate
from backline.wire.body import NO_ROOM
from backline.wire.connection import peer_address
from backline.wire.http2 import frames
from backline.wire.http2.frames import OUR_STREAM_WINDOW, ConnectionFailure, StreamFailure
from backline.wire.http2.request_head import RequestHead

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection

log = logging.getLogger("backline.wire")

#: A piece of a body with fewer bytes than this counts as an idle frame, unless it is the last piece.
CRUMB = 64
#: A sender waits while its stream has more bytes than this queued.
HIGH_WATER = 64 * 1024


class Stream:
    """A stream that a client opened.

    Attributes that most streams never change are class attributes, which keeps each stream object small.
    """

    #: Whether the stream is a streaming call.
    streaming = False
    #: Whether the stream is an HTTP request that counts as a stream; see HttpRequest.count_as_stream.
    lasting = False
    #: Stops counting a stream that counts as something other than a request in flight; otherwise None.
    counted_apart: Callable[[], None] | None = None
    #: Whether the client may still send DATA or trailers.
    remote_open = True
    #: Whether the application has completed the response; parts of it may still be queued.
    answered = False
    #: Whether the stream was removed from its connection.
    closed = False
    #: The number of bytes that the client may still send on this stream.
    window_in = OUR_STREAM_WINDOW
    #: The send window minus the peer's INITIAL_WINDOW_SIZE.
    credit = 0
    #: The number of bytes that this stream contributes to `wire.buffered_bytes`.
    buffered = 0
    #: The number of DATA bytes received, to check content-length and progress.
    received = 0
    #: The size of a large body, while it is in `wire.uploads`; 0 otherwise.
    upload_size = 0
    #: The number of bytes of the large body that the client may not send yet, because the window has not been
    #: extended for them.
    ungranted = 0
    #: Response data that waits for windows or the socket.
    pending: deque[memoryview] | None = None
    pending_bytes = 0
    #: Frames that end the stream after the pending data.
    tail: bytes | None = None
    #: Whether the last DATA frame, rather than `tail`, ends the stream.
    ends_with_data = False
    end_sent = False
    #: Whether the request is complete and waits in `Admission`.
    waiting = False
    #: The kind of request, from which `Admission` predicts the size of the response.
    kind = 0
    #: The size in bytes of a response that is being compressed; part of `Output.held`.
    compressing = 0
    #: Whether the stream is in `Output.ready`.
    queued = False
    #: A future that completes when at most HIGH_WATER bytes are pending, or None if no sender waits for that.
    drained: asyncio.Future[None] | None = None
    #: This reference keeps a task of the stream alive: the event loop has only a weak one.
    _task: asyncio.Task[None] | None = None
    #: A measure of the stream's progress, in bytes, as of the last check of time limits.
    swept = -1
    #: The time when `swept` last changed.
    progressed = 0.0
    #: The number of DATA bytes sent.
    sent = 0

    def __init__(self, connection: Http2Connection, number: int, head: RequestHead) -> None:
        self.connection = connection
        self.number = number
        self.head = head

    @property
    def peer(self) -> str:
        return peer_address(self.connection.transport)

    @property
    def certificate(self) -> Certificate | None:
        return self.connection.ingress.certificate

    @abstractmethod
    def begin(self) -> None:
        """Called when the head has arrived, unless `head.prompt` is false and the server is not overloaded.
        The method may respond immediately.
        """

    def begun_without_body(self) -> None:
        """Called after `begin` for a vital request whose body, or message, has not arrived."""

    @abstractmethod
    def feed(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        """Handles data[begin:end], a piece of the body. `ended` marks the last one. Raises StreamFailure if
        the client violates the protocol.
        """

    def room(self) -> memoryview:
        """Returns the part of a large message's buffer for the next bytes of the body; may be empty."""
        return NO_ROOM

    def placed(self, size: int, ended: int) -> None:
        """Handles `size` bytes of the body that were received into `room`. `ended` and the errors are as in
        `feed`.
        """
        raise NotImplementedError(f"{type(self).__name__} provides no buffer for its body")

    def dispatch(self) -> None:
        """Passes the complete request to the application."""
        raise NotImplementedError(f"{type(self).__name__} does not collect complete requests")

    def give_way(self) -> None:
        self.connection.reset(self, frames.ENHANCE_YOUR_CALM)

    @abstractmethod
    def lost(self) -> None:
        """Called when the stream ends before the response is complete, such as when the client resets it."""

    @abstractmethod
    def awaits_client(self) -> bool:
        """Returns whether the client must still send part of the body, so that progress_timeout applies."""

    @abstractmethod
    def timed_out(self) -> None:
        """Called when the client has made no progress for too long."""

    def idle_too_long(self) -> None:
        """Called when a streaming call has had no message in either direction for too long."""
        raise NotImplementedError(f"{type(self).__name__} is not a streaming call")

    def check_length(self, more: int, ended: int) -> None:
        """Counts `more` bytes of the body. Raises StreamFailure if the body does not have the length that
        content-length announced (RFC 9113, section 8.1.1).
        """
        self.received += more
        announced = self.head.content_length
        if announced is not None and (self.received > announced or (ended and self.received != announced)):
            raise StreamFailure(frames.PROTOCOL_ERROR, "the length of the body differs from content-length")

    def proceed(self) -> None:
        """Extends the stream's window by as much of a large body as the other large bodies leave room for."""
        self.connection.reader.data.grant_room(self)

    def count_piece(self, size: int, ended: int) -> None:
        """Counts a piece of the body. Raises StreamFailure as `check_length` does."""
        self.check_length(size, ended)
        if size < CRUMB and not ended:
            self.connection.spend(1)
        if ended:
            self.remote_open = False
            if self.upload_size:
                self.leave_line()

    def leave_line(self) -> None:
        """Removes the large body from `wire.uploads` once it is complete or no longer received."""
        self.upload_size = self.ungranted = 0
        self.connection.wire.uploads.ended(self)

    def buffer(self, size: int) -> bool:
        """Counts body bytes that the server holds. Returns False if the server then holds more than
        max_buffered_bytes.
        """
        wire = self.connection.wire
        self.buffered += size
        wire.buffered_bytes += size
        return wire.buffered_bytes <= wire.limits.max_buffered_bytes

    def reserve(self, size: int) -> bool:
        """Counts a body of `size` bytes in advance, in place of the bytes that the stream has counted so far.
        Returns False, and counts nothing more, above the limit or if the stream is closed.

        Call this only before the response begins.
        """
        wire = self.connection.wire
        counted = wire.buffered_bytes - self.buffered + size
        if self.closed or counted > wire.limits.max_buffered_bytes:
            return False
        wire.buffered_bytes = counted
        self.buffered = size
        return True

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine that answers the request. If the coroutine fails, resets the stream; otherwise the
        client would wait forever for the rest of the response.
        """
        self._task = self.connection.loop.create_task(work)
        self._task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if (
            not task.cancelled()
            and (error := task.exception()) is not None
            and not isinstance(error, ConnectionResetError)
        ):
            log.error("a response could not be completed", exc_info=error)
            self.connection.reset(self, frames.INTERNAL_ERROR)

    def wanted(self) -> bool:
        """Returns whether the client still waits for a response."""
        return not (self.answered or self.closed)

    def release(self, size: int) -> None:
        self.buffered -= size
        self.connection.wire.buffered_bytes -= size

    async def wait_drained(self) -> None:
        """Waits until at most HIGH_WATER bytes are queued. Raises ConnectionResetError if the stream is
        closed.
        """
        while self.pending_bytes > HIGH_WATER and not self.closed:
            if self.drained is None:
                self.drained = self.connection.wire.loop.create_future()
            # Several senders may wait for the same future. The shield keeps a cancelled sender from
            # cancelling it for the others.
            await asyncio.shield(self.drained)
        if self.closed:
            raise ConnectionResetError("the client has disconnected")

    def wake(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)


#: The number of reset streams, and of ranges of skipped streams, that a connection remembers.
_REMEMBERED = 512


class StreamTable:
    """The streams of one connection: the open streams, and what is known about all other streams.

    Frames for a stream that the server reset are dropped, since the client may have sent them before it
    received the reset. Frames for a stream that the client reset or ended are an error of the client (RFC
    9113, section 5.1). A number below `last` that is neither open, reset nor skipped belongs to a stream that
    ended normally. Only the latest resets and skipped numbers are remembered.
    """

    __slots__ = ("_resets", "_skipped", "last", "open")

    def __init__(self) -> None:
        self.open: dict[int, Stream] = {}
        #: The highest stream number that the client has used.
        self.last = 0
        #: Reset streams by number, and whether the client reset them.
        self._resets: dict[int, bool] = {}
        self._skipped: list[range] = []

    def note(self, number: int) -> None:
        """Records that the client opened the stream `number`. Lower numbers that it skipped can no longer be
        used.
        """
        if number > self.last + 2:
            self._skipped.append(range(self.last + 1, number))
            del self._skipped[:-_REMEMBERED]
        self.last = number

    def record_reset(self, number: int, *, by_client: bool) -> None:
        resets = self._resets
        if len(resets) >= _REMEMBERED:
            del resets[next(iter(resets))]
        resets[number] = by_client

    def was_reset(self, number: int) -> bool:
        return number in self._resets

    def was_reset_by_client(self, number: int) -> bool:
        return self._resets.get(number, False)

    def was_skipped(self, number: int) -> bool:
        return any(number in numbers for numbers in self._skipped)

    def check_not_idle(self, number: int) -> None:
        """Raises ConnectionFailure for a stream that was never opened."""
        if number > self.last or not number & 1:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "a frame on a stream that was not opened")
