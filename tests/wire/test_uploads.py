"""Large bodies that arrive fast wait for each other, so that all of them together take little memory."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from backline.wire import uploads
from backline.wire.http2 import frames
from backline.wire.http2.frames import OUR_STREAM_WINDOW
from backline.wire.limits import MIB, Limits
from backline.wire.uploads import FREE, LEAST_RATE, Uploads
from wire.conftest import WireServer, read_answer
from wire.grpc.test_grpc_refusals import prefixed
from wire.http2.served import FrameClient, Served, serve
from wire.test_websocket import MASK, connect, receive

Start = Callable[..., WireServer]
PING = frames.frame(frames.PING, 0, 0, b"in-order")
#: More than the kernel's buffers hold, so that a client notices that the server does not read.
LARGE = 24 * MIB


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets bodies wait however long it takes."""
    monkeypatch.setattr(uploads, "LEAST_RATE", 0)


def head(size: int, chunked: bool) -> bytes:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    return b"POST /size HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n"


def body(size: int, chunked: bool) -> bytes:
    if not chunked:
        return bytes(size)
    return b"".join(b"%x\r\n" % MIB + bytes(MIB) + b"\r\n" for _ in range(size // MIB)) + b"0\r\n\r\n"


@contextmanager
def sending(client: socket.socket, data: bytes) -> Iterator[None]:
    """Sends on a thread, since the server may not read until the block has ended."""
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive()


def begin(server: WireServer, client: socket.socket) -> None:
    """Sends the first half of a body of 4 MiB."""
    client.sendall(head(4 * MIB, chunked=False) + bytes(2 * MIB))
    server.until(lambda: server.wire.buffered_bytes >= 2 * MIB)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_bodies_wait_for_the_oldest_and_then_arrive(start: Start, patient: None, chunked: bool) -> None:
    server = start(max_receiving_bytes=2 * MIB)
    with server.connect() as first, server.connect() as one, server.connect() as other:
        begin(server, first)
        with (
            sending(one, head(LARGE, chunked) + body(LARGE, chunked)),
            sending(other, head(LARGE, chunked) + body(LARGE, chunked)),
        ):
            server.until(lambda: len(server.wire.uploads.waiting) == 2)
            # A read is at most 256 KiB; what arrived in the same turn of the loop may come on top.
            assert server.state()[2] < 2 * MIB + 2 * (FREE + 1 * MIB)
            first.sendall(bytes(2 * MIB))
            assert read_answer(first)[2] == b"%d" % (4 * MIB)
        assert read_answer(one)[2] == read_answer(other)[2] == b"%d" % LARGE
    server.until(lambda: not server.wire.connections)
    assert server.state()[2] == 0
    assert not server.wire.uploads.waiting


def test_a_body_does_not_wait_long_for_one_that_does_not_arrive(start: Start) -> None:
    server = start(max_receiving_bytes=2 * MIB)
    size = LEAST_RATE
    with server.connect() as first, server.connect() as client:
        begin(server, first)
        with sending(client, head(size, chunked=False) + bytes(size)):
            assert read_answer(client)[2] == b"%d" % size


def test_a_body_that_waits_is_not_timed_out(start: Start, patient: None) -> None:
    server = start(max_receiving_bytes=2 * MIB, progress_timeout=0.5)
    with server.connect() as first, server.connect() as client:
        begin(server, first)
        with sending(client, head(LARGE, chunked=False) + bytes(LARGE)):
            server.until(lambda: bool(server.wire.uploads.waiting))
            until = time.monotonic() + 1.2
            while time.monotonic() < until:
                first.sendall(bytes(100))  # the first body makes progress
                time.sleep(0.05)  # a slow client
            first.close()
            assert read_answer(client)[2] == b"%d" % LARGE


def test_a_large_websocket_message_waits_too(start: Start, patient: None) -> None:
    server = start(max_receiving_bytes=2 * MIB)
    size = 12 * MIB
    message = bytes((0x82, 0xFF)) + size.to_bytes(8, "big") + MASK + MASK * (size // 4)  # zeros
    with server.connect() as first, connect(server) as client:
        begin(server, first)
        with sending(client, message):
            server.until(lambda: len(server.wire.uploads.waiting) == 1)
            assert server.state()[2] < 2 * MIB + FREE + 1 * MIB
            first.sendall(bytes(2 * MIB))
            assert read_answer(first)[2] == b"%d" % (4 * MIB)
        assert receive(client) == (2, bytes(size))


def test_small_bodies_never_wait(start: Start, patient: None) -> None:
    server = start(max_receiving_bytes=2 * MIB)
    with server.connect() as first, server.connect() as client:
        begin(server, first)
        client.sendall(head(FREE, chunked=False) + bytes(FREE))
        assert read_answer(client)[2] == b"%d" % FREE


def test_a_waiting_client_that_leaves_is_forgotten(start: Start, patient: None) -> None:
    server = start(max_receiving_bytes=2 * MIB)
    with server.connect() as first:
        begin(server, first)
        with server.connect() as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.sendall(head(LARGE, chunked=False) + bytes(LARGE))
            server.until(lambda: len(server.wire.uploads.waiting) == 1)
        first.sendall(bytes(2 * MIB))
        assert read_answer(first)[2] == b"%d" % (4 * MIB)
        server.until(lambda: not server.wire.uploads.waiting and len(server.wire.connections) == 1)


def granted(client: FrameClient, stream: int) -> int:
    """The bytes granted to a stream before the server responds to a PING."""
    client.write(PING)
    total = 0
    while (frame := client.read_frame()) is not None and frame.kind != frames.PING:
        if frame.kind == frames.WINDOW_UPDATE and frame.stream == stream:
            total += int.from_bytes(frame.payload, "big")
    return total


@contextmanager
def occupied() -> Iterator[tuple[Served, FrameClient]]:
    """A server that receives a message of 4 MiB, and the client that sends it."""
    with serve(Limits(max_receiving_bytes=2 * MIB)) as served, FrameClient(served.port) as first:
        first.call(1, "/test.Test/Echo", prefixed(b"begun", size=4 * MIB), end=False)
        assert granted(first, 1) == 4 * MIB + 5 - OUR_STREAM_WINDOW
        yield served, first


@pytest.mark.parametrize("method", ["/test.Test/Echo", "/test.Test/Sum"])
def test_an_announced_message_is_granted_its_window_in_its_turn(patient: None, method: str) -> None:
    with occupied() as (served, first), FrameClient(served.port) as client:
        client.call(1, method, prefixed(b"begun", size=8 * MIB), end=False)
        assert granted(client, 1) == 0
        first.socket.close()
        update = client.until(frames.WINDOW_UPDATE, 1)
        assert int.from_bytes(update.payload, "big") > 6 * MIB


def test_a_body_of_unknown_size_is_granted_further_windows_in_its_turn(patient: None) -> None:
    half = [frames.frame(frames.DATA, 0, 1, bytes(16 * 1024))] * 40
    with occupied() as (served, first), FrameClient(served.port) as client:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        block = client.encoder.encode(fields)
        client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block) + b"".join(half))
        assert granted(client, 1) == 0
        first.socket.close()
        update = client.until(frames.WINDOW_UPDATE, 1)
        assert int.from_bytes(update.payload, "big") == 40 * 16 * 1024


#: SETTINGS of a client that reads no response.
SHUT = {frames.INITIAL_WINDOW_SIZE: 0}


def test_a_refused_body_leaves_the_line_before_its_response_is_read(patient: None) -> None:
    limits = Limits(max_receiving_bytes=2 * MIB, max_body_size=4 * MIB)
    piece = frames.frame(frames.DATA, 0, 1, bytes(16 * 1024))
    with (
        serve(limits) as served,
        FrameClient(served.port, SHUT) as refused,
        FrameClient(served.port) as other,
    ):
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        block = refused.encoder.encode(fields)
        refused.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block) + piece * 257)
        refused.until(frames.HEADERS, 1)
        assert refused.fields[":status"] == "413"
        assert served.run(lambda: served.wire.buffered_bytes) < 1024
        other.call(1, "/test.Test/Echo", prefixed(b"begun", size=4 * MIB), end=False)
        assert granted(other, 1) == 4 * MIB + 5 - OUR_STREAM_WINDOW


