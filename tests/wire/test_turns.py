"""Clients that send more than one turn of the event loop handles."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from msgspec.structs import force_setattr

from backline.wire.application import HttpRequest
from backline.wire.body import GrowingBuffer
from backline.wire.http1.connection import Http1Connection
from backline.wire.http2 import frames
from backline.wire.http2.connection import Http2Connection
from backline.wire.limits import Limits
from backline.wire.turns import SECONDS_PER_ROUND, Turns
from wire.conftest import WireServer, read_answer, wire_server
from wire.http2.served import FrameClient, Served, serve

KIB = 1024
MIB = 1024 * KIB


def wait_for_body(server: WireServer) -> Http1Connection:
    """The server's only connection, once it is receiving a body."""

    def receiving() -> bool:
        connection = next(iter(server.wire.connections), None)
        return isinstance(connection, Http1Connection) and connection.receiver.in_body

    server.until(receiving)
    connection = next(iter(server.wire.connections))
    assert isinstance(connection, Http1Connection)
    return connection


def on_loop(server: WireServer, function: Callable[[], object]) -> object:
    async def call() -> object:
        return function()

    return server.wait(call())


def test_chunked_upload_pauses_after_a_large_read(start: Callable[..., WireServer]) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(b"POST /size HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        connection = wait_for_body(server)

        def receive() -> bool:
            connection.data_received(b"10000\r\n" + bytes(64 * KIB) + b"\r\n")
            return connection.transport.is_reading()

        assert on_loop(server, receive) is False
        server.until(connection.transport.is_reading)
        client.sendall(b"0\r\n\r\n")
        assert read_answer(client)[2] == b"65536"


def test_reads_of_a_large_body_are_limited_and_followed_by_a_pause(start: Callable[..., WireServer]) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(b"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n")
        connection = wait_for_body(server)

        def fill() -> bool:
            large = connection.receiver.large
            assert large is not None
            room = large.get_buffer(-1)
            assert len(room) <= 256 * KIB
            large.buffer_updated(len(room))
            return connection.transport.is_reading()

        assert on_loop(server, fill) is False
        server.until(connection.transport.is_reading)
        client.sendall(bytes(4_000_000 - 256 * KIB))
        assert read_answer(client)[2] == b"4000000"


def test_only_the_beginning_of_the_next_large_body_is_copied(start: Callable[..., WireServer]) -> None:
    server = start()
    copied: list[int] = []
    with server.connect() as client:
        post(client, "/echo", b"a" * 600_000)
        connection = next(iter(server.wire.connections))
        assert isinstance(connection, Http1Connection)
        receive = connection.data_received

        def count(data: bytes) -> None:
            copied.append(len(data))
            receive(data)

        connection.data_received = count  # type: ignore[method-assign]
        post(client, "/echo", b"b" * 600_000)
        post(client, "/echo", b"c" * 600_000)
    assert 0 < sum(copied) <= 2 * 32 * KIB


def test_a_full_read_without_a_large_body_is_followed_by_longer_reads(
    start: Callable[..., WireServer],
) -> None:
    server = start()
    with server.connect() as client:
        post(client, "/echo", bytes(600_000))
        connection = next(iter(server.wire.connections))
        assert isinstance(connection, Http1Connection)
        requests = b"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + bytes(1000)
        requests *= 40

        def fill() -> int:
            reader = connection.transport.get_protocol()
            assert isinstance(reader, asyncio.BufferedProtocol)
            room = reader.get_buffer(-1)
            room[:] = requests[: len(room)]
            reader.buffer_updated(len(room))
            assert connection.transport.get_protocol() is connection
            return len(room)

        size = on_loop(server, fill)
        assert isinstance(size, int)
        client.sendall(requests[size:])
        assert [read_answer(client)[2] for _ in range(40)] == [b"1000"] * 40


def post(client: socket.socket, path: str, body: bytes) -> None:
    client.sendall(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body
    )
    assert read_answer(client)[2] == body


def test_http2_upload_pauses_after_a_large_read() -> None:
    with serve() as served, FrameClient(served.port) as client:
        client.request(1, "/hold")
        assert served.handlers.arrived.wait(5)

        def receive() -> bool:
            connection = next(iter(served.wire.connections))
            # Frames of an unknown type are read and dropped.
            connection.data_received(frames.frame(77, 0, 0, bytes(16 * KIB)) * 4)
            return connection.transport.is_reading()  # type: ignore[attr-defined,no-any-return]

        assert served.run(receive) is False
        client.write(frames.frame(frames.PING, 0, 0, bytes(8)))
        client.until(frames.PING)


def test_client_that_sends_on_after_a_refusal_pauses_too(start: Callable[..., WireServer]) -> None:
    server = start(max_header_size=8 * KIB)
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + bytes(9 * KIB).replace(b"\0", b"y"))
        assert read_answer(client)[0] == 431
        connection = next(iter(server.wire.connections))
        assert isinstance(connection, Http1Connection)

        def drop() -> bool:
            connection.data_received(bytes(64 * KIB))
            return connection.transport.is_reading()

        assert on_loop(server, drop) is False
        server.until(connection.transport.is_reading)


