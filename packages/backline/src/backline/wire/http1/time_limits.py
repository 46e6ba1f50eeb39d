"""Enforces the time limits of an HTTP/1.1 connection: how long the connection may go without progress."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from backline.wire.http1.head import Refusal

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection

#: Seconds for which bytes that arrive after the last response are read and dropped.
LINGER_TIME = 2.0
#: After a check, an idle connection is not checked again for this share of its time limit.
REST = 1 / 8
#: The maximum time, in seconds, between two checks of an idle connection.
LONGEST_REST = 15.0


class Awaited(Enum):
    """The things that a connection may wait for. Some of the values appear in error texts."""

    READING = "a client that reads"
    CLOSE = "a client that closes"
    APPLICATION = "the application"
    ROOM = "room for a large body"
    BODY = "body"
    HEAD = "head"
    REQUEST = "request"


class TimeLimits:
    """Compares a connection at each periodic check with its state at the previous check, and ends the
    connection if it has made no progress for too long.
    """

    __slots__ = ("_mark", "_since")

    def __init__(self) -> None:
        self._mark: tuple[Awaited, object] | None = None
        self._since = 0.0

    def check(self, connection: Http1Connection, now: float) -> None:
        """Ends the connection if its time limit has passed; `now` is in seconds of time.monotonic()."""
        awaited, progress, limit = _look(connection)
        if (awaited, progress) != self._mark:
            self._mark = (awaited, progress)
            self._since = now
        elif now - self._since >= limit:
            _end(connection, awaited)
        elif awaited is Awaited.REQUEST:
            # With 10,000 idle connections, checking each of them every second would take 2 % of a core. The
            # checks resume when part of a request arrives. The drawback is that the time limit for reading a
            # response counts from the next check.
            connection.rests_until = min(now + min(limit * REST, LONGEST_REST), self._since + limit)


def _look(connection: Http1Connection) -> tuple[Awaited, object, float]:
    """Returns what the connection waits for, a value that changes with progress, and the limit in seconds."""
    pipeline = connection.pipeline
    receiver = connection.receiver
    limits = connection.wire.limits
    unsent = connection.transport.get_write_buffer_size()
    if unsent:
        if pipeline.lasting:
            # New events would look like progress, so the client must have read everything in time.
            return Awaited.READING, None, limits.progress_timeout
        if unsent > limits.max_unsent_bytes:
            # A client that reads only a few bytes makes no progress: the quotient changes only if the client
            # reads at `min_taking_rate`.
            unsent //= limits.least_taken
        return Awaited.READING, (unsent, pipeline.answers, pipeline.sent_chunks), limits.progress_timeout
    if connection.lingering:
        return Awaited.CLOSE, None, LINGER_TIME
    if connection.busy:
        return Awaited.APPLICATION, None, inf
    if receiver.in_body:
        if receiver.waits:
            return Awaited.ROOM, None, inf
        # A client that sends only a few bytes makes no progress, as above.
        received = receiver.progress // limits.least_sent
        return Awaited.BODY, (pipeline.answers, received), limits.progress_timeout
    if receiver.target:
        return Awaited.HEAD, pipeline.answers, limits.header_timeout
    idle = limits.idle_timeout if pipeline.answers else limits.header_timeout
    return Awaited.REQUEST, pipeline.answers, idle


def _end(connection: Http1Connection, awaited: Awaited) -> None:
    if awaited in (Awaited.BODY, Awaited.HEAD):
        connection.refuse(Refusal(408, f"The request's {awaited.value} did not arrive in time"))
    elif awaited is Awaited.READING:
        connection.abort()
    else:
        connection.close()
