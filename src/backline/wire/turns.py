"""Fairness among connections that have sent more than one wake-up of the loop may handle."""

from __future__ import annotations

import asyncio
import select
from collections import OrderedDict
from time import perf_counter
from typing import Protocol

#: Seconds for all waiting connections together, before the loop looks at the sockets again.
SECONDS_PER_ROUND = 0.005
#: Connections that resume reading in one round. The loop reads from every readable socket before it runs anything else, up to
#: `bytes_per_turn` from each, so this bounds how long a hundred uploads can keep it away from all other clients.
READS_PER_ROUND = 4
#: A connection that is given this much by one read stops reading until its turn: transports go on reading the same socket otherwise,
#: 32 times in a row (libuv), while it is kept full.
LARGE_READ = 64 * 1024

_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class TakesTurns(Protocol):
    def take_turn(self) -> bool:
        """Handles some of what was received. Returns whether the connection reads from its socket again."""


class Turns:
    """A round-robin queue of connections that have bytes to handle or to read; all others are served between two rounds.

    Each connection limits its own turn, in bytes and in time. A round limits their sum, however many connections wait: in time, and in the
    number of sockets that are read again.
    """

    __slots__ = ("_loop", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: OrderedDict[TakesTurns, None] = OrderedDict()
        self._scheduled = False

    def wait(self, connection: TakesTurns) -> None:
        """Calls `take_turn` once, soon. A connection in the queue keeps its place."""
        self._waiting[connection] = None
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        waiting = self._waiting
        end = perf_counter() + SECONDS_PER_ROUND
        reads = READS_PER_ROUND
        for _ in range(len(waiting)):
            connection, _ = waiting.popitem(last=False)
            reads -= connection.take_turn()
            if not reads or perf_counter() >= end:
                break
        self._scheduled = bool(waiting)
        if waiting:
            self._loop.call_soon(self._run)


def peer_is_gone(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed the connection, or its half of it, though bytes from before may not be read yet."""
    connected = transport.get_extra_info("socket")
    if connected is None:
        return False
    poll = select.poll()
    poll.register(connected.fileno(), getattr(select, "POLLRDHUP", 0))
    return any(event & _GONE for _, event in poll.poll(0))
