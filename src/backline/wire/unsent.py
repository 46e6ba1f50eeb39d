"""Answers that clients do not take: counted over all connections, and bounded by closing those that take nothing."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backline.wire.connection import Connection, Wire

log = logging.getLogger("backline.wire")


class _Backlog:
    """What one connection has not taken."""

    __slots__ = ("counted", "since", "size")

    def __init__(self, since: float) -> None:
        self.size = 0
        #: Bytes of it that this ledger added to `wire.buffered_bytes`.
        self.counted = 0
        #: When the client was last seen to take something, or when the backlog began.
        self.since = since


class Unsent:
    """The ledger of unsent answers, part of `wire.buffered_bytes` and so of `limits.max_buffered_bytes`.

    Invariants:

    * `wire.buffered_bytes` is the sum of request bodies, of answers queued by HTTP/2 streams (`Output.held`) and of what the transports'
      write buffers held when they were last looked at. That is after large writes, when a transport pauses or resumes its writer, and once
      per sweep; between two looks a connection can add small answers up to `max_unsent_bytes`, where its transport pauses it.
    * While the sum is above the limit, connections are closed until 7/8 of it are left: those first whose clients have taken nothing for
      the longest time. A client that reads is younger than one that does not, however large its answer is.
    * A look follows the transport's own attempt to send: what the kernel takes at once is never counted.
    """

    __slots__ = ("_backlogs", "_to_see", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._backlogs: dict[Connection, _Backlog] = {}
        #: Connections to look at in the next turn of the loop.
        self._to_see: set[Connection] = set()

    def watch(self, connection: Connection) -> None:
        """Looks at a connection that was given much to send, once its transport has tried to."""
        if not self._to_see:
            self._wire.loop.call_soon(self._see)
        self._to_see.add(connection)

    def count(self, connection: Connection) -> None:
        """Brings the backlog of a connection up to date."""
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
        """The connection is gone."""
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
        self._to_see.clear()
        if wire.buffered_bytes > wire.limits.max_buffered_bytes:
            self._close_idlest()

    def _close_idlest(self) -> None:
        """Closes the connections that have taken nothing for the longest time, until an eighth of the limit is free."""
        wire = self._wire
        backlogs = self._backlogs
        for connection in list(backlogs):
            self.count(connection)
        self._to_see.clear()
        limit = wire.limits.max_buffered_bytes
        if wire.buffered_bytes <= limit:
            return
        excess = wire.buffered_bytes - limit * 7 // 8
        closed = 0
        for connection in sorted(backlogs, key=lambda held: (backlogs[held].since, -backlogs[held].size)):
            if excess <= 0:
                break
            excess -= backlogs[connection].size
            closed += 1
            connection.abort()
        if closed:
            log.warning(
                "closed %d connections that did not take their answers: too many bytes are held", closed
            )
