"""Responses that clients request and do not read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

from backline.wire.http2 import frames
from backline.wire.limits import Limits
from backline.wire.unsent import Unsent
from wire.conftest import WireServer, read_answer
from wire.http2.served import FrameClient, serve

MB = 1_000_000


def ask(server: WireServer, size: int) -> socket.socket:
    """Requests a response of `size` bytes on a connection with a small receive buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(("127.0.0.1", server.port))
    client.sendall(b"GET /zeros?%d HTTP/1.1\r\nhost: x\r\n\r\n" % size)
    return client


def test_unread_http1_responses_count_until_the_clients_disconnect(start: Callable[..., WireServer]) -> None:
    server = start()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(ask(server, 10 * MB))
        # What the kernel accepted does not count.
        server.until(lambda: server.wire.buffered_bytes > 20 * MB)
    server.until(lambda: server.wire.buffered_bytes == 0 and not server.wire.connections)


def test_http1_clients_that_read_nothing_are_closed_above_the_limit(
    start: Callable[..., WireServer],
) -> None:
    server = start(max_buffered_bytes=40 * MB)
    with ExitStack() as stack:
        idle = [stack.enter_context(ask(server, 10 * MB)) for _ in range(3)]
        server.until(lambda: server.wire.buffered_bytes > 15 * MB)
        late = [stack.enter_context(ask(server, 10 * MB)) for _ in range(5)]
        server.until(lambda: server.wire.buffered_bytes <= 40 * MB and len(server.wire.connections) < 8)
        # The last client is served completely; the first ones are closed.
        assert len(read_answer(late[-1])[2]) == 10 * MB
        taken = 0
        try:
            while data := idle[0].recv(1 << 20):
                taken += len(data)
        except ConnectionResetError:
            pass
        assert taken < 10 * MB


def test_http2_clients_that_read_nothing_are_closed_above_the_limit() -> None:
    with serve(Limits(max_buffered_bytes=20 * MB)) as served, ExitStack() as stack:
        clients = [
            stack.enter_context(FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0})) for _ in range(5)
        ]
        for count, client in enumerate(clients, 1):
            client.request(1, f"/large?{6 * MB}")
            if count < 4:
                served.wait_until(lambda wanted=count: served.wire.held_answer_bytes == wanted * 6 * MB)
        served.wait_until(lambda: len(served.wire.connections) <= 3)
        assert served.run(lambda: served.wire.buffered_bytes) <= 20 * MB
        assert clients[0].ended()


def test_http1_client_that_reads_too_slowly_is_closed(start: Callable[..., WireServer]) -> None:
    server = start(max_unsent_bytes=100_000, progress_timeout=0.5, min_taking_rate=10 * MB)
    with ask(server, 20 * MB) as client:
        server.until(lambda: server.wire.buffered_bytes > 5 * MB)
        deadline = time.monotonic() + 10
        while server.state()[0] and time.monotonic() < deadline:
            try:
                client.recv(8192)
            except ConnectionResetError:
                break
            time.sleep(0.02)  # the slow pace is under test
        server.until(lambda: not server.wire.connections)
    assert time.monotonic() < deadline


def test_unread_streamed_http1_response_counts(start: Callable[..., WireServer]) -> None:
    server = start(max_unsent_bytes=100_000)
    with server.connect() as client:
        client.sendall(b"GET /stream?100000 HTTP/1.1\r\nhost: x\r\n\r\n")
        server.until(lambda: server.wire.buffered_bytes >= 50_000)
    server.until(lambda: server.wire.buffered_bytes == 0)


class StillUnsent:
    """A connection with ten bytes that its client has not read, and the wire that it belongs to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.wire = SimpleNamespace(
            loop=SimpleNamespace(call_soon=self.calls.append),
            limits=Limits(max_buffered_bytes=5),
            buffered_bytes=0,
            connections={self},
        )
        self.counter = Unsent(self.wire)  # type: ignore[arg-type]
        self.aborted = 0

    def unsent(self) -> tuple[int, int]:
        return 10, 10

    def abort(self) -> None:
        self.aborted += 1
        self.counter.forget(self)  # type: ignore[arg-type]


def test_a_check_that_exceeds_the_limit_schedules_no_second_one() -> None:
    connection = StillUnsent()
    connection.counter.watch(connection)  # type: ignore[arg-type]
    for expected in (1, 2):
        connection.calls.pop()()
        assert (connection.aborted, connection.calls) == (expected, [])
        connection.counter.watch(connection)  # type: ignore[arg-type]  # a later write is checked again
    assert len(connection.calls) == 1
