"""Runs HTTP/1.1 clients that record each request's outcome: answered, refused, truncated or unanswered.

A closed loop, in which each client waits for its answer, finds the capacity of a server. An open loop sends
at a fixed rate whatever the server does, so it can overload the server. Its latencies count from the time at
which a request was due.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Returns the times of a Poisson process with `rate` events per second, from 0 to `seconds`."""
    chance = random.Random(seed)
    moments: list[float] = []
    moment = chance.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += chance.expovariate(rate)
    return moments


async def send_at(send: Callable[[float], None], dues: Iterable[float]) -> None:
    """Calls `send` once at each time in `dues` (of time.monotonic(), ascending), with that time."""
    for due in dues:
        # This sleeps even when late, so that received data is handled. Waking slightly early does not matter.
        await asyncio.sleep(max(0.0, due - monotonic()))
        send(due)


async def send_steadily(send: Callable[[float], None], rate: float, seconds: float) -> None:
    """Calls `send` `rate` times per second for `seconds`, each time with the time when the call was due."""
    started = monotonic()
    sent = 0
    total = round(rate * seconds)
    while sent < total:
        due = min(total, int((monotonic() - started) * rate))
        while sent < due:
            send(started + sent / rate)
            sent += 1
        await asyncio.sleep(0.001)


@dataclass(slots=True)
class Fate:
    """The outcome of one request.

    `what` is the status of a complete answer, "partial" for a truncated one, "unanswered" if the connection
    was closed without a byte of an answer, or "no connection". Times are those of time.monotonic().
    """

    what: str
    due: float
    sent: float
    ended: float


@dataclass
class Fates:
    """The outcomes of all requests in a phase."""

    all: list[Fate] = field(default_factory=list)

    def count(self) -> Counter[str]:
        return Counter(fate.what for fate in self.all)

    def of(self, *what: str) -> list[Fate]:
        return [fate for fate in self.all if fate.what in what]


class Connection(asyncio.Protocol):
    """A connection with at most one request in flight."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.needed = 0
        self.status = ""
        self.closing = False
        self.due = 0.0
        self.sent = 0.0

    @property
    def busy(self) -> bool:
        return self.due > 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, due: float) -> None:
        assert self.transport is not None
        self.due, self.sent = due, monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.needed:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.received[: end + 2])
            status, length = STATUS.match(head), LENGTH.search(head)
            self.status = status[1].decode() if status else "malformed"
            self.needed = end + 4 + (int(length[1]) if length else 0)
            self.closing = CLOSE.search(head) is not None
        if len(self.received) >= self.needed:
            what = self.status if len(self.received) == self.needed else "too many bytes"
            self.received.clear()
            self.needed = 0
            self.finish(what)

    def finish(self, what: str) -> None:
        due, self.due = self.due, 0.0
        self.clients.ended(self, Fate(what, due, self.sent, monotonic()))

    def connection_lost(self, exc: Exception | None) -> None:
        self.clients.lost(self)
        if self.busy:
            self.finish("partial" if self.received else "unanswered")


class Clients:
    """The connections to one server. A new connection is opened whenever none is idle."""

    def __init__(self, port: int, request: bytes, *, most: int = 8000) -> None:
        self.port = port
        self.request = request
        self.most = most
        self.idle: list[Connection] = []
        self.open: set[Connection] = set()
        self.fates = Fates()
        self.under_way = 0
        self.looping = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.quiet = asyncio.Event()
        self.quiet.set()

    def lost(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def ended(self, connection: Connection, fate: Fate) -> None:
        self.fates.all.append(fate)
        self.under_way -= 1
        if connection in self.open and connection.transport is not None:
            if connection.closing:
                connection.transport.close()
                self.lost(connection)
            else:
                self.idle.append(connection)
        if self.looping:
            self.send(monotonic())
        if self.under_way == 0:
            self.quiet.set()

    def send(self, due: float) -> None:
        """Sends one request now, on a new connection if needed."""
        self.under_way += 1
        self.quiet.clear()
        while self.idle:
            connection = self.idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(self.request, due)
                return
        task = asyncio.get_running_loop().create_task(self._send_on_new(due))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _send_on_new(self, due: float) -> None:
        started = monotonic()
        try:
            if len(self.open) >= self.most:
                raise ConnectionError("too many connections")
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), "127.0.0.1", self.port
            )
        except OSError:
            self.fates.all.append(Fate("no connection", due, started, monotonic()))
            self.under_way -= 1
            if self.under_way == 0:
                self.quiet.set()
            return
        self.open.add(connection)
        connection.send(self.request, due)

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Returns the number of answers with status 200 that `clients` closed-loop clients get per second."""
        before = len(self.fates.all)
        started = monotonic()
        self.looping = True
        for _ in range(clients):
            self.send(started)
        await asyncio.sleep(seconds)
        self.looping = False
        done = sum(fate.what == "200" for fate in self.fates.all[before:])
        took = monotonic() - started
        await self.quiet.wait()
        return done / took

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Sends `rate` requests per second for `seconds`. Returns after sending the last one."""
        await send_steadily(self.send, rate, seconds)

    async def send_at(self, dues: Iterable[float]) -> None:
        """Sends a request at each time in `dues` (of time.monotonic(), ascending)."""
        await send_at(self.send, dues)

    async def settle(self, seconds: float) -> int:
        """Waits up to `seconds` until every request has an outcome. Returns how many have none."""
        try:
            await asyncio.wait_for(self.quiet.wait(), seconds)
        except TimeoutError:
            return self.under_way
        return 0

    def close(self) -> None:
        for connection in list(self.open):
            if connection.transport is not None:
                connection.transport.close()
