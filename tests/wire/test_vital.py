"""Vital requests, such as health probes, are answered under any load. Leaving them open locks out nobody."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

import pytest
from msgspec.structs import force_setattr

from backline.wire.http2 import frames
from backline.wire.limits import Limits
from wire.conftest import WireServer, read_answer
from wire.grpc.test_grpc_refusals import prefixed
from wire.http2.served import FrameClient, Served, serve

ECHO = "/test.Test/Echo"
HOLD = "/test.Test/Hold"
BODY = (("content-length", "1000"),)


def make_vital(wire: object, *paths: str) -> None:
    vital = {path.encode() for path in paths}
    force_setattr(wire.application, "is_vital", lambda method, path: path in vital)  # type: ignore[attr-defined]


def begin_request(
    client: FrameClient, stream: int, path: str, extra: tuple[tuple[str, str], ...] = BODY
) -> None:
    """Sends the head of a GET request whose body never arrives."""
    fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "test"), *extra]
    client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, client.encoder.encode(fields)))


def begin_calls(client: FrameClient, served: Served, method: str, number: int) -> None:
    """Opens unary calls that never send their message."""
    for stream in range(1, 2 * number, 2):
        client.call(stream, method, None, end=False)
    client.write(frames.frame(frames.PING, 0, 0, bytes(8)))
    client.until(frames.PING)


# answers without the body


def test_http2_answer_does_not_wait_for_a_body() -> None:
    with serve() as served, FrameClient(served.port) as client:
        make_vital(served.wire, "/vital")
        begin_request(client, 1, "/vital")
        assert client.response(1)[0][":status"] == "200"
        assert client.until(frames.RST_STREAM, 1).code == frames.NO_ERROR
        begin_request(client, 3, "/other")
        client.request(5)
        assert client.response(5)[0][":status"] == "200"
        assert served.run(lambda: served.wire.requests) == 1


def test_http2_body_that_arrives_before_a_late_answer_is_dropped() -> None:
    with serve() as served, FrameClient(served.port) as client:
        make_vital(served.wire, "/hold")
        begin_request(client, 1, "/hold", (("content-length", "10"),))
        assert served.handlers.arrived.wait(5)
        client.write(frames.frame(frames.DATA, frames.END_STREAM, 1, bytes(10)))
        client.request(3)
        assert client.response(3)[0][":status"] == "200"
        (request,) = served.handlers.held_http
        served.run(lambda: request.respond(200, (), [b"late"]))
        assert client.response(1)[1] == b"late"


@pytest.mark.parametrize(
    "framing",
    [b"content-length: 10", b"content-length: 100000", b"transfer-encoding: chunked"],
    ids=["small", "large", "chunked"],
)
def test_http1_answer_does_not_wait_for_a_body(start: Callable[..., WireServer], framing: bytes) -> None:
    server = start()
    make_vital(server.wire, "/vital")
    with server.connect() as client:
        client.sendall(b"GET /vital HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % framing)
        status, fields, _ = read_answer(client)
        assert (status, fields["connection"]) == (404, "close")
        # What the client sends afterwards is dropped, so that it receives the response.
        client.sendall(b"12345")
        assert client.recv(1) == b""
    server.until(lambda: server.wire.requests == 0 == len(server.wire.vital))


def test_http1_answer_does_not_ask_for_a_body(start: Callable[..., WireServer]) -> None:
    server = start()
    make_vital(server.wire, "/vital")
    received = server.send(
        b"GET /vital HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    )
    assert received.startswith(b"HTTP/1.1 404")


def test_http1_connection_stays_open_if_the_body_is_at_hand(start: Callable[..., WireServer]) -> None:
    server = start()
    make_vital(server.wire, "/vital")
    with server.connect() as client:
        for _ in range(2):
            client.sendall(b"GET /vital HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            assert read_answer(client)[0] == 404


# counts


def test_calls_without_a_message_do_not_count_as_requests() -> None:
    with (
        serve(Limits(max_concurrent_requests=2, max_peer_share=1)) as served,
        FrameClient(served.port) as holder,
        FrameClient(served.port) as client,
    ):
        make_vital(served.wire, ECHO)
        begin_calls(holder, served, ECHO, 20)
        assert served.run(lambda: (served.wire.requests, len(served.wire.vital))) == (0, 20)
        client.request(1)
        assert client.response(1)[0][":status"] == "200"


def test_oldest_vital_call_of_a_peer_gives_way_to_the_newest() -> None:
    with (
        serve(Limits(max_vital_requests=8)) as served,
        FrameClient(served.port) as holder,
        FrameClient(served.port) as prober,
    ):
        make_vital(served.wire, ECHO)
        begin_calls(holder, served, ECHO, 2)
        prober.call(1, ECHO, prefixed(b"alive"))
        assert prober.response(1)[1] == prefixed(b"alive")
        assert holder.until(frames.RST_STREAM).stream == 1
        holder.call(5, ECHO, prefixed(b"again"))
        assert holder.response(5)[1] == prefixed(b"again")
        holder.write(frames.rst_stream(3, frames.CANCEL))
        served.wait_until(lambda: not len(served.wire.vital))


def test_vital_call_that_gives_way_is_abandoned() -> None:
    with serve(Limits(max_vital_requests=4)) as served, FrameClient(served.port) as client:
        make_vital(served.wire, HOLD, ECHO)
        client.call(1, HOLD, prefixed(b"slow"))
        assert served.handlers.arrived.wait(5)
        client.call(3, ECHO, prefixed(b"alive"))
        assert client.response(3)[1] == prefixed(b"alive")
        assert served.handlers.cancelled.wait(5)


def test_unread_vital_answers_do_not_count_as_requests() -> None:
    with (
        serve(Limits(max_concurrent_requests=2, max_vital_requests=40)) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0}) as holder,
        FrameClient(served.port) as client,
    ):
        make_vital(served.wire, "/vital")
        for stream in range(1, 40, 2):
            holder.request(stream, "/vital")
        served.wait_until(lambda: len(served.wire.vital) == 10)
        client.request(1)
        assert client.response(1)[0][":status"] == "200"
        client.request(3, "/vital")
        assert client.response(3)[0][":status"] == "200"


def test_late_answers_over_http1_do_not_count_as_requests(start: Callable[..., WireServer]) -> None:
    server = start(max_concurrent_requests=1, max_vital_requests=12)
    make_vital(server.wire, "/held")
    with ExitStack() as stack:
        holders = [stack.enter_context(server.connect()) for _ in range(4)]
        for holder in holders:
            holder.sendall(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
            assert server.echo.arrived.acquire(timeout=5)
        assert holders[0].recv(1) == b"", "the oldest gives way"
        client = stack.enter_context(server.connect())
        client.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(client)[0] == 200
        # The same head again, which must not be taken for that of a request in flight.
        server.release(server.echo.held[1])
        assert read_answer(holders[1])[0] == 200
        holders[1].sendall(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        server.until(lambda: (server.wire.requests, len(server.wire.vital)) == (0, 3))
    server.until(lambda: not len(server.wire.vital))


# the minimum rate of bodies

TRICKLE = Limits(progress_timeout=0.4, min_sending_rate=1000)


def test_http1_body_below_the_minimum_rate_is_refused(start: Callable[..., WireServer]) -> None:
    server = start(progress_timeout=0.4, min_sending_rate=1000)
    with server.connect(0.02) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        received = b""
        for _ in range(1000):
            client.sendall(b"x")
            try:
                received = client.recv(12)
            except TimeoutError:
                continue
            break
        assert received == b"HTTP/1.1 408"


@pytest.mark.parametrize("grpc", [False, True], ids=["HTTP", "gRPC"])
def test_http2_body_below_the_minimum_rate_is_refused(grpc: bool) -> None:
    with serve(TRICKLE) as served, FrameClient(served.port) as client:
        if grpc:
            client.call(1, ECHO, prefixed(bytes(100_000))[:5], end=False)
        else:
            begin_request(client, 1, "/", (("content-length", "100000"),))
        client.socket.settimeout(0.02)
        for step in count():
            assert step < 1000
            client.write(frames.frame(frames.DATA, 0, 1, b"x"))
            try:
                frame = client.until(frames.HEADERS, 1)
            except TimeoutError:
                continue
            break
        assert frame.stream == 1
        assert client.fields["grpc-status" if grpc else ":status"] == ("4" if grpc else "408")


def test_body_above_the_minimum_rate_may_take_long(start: Callable[..., WireServer]) -> None:
    server = start(progress_timeout=0.4, min_sending_rate=100)
    body = bytes(100_000)
    with server.connect(0.02) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        for begin in range(0, len(body), 2000):  # takes 1 s
            client.sendall(body[begin : begin + 2000])
            if begin + 2000 < len(body):
                with pytest.raises(TimeoutError):
                    client.recv(1)
        client.settimeout(10)
        assert read_answer(client)[0] == 200
