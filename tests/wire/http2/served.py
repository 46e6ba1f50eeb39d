"""An HTTP/2 server in a thread of the test process, and a client that writes single frames."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from struct import unpack
from typing import Any, cast

import uvloop
from hpack import Decoder, Encoder

from backline.wire.application import (
    Application,
    Buffer,
    HttpRequest,
    StreamCall,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)
from backline.wire.connection import Wire
from backline.wire.http2 import frames
from backline.wire.http2.connection import Http2Connection
from backline.wire.limits import Limits
from support.open_gate import OpenGate

TIMEOUT = 5.0
_unary = partial(UnaryMethod, scope="infer")
_stream = partial(StreamMethod, scope="infer")


@dataclass
class Handlers:
    """A test application, and what it received."""

    held: list[UnaryCall] = field(default_factory=list)
    held_http: list[HttpRequest] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    def application(self) -> Application:
        rpc: dict[bytes, UnaryMethod | StreamMethod] = {
            b"/test.Test/Echo": _unary(lambda call, message: call.reply(message)),
            b"/test.Test/Halves": _unary(
                lambda call, message: call.reply(
                    memoryview(message)[: len(message) // 2], memoryview(message)[len(message) // 2 :]
                )
            ),
            b"/test.Test/Hold": _unary(self.hold),
            b"/test.Test/Fail": _unary(
                lambda call, message: call.fail(9, "ä % fault", [(b"grpc-status-details-bin", b"AAEC")])
            ),
            b"/test.Test/Broken": _unary(self.broken),
            b"/test.Test/Metadata": _unary(
                lambda call, message: call.reply(repr(sorted(call.metadata.items())).encode())
            ),
            b"/test.Test/Each": _stream(self.each),
            b"/test.Test/Sum": _stream(self.sum),
            b"/test.Test/Count": _stream(self.count),
            b"/test.Test/Endless": _stream(self.endless),
            b"/test.Test/Deaf": _stream(self.deaf),
            b"/test.Test/Ticks": _stream(self.ticks),
        }
        return Application(
            self.http,
            rpc,
            lambda status, message: (b"text/plain", f"{status} {message}".encode()),
            OpenGate(),
        )

    def http(self, request: HttpRequest) -> None:
        if request.path == b"/hold":
            request.on_abandon = self.cancelled.set
            self.held_http.append(request)
            self.arrived.set()
        elif request.path == b"/broken":
            raise ValueError("broken on purpose")
        elif request.path == b"/large":
            request.respond(
                200,
                [(b"content-type", b"application/octet-stream")],
                [bytes(int(request.query))],
                compressible=True,
            )
        elif request.path == b"/events":
            request.count_as_stream()
            self.task = asyncio.get_running_loop().create_task(self.events(request))
        elif request.path == b"/stream":
            self.task = asyncio.get_running_loop().create_task(self.stream(request, int(request.query)))
        else:
            request.respond(
                200,
                [(b"content-type", b"text/plain"), (b"connection", b"close")],
                [bytes(request.body) or b"hello world\n"],
            )

    async def stream(self, request: HttpRequest, chunks: int) -> None:
        body = request.stream(200, [(b"content-type", b"text/plain")])
        try:
            for _ in range(chunks):
                await body.send(b"x" * 50_000)
                self.sent += 50_000
        except ConnectionResetError:
            self.cancelled.set()
            return
        body.close()

    async def events(self, request: HttpRequest) -> None:
        """Sends events until the client disconnects."""
        body = request.stream(200, [(b"content-type", b"text/plain")])
        try:
            while True:
                await body.send(b"event")
                self.arrived.set()
                await asyncio.sleep(0.01)
        except ConnectionResetError:
            self.cancelled.set()

    def hold(self, call: UnaryCall, message: Buffer) -> None:
        call.on_abandon = self.cancelled.set
        self.held.append(call)
        self.arrived.set()

    def broken(self, call: UnaryCall, message: Buffer) -> None:
        raise ValueError("broken on purpose")

    async def each(self, call: StreamCall) -> None:
        while (message := await call.receive()) is not None:
            await call.send(message)

    async def sum(self, call: StreamCall) -> None:
        total = 0
        while (message := await call.receive()) is not None:
            total += len(message)
        await call.send(b"%d" % total)

    async def ticks(self, call: StreamCall) -> None:
        """Sends the maximum number of messages received between two iterations of the event loop."""
        loop = asyncio.get_running_loop()
        received = most = 0

        def tick() -> None:
            nonlocal received, timer
            received = 0
            timer = loop.call_soon(tick)

        timer = loop.call_soon(tick)
        while await call.receive() is not None:
            received += 1
            most = max(most, received)
        timer.cancel()
        await call.send(b"%d" % most)

    async def count(self, call: StreamCall) -> None:
        message = await call.receive()
        assert message is not None
        for number in range(int(bytes(message))):
            await call.send(b"%d" % number)

    async def endless(self, call: StreamCall) -> None:
        try:
            while True:
                await call.send(bytes(100_000))
                self.sent += 100_000
                self.arrived.set()
        finally:
            self.cancelled.set()

    async def deaf(self, call: StreamCall) -> None:
        self.arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


class _Accepted(asyncio.Protocol):
    """Attaches a new transport to an HTTP/2 connection without sniffing."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        connected = cast(asyncio.Transport, transport)
        connection = Http2Connection(self.wire)
        connected.set_protocol(connection)
        connection.attach(connected, b"")


