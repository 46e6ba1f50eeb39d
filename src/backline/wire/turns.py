"""Whose turn it is, when connections have sent more than may be handled at once."""

from __future__ import annotations

import asyncio
import select
from collections import OrderedDict
from time import perf_counter
from typing import Protocol

#: Seconds for all waiting connections together, before the loop looks at the sockets again.
SECONDS_PER_ROUND = 0.005

_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class TakesTurns(Protocol):
    def take_turn(self) -> None: ...


class Turns:
    """Connections with received bytes that wait. They take turns, and between two rounds of them everybody else is served.

    One turn of a connection is limited by the connection itself; here the sum of all turns is limited, however many connections wait.
    """

    __slots__ = ("_loop", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: OrderedDict[TakesTurns, None] = OrderedDict()
        self._scheduled = False

    def wait(self, connection: TakesTurns) -> None:
        """Calls `take_turn` once, soon. A connection that waits already keeps its place."""
        self._waiting[connection] = None
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        waiting = self._waiting
        end = perf_counter() + SECONDS_PER_ROUND
        for _ in range(len(waiting)):
            connection, _ = waiting.popitem(last=False)
            connection.take_turn()
            if perf_counter() >= end:
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
