"""Refusals of HTTP/1.1: malformed requests, request smuggling, exceeded limits."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from backline.system.memory import resident_bytes
from backline.wire.http1 import pipeline
from backline.wire.limits import MIB

from .conftest import WireServer, read_all, read_answer

Start = Callable[..., WireServer]
SECOND = b"GET /dump HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /echo HTTP/1.1\r\nHost: a\r\n"

MALFORMED = {
    "length and chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "length with a sign": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\nhello",
    "hexadecimal length": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "length with a space": HEAD + b"Content-Length: 5 5\r\n\r\nhello",
    "length beyond 64 bits": HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "length of thousands of digits": HEAD + b"Content-Length: " + b"0" * 5000 + b"5\r\n\r\nhello",
    "empty length": HEAD + b"Content-Length: \r\n\r\nhello",
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked folded": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0, kept by a proxy field": (
        b"POST /echo HTTP/1.0\r\nHost: a\r\nProxy-Connection: keep-alive\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "folded field": HEAD + b"X-A: 1\r\n 2\r\n\r\n",
    "bare LF in the head": b"GET /dump HTTP/1.1\nHost: a\n\n",
    "bare LF after the chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "chunk longer than its size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    "chunk without CRLF": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
    "chunk size 0x5": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "negative chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "bare CR in a value": HEAD + b"X-A: 1\r2\r\n\r\n",
    "NUL in a value": HEAD + b"X-A: 1\x002\r\n\r\n",
    "space in a name": HEAD + b"X A: 1\r\n\r\n",
    "empty name": HEAD + b": 1\r\n\r\n",
    "no colon": HEAD + b"X-A\r\n\r\n",
    "space before the first field": b"GET /dump HTTP/1.1\r\n Host: a\r\n\r\n",
    "no Host": b"GET /dump HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /dump HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "bad method": b"G@T /dump HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown version": b"GET /dump HTTP/9.9\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /dump HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/2.0 in text": b"GET /dump HTTP/2.0\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT to nothing": b"CONNECT \r\nHost: a\r\n\r\n",
    "upgrade to websocket": b"GET /dump HTTP/1.1\r\nHost: a\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "upgrade by a proxy field": HEAD
    + b"Proxy-Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello",
    "target without a slash": b"GET dump HTTP/1.1\r\nHost: a\r\n\r\n",
    "star with GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "control byte in the target": b"GET /a\x01b HTTP/1.1\r\nHost: a\r\n\r\n",
    "byte above ASCII in the target": b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment in the target": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_request_is_400_and_later_bytes_are_ignored(
    echo_server: WireServer, request_bytes: bytes
) -> None:
    answer = echo_server.send(request_bytes + SECOND)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_refusal_of_a_malformed_request_follows_earlier_responses(
    echo_server: WireServer, request_bytes: bytes
) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" + request_bytes + SECOND)
        assert echo_server.echo.arrived.acquire(timeout=5)
        echo_server.release(echo_server.echo.held.pop())
        assert read_answer(client)[2] == b"held"
        assert read_all(client).startswith(b"HTTP/1.1 400 ")
    echo_server.until(lambda: echo_server.wire.requests == 0 and echo_server.wire.buffered_bytes == 0)


@pytest.mark.parametrize(
    "garbage",
    [b"INVALID CONNECTION PREFACE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-OpenSSH_9.2\r\n"],
)
def test_connection_that_is_not_http_is_closed_without_a_response(
    echo_server: WireServer, garbage: bytes
) -> None:
    assert echo_server.send(garbage) == b""


def test_announced_body_above_the_limit_is_413_before_it_arrives(start: Start) -> None:
    server = start(max_body_size=100_000)
    answer = server.send(HEAD + b"Content-Length: 100001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"maximum of 100000 bytes. Use --http-max-input-size to increase the limit." in answer


def test_client_that_still_sends_a_refused_body_gets_the_response(start: Start) -> None:
    server = start(max_body_size=100_000)
    assert server.send(HEAD + b"Content-Length: 4000000\r\n\r\n" + bytes(4_000_000)).startswith(
        b"HTTP/1.1 413 "
    )


def test_body_of_exactly_the_limit_is_accepted(start: Start) -> None:
    server = start(max_body_size=100_000)
    with server.connect() as client:
        client.sendall(b"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
        assert read_answer(client)[2] == b"100000"


def test_chunked_body_above_the_limit_is_413_while_it_arrives(start: Start) -> None:
    server = start(max_body_size=100_000)
    chunks = b"1000\r\n" + bytes(4096) + b"\r\n"
    answer = server.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 30)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"maximum of 100000 bytes. Use --http-max-input-size to increase the limit." in answer
    assert server.state()[1:] == (0, 0)


def test_chunks_may_be_single_bytes(echo_server: WireServer) -> None:
    """As many as Triton takes."""
    with echo_server.connect() as client:
        client.sendall(b"POST /size HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"1\r\na\r\n" * 65_536 + b"0\r\n\r\n")
        assert read_answer(client)[2] == b"65536"


def test_chunked_body_that_is_mostly_framing_is_refused(echo_server: WireServer) -> None:
    extension = b"1;" + b"x" * 3000 + b"\r\na\r\n"
    assert echo_server.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + extension * 100).startswith(
        b"HTTP/1.1 400 "
    )


def test_bodies_above_max_buffered_bytes_are_503(start: Start) -> None:
    server = start(max_buffered_bytes=200_000)
    with server.connect() as first:
        first.sendall(b"POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 150000\r\n\r\n" + bytes(150_000))
        assert server.echo.arrived.acquire(timeout=5)
        answer = server.send(HEAD + b"Content-Length: 100000\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        server.release(server.echo.held.pop())
        assert read_answer(first)[2] == b"held"
    assert server.state()[2] == 0


def test_body_that_cannot_be_allocated_is_503(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    huge = 1 << 50
    server = start(max_body_size=huge, max_buffered_bytes=huge)
    answer = server.send(HEAD + b"Content-Length: %d\r\n\r\n" % huge)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert caplog.records == []


def test_a_fault_of_the_server_closes_the_connection_instead_of_stopping_its_requests(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(pipeline, "inflate", broken)
    server = start()
    with server.connect(timeout=2) as client:
        client.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello" + SECOND)
        assert read_all(client) == b""
    assert "broken on purpose" in caplog.text
    server.until(lambda: server.wire.requests == 0)


def test_requests_above_the_limit_are_503_and_the_connection_stays_open(start: Start) -> None:
    server = start(max_concurrent_requests=1)
    with server.connect() as first, server.connect() as second:
        first.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        second.sendall(HEAD + b"Content-Length: 5\r\n\r\nhello")
        status, fields, _ = read_answer(second)
        assert (status, fields["retry-after"]) == (503, "1")
        server.release(server.echo.held.pop())
        assert read_answer(first)[2] == b"held"
        second.sendall(HEAD + b"Content-Length: 5\r\n\r\nhello")
        assert read_answer(second)[2] == b"hello"


@pytest.mark.parametrize("size", [2000, 9000])
def test_header_above_the_limit_is_431(start: Start, size: int) -> None:
    server = start(max_header_size=8192)
    answer = server.send(
        b"GET /dump HTTP/1.1\r\nHost: a\r\n"
        + b"".join(b"X-%d: %b\r\n" % (n, b"y" * size) for n in range(5))
        + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_endless_header_is_refused_while_it_arrives(start: Start) -> None:
    server = start(max_header_size=8192)
    assert server.send(b"GET /" + b"a" * 20_000).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("name", [b"X-%d", b"X"])
def test_too_many_fields_are_431(start: Start, name: bytes) -> None:
    server = start(max_header_fields=50)
    fields = b"".join((name % n if b"%" in name else name) + b": 1\r\n" for n in range(60))
    assert server.send(b"GET /dump HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n").startswith(b"HTTP/1.1 431 ")


def test_a_refused_header_takes_no_memory_while_the_connection_stays_open(start: Start) -> None:
    server = start(max_header_size=MIB)
    before = resident_bytes()
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(server.connect())
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"y" * MIB)
            assert client.recv(12) == b"HTTP/1.1 431"
        assert resident_bytes() - before < 10 * MIB


def test_slow_header_is_408(start: Start) -> None:
    server = start(header_timeout=0.5)
    assert server.send(b"GET /dump HTTP/1.1\r\nHost: a\r\n").startswith(b"HTTP/1.1 408 ")


def test_silent_connection_is_closed_without_a_response(start: Start) -> None:
    server = start(header_timeout=0.5)
    assert server.send(b"") == b""


def test_idle_connection_is_closed_without_a_response(start: Start) -> None:
    server = start(idle_timeout=0.5)
    with server.connect() as client:
        client.sendall(SECOND)
        assert read_answer(client)[0] == 200
        assert read_all(client) == b""


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 600000\r\n\r\n",
        b"Content-Length: 100\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
    ],
)
def test_stalled_body_is_408(start: Start, framing: bytes) -> None:
    server = start(progress_timeout=0.5)
    assert server.send(HEAD + framing + b"hel").startswith(b"HTTP/1.1 408 ")
    assert server.state()[1:] == (0, 0)


def test_request_in_the_application_has_no_time_limit(start: Start) -> None:
    server = start(header_timeout=0.3, idle_timeout=0.3, progress_timeout=0.3)
    with server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        with server.connect() as silent:
            assert read_all(silent) == b""
        with server.connect() as silent:
            assert read_all(silent) == b""
        server.release(server.echo.held.pop())
        assert read_answer(client)[2] == b"held"


def test_client_that_does_not_read_its_response_is_closed(start: Start) -> None:
    server = start(progress_timeout=0.5)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /zeros?50000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        server.until(lambda: len(server.wire.connections) == 1)
        server.until(lambda: not server.wire.connections)


def test_responses_to_a_client_that_does_not_read_stay_bounded(start: Start) -> None:
    server = start(max_unsent_bytes=1 << 20)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /zeros?500000 HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        server.until(lambda: any(c.unsent()[1] > 1 << 20 for c in server.wire.connections))
        with server.connect() as honest:
            honest.sendall(SECOND)
            assert read_answer(honest)[0] == 200
        assert sum(connection.unsent()[1] for connection in server.wire.connections) < 2_000_000
        client.settimeout(10)
        assert [len(read_answer_fast(client)) for _ in range(200)] == [500_000] * 200


def read_answer_fast(client: socket.socket) -> bytes:
    _, fields, body = read_answer(client)
    assert fields["content-length"] == str(len(body))
    return body
