"""Shares the event loop fairly between connections with more received bytes than fit in one turn."""

from __future__ import annotations

import asyncio
import logging
import select
from collections import OrderedDict
from time import perf_counter
from typing import Protocol

log = logging.getLogger("backline.wire")

#: The maximum time of one round, in seconds: of the turns of waiting connections, and of the turns that
#: connections begin when they receive bytes, before the event loop polls the sockets again.
SECONDS_PER_ROUND = 0.005
#: The number of connections that resume reading per round. The event loop reads from all readable sockets
#: before it runs anything else, so this bounds how long a hundred simultaneous uploads can delay other
#: clients.
READS_PER_ROUND = 4
#: A connection that receives this many bytes in one read pauses reading until its turn. Otherwise the
#: transport might read a full socket up to 32 times in a row, as libuv does.
LARGE_READ = 64 * 1024

_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class TakesTurns(Protocol):
    def take_turn(self) -> bool:
        """Handles some of the received bytes. Returns whether the connection has resumed reading."""

    def abort(self) -> None:
        """Closes the connection immediately."""


class Turns:
    """A round-robin queue of connections that have bytes to handle or to read. Between rounds, the event loop
    serves other connections.

    Each connection limits its own turn in bytes and time. A round is limited in total time and in the number
    of sockets that resume reading, however many connections wait. If a turn fails because of a fault in the
    server, only that connection is closed.

    Each turn takes at most `longest` seconds.
    """

    __slots__ = ("_longest", "_loop", "_round_ends", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, longest: float) -> None:
        self._loop = loop
        self._longest = longest
        self._waiting: OrderedDict[TakesTurns, None] = OrderedDict()
        self._scheduled = False
        #: The time when the turns of this round must end, or 0 until a turn asks.
        self._round_ends = 0.0

    def turn_ends(self, now: float) -> float:
        """Returns the time (perf_counter()) when the turn that a connection begins `now` must end.

        If other connections have used up the round, that is before `now`: the connection then handles one
        request, or a few frames, and leaves the rest for its next turn. To spare the others this call,
        connections call it only if they have received more than that.
        """
        if not self._round_ends:
            self._round_ends = now + SECONDS_PER_ROUND
            self._loop.call_soon(self._end_round)
        return min(now + self._longest, self._round_ends)

    def _end_round(self) -> None:
        self._round_ends = 0.0

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
            try:
                reads -= connection.take_turn()
            except Exception:
                log.exception("closing a connection after an internal error")
                connection.abort()
            if not reads or perf_counter() >= end:
                break
        self._scheduled = bool(waiting)
        if waiting:
            self._loop.call_soon(self._run)


class SocketState:
    """Reports the state of a connected socket, without reading from the socket."""

    __slots__ = ("_poll",)

    def __init__(self, descriptor: int) -> None:
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | getattr(select, "POLLRDHUP", 0))

    def has_bytes(self) -> bool:
        """Returns whether a read would return immediately, with bytes, an error, or the end of the stream."""
        return bool(self._poll.poll(0))

    def peer_is_gone(self) -> bool:
        """Returns whether the client has closed at least its sending half, even if earlier bytes are
        unread.
        """
        return any(event & _GONE for _, event in self._poll.poll(0))


def peer_is_gone(transport: asyncio.Transport) -> bool:
    """Returns whether the client has closed at least its sending half. Unlike the transport, this function
    notices that even if earlier bytes are unread.
    """
    connected = transport.get_extra_info("socket")
    return connected is not None and SocketState(connected.fileno()).peer_is_gone()
