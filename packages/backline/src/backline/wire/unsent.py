"""Counts the bytes of responses that clients have not read yet, and bounds them by closing the connections of
the slowest clients.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backline.wire.connection import Connection, Wire

log = logging.getLogger("backline.wire")


class _Backlog:
    """The unread responses of one connection."""

    __slots__ = ("counted", "since", "size")

    def __init__(self, since: float) -> None:
        self.size = 0
        #: The part of `size` that `Unsent` has added to `wire.buffered_bytes`.
        self.counted = 0
        #: The time at which the client was last found to have read or, if it has read nothing, at which the
        #: backlog began.
        self.since = since


class Unsent:
    """Counts unsent responses toward `limits.max_buffered_bytes`.

    Invariants:

    * `wire.buffered_bytes` is the sum of request bodies, of responses queued by HTTP/2 streams
      (`Output.held`), and of the sizes of the transports' write buffers as last observed: after a large
      write, when a transport pauses or resumes writing, and once per sweep. Between observations, small
      responses can add up to `max_unsent_bytes` per connection; then the transport pauses writing.
    * When the sum exceeds the limit, connections are closed until it is at most 7/8 of the limit. Connections
      whose clients have read nothing for the longest time are closed first, so that an idle client is cut off
      before a slow reader of a large response.
    * Write buffers are observed after the transport has tried to send, so bytes that the kernel accepts
      immediately never count.
    """

    __slots__ = ("_backlogs", "_scheduled", "_to_see", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._backlogs: dict[Connection, _Backlog] = {}
        #: Connections to observe in the next iteration of the event loop.
        self._to_see: set[Connection] = set()
        #: Whether the event loop will call `_see`, or is calling it.
        self._scheduled = False

    def watch(self, connection: Connection) -> None:
        """Observes a connection that has much to send, in the next iteration of the event loop, after its
        transport has tried to send.
        """
        if not self._scheduled:
            self._scheduled = True
            self._wire.loop.call_soon(self._see)
        self._to_see.add(connection)

    def count(self, connection: Connection) -> None:
        """Updates the backlog of a connection."""
        size, buffered = connection.unsent()
        backlog = self._backlogs.get(connection)
        if backlog is None:
            if not size:
                return
            backlog = self._backlogs[connection] = _Backlog(monotonic())
        elif size < backlog.size:
            backlog.since = monotonic()
        self._wire.buffered_bytes += buffered - backlog.counted
        backlog.size, backlog.counted = size, buffered
        if not size:
            del self._backlogs[connection]
        elif self._wire.buffered_bytes > self._wire.limits.max_buffered_bytes:
            self.watch(connection)

    def forget(self, connection: Connection) -> None:
        """Removes a closed connection."""
        self._to_see.discard(connection)
        backlog = self._backlogs.pop(connection, None)
        if backlog is not None:
            self._wire.buffered_bytes -= backlog.counted

    def _see(self) -> None:
        wire = self._wire
        seen, self._to_see = self._to_see, set()
        for connection in seen:
            if connection in wire.connections:
                self.count(connection)
        limit = wire.limits.max_buffered_bytes
        if wire.buffered_bytes > limit:
            for connection in list(self._backlogs):
                self.count(connection)
        # `count` has asked for further checks, which the check below makes unnecessary.
        self._to_see.clear()
        self._scheduled = False
        if wire.buffered_bytes > limit:
            self._close_idlest()

    def _close_idlest(self) -> None:
        """Closes the connections whose clients have read nothing for the longest time."""
        wire = self._wire
        backlogs = self._backlogs
        excess = wire.buffered_bytes - wire.limits.max_buffered_bytes * 7 // 8
        closed = 0
        for connection in sorted(backlogs, key=lambda held: (backlogs[held].since, -backlogs[held].size)):
            if excess <= 0:
                break
            excess -= backlogs[connection].size
            closed += 1
            connection.abort()
        if closed:
            log.warning(
                "closed %d connections that left responses unread: max_buffered_bytes was exceeded", closed
            )
