"""A real listener with a small application, on uvloop or asyncio, in its own thread."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import uvloop

from backline.wire.application import Application, HttpRequest, WebSocket
from backline.wire.connection import Wire
from backline.wire.limits import Limits
from backline.wire.listener import Listeners
from backline.wire.tls import TlsFiles
from support.open_gate import OpenGate

OCTETS = ((b"content-type", b"application/octet-stream"),)
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class EchoApplication:
    """Responds by path. `held` requests wait to be released; those in `lost` had their client disconnect."""

    def __init__(self) -> None:
        self.held: list[HttpRequest] = []
        self.arrived = threading.Semaphore(0)
        self.lost = threading.Semaphore(0)
        self.stream_broken = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def http(self, request: HttpRequest) -> None:
        match request.path.strip(b"/").split(b"/")[0]:
            case b"echo":
                request.respond(200, OCTETS, (request.body,), compressible=True)
            case b"later":
                asyncio.get_running_loop().call_soon(
                    request.respond, 200, OCTETS, (request.path, b"?", request.query, b":", request.body)
                )
            case b"dump":
                request.respond(
                    200,
                    ((b"content-type", b"application/json"),),
                    (json.dumps(describe(request)).encode(),),
                    compressible=True,
                )
            case b"size":
                request.respond(200, OCTETS, (b"%d" % len(request.body),))
            case b"zeros":
                half = memoryview(bytes(int(request.query) // 2))
                request.respond(200, OCTETS, (half, half), compressible=True)
            case b"ending":  # the last part is empty
                request.respond(200, OCTETS, (memoryview(bytes(int(request.query))), b""), compressible=True)
            case b"held":
                self.held.append(request)
                request.on_abandon = self.lost.release
                self.arrived.release()
            case b"stream":
                task = asyncio.get_running_loop().create_task(self._stream(request, int(request.query)))
                self._tasks.add(task)
            case b"events":
                request.count_as_stream()
                self._tasks.add(asyncio.get_running_loop().create_task(self._events(request)))
            case b"empty":
                request.respond(204, ())
            case b"socket":
                self._accept(request)
            case b"broken":
                raise ValueError("the application is broken")
            case _:
                request.respond(404, OCTETS, (b"not found",))

    async def _events(self, request: HttpRequest) -> None:
        """Sends events, large ones first, until the client disconnects."""
        stream = request.stream(200, OCTETS)
        size = int(request.query)
        with suppress(ConnectionResetError):
            while True:
                await stream.send(bytes(size))
                size = 10
                self.arrived.release()
                await asyncio.sleep(0.01)
        self.stream_broken.set()

    def _accept(self, request: HttpRequest) -> None:
        """Accepts WebSocket: echoes messages, or with the query "deaf" receives none."""
        socket = request.accept_websocket(b"echo" if b"sec-websocket-protocol" in request.headers else b"")
        if socket is None:
            request.respond(426, OCTETS, (b"no handshake",))
            return
        request.on_abandon = self.lost.release
        self.arrived.release()
        if request.query != b"deaf":
            self._tasks.add(asyncio.get_running_loop().create_task(self._echo(socket)))

    async def _echo(self, socket: WebSocket) -> None:
        with suppress(ConnectionResetError):
            while (message := await socket.receive()) is not None:
                await socket.send(message)
            socket.close()

    async def _stream(self, request: HttpRequest, chunks: int) -> None:
        stream = request.stream(200, OCTETS)
        try:
            for number in range(chunks):
                await stream.send(b"chunk %d\n" % number * 100)
        except ConnectionResetError:
            self.stream_broken.set()
        else:
            stream.close()


def describe(request: HttpRequest) -> dict[str, Any]:
    return {
        "method": request.method.decode(),
        "path": request.path.decode("latin-1"),
        "query": request.query.decode("latin-1"),
        "headers": {
            name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()
        },
        "body": bytes(request.body).decode("latin-1"),
    }


def render_error(status: int, message: str) -> tuple[bytes, bytes]:
    return b"application/json", json.dumps({"error": message}).encode()


class WireServer:
    """Listeners on an event loop in a thread."""

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop], limits: Limits, tls: TlsFiles | None = None
    ) -> None:
        self.loop = new_loop()
        self.echo = EchoApplication()
        application = Application(
            self.echo.http, {}, render_error, OpenGate(), takes_websocket=lambda path: path == b"/socket"
        )
        self.wire = Wire(application, limits, self.loop)
        self.listeners = Listeners(self.wire, tls)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self.wait(self.listeners.open_tcp("127.0.0.1", 0))

    def wait(self, coroutine: Any, timeout: float = 20) -> Any:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def state(self) -> tuple[int, int, int]:
        """The counts of connections, requests in flight and buffered bytes, read on the loop."""

        async def look() -> tuple[int, int, int]:
            return len(self.wire.connections), self.wire.requests, self.wire.buffered_bytes

        return self.wait(look())  # type: ignore[no-any-return]

    def until(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        """Runs the loop until a condition on its state holds."""

        async def turn() -> None:
            async with asyncio.timeout(timeout):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        self.wait(turn())

    def release(self, request: HttpRequest, body: bytes = b"held") -> None:
        """Responds to a held request."""
        self.loop.call_soon_threadsafe(request.respond, 200, OCTETS, (body,))

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def send(self, data: bytes) -> bytes:
        """Sends bytes on a new connection and reads until the server closes it."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)

    def close(self, drain_timeout: float = 0) -> None:
        self.wait(self.listeners.close(drain_timeout))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


def read_all(client: socket.socket) -> bytes:
    """Reads until the server closes the connection or resets it."""
    received = bytearray()
    try:
        while data := client.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response with a content-length: status, fields, body."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = client.recv(1)
        if not data:
            raise ConnectionError(f"closed after {received!r}")
        received += data
    lines = received.decode("latin-1").split("\r\n")[:-2]
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    body = b""
    while len(body) < int(fields.get("content-length", "0")):
        data = client.recv(int(fields["content-length"]) - len(body))
        if not data:
            raise ConnectionError("closed in the body")
        body += data
    return int(lines[0].split()[1]), fields, body


@contextmanager
def wire_server(loop_name: str, limits: Limits, tls: TlsFiles | None = None) -> Iterator[WireServer]:
    server = WireServer(LOOPS[loop_name], limits, tls)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(params=list(LOOPS))
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(loop_name: str) -> Iterator[Callable[..., WireServer]]:
    """Starts servers with the limits a test needs."""
    with ExitStack() as stack:
        yield lambda tls=None, **limits: stack.enter_context(wire_server(loop_name, Limits(**limits), tls))


@pytest.fixture(scope="module", params=list(LOOPS))
def echo_server(request: pytest.FixtureRequest) -> Iterator[WireServer]:
    """A server with the default limits, shared by tests."""
    with wire_server(request.param, Limits()) as server:
        yield server
