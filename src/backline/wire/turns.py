"""Shares the event loop fairly between connections with more received bytes than fit in one turn."""

from __future__ import annotations

import asyncio
import select
from collections import OrderedDict
from time import perf_counter
from typing import Protocol

#: Seconds that one round takes, for all waiting connections together, before the event loop polls the sockets
#: again.
SECONDS_PER_ROUND = 0.005
#: The number of connections that resume reading per round. The event loop reads from all readable sockets
#: before it runs anything else, so this bounds how long a hundred simultaneous uploads can delay other
#: clients.
READS_PER_ROUND = 4
#: A connection that receives this many bytes in one read pauses until its turn. Otherwise the transport reads
#: a full socket up to 32 times in a row (libuv).
LARGE_READ = 64 * 1024

_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class TakesTurns(Protocol):
    def take_turn(self) -> bool:
        """Handles some of the received bytes. Returns whether the connection has resumed reading."""


class Turns:
    """A round-robin queue of connections that have bytes to handle or read. Other connections are served
    between rounds.

    Each connection limits its own turn in bytes and time. A round is limited in total time and in the number
    of sockets that resume reading, however many connections wait.
    """

    __slots__ = ("_loop", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: OrderedDict[TakesTurns, None] = OrderedDict()
        self._scheduled = False

    def wait(self, connection: TakesTurns) -> None:
        """Queues a connection for a call of its `take_turn`. A connection that is already queued keeps its
        place.
        """
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
    """Returns whether the client has closed at least its sending half, even if earlier bytes are unread."""
    connected = transport.get_extra_info("socket")
    if connected is None:
        return False
    poll = select.poll()
    poll.register(connected.fileno(), getattr(select, "POLLRDHUP", 0))
    return any(event & _GONE for _, event in poll.poll(0))