class Served:
    """A running server: its port, its wire, and access to its event loop."""

    def __init__(self, limits: Limits, sweep_interval: float) -> None:
        self.handlers = Handlers()
        self._limits = limits
        self._sweep_interval = sweep_interval
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(TIMEOUT)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.wire = Wire(self.handlers.application(), self._limits, self.loop)
        server = await self.loop.create_server(lambda: _Accepted(self.wire), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), self._sweep_interval)
            except TimeoutError:
                for connection in list(self.wire.connections):
                    connection.sweep(time.monotonic())
        server.close()
        for connection in list(self.wire.connections):
            connection.abort()

    def run(self, function: Callable[[], Any]) -> Any:
        """Runs a function on the server's loop."""
        done: Any = None
        finished = threading.Event()

        def call() -> None:
            nonlocal done
            done = function()
            finished.set()

        self.loop.call_soon_threadsafe(call)
        assert finished.wait(TIMEOUT)
        return done

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition, evaluated on the server's loop, holds."""
        deadline = time.monotonic() + TIMEOUT
        while not self.run(condition):
            assert time.monotonic() < deadline, "the server did not come to the expected state"

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT)


@contextmanager
def serve(limits: Limits | None = None, sweep_interval: float = 0.05) -> Iterator[Served]:
    served = Served(limits or Limits(), sweep_interval)
    try:
        yield served
    finally:
        served.close()


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of a RST_STREAM or GOAWAY frame."""
        return int.from_bytes(
            self.payload[:4] if self.kind == frames.RST_STREAM else self.payload[4:8], "big"
        )


REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]


class FrameClient:
    """An HTTP/2 client that sends whatever a test requests, valid or not."""

    def __init__(self, port: int, settings: dict[int, int] | None = None, handshake: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self._buffer = b""
        if handshake:
            # Acknowledges the server's SETTINGS, its first frame.
            self.write(
                frames.PREFACE
                + frames.settings(settings or {})
                + frames.frame(frames.SETTINGS, frames.ACK, 0)
            )

    def __enter__(self) -> FrameClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(
        self,
        stream: int,
        path: str = "/",
        method: str = "GET",
        extra: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> None:
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "test"), *extra]
        block = self.encoder.encode(fields)
        flags = frames.END_HEADERS | (frames.END_STREAM if body is None else 0)
        data = frames.frame(frames.HEADERS, flags, stream, block)
        if body is not None:
            data += frames.frame(frames.DATA, frames.END_STREAM, stream, body)
        self.write(data)

    def call(
        self,
        stream: int,
        method: str,
        body: bytes | None,
        extra: tuple[tuple[str, str], ...] = (),
        end: bool = True,
    ) -> None:
        """A gRPC call whose DATA is exactly `body`; no DATA if it is None."""
        fields = (("content-type", "application/grpc"), ("te", "trailers"), *extra)
        block = self.encoder.encode(
            [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "test"), *fields]
        )
        data = frames.frame(
            frames.HEADERS,
            frames.END_HEADERS | (frames.END_STREAM if body is None and end else 0),
            stream,
            block,
        )
        if body is not None:
            data += frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream, body)
        self.write(data)

    def read_frame(self) -> Frame | None:
        """The next frame; None once the connection is closed."""
        head = self._take(9)
        if head is None:
            return None
        word, flags, stream = unpack(">IBI", head)
        payload = self._take(word >> 8)
        return None if payload is None else Frame(word & 255, flags, stream, payload)

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def until(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of a type (and stream), dropping frames before it."""
        while (frame := self.read_frame()) is not None:
            if frame.kind == frames.HEADERS:
                self.fields = dict(self.decoder.decode(frame.payload))
            if frame.kind == kind and stream in (None, frame.stream):
                return frame
        raise AssertionError(f"the connection ended before a frame of type {kind}")

    def response(self, stream: int) -> tuple[dict[str, str], bytes, dict[str, str]]:
        """The fields, body and trailers of a response."""
        fields: dict[str, str] | None = None
        trailers: dict[str, str] = {}
        body = b""
        while (frame := self.read_frame()) is not None:
            if frame.kind == frames.HEADERS:
                decoded = dict(self.decoder.decode(frame.payload))
                if frame.stream == stream and fields is None:
                    fields = decoded
                elif frame.stream == stream:
                    trailers = decoded
            elif frame.stream != stream:
                continue
            elif frame.kind == frames.DATA:
                body += frame.payload
            elif frame.kind == frames.RST_STREAM:
                raise AssertionError(f"the stream was reset with {frame.code}")
            if frame.kind in (frames.DATA, frames.HEADERS) and frame.flags & frames.END_STREAM:
                return fields or {}, body, trailers
        raise AssertionError("the connection ended before the response")

    def goaway(self) -> int:
        """The error code with which the server ends the connection."""
        return self.until(frames.GOAWAY).code

    def ended(self) -> bool:
        """Reads to the end of the connection."""
        while self.read_frame() is not None:
            pass
        return True
