"""HTTP/1.1: requests that clients send in practice."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backline.wire.application import HttpRequest

from .conftest import WireServer, read_all, read_answer

Start = Callable[..., WireServer]
GET = b"GET /dump HTTP/1.1\r\nHost: a\r\n\r\n"


def test_response_has_date_length_and_body(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        status, fields, body = read_answer(client)
    assert (status, body) == (200, b"hello")
    assert fields["content-length"] == "5"
    assert fields["date"].endswith("gmt")
    assert "connection" not in fields


def test_headers_are_lower_case_and_repeated_ones_are_joined(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET /dump/%41?x=1&y HTTP/1.1\r\nHOST: a\r\nX-One: 1\r\nx-one: 2\r\n\r\n")
        seen = json.loads(read_answer(client)[2])
    assert seen["path"] == "/dump/%41"
    assert seen["query"] == "x=1&y"
    assert seen["headers"] == {"host": "a", "x-one": "1, 2"}


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65536, 65537, 602_112, 5_000_000])
def test_bodies_of_all_sizes_are_echoed_on_one_connection(echo_server: WireServer, size: int) -> None:
    sent = os.urandom(size)
    client = http.client.HTTPConnection("127.0.0.1", echo_server.port, timeout=20)
    for _ in range(3):
        client.request("POST", "/echo", sent)
        assert client.getresponse().read() == sent
    client.close()
    echo_server.until(lambda: echo_server.wire.buffered_bytes == 0 and echo_server.wire.requests == 0)


def test_chunked_body_is_echoed_and_its_trailers_are_dropped(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(
            b"POST /dump HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Evil: 1\r\nHost: b\r\n\r\n" + GET
        )
        first, second = json.loads(read_answer(client)[2]), json.loads(read_answer(client)[2])
    assert first["body"] == "abcde"
    assert first["headers"] == {"host": "a", "transfer-encoding": "chunked"}
    assert second["headers"] == {"host": "a"}


def test_large_body_whose_head_arrives_with_an_earlier_request_is_answered(echo_server: WireServer) -> None:
    head = b"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    with echo_server.connect() as client:
        client.sendall(head % 2 + b"ab" + head % 300_000 + b"c")
        assert read_answer(client)[2] == b"2"
        client.sendall(bytes(299_999))
        assert read_answer(client)[2] == b"300000"


def test_large_chunked_body_is_echoed(echo_server: WireServer) -> None:
    sent = os.urandom(3_000_000)
    client = http.client.HTTPConnection("127.0.0.1", echo_server.port, timeout=20)
    client.request(
        "POST", "/echo", iter([sent[:1], sent[1:2_000_000], sent[2_000_000:]]), encode_chunked=True
    )
    assert client.getresponse().read() == sent


def test_pipelined_requests_are_answered_in_order(echo_server: WireServer) -> None:
    count = 500
    with echo_server.connect() as client:
        client.sendall(
            b"".join(
                b"POST /later?%d HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" % n for n in range(count)
            )
        )
        assert [read_answer(client)[2] for _ in range(count)] == [b"/later?%d:x" % n for n in range(count)]


def test_request_waits_while_the_application_handles_the_previous_one(echo_server: WireServer) -> None:
    echo = echo_server.echo
    with echo_server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        assert echo.arrived.acquire(timeout=5)
        echo_server.until(lambda: echo_server.wire.requests == 2)
        assert len(echo.held) == 1
        echo_server.release(echo.held.pop(), b"first")
        assert echo.arrived.acquire(timeout=5)
        echo_server.release(echo.held.pop(), b"second")
        assert [read_answer(client)[2] for _ in range(2)] == [b"first", b"second"]


def test_pipelined_requests_after_one_in_flight_are_not_all_read(start: Start) -> None:
    server = start(max_unsent_bytes=64 * 1024)
    with server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += client.send(GET * 2000)
        assert sent < 64 << 20
        assert server.state()[1] < 300


def test_head_has_the_fields_of_get_and_no_body(echo_server: WireServer) -> None:
    answer = echo_server.send(b"HEAD /zeros?100000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"content-length: 100000\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_response_with_an_empty_last_part_is_complete(echo_server: WireServer) -> None:
    answer = echo_server.send(
        b"GET /ending?3000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )  # reads until the server closes
    assert answer.endswith(b"\r\n\r\n" + bytes(3_000_000))


def test_status_204_has_neither_length_nor_body(echo_server: WireServer) -> None:
    answer = echo_server.send(b"GET /empty HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"content-length" not in answer


def test_options_with_a_star_reaches_the_application(echo_server: WireServer) -> None:
    assert echo_server.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 404"
    )


def test_absolute_target_is_routed_by_its_path(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET http://example.org/dump?q HTTP/1.1\r\nHost: example.org\r\n\r\n")
        seen = json.loads(read_answer(client)[2])
    assert (seen["path"], seen["query"]) == ("/dump", "q")


def test_http_1_0_closes_unless_the_client_wants_to_keep_the_connection(echo_server: WireServer) -> None:
    assert b"connection: close\r\n" in echo_server.send(b"GET /dump HTTP/1.0\r\n\r\n")
    with echo_server.connect() as client:
        for _ in range(2):
            client.sendall(b"GET /dump HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert read_answer(client)[1]["connection"] == "keep-alive"


def test_requests_after_connection_close_are_ignored(echo_server: WireServer) -> None:
    answer = echo_server.send(b"GET /dump HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_expect_100_continue_is_answered_before_the_body(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_answer(client)[2] == b"hello"


def test_100_continue_follows_earlier_responses(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(
            b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert echo_server.echo.arrived.acquire(timeout=5)
        echo_server.until(lambda: echo_server.wire.requests == 2)
        echo_server.release(echo_server.echo.held.pop(), b"first")
        assert read_answer(client)[2] == b"first"
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_answer(client)[2] == b"hello"


def test_other_expectations_are_417(echo_server: WireServer) -> None:
    assert echo_server.send(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: magic\r\n\r\n"
    ).startswith(b"HTTP/1.1 417")


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
)
def test_upgrade_to_h2c_is_ignored_and_the_body_stays_a_body(echo_server: WireServer, framing: bytes) -> None:
    with echo_server.connect() as client:
        client.sendall(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABk\r\n" + framing + GET
        )
        assert read_answer(client)[2] == b"hello"
        assert json.loads(read_answer(client)[2])["method"] == "GET"


def test_a_thousand_pipelined_requests_to_upgrade_are_all_answered(echo_server: WireServer) -> None:
    asked = b"GET /dump HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with echo_server.connect() as client:
        client.sendall(asked * 1000)
        for _ in range(1000):
            assert read_answer(client)[0] == 200
    echo_server.until(lambda: echo_server.wire.requests == 0)


def test_stream_is_chunked_in_1_1_and_ends_with_the_connection_in_1_0(echo_server: WireServer) -> None:
    expected = b"".join(b"chunk %d\n" % n * 100 for n in range(300))
    client = http.client.HTTPConnection("127.0.0.1", echo_server.port, timeout=20)
    for _ in range(2):
        client.request("GET", "/stream?300")
        response = client.getresponse()
        assert response.getheader("transfer-encoding") == "chunked"
        assert response.read() == expected
    client.close()
    answer = echo_server.send(b"GET /stream?300 HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in answer
    assert answer.split(b"\r\n\r\n", 1)[1] == expected


def test_streamed_head_has_no_body(echo_server: WireServer) -> None:
    answer = echo_server.send(b"HEAD /stream?3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"chunk 0" not in answer


def test_streamed_head_does_not_wait_for_a_chunk(echo_server: WireServer) -> None:
    echo = echo_server.echo
    with echo_server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert echo.arrived.acquire(timeout=5)
        request = echo.held.pop()
        echo_server.loop.call_soon_threadsafe(request.stream, 200, ())
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert echo.lost.acquire(timeout=5)


def test_streamed_head_is_sent_with_the_first_chunk(
    echo_server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes would wake the client twice before it sees the first token of a stream."""
    echo = echo_server.echo
    written: list[bytes] = []

    class Recorder:
        def __init__(self, transport: asyncio.Transport) -> None:
            self.is_closing = transport.is_closing

        def write(self, data: bytes) -> None:
            written.append(bytes(data))

    async def stream(request: HttpRequest) -> None:
        pipeline = request._pipeline  # type: ignore[attr-defined]
        monkeypatch.setattr(pipeline, "transport", Recorder(pipeline.transport))
        await request.stream(200, ()).send(b"token")
        monkeypatch.undo()

    with echo_server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert echo.arrived.acquire(timeout=5)
        asyncio.run_coroutine_threadsafe(stream(echo.held.pop()), echo_server.loop).result(5)
    assert echo.lost.acquire(timeout=5)
    assert len(written) == 1
    assert written[0].startswith(b"HTTP/1.1 200 OK")
    assert written[0].endswith(b"\r\n\r\n5\r\ntoken\r\n")


