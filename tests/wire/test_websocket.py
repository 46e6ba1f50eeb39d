"""WebSocket over a real socket: the handshake, frames, limits and backpressure."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.wire.http1.connection import Http1Connection
from backline.wire.websocket.frames import MessageReader, Opcode, Received, accept_key
from wire.conftest import WireServer, read_all, read_answer

MASK = b"\x11\x22\x33\x44"
#: The example in RFC 6455, section 1.3.
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", "s3pplmbitxaq9kygzzhzrbk+xoo="
HANDSHAKE = (
    b"GET /socket%b HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n%b\r\n"
)


def sent(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True) -> bytes:
    """A frame of a client."""
    size = len(payload)
    head = bytes((opcode | 0x80 * final,))
    mask_bit = 0x80 * masked
    if size < 126:
        head += bytes((mask_bit | size,))
    elif size < 1 << 16:
        head += bytes((mask_bit | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((mask_bit | 127,)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))


def connect(server: WireServer, query: bytes = b"", fields: bytes = b"") -> socket.socket:
    client = server.connect()
    client.sendall(HANDSHAKE % (query, fields))
    status, told, _ = read_answer(client)
    assert (status, told["sec-websocket-accept"]) == (101, ACCEPT)
    return client


def receive(client: socket.socket) -> tuple[int, bytes]:
    """The opcode and payload of the next frame of the server."""

    def read(size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = client.recv(size - len(found))
            assert part, "closed within a frame"
            found += part
        return found

    first, size = read(2)
    if size > 125:
        size = int.from_bytes(read(2 if size == 126 else 8), "big")
    return first & 0x0F, read(size)


def fill(client: socket.socket) -> None:
    """Sends messages until the server no longer reads them."""
    client.settimeout(1)
    many = sent(2, bytes(100_000)) * 1000
    with pytest.raises(TimeoutError):
        client.sendall(many)


def test_the_key_of_a_handshake_is_answered_as_the_rfc_says() -> None:
    fields = {b"sec-websocket-key": KEY, b"sec-websocket-version": b"13"}
    assert (accept_key(fields) or b"").lower() == ACCEPT.encode()
    assert accept_key({**fields, b"sec-websocket-version": b"8"}) is None
    assert accept_key({**fields, b"sec-websocket-key": b"short"}) is None
    assert accept_key({}) is None


def test_messages_are_echoed_whole_however_they_arrive(start: Callable[..., WireServer]) -> None:
    server = start()
    with connect(server) as client:
        for opcode, payload in ((1, "ä text".encode()), (2, bytes(70_000)), (2, b""), (1, b"x" * 300)):
            client.sendall(sent(opcode, payload))
            assert receive(client) == (opcode, payload)
        parts = sent(1, b"one ", final=False) + sent(9, b"still there?") + sent(0, b"message")
        for byte in parts:
            client.sendall(bytes((byte,)))
        assert receive(client) == (Opcode.PONG, b"still there?")
        assert receive(client) == (1, b"one message")
        client.sendall(sent(8, b"\x03\xe8bye"))
        assert receive(client) == (Opcode.CLOSE, b"\x03\xe8")
        assert client.recv(1) == b""
    server.until(lambda: not server.wire.streams and not server.wire.connections)
    assert server.state() == (0, 0, 0)
    assert server.echo.lost.acquire(timeout=10)


def test_a_subprotocol_is_chosen(start: Callable[..., WireServer]) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(HANDSHAKE % (b"", b"Sec-WebSocket-Protocol: other, echo\r\n"))
        assert read_answer(client)[1]["sec-websocket-protocol"] == "echo"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (sent(1, b"plain", masked=False), 1002),
        (bytes((0xC1, 0x80)) + MASK, 1002),
        (sent(3, b""), 1002),
        (sent(0, b"no start"), 1002),
        (sent(1, b"a", final=False) + sent(1, b"b"), 1002),
        (sent(9, b"", final=False), 1002),
        (sent(9, b"x" * 126), 1002),
        (sent(1, b"\xff\xfe"), 1007),
        (sent(2, b"x" * 1001), 1009),
        (sent(2, b"x" * 600, final=False) + sent(0, b"x" * 600), 1009),
        (bytes((0x82, 0xFF)) + (1 << 62).to_bytes(8, "big") + MASK, 1009),
        (sent(9, b"") * 1001, 1008),
        (sent(1, b"", final=False) + sent(0, b"", final=False) * 12_000, 1008),
    ],
    ids=[
        "not-masked", "reserved-bit", "unknown-opcode", "continues-nothing", "message-in-message",
        "fragmented-ping", "long-ping", "not-utf8", "too-big", "too-big-in-parts", "huge", "many-pings",
        "many-fragments",
    ],
)  # fmt: skip
def test_a_client_that_breaks_a_rule_is_told_which(
    start: Callable[..., WireServer], frames: bytes, code: int
) -> None:
    with connect(start(max_body_size=1000)) as client:
        client.sendall(frames)
        opcode, payload = receive(client)
        while opcode == Opcode.PONG:
            opcode, payload = receive(client)
        assert (opcode, int.from_bytes(payload[:2], "big")) == (Opcode.CLOSE, code)
        assert read_all(client) == b""


def test_without_a_valid_handshake_the_application_answers_as_usual(start: Callable[..., WireServer]) -> None:
    server = start()
    for wrong in (
        HANDSHAKE.replace(b"13", b"7"),
        HANDSHAKE.replace(KEY, b"none"),
        b"GET /socket%b HTTP/1.1\r\nHost: a\r\n%b\r\n",
    ):
        with server.connect() as client:
            client.sendall(wrong % (b"", b""))
            assert read_answer(client)[0] == 426


def test_a_handshake_with_a_body_or_a_method_other_than_get_is_refused(
    start: Callable[..., WireServer],
) -> None:
    server = start()
    for wrong in (
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b"%b\r\n", b"Content-Length: 3\r\n%b\r\nabc"),
        HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ):
        assert server.send(wrong % (b"", b"")).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("frames", "answers"),
    [
        (sent(1, b"") * 20_000, b"\x81\x00" * 20_000),
        (b"".join(sent(1, b"xxxxxx", final=False) if not n else sent(0, b"xxxxxx", final=n == 20_000)
                  for n in range(20_001)), b"\x81\x7f" + (120_006).to_bytes(8, "big") + b"x" * 120_006),
    ],
    ids=["messages", "fragments"],
)  # fmt: skip
def test_small_frames_are_handled_in_turns(
    start: Callable[..., WireServer], frames: bytes, answers: bytes
) -> None:
    server = start()
    with connect(server) as client:
        connection = next(iter(server.wire.connections))
        assert isinstance(connection, Http1Connection)
        server.until(lambda: connection.websocket is not None)
        websocket = connection.websocket
        assert websocket is not None

        async def receive() -> int:
            websocket.data_received(frames)
            assert not connection.transport.is_reading()
            for _ in range(3):
                await asyncio.sleep(0)
            return websocket._reader.held

        assert server.wait(receive()) > 0
        received = b""
        while len(received) < len(answers):
            received += client.recv(1 << 16)
        assert received == answers
        server.until(connection.transport.is_reading)


def test_streams_are_limited(start: Callable[..., WireServer]) -> None:
    server = start(max_streams=1, max_peer_share=1.0)
    with connect(server), server.connect() as second:
        second.sendall(HANDSHAKE % (b"", b""))
        assert read_answer(second)[0] == 500  # the stand-in application does not handle the refusal
    server.until(lambda: not server.wire.streams)


def test_the_server_reads_no_more_than_the_application_takes(start: Callable[..., WireServer]) -> None:
    server = start()
    with connect(server, b"?deaf") as client:
        fill(client)
        assert 0 < server.state()[2] < 2_000_000
        # What the client has not sent yet would delay its FIN for as long as the server does not read.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.until(lambda: not server.wire.connections)
    assert server.state()[2] == 0


def test_an_application_waits_for_a_client_that_does_not_read(start: Callable[..., WireServer]) -> None:
    server = start(max_unsent_bytes=100_000)
    with connect(server) as client:
        fill(client)
        assert server.state()[2] < 3_000_000
    server.until(lambda: not server.wire.connections and server.wire.buffered_bytes == 0)


def test_a_message_that_does_not_arrive_in_time_ends_the_connection(start: Callable[..., WireServer]) -> None:
    with connect(start(progress_timeout=0.2)) as client:
        client.sendall(sent(1, b"whole"))
        assert receive(client) == (1, b"whole")
        client.sendall(sent(1, b"half of it")[:8])
        began = time.monotonic()
        assert int.from_bytes(receive(client)[1][:2], "big") == 1008
        assert time.monotonic() - began < 10


def test_a_stopping_server_ends_connections_after_the_message_at_hand(
    start: Callable[..., WireServer],
) -> None:
    server = start()
    with connect(server) as client:
        client.sendall(sent(1, b"hello"))
        assert receive(client) == (1, b"hello")
        server.loop.call_soon_threadsafe(lambda: [one.drain() for one in server.wire.connections])
        assert receive(client) == (Opcode.CLOSE, b"\x03\xe9")
        client.sendall(sent(8, b"\x03\xe9"))
        assert client.recv(1) == b""


def test_a_stopping_server_ends_connections_whose_handshake_was_under_way(
    start: Callable[..., WireServer],
) -> None:
    server = start()
    with server.connect(5) as client:
        handshake = HANDSHAKE % (b"", b"")
        client.sendall(handshake[:60])
        server.until(lambda: any(getattr(one, "receiver", None) for one in server.wire.connections))
        server.loop.call_soon_threadsafe(lambda: [one.drain() for one in server.wire.connections])
        client.sendall(handshake[60:])
        assert read_answer(client)[0] == 101
        assert receive(client) == (Opcode.CLOSE, b"\x03\xe9")
        client.sendall(sent(8, b"\x03\xe9"))
        assert client.recv(1) == b""


@given(
    st.lists(st.tuples(st.sampled_from((1, 2, 9)), st.text(max_size=200)), max_size=8),
    st.integers(1, 300),
)
def test_frames_are_read_alike_however_they_are_cut(messages: list[tuple[int, str]], size: int) -> None:
    data = b"".join(sent(opcode, text.encode()[: 120 if opcode == 9 else None]) for opcode, text in messages)
    reader, found = MessageReader(lambda size: None), []
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
        while (one := reader.next()) is not None:
            found.append(one)
    assert found == [
        Received(Opcode(opcode), text.encode()[: 120 if opcode == 9 else None]) for opcode, text in messages
    ]
    assert not reader.within
