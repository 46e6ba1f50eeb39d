"""Idle and greedy clients do not lock out others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import grpc
import pytest
from msgspec.structs import force_setattr

from backline.wire.http2 import frames
from backline.wire.limits import Limits
from backline.wire.peers import Peers
from wire.conftest import WireServer, read_answer
from wire.grpc.test_grpc_refusals import prefixed
from wire.http2.served import FrameClient, Served, serve


def open_streams(client: FrameClient, served: Served, count: int) -> None:
    """Opens streaming calls that never send a message."""
    for number in range(1, 2 * count, 2):
        client.call(number, "/test.Test/Each", None, end=False)
    served.wait_until(lambda: served.wire.streams >= count)


def make_vital(wire: object) -> None:
    """Makes /vital and Echo vital requests."""
    force_setattr(
        wire.application,  # type: ignore[attr-defined]
        "is_vital",
        lambda method, path: path in (b"/vital", b"/test.Test/Echo"),
    )


def test_idle_streams_do_not_count_as_requests() -> None:
    with (
        serve(Limits(max_concurrent_requests=2)) as served,
        FrameClient(served.port) as idle,
        FrameClient(served.port) as client,
    ):
        open_streams(idle, served, 20)
        client.call(1, "/test.Test/Echo", prefixed(b"honest"))
        assert client.response(1)[1] == prefixed(b"honest")
        client.request(3)
        assert client.response(3)[0][":status"] == "200"


def test_streams_above_the_limit_are_refused_until_others_end() -> None:
    with serve(Limits(max_streams=2)) as served, FrameClient(served.port) as client:
        open_streams(client, served, 2)
        client.call(5, "/test.Test/Each", None, end=False)
        fields = client.response(5)[0]
        assert fields["grpc-status"] == "8"
        assert "too many streams open" in fields["grpc-message"]
        client.write(frames.rst_stream(1, frames.CANCEL))
        client.call(7, "/test.Test/Each", prefixed(b"now"))
        assert client.response(7)[1] == prefixed(b"now")


def test_idle_stream_ends_with_a_status_that_asks_to_reopen_it() -> None:
    with (
        serve(Limits(stream_idle_timeout=0.2, progress_timeout=0.1)) as served,
        FrameClient(served.port) as client,
    ):
        client.call(1, "/test.Test/Each", None, end=False)
        fields = client.response(1)[0]
        assert fields["grpc-status"] == "14"
        assert "open the stream again" in fields["grpc-message"]
        served.wait_until(lambda: served.wire.streams == 0)


def test_one_address_cannot_use_all_requests(start: Callable[..., WireServer]) -> None:
    server = start(max_concurrent_requests=4, max_peer_share=0.5)
    with ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(server.connect())
            client.sendall(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
            assert server.echo.arrived.acquire(timeout=5)
        third = stack.enter_context(server.connect())
        third.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(third)[0] == 503


def test_one_address_cannot_use_all_connections(start: Callable[..., WireServer]) -> None:
    server = start(max_connections=4, max_peer_share=0.5)
    with server.connect(), server.connect():
        server.until(lambda: len(server.wire.connections) == 2)
        with server.connect() as third:
            assert read_answer(third)[0] == 503
    server.until(lambda: not server.wire.connections)
    with server.connect() as later:
        later.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(later)[0] == 200


def test_vital_http1_requests_are_answered_at_the_request_limit(
    start: Callable[..., WireServer],
) -> None:
    server = start(max_concurrent_requests=1)
    make_vital(server.wire)
    with server.connect() as holder, server.connect() as prober:
        holder.sendall(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        # Twice, since the second request takes the path of repeated heads.
        for _ in range(2):
            prober.sendall(b"GET /vital HTTP/1.1\r\nhost: x\r\n\r\n")
            assert read_answer(prober)[0] == 404
        prober.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(prober)[0] == 503


def test_vital_http2_requests_are_answered_at_the_request_limit() -> None:
    with serve(Limits(max_concurrent_requests=1)) as served, FrameClient(served.port) as client:
        make_vital(served.wire)
        client.request(1, "/hold")
        assert served.handlers.arrived.wait(5)
        client.request(3, "/vital")
        assert client.response(3)[0][":status"] == "200"
        client.call(5, "/test.Test/Echo", prefixed(b"alive"))
        assert client.response(5)[1] == prefixed(b"alive")
        client.request(7, "/other")
        assert client.response(7)[0][":status"] == "503"


class AddressedTransport(asyncio.BaseTransport):
    def __init__(self, address: object) -> None:
        super().__init__({"peername": address})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("10.0.0.1", 1), ("10.0.0.1", 2), True),
        (("10.0.0.1", 1), ("10.0.0.2", 1), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:2", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 0), ("fe80::2%eth0", 1, 0, 0), True),
        ("", "", True),
    ],
)
def test_peers_are_ipv4_addresses_and_ipv6_networks(one: object, other: object, same: bool) -> None:
    peers = Peers(Limits())
    assert (peers.join(AddressedTransport(one)) is peers.join(AddressedTransport(other))) is same


def test_stock_client_is_served_while_another_holds_a_thousand_idle_streams() -> None:
    limits = Limits(max_concurrent_requests=64)
    with serve(limits) as served, ExitStack() as stack:
        for _ in range(9):
            open_streams(stack.enter_context(FrameClient(served.port)), served, 112)
        served.wait_until(lambda: served.wire.streams == 9 * 112)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{served.port}"))
        echo = channel.unary_unary("/test.Test/Echo")
        assert [echo(b"%d" % n, timeout=10) for n in range(200)] == [b"%d" % n for n in range(200)]


class AllConnections:
    """Opens connections to a server until only its reserve, a single connection, is free."""

    def __init__(self, server: WireServer) -> None:
        self._server = server
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for _ in range(63):
            self._stack.enter_context(self._server.connect())
        self._server.until(lambda: len(self._server.wire.connections) == 63)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def test_reserved_connection_answers_one_vital_http1_request(start: Callable[..., WireServer]) -> None:
    server = start(max_connections=64, max_peer_share=1)
    make_vital(server.wire)
    probe = b"GET /vital HTTP/1.1\r\nhost: x\r\n\r\n"
    with AllConnections(server):
        # The answer closes the connection, so that the next probe finds it free.
        for _ in range(2):
            received = server.send(probe + probe)
            assert received.startswith(b"HTTP/1.1 404")
            assert received.count(b"HTTP/1.1") == 1
            server.until(lambda: len(server.wire.connections) == 63)
        with server.connect() as other:
            other.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
            status, _, body = read_answer(other)
            assert status == 503
            assert b"too many connections" in body


def test_reserved_connection_answers_only_vital_http2_requests(start: Callable[..., WireServer]) -> None:
    server = start(max_connections=64, max_peer_share=1)
    make_vital(server.wire)
    with AllConnections(server), FrameClient(server.port) as client:
        client.request(1, "/vital")
        assert client.response(1)[0][":status"] == "404"
        client.request(3, "/echo")
        assert client.response(3)[0][":status"] == "503"


def test_connections_beyond_the_reserve_are_refused(start: Callable[..., WireServer]) -> None:
    server = start(max_connections=64, max_peer_share=1)
    with AllConnections(server), server.connect(), server.connect() as refused:
        assert read_answer(refused)[0] == 503


def test_reserved_connection_is_closed_after_a_while(
    start: Callable[..., WireServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backline.wire.sniffer.RESERVED_TIME", 0.1)
    server = start(max_connections=64, max_peer_share=1)
    with AllConnections(server), FrameClient(server.port) as client:
        assert client.ended()
