"""How long a connection may stay as it is."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from backline.wire.http1.refusal import Refusal

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection

#: After a refusal, what the client still sends is dropped for so long, in seconds.
LINGER_TIME = 2.0


class Phase(Enum):
    """What a connection waits for."""

    UNSENT = "the client to read"
    LINGER = "the client to close"
    APPLICATION = "the application"
    BODY = "a body"
    HEAD = "a head"
    IDLE = "a request"


class TimeLimits:
    """Sees at each look whether the connection has made progress since the last one; without any, it is ended after a while."""

    __slots__ = ("_connection", "_mark", "_since")

    def __init__(self, connection: Http1Connection) -> None:
        self._connection = connection
        self._mark: tuple[Phase, object] | None = None
        self._since = 0.0

    def check(self, now: float) -> None:
        """`now` in seconds of time.monotonic()."""
        phase, progress, limit = self._look()
        if (phase, progress) != self._mark:
            self._mark = (phase, progress)
            self._since = now
        elif now - self._since >= limit:
            self._end(phase)

    def _look(self) -> tuple[Phase, object, float]:
        """The phase, what changes in it with progress, and how long it may last without (seconds)."""
        connection = self._connection
        pipeline = connection.pipeline
        receiver = connection.receiver
        limits = connection.wire.limits
        unsent = connection.transport.get_write_buffer_size()
        if unsent:
            if unsent > limits.max_unsent_bytes:
                # A client that takes a byte now and then makes no progress: crumbs do not change the quotient.
                unsent = int(unsent // max(1.0, limits.min_taking_rate * limits.progress_timeout))
            return Phase.UNSENT, (unsent, pipeline.answers, pipeline.sent_chunks), limits.progress_timeout
        if connection.lingering:
            return Phase.LINGER, None, LINGER_TIME
        if connection.busy:
            return Phase.APPLICATION, None, inf
        if receiver.in_body:
            return Phase.BODY, (pipeline.answers, receiver.progress), limits.progress_timeout
        if receiver.target:
            return Phase.HEAD, pipeline.answers, limits.header_timeout
        return (
            Phase.IDLE,
            pipeline.answers,
            limits.idle_timeout if pipeline.answers else limits.header_timeout,
        )

    def _end(self, phase: Phase) -> None:
        connection = self._connection
        if phase in (Phase.BODY, Phase.HEAD):
            connection.refuse(Refusal(408, f"The request's {phase.name.lower()} did not arrive in time"))
        elif phase is Phase.UNSENT:
            connection.abort()
        else:
            connection.close()
