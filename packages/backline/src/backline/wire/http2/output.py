"""The sending half of an HTTP/2 connection. It batches writes, and schedules streams within their windows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from backline.wire.application import Buffer
from backline.wire.connection import LostTransport
from backline.wire.http2 import frames
from backline.wire.http2.frames import FRAME_HEADER, ConnectionFailure
from backline.wire.http2.stream import HIGH_WATER, Stream
from backline.wire.limits import KIB, MIB

#: The maximum number of bytes that a stream sends before the next stream gets its turn.
_QUANTUM = 128 * KIB
#: The maximum number of bytes that a stream sends in one turn while no other stream has data.
_ALONE = 1 * MIB
#: Queued bytes above this number are written immediately, rather than at the end of the event loop's
#: iteration.
_WRITE_AT = 64 * KIB
#: A DATA frame smaller than this earns the client an allowance of idle frames (see `FrameAllowance`) only if
#: no more data of its stream is queued.
_CRUMB = 1 * KIB


class Output:
    """Sends a connection's frames and response bodies.

    Invariants: DATA never exceeds the peer's windows for the connection and the stream. Bytes that wait for
    windows or the socket are counted in `held` and in the server's totals, by `_hold`, until they are sent or
    dropped.
    """

    __slots__ = (
        "_alone",
        "_finished",
        "_loop",
        "_max_unsent",
        "_relieved",
        "_transport",
        "closed",
        "data_frames",
        "held",
        "initial_window",
        "max_frame_size",
        "parts",
        "paused",
        "ready",
        "scheduled",
        "sent",
        "unwritten",
        "window",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        max_unsent: int,
        finished: Callable[[Stream], None],
        relieved: Callable[[], None],
    ) -> None:
        """`finished` is called with each stream whose response has been sent, and `relieved` when `held`
        decreases.
        """
        self._transport = transport
        self._loop = loop
        self._max_unsent = max_unsent
        #: `_ALONE`, but at most `max_unsent` and at least `_QUANTUM`: if the server wrote more in one turn,
        #: the client would appear not to read its responses.
        self._alone = max(_QUANTUM, min(_ALONE, max_unsent))
        self._finished = finished
        self._relieved = relieved
        self.closed = False
        #: The peer's limits: the connection's send window, initial stream window and frame size.
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame_size = frames.MIN_MAX_FRAME_SIZE
        #: Whether the transport's write buffer is full.
        self.paused = False
        self.parts: list[Buffer] = []
        #: The number of bytes of response data in `parts`. They must be limited here, because the transport
        #: limits only what has been written to it. Without a limit on `parts`, a stream of many small pieces,
        #: or many small responses at the same time, would never have to wait.
        self.unwritten = 0
        self.scheduled = False
        #: The streams that have data to send and whose window has room.
        self.ready: deque[Stream] = deque()
        #: The number of DATA frames sent so far that earn the client an allowance of idle frames (see
        #: `FrameAllowance`).
        self.data_frames = 0
        #: The number of bytes of responses that wait for windows or the socket, or are being compressed.
        self.held = 0
        #: The number of bytes sent so far that first had to wait in `held`.
        self.sent = 0

    def write(self, frame: Buffer) -> None:
        """Sends frames that are not subject to flow control."""
        self.parts.append(frame)
        if not self.scheduled:
            self.schedule()

    def schedule(self) -> None:
        self.scheduled = True
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self.scheduled = False
        self.unwritten = 0
        parts = self.parts
        if not parts:
            return
        if self.closed:
            parts.clear()
            return
        self._transport.write(b"".join(parts))
        parts.clear()
        # Security: acknowledgements and resets are not subject to flow control. A client that provokes them
        # but reads nothing could otherwise fill the memory with them.
        if self.paused and self._transport.get_write_buffer_size() > 4 * self._max_unsent:
            self.closed = True
            self._transport.abort()

    def lose(self, lost: LostTransport) -> None:
        """Frees memory when the connection is closed, and drops later frames."""
        self._transport = lost
        self.closed = True

    def has_room(self, stream: Stream, size: int) -> bool:
        """Returns whether a DATA frame of this size can be sent immediately."""
        return (
            size <= self.window
            and size <= self.initial_window + stream.credit
            and size <= self.max_frame_size
            and size <= _WRITE_AT
            and not self.paused
            and not stream.pending_bytes
            and self.unwritten <= self._max_unsent
        )

    def send(self, stream: Stream, buffers: Sequence[Buffer]) -> None:
        """Queues response data of a stream, without copying."""
        pending = stream.pending
        if pending is None:
            pending = stream.pending = deque()
        size = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            if view.nbytes:
                pending.append(view)
                size += view.nbytes
        stream.pending_bytes += size
        self._hold(stream, size)
        self.enqueue(stream)
        # The response now counts in `held`, so `Admission` no longer reserves its expected size, and may have
        # room for other requests.
        self._relieved()

    def make_ready(self, stream: Stream) -> None:
        if not stream.queued:
            stream.queued = True
            self.ready.append(stream)

    def enqueue(self, stream: Stream) -> None:
        self.make_ready(stream)
        self.pump()

    def finish(self, stream: Stream) -> None:
        """Ends a response that the application has completed. After the queued data, the stream ends with
        `stream.tail` or with the last DATA frame.
        """
        if stream.pending_bytes:
            self.enqueue(stream)
        else:
            self._end(stream)
            if self.parts and not self.scheduled:
                self.schedule()

    def pump(self) -> None:
        """Sends as much as the windows and the socket allow; streams take turns, one quantum each."""
        ready = self.ready
        sent = self.sent
        while ready and not self.paused and not self.closed:
            stream = ready[0]
            if stream.closed:
                ready.popleft()
                continue
            if stream.pending_bytes:
                if self.window <= 0:
                    break
                quantum = _QUANTUM if len(ready) > 1 else self._alone
                room = min(self.window, self.initial_window + stream.credit, quantum)
                if room <= 0:
                    ready.popleft()
                    stream.queued = False
                    continue
                self.unwritten += self._send_some(stream, room)
            if stream.pending_bytes:
                ready.rotate(-1)
            else:
                ready.popleft()
                stream.queued = False
                self._end(stream)
            # The end of a stream is written together with its last data, which saves a system call.
            if self.unwritten >= _WRITE_AT:
                self._write_parts()
            if stream.drained is not None and stream.pending_bytes <= HIGH_WATER:
                stream.wake()
        if self.parts and not self.scheduled:
            self.schedule()
        if self.sent != sent:
            self._relieved()

    def drop(self, stream: Stream) -> None:
        """Frees the queued data of a closed stream."""
        self._hold(stream, -stream.pending_bytes - stream.compressing)
        stream.pending = None
        stream.pending_bytes = stream.compressing = 0
        self._relieved()

    def compressing(self, stream: Stream, size: int) -> None:
        """Counts a response of `size` bytes while it is being compressed. Call it again with 0 afterwards."""
        if not stream.closed:
            self._hold(stream, size - stream.compressing)
            stream.compressing = size

    def _hold(self, stream: Stream, more: int) -> None:
        connection = stream.connection
        self.held += more
        connection.wire.held_answer_bytes += more
        stream.buffer(more)
        if more > 0:
            connection.wire.unsent.watch(connection)

    def _send_some(self, stream: Stream, room: int) -> int:
        pending = stream.pending
        assert pending is not None
        parts = self.parts
        total = left = min(room, stream.pending_bytes)
        longest = self.max_frame_size
        full = FRAME_HEADER.pack(longest << 8, 0, stream.number)
        while left:
            view = pending[0]
            # All but the end of a large buffer is sent in frames of full length. None of them is the last
            # frame of the stream.
            whole = (min(left, view.nbytes) - 1) // longest
            if whole > 0:
                middle = whole * longest
                framed: list[Buffer] = [full] * (2 * whole)
                framed[1::2] = [view[begin : begin + longest] for begin in range(0, middle, longest)]
                parts += framed
                pending[0] = view[middle:]
                left -= middle
                stream.pending_bytes -= middle
                self.data_frames += whole
            size = min(left, longest)
            left -= size
            stream.pending_bytes -= size
            last = stream.ends_with_data and not stream.pending_bytes
            stream.end_sent = last
            parts.append(FRAME_HEADER.pack(size << 8, frames.END_STREAM if last else 0, stream.number))
            # Security: frames below _CRUMB bytes do not count while more bytes wait. Otherwise, a client that
            # opens its window by only a few bytes at a time would be allowed more idle frames each time.
            if size >= _CRUMB or not stream.pending_bytes:
                self.data_frames += 1
            frames.move(pending, size, parts)
        # At most `room` bytes were taken, so sending makes neither window negative.
        self.window -= total
        stream.credit -= total
        stream.sent += total
        self.sent += total
        self._hold(stream, -total)
        return total

    def _end(self, stream: Stream) -> None:
        """Ends the stream after its last data, if the response is complete."""
        if stream.tail is not None:
            self.parts.append(stream.tail)
        elif stream.ends_with_data:
            if not stream.end_sent:
                self.parts.append(FRAME_HEADER.pack(0, frames.END_STREAM, stream.number))
        else:
            return
        self._finished(stream)

    def _write_parts(self) -> None:
        if not self.closed:
            self._transport.writelines(self.parts)
        self.parts = []
        self.unwritten = 0

    def widen(self, increment: int) -> None:
        """Handles a WINDOW_UPDATE frame for the connection. Raises ConnectionFailure if the window becomes
        too large.
        """
        self.window += increment
        if self.window > frames.MAX_WINDOW:
            raise ConnectionFailure(frames.FLOW_CONTROL_ERROR, "the connection's window is above 2^31-1")
        if self.ready:
            self.pump()