def test_http2_client_that_sends_on_after_the_end_pauses_too() -> None:
    with serve() as served, FrameClient(served.port) as client:
        client.write(frames.frame(frames.PING, 0, 1, bytes(8)))
        assert client.goaway() == frames.PROTOCOL_ERROR

        def drop() -> bool:
            connection = next(iter(served.wire.connections))
            connection.data_received(bytes(64 * KIB))
            return connection.transport.is_reading()  # type: ignore[attr-defined,no-any-return]

        assert served.run(drop) is False


def test_pipelined_requests_in_one_packet_are_spread_over_turns() -> None:
    """Of a hundred requests in one packet, a few are handled before other clients get their turn."""
    order: list[bytes] = []
    hold, holding = threading.Event(), threading.Event()
    with wire_server("uvloop", Limits()) as server:
        respond = server.echo.http

        def slow(request: object) -> None:
            order.append(request.path)  # type: ignore[attr-defined]
            time.sleep(0.002)
            respond(request)  # type: ignore[arg-type]

        force_setattr(server.wire.application, "http", slow)
        with server.connect() as greedy, server.connect() as modest:
            server.until(lambda: len(server.wire.connections) == 2)
            server.loop.call_soon_threadsafe(lambda: (holding.set(), hold.wait(10)))
            assert holding.wait(10)
            greedy.sendall(b"GET /empty HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
            modest.sendall(b"GET /dump HTTP/1.1\r\nhost: x\r\n\r\n")
            hold.set()
            assert read_answer(modest)[0] == 200
            server.until(lambda: len(order) == 101)
    assert order.index(b"/dump") < 20


def ready_connections(served: Served) -> list[Http2Connection]:
    """The server's connections whose preface has arrived."""
    connections = [
        connection for connection in served.wire.connections if isinstance(connection, Http2Connection)
    ]
    return [connection for connection in connections if connection.reader.preface_done]


def test_connections_share_the_round_in_which_they_receive_bytes() -> None:
    """If one connection has used up the round, the others only begin to handle what they have received."""
    busy = Limits().seconds_per_turn + SECONDS_PER_ROUND
    seen = 0

    def handle(request: HttpRequest) -> None:
        nonlocal seen
        seen += 1
        if seen == 10:
            time.sleep(busy)
        request.respond(200, [(b"content-type", b"text/plain")], [b"x"])

    # Without the round, a turn would only end after 256 frames.
    with serve(Limits(seconds_per_turn=60.0)) as served, ExitStack() as stack:
        force_setattr(served.wire.application, "http", handle)
        clients = [stack.enter_context(FrameClient(served.port)) for _ in range(5)]
        served.wait_until(lambda: len(ready_connections(served)) == 5)
        block = clients[0].encoder.encode(
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        )
        flags = frames.END_HEADERS | frames.END_STREAM
        requests = b"".join(frames.frame(frames.HEADERS, flags, 2 * n + 1, block) for n in range(100))

        def receive() -> int:
            for connection in ready_connections(served):
                connection.data_received(requests)
            return seen

        assert served.run(receive) < 10 + 4 * 8
        served.wait_until(lambda: seen == 500)


def test_turns_of_a_round_end_together_and_the_next_round_has_its_own_time() -> None:
    async def scenario() -> None:
        turns = Turns(asyncio.get_running_loop(), 0.001)
        assert turns.turn_ends(10.0) == 10.001
        assert turns.turn_ends(10.0045) == 10.0 + SECONDS_PER_ROUND
        assert turns.turn_ends(11.0) == 10.0 + SECONDS_PER_ROUND
        await asyncio.sleep(0)
        assert turns.turn_ends(12.0) == 12.001

    asyncio.run(scenario())


class Taker:
    """A connection that counts its turns, and fails in each of them if `broken`."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.turns = 0
        self.aborted = False

    def take_turn(self) -> bool:
        self.turns += 1
        if self.broken:
            raise RuntimeError("broken on purpose")
        return False

    def abort(self) -> None:
        self.aborted = True


def test_a_connection_whose_turn_fails_is_closed_and_the_others_get_their_turns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        turns = Turns(asyncio.get_running_loop(), 0.001)
        broken, sound = Taker(broken=True), Taker()
        for expected in (1, 2):
            turns.wait(broken)
            turns.wait(sound)
            await asyncio.sleep(0)
            assert sound.turns == expected
        assert broken.aborted

    asyncio.run(scenario())
    assert "broken on purpose" in caplog.text


@pytest.mark.parametrize(
    "sizes", [[1], [64 * KIB], [64 * KIB, 1], [100] * 3000, [3 * MIB], [70_000, 4 * MIB]]
)
def test_growing_buffer_keeps_bytes_in_order(sizes: list[int]) -> None:
    buffer = GrowingBuffer()
    for number, size in enumerate(sizes):
        buffer.append(bytes((number % 251,)) * size)
    assert buffer.size == sum(sizes)
    expected = b"".join(bytes((number % 251,)) * size for number, size in enumerate(sizes))
    assert bytes(buffer.take()) == expected
