"""HTTP/2 header fields that cost a client one byte each, held by the server as long as the client likes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import hpack
import psutil
import pytest

from conformance.h2probe import PREFACE
from support import models
from support.server import ServerProcess, serve

CONNECTIONS = 20
STREAMS = 100
SETTINGS, HEADERS = 4, 1
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4
#: What a stream with an unread response takes, in bytes; measured: about 3 KiB.
PER_STREAM = 6 * 1024
#: A reference to the newest entry of the dynamic table.
REFERENCE = b"\xbe"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("bomb")
    models.add1(folder / "models")
    with serve(folder / "models", folder / "log", "--max-peer-share", "1") as running:
        yield running


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def bomb(field: str) -> bytes:
    """A field of 3,900 bytes, then requests that refer to it 15 times; no response may be sent."""
    encoder = hpack.Encoder()
    plain = [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "localhost")]
    data = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    data += frame(HEADERS, END_HEADERS | END_STREAM, 1, encoder.encode([*plain, (field, "c" * 3900)]))
    for number in range(3, 2 * STREAMS + 1, 2):
        # A literal field makes each block different, so that no head is shared.
        literal = b"\x00\x01n" + bytes([len(str(number))]) + str(number).encode()
        block = encoder.encode(plain) + REFERENCE * 15 + literal
        data += frame(HEADERS, END_HEADERS | END_STREAM, number, block)
    return data


def read_frames(connection: socket.socket, count: int) -> None:
    """Waits for the response headers of this many streams."""
    received = b""
    seen = 0
    while seen < count:
        piece = connection.recv(65536)
        assert piece, "the server closed the connection"
        received += piece
        while len(received) >= 9:
            length = int.from_bytes(received[:3], "big")
            if len(received) < 9 + length:
                break
            seen += received[3] == HEADERS
            received = received[9 + length :]


@pytest.mark.parametrize("field", ["cookie", "x-any"])
def test_references_to_one_long_field_take_no_more_memory_than_plain_requests(
    served: ServerProcess, field: str
) -> None:
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    data = bomb(field)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.http_port), timeout=30))
            for _ in range(CONNECTIONS)
        ]
        for connection in connections:
            connection.sendall(data)
        for connection in connections:
            read_frames(connection, STREAMS)
        assert process.memory_info().rss - before < CONNECTIONS * STREAMS * PER_STREAM + (8 << 20)
