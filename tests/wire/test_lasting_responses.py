"""Responses that last for hours count as streams, and clients that do not read them are disconnected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from backline.wire.http2 import frames
from backline.wire.limits import Limits
from wire.conftest import WireServer, read_answer
from wire.http2.served import FrameClient, serve

EVENTS = b"GET /events?%d HTTP/1.1\r\nhost: x\r\n\r\n"


def test_http1_event_streams_count_as_streams(start: Callable[..., WireServer]) -> None:
    server = start(max_concurrent_requests=1, max_streams=4, max_peer_share=0.75)
    with ExitStack() as stack:
        for _ in range(3):
            watcher = stack.enter_context(server.connect())
            watcher.sendall(EVENTS % 10)
            assert watcher.recv(12) == b"HTTP/1.1 200"
        server.until(lambda: (server.wire.requests, server.wire.streams) == (0, 3))
        client = stack.enter_context(server.connect())
        client.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(client)[0] == 200
        client.sendall(EVENTS % 10)
        assert read_answer(client)[0] == 500, "the application does not catch ConnectionRefusedError"
    server.until(lambda: (server.wire.requests, server.wire.streams) == (0, 0))


def test_http2_event_streams_count_as_streams() -> None:
    with (
        serve(Limits(max_concurrent_requests=2, max_peer_share=1)) as served,
        FrameClient(served.port) as watcher,
        FrameClient(served.port) as client,
    ):
        for stream in range(1, 20, 2):
            watcher.request(stream, "/events")
        served.wait_until(lambda: (served.wire.requests, served.wire.streams) == (0, 10))
        client.request(1)
        assert client.response(1)[0][":status"] == "200"
        watcher.write(frames.rst_stream(1, frames.CANCEL))
        served.wait_until(lambda: served.wire.streams == 9)
        watcher.socket.close()
        served.wait_until(lambda: (served.wire.requests, served.wire.streams) == (0, 0))


def test_http1_watcher_that_does_not_read_is_dropped(start: Callable[..., WireServer]) -> None:
    # Far less than max_unsent_bytes is unread, and a new event arrives every 10 ms.
    server = start(progress_timeout=0.4, max_unsent_bytes=64 << 20)
    with server.connect() as client:
        client.sendall(EVENTS % (16 << 20))
        assert server.echo.arrived.acquire(timeout=5)
        assert server.echo.stream_broken.wait(10)
    server.until(lambda: server.wire.streams == 0)


def test_http2_watcher_that_does_not_read_is_dropped() -> None:
    with (
        serve(Limits(progress_timeout=0.4)) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 100}) as client,
    ):
        client.request(1, "/events")
        client.socket.settimeout(0.02)
        for _ in range(1000):  # opening the window byte by byte is not enough
            client.write(frames.window_update(1, 1))
            try:
                frame = client.until(frames.RST_STREAM, 1)
            except TimeoutError:
                continue
            break
        assert frame.code == frames.CANCEL
        served.wait_until(lambda: served.wire.streams == 0)


def test_watchers_that_read_stay(start: Callable[..., WireServer]) -> None:
    server = start(progress_timeout=0.2)
    with server.connect() as client:
        client.sendall(EVENTS % 10)
        received = 0
        while received < 100 * 20:  # for 1 s or longer
            data = client.recv(1 << 16)
            assert data
            received += len(data)
    assert server.echo.stream_broken.wait(10)
    assert server.state()[1] == server.wire.streams == 0
