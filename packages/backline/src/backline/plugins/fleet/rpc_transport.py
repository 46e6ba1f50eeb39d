"""The remote lane's transport to a gRPC server. Sends and receives on this server's own event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from time import monotonic
from typing import Any

from backline.plugins.fleet.rpc_call import RpcCall, RpcStream
from backline.plugins.fleet.rpc_connection import RpcConnection
from backline.wire.grpc.timeout import Deadlines
from backline.wire.http2.frames import encode_fields
from backline_client.client.address import Address
from backline_client.client.credentials import find_credential
from backline_client.client.errors import ConnectionFailed
from backline_client.client.grpc_requests import SERVICE, GrpcRequests
from backline_client.client.handshake import unanswered
from backline_client.client.http_pool import refused
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall, OnOutcome, Sending
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError, Cancelled, Unavailable
from backline_client.values.memo import Memo
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Buffer
from backline_client.version import __version__

#: The maximum number of connections to a server. Each connection carries as many calls at the same time as
#: the server allows, often more than a hundred.
_MAX_CONNECTIONS = 8
#: The number of attempts after which a call fails, if the server closes each connection, or refuses the call,
#: without handling it.
_MAX_ATTEMPTS = 3
#: Only time limits below this many seconds are sent to the server; a call with a longer limit is cancelled by
#: this process when the limit has passed. So most calls have the same header block, which is encoded and
#: decoded only once.
_TOLD_BELOW = 300.0
_REMEMBERED = 64


class RpcTransport(GrpcRequests):
    """A transport that sends gRPC calls over its own connections, without a thread or a task for each call.

    Unlike with grpcio, a call wakes no other thread, and small calls that start in the same turn of the event
    loop are written together. A call that starts while no other is in flight is written immediately.
    """

    def __init__(self, address: Address, options: ClientOptions, poll: BusyPoll) -> None:
        super().__init__(address, options)
        self._poll = poll
        self._loop = asyncio.get_running_loop()
        self._ssl = options.ssl_context("h2") if address.tls else None
        self._credential = find_credential(address, options)
        self._fields = tuple(
            (name.lower().encode(), value.encode()) for name, value in self._credential.fields.items()
        )
        self._connections: list[RpcConnection] = []
        self._connecting: asyncio.Task[None] | None = None
        #: Calls that wait for a connection, oldest first.
        self._waiting: dict[RpcCall, None] = {}
        self._closed = False
        self._headers: Memo[object, bytes] = Memo(_REMEMBERED)
        self._deadlines = Deadlines(self._loop, self._in_flight)

    async def close(self) -> None:
        self._closed = True
        await super().close()
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail_waiting(ConnectionFailed(f"the client of {self._url} is closed"))
        for connection in tuple(self._connections):
            connection.close()
        self._deadlines.cancel()

    # calls

    def start_infer(self, call: InferCall, timeout: float, on_outcome: OnOutcome[InferResponse]) -> Sending:
        def ended(received: Buffer | None, error: BacklineError | None) -> None:
            response = None
            if received is not None:
                try:
                    response = self._codec.decode(received)
                except BacklineError as wrong:
                    error = wrong
            on_outcome(response, None if error is None else self._credential.explain(error, self._url))

        rpc = self._call("ModelInfer", self._codec.encode(call), timeout, ended, call.metadata)
        self._start(rpc)
        return rpc

    async def exchange(
        self, method: str, request: bytes, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        answered: asyncio.Future[bytes] = self._loop.create_future()

        def ended(received: Buffer | None, error: BacklineError | None) -> None:
            if answered.done():
                return
            if received is None:
                assert error is not None, "a call ends with a response or an error"
                answered.set_exception(self._credential.explain(error, self._url))
            else:
                answered.set_result(bytes(received))

        call = self._call(method, (request,), timeout, ended, metadata)
        self._start(call)
        try:
            return await answered
        finally:
            call.abandon()

    async def exchange_stream(
        self, method: str, request: bytes, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> AsyncGenerator[bytes, None]:
        header = self._header(method, math.inf, metadata)
        stream = RpcStream(self._url, method, header, (request,), timeout)
        self._start(stream)
        try:
            while (received := await stream.receive()) is not None:
                yield bytes(received)
        except BacklineError as error:
            raise self._credential.explain(error, self._url) from None
        finally:
            stream.abandon()

    def _call(
        self,
        method: str,
        parts: Sequence[Buffer],
        timeout: float,
        ended: Callable[[Buffer | None, BacklineError | None], None],
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> RpcCall:
        call = RpcCall(self._url, method, self._header(method, timeout, metadata), parts, timeout, ended)
        self._deadlines.add(monotonic() + timeout, call)
        return call

    def _header(self, method: str, timeout: float, metadata: tuple[tuple[str, str], ...]) -> bytes:
        told = timeout_field(timeout) if timeout < _TOLD_BELOW else b""
        key = method, told
        header = self._headers.get(key) or self._headers.keep(key, self._common_fields(method, told))
        if not metadata:
            return header
        return header + encode_fields((name.encode(), value.encode()) for name, value in metadata)

    def _common_fields(self, method: str, told: bytes) -> bytes:
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"https" if self._address.tls else b"http"),
            (b":path", f"{SERVICE}{method}".encode()),
            (b":authority", self._address.authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", f"backline/{__version__}".encode()),
            *self._fields,
        ]
        if told:
            fields.append((b"grpc-timeout", told))
        return encode_fields(fields)

    # connections

    def _in_flight(self) -> int:
        return len(self._waiting) + sum(len(one.calls) for one in self._connections)

    def _start(self, call: RpcCall) -> None:
        if not self._waiting:
            for connection in self._connections:
                if connection.room > 0:
                    connection.start(call)
                    return
        if self._closed:
            self._loop.call_soon(call.fail, ConnectionFailed(f"the client of {self._url} is closed"))
            return
        self._waiting[call] = None
        call.queue = self._waiting
        if self._connecting is None and len(self._connections) < _MAX_CONNECTIONS:
            self._connecting = self._loop.create_task(self._connect())

    def _again(self, call: RpcCall) -> None:
        """Resends a call that the server did not handle, or fails the call after _MAX_ATTEMPTS attempts."""
        call.attempts += 1
        if call.attempts < _MAX_ATTEMPTS and not self._closed:
            call.restart()
            self._start(call)
        else:
            call.fail(Unavailable(f"{self._url} accepts no calls: it is stopping, or overloaded"))

    def _has_room(self, changed: RpcConnection) -> None:
        """Starts as many waiting calls as the connections accept. Called when the connection `changed` can
        take another call, and when it stops taking calls.
        """
        waiting = self._waiting
        if changed.usable:
            if not waiting:
                return
        elif not changed.calls and changed in self._connections:
            self._connections.remove(changed)
            changed.close()
        for connection in self._connections:
            while waiting and connection.room > 0:
                call = next(iter(waiting))
                del waiting[call]
                call.queue = None
                connection.start(call)
        if waiting and self._connecting is None and not any(one.usable for one in self._connections):
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        error: BacklineError | None = None
        address, limit = self._address, self._options.connect_timeout
        connection = None
        try:
            async with asyncio.timeout(limit):
                connection = await self._open()
                await connection.ready
            if not connection.usable:
                raise ConnectionFailed(f"{address.url} closed a new connection without taking a call")
            self._connections.append(connection)
        except (OSError, TimeoutError) as failed:
            error = refused(address, limit, failed)
        except BacklineError as failed:
            error = failed
        except asyncio.CancelledError:
            error = Cancelled(f"the client of {self._url} is closed")
            raise
        finally:
            self._connecting = None
            if error is not None and connection is not None:
                connection.close()
                connection = None
            if error is not None and not any(one.usable for one in self._connections):
                self._fail_waiting(error)
        if connection is not None:
            self._has_room(connection)

    async def _open(self) -> RpcConnection:
        address = self._address
        advice = unanswered(address, self._options)

        def protocol() -> RpcConnection:
            return RpcConnection(address.url, advice, self._poll, self._again, self._has_room)

        connection: Any
        if address.unix:
            _, connection = await self._loop.create_unix_connection(protocol, address.path)
        else:
            _, connection = await self._loop.create_connection(
                protocol,
                address.host,
                address.port,
                ssl=self._ssl,
                server_hostname=address.certified if self._ssl else None,
            )
        opened: RpcConnection = connection
        return opened

    def _fail_waiting(self, error: BacklineError) -> None:
        waiting, self._waiting = tuple(self._waiting), {}
        for call in waiting:
            call.queue = None
        for call in waiting:
            if not call.closed:  # the end of another call may have abandoned this one
                call.fail(error)


def timeout_field(seconds: float) -> bytes:
    """Returns the value of a grpc-timeout field for `seconds`, rounded up to two significant digits, so that
    few different values occur.
    """
    milliseconds = max(math.ceil(seconds * 1000), 1)
    step = 10 ** max(len(str(milliseconds)) - 2, 0)
    return b"%dm" % (-(-milliseconds // step) * step)
