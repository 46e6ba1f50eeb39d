"""Clients that send more than one turn handles, and clients that disconnect meanwhile."""

from __future__ import annotations

from backline.wire.http2 import frames
from backline.wire.limits import Limits
from wire.http2.served import FrameClient, serve

PING = frames.frame(frames.PING, 0, 0, bytes(8))


def test_turn_ends_when_its_time_is_up() -> None:
    with (
        serve(Limits(seconds_per_turn=0.0, idle_frames_burst=10_000)) as served,
        FrameClient(served.port) as client,
    ):
        client.write(PING * 400)
        for _ in range(400):
            client.until(frames.PING)


def test_requests_of_a_disconnected_client_are_not_answered() -> None:
    with serve() as served, FrameClient(served.port) as client:
        block = client.encoder.encode(
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        )
        head = frames.END_HEADERS | frames.END_STREAM
        many = b"".join(frames.frame(frames.HEADERS, head, number, block) for number in range(1, 6001, 2))

        def leave() -> None:
            # Meanwhile the loop cannot read. Everything fits the first window, so the disconnect arrives too.
            client.write(many)
            client.socket.close()

        client.until(frames.SETTINGS)
        connection = next(iter(served.wire.connections))
        served.run(leave)
        served.wait_until(lambda: not served.wire.connections and served.wire.requests == 0)
        assert connection.answered == 0


def test_unacknowledged_settings_end_the_connection() -> None:
    with serve(Limits(header_timeout=0.5)) as served, FrameClient(served.port, handshake=False) as client:
        client.write(frames.PREFACE + frames.settings({}))
        assert client.goaway() == frames.SETTINGS_TIMEOUT
        assert client.ended()


def test_changing_all_windows_costs_in_proportion_to_open_streams() -> None:
    limits = Limits(idle_frames_burst=1000, max_idle_frames_rate=1.0)
    with serve(limits) as served, FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0}) as client:
        for number in range(1, 201, 2):
            client.request(number, "/large?100")
        client.write(
            b"".join(frames.settings({frames.INITIAL_WINDOW_SIZE: value & 1}) for value in range(200))
        )
        assert client.goaway() == frames.ENHANCE_YOUR_CALM


def test_body_in_tiny_frames_ends_the_connection() -> None:
    limits = Limits(idle_frames_burst=100, max_idle_frames_rate=1.0)
    with serve(limits) as served, FrameClient(served.port) as client:
        client.call(1, "/test.Test/Echo", b"\0\0\0\x10\0", end=False)
        client.write(frames.frame(frames.DATA, 0, 1, b"x") * 300)
        assert client.goaway() == frames.ENHANCE_YOUR_CALM
