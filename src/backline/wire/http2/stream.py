"""One stream of an HTTP/2 connection: what requests and calls have in common."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from backline.wire.application import Buffer
from backline.wire.http2 import frames
from backline.wire.http2.frames import OUR_STREAM_WINDOW, ConnectionFailure, StreamFailure
from backline.wire.http2.request_head import RequestHead

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection

#: Pieces of a body that are smaller and not the last are paid for like frames that carry nothing.
CRUMB = 64
#: A sender of a stream waits while more than this is queued.
HIGH_WATER = 64 * 1024


class Stream:
    """A stream that a client opened.

    Attributes that most streams never change live in the class: a unary call costs one object with few fields.
    """

    #: A streaming call: it counts toward `wire.streams`, all else toward `wire.requests`.
    streaming = False
    #: The client may still send DATA or trailers.
    remote_open = True
    #: The response is complete as far as the application is concerned, though parts of it may be queued.
    answered = False
    #: The stream is gone from its connection.
    closed = False
    #: What the client may still send on this stream.
    window_in = OUR_STREAM_WINDOW
    #: The stream's send window, beyond the peer's INITIAL_WINDOW_SIZE.
    credit = 0
    #: Bytes of this stream in wire.buffered_bytes.
    buffered = 0
    #: Octets of DATA received, for content-length and progress.
    received = 0
    #: Response data that waits for windows or for the socket.
    pending: deque[memoryview] | None = None
    pending_bytes = 0
    #: Frames that follow the pending data and end the stream.
    tail: bytes | None = None
    #: The last DATA frame ends the stream.
    ends_with_data = False
    end_sent = False
    #: The request is complete, and waits until its answer may be made.
    waiting = False
    #: What `Admission` takes it for.
    kind = 0
    #: Bytes of an answer that is being compressed; part of what the output holds.
    compressing = 0
    #: The stream waits in the output for its turn.
    queued = False
    #: A sender that waits until less is pending.
    drained: asyncio.Future[None] | None = None
    #: Octets sent and received when the last sweep came, and when they last changed.
    swept = -1
    progressed = 0.0
    sent = 0

    def __init__(self, connection: Http2Connection, number: int, head: RequestHead) -> None:
        self.connection = connection
        self.number = number
        self.head = head

    @abstractmethod
    def begin(self) -> None:
        """The request's head is there. May answer at once."""

    @abstractmethod
    def feed(self, data: Buffer, begin: int, end: int, ended: int) -> None:
        """A piece of the body; the last one has `ended`. Raises StreamFailure."""

    def dispatch(self) -> None:
        """The complete request goes to the application."""
        raise NotImplementedError(f"{type(self).__name__} has no complete requests")

    @abstractmethod
    def lost(self) -> None:
        """The client reset the stream or went away before the answer was complete."""

    @abstractmethod
    def awaits_client(self) -> bool:
        """Whether the client owes part of a body, so that a time limit applies."""

    @abstractmethod
    def timed_out(self) -> None:
        """The client made no progress for too long."""

    def idle_too_long(self) -> None:
        """A streaming call had no message in either direction for too long."""
        raise NotImplementedError(f"{type(self).__name__} is no streaming call")

    def check_length(self, more: int, ended: int) -> None:
        """Holds the body against content-length. Raises StreamFailure (RFC 9113, section 8.1.1)."""
        self.received += more
        announced = self.head.content_length
        if announced is not None and (self.received > announced or (ended and self.received != announced)):
            raise StreamFailure(frames.PROTOCOL_ERROR, "the body is not as long as content-length says")

    def buffer(self, size: int) -> bool:
        """Counts bytes of a body that are held. False when the server holds too many."""
        wire = self.connection.wire
        self.buffered += size
        wire.buffered_bytes += size
        return wire.buffered_bytes <= wire.limits.max_buffered_bytes

    def reserve(self, size: int) -> bool:
        """Counts bytes of a body before they are there. False when the server holds too many, or the stream is gone."""
        return not self.closed and self.buffer(size)

    def wanted(self) -> bool:
        """Whether anybody still waits for what is made of the request."""
        return not (self.answered or self.closed)

    def release(self, size: int) -> None:
        self.buffered -= size
        self.connection.wire.buffered_bytes -= size

    async def wait_drained(self) -> None:
        """Returns when the queue is short again. Raises ConnectionResetError when the stream ended meanwhile."""
        while self.pending_bytes > HIGH_WATER and not self.closed:
            if self.drained is None:
                self.drained = self.connection.wire.loop.create_future()
            await asyncio.shield(self.drained)
        if self.closed:
            raise ConnectionResetError("the client is gone")

    def wake(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)


#: How many reset and how many skipped streams a connection remembers.
_REMEMBERED = 512


class StreamTable:
    """The streams of one connection: those open, and what is known about the others.

    Frames for a stream that the server reset may have been in flight: they are dropped. Frames for a stream that the
    client reset or ended are its error (RFC 9113, section 5.1). A number below `last` that is neither open, reset nor
    skipped belongs to a stream that ended normally. Both memories are bounded, oldest first out.
    """

    __slots__ = ("_resets", "_skipped", "last", "open")

    def __init__(self) -> None:
        self.open: dict[int, Stream] = {}
        #: The highest stream number that the client has used.
        self.last = 0
        #: Reset streams, and whether the client reset them.
        self._resets: dict[int, bool] = {}
        self._skipped: list[range] = []

    def note(self, number: int) -> None:
        """The client opens stream `number`; the lower numbers it left out can no longer be used."""
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
