"""A client's kept-alive connections to one HTTP server. The most recently used connection is reused first."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from backline_client.client.address import Address
from backline_client.client.errors import ConnectionFailed, DeadlineExceeded
from backline_client.client.handshake import failed_handshake, no_tls, unanswered
from backline_client.client.http_connection import HttpAnswer, HttpConnection, OnAnswer
from backline_client.client.options import ClientOptions
from backline_client.values.errors import BacklineError
from backline_client.values.tensor import Buffer

if TYPE_CHECKING:
    from backline_client.system.busy_poll import BusyPoll

#: Seconds after which an idle connection is not reused, because the server or a proxy may be about to close
#: it.
MAX_IDLE = 45.0
RETRY_DELAY = 0.1


class HttpPool:
    """A pool of at most `max_connections` connections. Once all are in use, requests wait for a free one,
    within their timeout.
    """

    def __init__(self, address: Address, options: ClientOptions, poll: BusyPoll | None = None) -> None:
        """`poll` is the busy poll of the event loop; see HttpConnection."""
        self._poll = poll
        self._address = address
        self._options = options
        self._idle: list[HttpConnection] = []
        self._all: set[HttpConnection] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._connecting = 0
        self._closed = False
        self._ssl = options.ssl_context() if address.tls else None

    async def request_at_once(self, parts: Sequence[Buffer], size: int, timeout: float) -> HttpAnswer:
        """Sends a request and waits for the response. If no connection is free, uses a new one for this
        request only, even if `max_connections` are in use.
        """
        connection = self._take_idle()
        if connection is not None:
            try:
                return await connection.request(parts, size, timeout)
            finally:
                self.release(connection)
        try:
            async with asyncio.timeout(timeout):
                connection = await self._open()
        except (OSError, TimeoutError) as error:
            raise refused(self._address, timeout, error) from None
        try:
            return await connection.request(parts, size, timeout)
        finally:
            connection.abort()

    async def request(self, parts: Sequence[Buffer], size: int, timeout: float) -> HttpAnswer:
        """Sends a request over a free connection, or a new one, and waits for the response."""
        connection = self._take_idle()
        spent = 0.0
        if connection is None:
            before = monotonic()
            try:
                async with asyncio.timeout(timeout):
                    connection = await self._acquire()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"no connection to {self._address.url} became free or was opened within {timeout:g} s"
                    f" (max_connections={self._options.max_connections}): raise max_connections or timeout"
                ) from None
            spent = monotonic() - before
        try:
            return await connection.request(parts, size, timeout, spent)
        finally:
            self.release(connection)

    def start(
        self, parts: Sequence[Buffer], size: int, timeout: float, on_end: OnAnswer
    ) -> PooledRequest | None:
        """Sends a request over a connection that is free now; see HttpConnection.start. Returns None if no
        connection is free.
        """
        connection = self._take_idle()
        if connection is None:
            return None
        started = PooledRequest(self, connection, on_end)
        connection.start(parts, size, timeout, started.ended)
        return started

    def close(self) -> None:
        """Closes every connection. Requests in flight fail with ConnectionLost, and requests that wait for a
        connection with ConnectionFailed.
        """
        self._closed = True
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()
        while self._waiting:
            self._wake()

    def _take_idle(self) -> HttpConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and monotonic() - connection.idle_since < MAX_IDLE:
                return connection
            self._discard(connection)
        return None

    async def _acquire(self) -> HttpConnection:
        while True:
            if self._closed:
                raise self._is_closed()
            connection = self._take_idle()
            if connection is not None:
                return connection
            if len(self._all) + self._connecting < self._options.max_connections:
                return await self._connect()
            free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(free)
            try:
                await free
            except asyncio.CancelledError:
                if free.done() and not free.cancelled():
                    self._wake()  # this waiter gave up: wake the next one
                raise

    def release(self, connection: HttpConnection) -> None:
        """Takes back a connection whose request has ended."""
        if connection.reusable:
            self._idle.append(connection)
        else:
            self._discard(connection)
        self._wake()

    def _discard(self, connection: HttpConnection) -> None:
        connection.abort()
        self._all.discard(connection)

    def _wake(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def _connect(self) -> HttpConnection:
        self._connecting += 1
        try:
            for left in range(self._options.retries, -1, -1):
                try:
                    async with asyncio.timeout(self._options.connect_timeout):
                        connection = await self._open()
                    if self._closed:
                        connection.abort()
                        raise self._is_closed()
                    self._all.add(connection)
                    return connection
                except (OSError, TimeoutError) as error:
                    if not left or isinstance(error, ssl.SSLError):
                        raise refused(self._address, self._options.connect_timeout, error) from None
                await asyncio.sleep(RETRY_DELAY)
            raise AssertionError("the last attempt returns or raises")
        finally:
            self._connecting -= 1
            self._wake()

    def _is_closed(self) -> ConnectionFailed:
        return ConnectionFailed(f"the client of {self._address.url} is closed; nothing was sent")

    async def _open(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        address = self._address

        def protocol() -> HttpConnection:
            return HttpConnection(address.url, unanswered(address, self._options), self._poll)

        if address.unix:
            _, connection = await loop.create_unix_connection(protocol, address.path)
        else:
            _, connection = await loop.create_connection(
                protocol,
                address.host,
                address.port,
                ssl=self._ssl,
                server_hostname=address.certified if self._ssl else None,
            )
        return connection


class PooledRequest:
    """A request in flight over a connection that returns to its pool when the request ends."""

    __slots__ = ("_connection", "_on_end", "_pool")

    def __init__(self, pool: HttpPool, connection: HttpConnection, on_end: OnAnswer) -> None:
        self._pool = pool
        self._connection = connection
        self._on_end: OnAnswer | None = on_end

    def ended(self, answer: HttpAnswer | None, error: BacklineError | None) -> None:
        """Returns the connection to the pool and reports the response or the error."""
        on_end, self._on_end = self._on_end, None
        self._pool.release(self._connection)
        if on_end is not None:
            on_end(answer, error)

    def abandon(self) -> None:
        """Closes the connection, so that the server stops working on the request.

        Has no effect if the outcome has already been reported.
        """
        if self._on_end is not None:
            self._on_end = None
            self._connection.abort()
            self._pool.release(self._connection)


def refused(address: Address, timeout: float, error: Exception) -> ConnectionFailed:
    """Returns the error for a connection that could not be opened, with advice on what to do. `timeout` is
    the time limit in seconds.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, ssl.SSLError):
        return failed_handshake(address, error)
    if isinstance(error, TimeoutError) and number is None:
        return ConnectionFailed(
            f"{address.url} did not accept a connection within {timeout:g} s. Is the host reachable?"
        )
    if address.unix and number in (errno.ENOENT, errno.ECONNREFUSED):
        return ConnectionFailed(
            f"nothing listens on the socket {address.path}."
            f" Start a server: backline serve REPO --unix-socket {address.path}"
        )
    if number == errno.ECONNREFUSED or "Connect call failed" in str(error):
        return ConnectionFailed(
            f"connection refused by {address.url}: nothing listens there."
            " Start a server (backline serve REPO), or check host and port"
        )
    if isinstance(error, socket.gaierror):
        return ConnectionFailed(
            f"cannot look up the host of {address.url}: {error.strerror}. Is the name right?"
        )
    if address.tls and isinstance(error, ConnectionError):
        return no_tls(address)
    return ConnectionFailed(f"cannot connect to {address.url}: {error or type(error).__name__}")