def test_raising_application_is_500_and_the_connection_stays_open(
    echo_server: WireServer, caplog: pytest.LogCaptureFixture
) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        status, _, body = read_answer(client)
        assert (status, b"error" in body) == (500, True)
        assert read_answer(client)[0] == 200
    assert sum("the application is broken" in str(record.exc_info) for record in caplog.records) == 1


def test_disconnect_is_notified_once_and_the_response_dropped(
    echo_server: WireServer,
) -> None:
    echo = echo_server.echo
    client = echo_server.connect()
    client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
    assert echo.arrived.acquire(timeout=5)
    client.close()
    assert echo.lost.acquire(timeout=5)
    echo_server.release(echo.held.pop())
    echo_server.until(lambda: echo_server.wire.requests == 0)
    assert not echo.lost.acquire(blocking=False)


def test_half_closed_client_gets_an_immediate_response(echo_server: WireServer) -> None:
    for path, answer in ((b"echo", b"hello"), (b"zeros?3000000", bytes(3_000_000))):
        with echo_server.connect() as client:
            client.sendall(b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" % path)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client).split(b"\r\n\r\n", 1)[1] == answer


def test_half_close_cancels_the_request_in_flight(
    echo_server: WireServer,
) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert echo_server.echo.arrived.acquire(timeout=5)
        client.shutdown(socket.SHUT_WR)
        assert echo_server.echo.lost.acquire(timeout=5)
        assert read_all(client) == b""
    echo_server.echo.held.clear()


def test_stream_to_a_disconnected_client_raises(echo_server: WireServer) -> None:
    client = echo_server.connect()
    client.sendall(b"GET /stream?100000000 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.recv(100)
    client.close()
    assert echo_server.echo.stream_broken.wait(5)
    echo_server.until(lambda: echo_server.wire.requests == 0)


def test_disconnect_within_a_request_leaks_nothing(echo_server: WireServer) -> None:
    for head in (
        b"",
        b"GET /",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n\r\n" + bytes(100_000),
    ):
        client = echo_server.connect()
        client.sendall(head)
        client.close()
    echo_server.until(
        lambda: (
            not echo_server.wire.connections
            and echo_server.wire.requests == 0
            and echo_server.wire.buffered_bytes == 0
        )
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-H", "Expect: 100-continue"],
        ["-H", "Transfer-Encoding: chunked"],
        ["--http2"],
        ["--compressed"],
        ["-0"],
    ],
)
def test_curl_gets_its_body_echoed(echo_server: WireServer, tmp_path: Path, options: list[str]) -> None:
    sent = os.urandom(700_000)
    (tmp_path / "sent").write_bytes(sent)
    url = f"http://127.0.0.1:{echo_server.port}/echo"
    done = subprocess.run(
        ["curl", "-sS", "--data-binary", f"@{tmp_path / 'sent'}", *options, url],
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == sent


def test_request_may_arrive_byte_by_byte(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        for byte in b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello":
            client.send(bytes([byte]))
        assert read_answer(client)[2] == b"hello"
        client.shutdown(1)
        assert read_all(client) == b""


def test_answered_request_drops_its_on_disconnect_callback(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert echo_server.echo.arrived.acquire(timeout=10)
        request = echo_server.echo.held.pop()
        assert request.on_abandon is not None

        echo_server.release(request)

        assert b"held" in b"".join(iter(lambda: client.recv(65536), b""))
    assert request.on_abandon is None