def test_the_message_of_a_stream_that_ended_leaves_the_line_before_the_end_is_read(patient: None) -> None:
    limits = Limits(max_receiving_bytes=2 * MIB, max_body_size=4 * MIB)
    with serve(limits) as served, FrameClient(served.port, SHUT) as ended, FrameClient(served.port) as other:
        ended.call(1, "/test.Test/Each", prefixed(b"unread"), end=False)
        served.wait_until(lambda: served.wire.held_answer_bytes > 0)
        ended.write(frames.frame(frames.DATA, 0, 1, prefixed(b"begun", size=4 * MIB)))
        assert granted(ended, 1) > 2 * MIB
        other.call(1, "/test.Test/Echo", prefixed(b"begun", size=4 * MIB), end=False)
        assert granted(other, 1) == 0
        ended.write(frames.frame(frames.DATA, frames.END_STREAM, 1, b"cut"))
        update = other.until(frames.WINDOW_UPDATE, 1)
        assert int.from_bytes(update.payload, "big") == 4 * MIB + 5 - OUR_STREAM_WINDOW


class Body:
    """An upload that asks for all it needs."""

    def __init__(self, line: Uploads, size: int) -> None:
        self.line, self.size, self.room = line, size, 0
        self.proceed()

    def proceed(self) -> None:
        self.room = self.line.room(self, self.size)


def test_room_goes_to_bodies_in_the_order_in_which_they_came(patient: None) -> None:
    async def scenario() -> None:
        line = Uploads(10 * MIB, asyncio.get_running_loop())
        first, second = Body(line, 30 * MIB), Body(line, 8 * MIB)
        third, fourth = Body(line, 4 * MIB), Body(line, 7 * MIB)
        assert [one.room for one in (first, second, third, fourth)] == [30 * MIB, 0, 0, 0]
        line.ended(first)
        await asyncio.sleep(0)
        assert [one.room for one in (second, third, fourth)] == [8 * MIB, 0, 0]
        line.ended(third)
        line.ended(second)
        await asyncio.sleep(0)
        assert fourth.room == 7 * MIB
        line.ended(fourth)
        assert Body(line, 10 * MIB).room == 10 * MIB

    asyncio.run(scenario())


def test_a_body_that_waits_gains_room_at_the_least_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(uploads, "monotonic", lambda: now)

    async def scenario() -> None:
        nonlocal now
        line = Uploads(10 * MIB, asyncio.get_running_loop())
        Body(line, 30 * MIB)
        second = Body(line, 6 * MIB)
        for seconds, room in ((0.5, LEAST_RATE // 2), (1.0, LEAST_RATE), (9.0, 6 * MIB)):
            now = 100.0 + seconds
            second.proceed()
            assert second.room == room
        assert second not in line.waiting

    asyncio.run(scenario())
