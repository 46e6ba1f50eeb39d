"""Enforces the time limits of an HTTP/2 connection and of its streams."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backline.wire.http2 import frames
from backline.wire.http2.frames import ConnectionFailure

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection
    from backline.wire.http2.stream import Stream
    from backline.wire.limits import Limits

_KEEPALIVE_PING = b"standing"


class Http2TimeLimits:
    """A periodic check that compares a connection and its streams with their state at the previous check, and
    ends those that make no progress.
    """

    __slots__ = (
        "_idle_since",
        "_keepalive_sent",
        "_opened",
        "_reads",
        "_taken",
        "_took_enough",
        "_unacknowledged",
        "_unacknowledged_since",
        "quiet_since",
    )

    def __init__(self) -> None:
        now = time.monotonic()
        self._opened = now
        #: The time since which nothing has arrived from the client.
        self.quiet_since = now
        #: The time since which no stream has been open.
        self._idle_since = now
        #: The number of reads as of the previous check.
        self._reads = -1
        #: The number of SETTINGS frames that the client has not acknowledged.
        self._unacknowledged = 0
        #: The time since which the client has acknowledged no SETTINGS frame.
        self._unacknowledged_since = 0.0
        #: The number of bytes that the client had read at the time `_took_enough`.
        self._taken = 0
        #: The time when the client was last found to read fast enough.
        self._took_enough = now
        self._keepalive_sent = False

    def settings_sent(self) -> None:
        if not self._unacknowledged:
            self._unacknowledged_since = time.monotonic()
        self._unacknowledged += 1

    def settings_acknowledged(self) -> None:
        self._unacknowledged = max(0, self._unacknowledged - 1)
        self._unacknowledged_since = time.monotonic()

    def closing(self) -> None:
        """Called when the connection has sent its last frame. From now on, the only limit is the time in
        which the client must read what was sent.
        """
        self.quiet_since = time.monotonic()

    def check(self, connection: Http2Connection, now: float) -> None:
        """Ends the connection or streams whose time limit has passed; `now` is in seconds of
        time.monotonic().
        """
        reader = connection.reader
        if connection.closing:
            if now - self.quiet_since > connection.wire.limits.progress_timeout:
                # The client does not read what was written before closing.
                connection.transport.abort()
            return
        # While the client leaves responses unread, the server does not read either, so the client is not to
        # blame for frames and bodies that do not arrive.
        blocked = reader.write_blocked
        if blocked:
            self._unacknowledged_since = now
        quiet = reader.reads == self._reads and not blocked
        self._reads = reader.reads
        if not quiet:
            self.quiet_since = now
            self._keepalive_sent = False
        if reader.mid_frame and not blocked:
            self._check_frame(connection, now)
        elif self._check_connection(connection, now, quiet=quiet):
            self._check_streams(connection, now, blocked=blocked)

    def _check_frame(self, connection: Http2Connection, now: float) -> None:
        """Ends a connection on which the rest of a frame, or of the preface, has not arrived in time."""
        since = self.quiet_since if connection.reader.preface_done else self._opened
        if now - since > connection.wire.limits.header_timeout:
            connection.fail(ConnectionFailure(frames.PROTOCOL_ERROR, "a frame did not arrive in time"))

    def _check_connection(self, connection: Http2Connection, now: float, *, quiet: bool) -> bool:
        """Ends the connection if its own time limits have passed. Returns whether it remains open and has
        open streams.
        """
        limits = connection.wire.limits
        if self._unacknowledged and now - self._unacknowledged_since > limits.header_timeout:
            connection.fail(
                ConnectionFailure(frames.SETTINGS_TIMEOUT, "SETTINGS was not acknowledged in time")
            )
            return False
        if self._reads_too_slowly(connection, now):
            connection.abort()
            return False
        if not connection.streams.open:
            if quiet and now - max(self.quiet_since, self._idle_since) > limits.idle_timeout:
                connection.fail(ConnectionFailure(frames.NO_ERROR, "the connection was idle for too long"))
            return False
        self._idle_since = now
        if now - self.quiet_since > limits.idle_timeout + limits.progress_timeout:
            connection.abort()
            return False
        if now - self.quiet_since > limits.idle_timeout and not self._keepalive_sent:
            self._keepalive_sent = True
            connection.output.write(frames.frame(frames.PING, 0, 0, _KEEPALIVE_PING))
        return True

    def _reads_too_slowly(self, connection: Http2Connection, now: float) -> bool:
        """Returns whether the client reads too slowly. Opening windows a few bytes at a time does not count
        as progress.
        """
        limits = connection.wire.limits
        output = connection.output
        taken = output.sent - connection.transport.get_write_buffer_size()
        # `taken` can decrease, because responses that never wait in `held` count only in the write buffer.
        self._taken = min(self._taken, taken)
        if (
            output.held <= limits.max_unsent_bytes and not connection.reader.write_blocked
        ) or taken - self._taken >= limits.least_taken:
            self._taken = taken
            self._took_enough = now
        return now - self._took_enough > limits.progress_timeout

    def _check_streams(self, connection: Http2Connection, now: float, *, blocked: bool) -> None:
        limits, waiting = connection.wire.limits, connection.wire.uploads.waiting
        for stream in list(connection.streams.open.values()):
            progress = _progress(stream, limits)
            if progress != stream.swept or blocked or stream in waiting:
                stream.swept = progress
                stream.progressed = now
            elif now - stream.progressed > limits.progress_timeout:
                if stream.pending_bytes:
                    connection.reset(stream, frames.CANCEL)
                elif stream.awaits_client():
                    stream.timed_out()
                elif stream.streaming and now - stream.progressed > limits.stream_idle_timeout:
                    stream.idle_too_long()


def _progress(stream: Stream, limits: Limits) -> int:
    """Returns a value that changes if the stream makes progress.

    Security: a request counts toward the limits until its body has arrived and its response has been sent. A
    client that sends or reads only a few bytes makes no progress.
    """
    if stream.lasting:
        # New events would look like progress, so the client must have read everything in time.
        return 1 if stream.pending_bytes else 0
    # A queued response shares the window and the socket of the connection with other responses, so the
    # progress of the connection counts as its progress.
    sent = stream.sent + (stream.connection.output.sent if stream.queued else 0)
    if stream.answered:
        return sent // limits.least_taken
    if stream.awaits_client():
        return stream.received // limits.least_sent + sent
    return stream.received + sent
