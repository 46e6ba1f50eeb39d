"""Requests that repeat the previous head skip the parser, with the same results."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

import pytest

from backline.wire.http1.receiver import Receiver

from .conftest import WireServer, read_all, read_answer

Start = Callable[..., WireServer]


def post(path: bytes, body: bytes, *fields: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path,
        b"".join(f + b"\r\n" for f in fields),
        len(body),
        body,
    )


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes passed to the parser."""
    pieces: list[bytes] = []
    feed = Receiver.feed

    def record(receiver: Receiver, data: bytes | memoryview) -> object:
        pieces.append(bytes(data))
        return feed(receiver, data)

    monkeypatch.setattr(Receiver, "feed", record)
    return pieces


def test_repeated_head_is_parsed_once_and_each_body_is_answered(
    echo_server: WireServer, fed: list[bytes]
) -> None:
    with echo_server.connect() as client:
        for number in range(20):
            client.sendall(post(b"/dump?x=1", b"%02d" % number))
            seen = json.loads(read_answer(client)[2])
            assert (seen["path"], seen["query"], seen["body"]) == ("/dump", "x=1", f"{number:02}")
            assert seen["headers"] == {"host": "a", "content-length": "2"}
    assert fed == [post(b"/dump?x=1", b"00")]


def test_other_heads_of_the_same_size_are_parsed(echo_server: WireServer, fed: list[bytes]) -> None:
    with echo_server.connect() as client:
        for number in range(30):
            client.sendall(post(b"/dump/%02d" % number, b"x"))
            assert json.loads(read_answer(client)[2])["path"] == f"/dump/{number:02}"
    assert len(fed) == 30


@pytest.mark.parametrize(
    "between",
    [
        post(b"/echo", b"hello") * 2,
        post(b"/echo", b"hello, world"),
        b"\r\n\r\n" + post(b"/echo", b"hello"),
        post(b"/echo", b"x" * 5000),
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
    ids=["two at once", "other length", "empty lines before", "longer than a piece", "chunked"],
)
def test_bytes_between_equal_heads_are_parsed(echo_server: WireServer, between: bytes) -> None:
    with echo_server.connect() as client:
        for _ in range(3):
            client.sendall(post(b"/echo", b"hello"))
            assert read_answer(client)[2] == b"hello"
            client.sendall(between)
            for _ in range(between.count(b"POST")):
                assert read_answer(client)[0] == 200


def test_body_equal_to_the_remembered_request_stays_a_body(echo_server: WireServer) -> None:
    inner = post(b"/dump", b"x")
    with echo_server.connect() as client:
        client.sendall(inner)
        assert json.loads(read_answer(client)[2])["body"] == "x"
        head, body = post(b"/echo", inner).split(b"\r\n\r\n", 1)
        client.sendall(head + b"\r\n\r\n")
        echo_server.until(lambda: echo_server.wire.requests == 1)
        client.sendall(body)
        assert read_answer(client)[2] == inner


def test_empty_lines_do_not_repeat_a_request(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET /dump HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(client)[0] == 200
        client.sendall(b"\r\n\r\n")
        client.sendall(b"\r\n\r\n")
        client.sendall(b"GET /empty HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 204 ")


def test_repeated_requests_wait_for_one_in_flight(echo_server: WireServer) -> None:
    echo = echo_server.echo
    with echo_server.connect() as client:
        for number in range(4):
            client.sendall(post(b"/held", b"%d" % number))
        for number in range(4):
            assert echo.arrived.acquire(timeout=5)
            assert len(echo.held) == 1
            assert bytes(echo.held[0].body) == b"%d" % number
            echo_server.release(echo.held.pop(), b"answer %d" % number)
            assert read_answer(client)[2] == b"answer %d" % number


def test_repeated_requests_count_toward_the_limit(start: Start) -> None:
    server = start(max_concurrent_requests=1)
    with server.connect() as first, server.connect() as second:
        second.sendall(post(b"/echo", b"hello"))
        assert read_answer(second)[0] == 200
        first.sendall(post(b"/held", b""))
        assert server.echo.arrived.acquire(timeout=5)
        second.sendall(post(b"/echo", b"hello"))
        assert read_answer(second)[0] == 503
        server.release(server.echo.held.pop())
        assert read_answer(first)[2] == b"held"


def test_repeated_head_of_a_compressed_body_is_inflated_each_time(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        for content in (b"aaaaaaaaaa", b"bbbbbbbbbb"):
            client.sendall(post(b"/echo", zlib.compress(content), b"Content-Encoding: deflate"))
            assert read_answer(client)[2] == content


def test_draining_server_answers_a_repeated_request_and_closes(start: Start) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(post(b"/echo", b"hello"))
        assert "connection" not in read_answer(client)[1]

        async def drain() -> None:
            for connection in server.wire.connections:
                connection.drain()

        server.wait(drain())
        client.sendall(post(b"/echo", b"hello"))
        _, fields, body = read_answer(client)
        assert (fields["connection"], body) == ("close", b"hello")
        assert read_all(client) == b""
