"""How connections begin, drain and end."""

from __future__ import annotations

import time
from functools import partial

from backline.wire.http2 import frames
from backline.wire.http2.connection import Http2Connection
from backline.wire.limits import MIB, Limits
from wire.http2.served import FrameClient, Served, serve


def drain(served: Served) -> None:
    served.run(lambda: [connection.drain() for connection in list(served.wire.connections)])


def test_wrong_preface_gets_goaway(served: Served) -> None:
    with FrameClient(served.port, handshake=False) as client:
        client.write(b"INVALID CONNECTION PREFACE\r\n\r\n")
        assert client.goaway() == frames.PROTOCOL_ERROR
        assert client.ended()


def test_first_frame_must_be_settings(served: Served) -> None:
    with FrameClient(served.port, handshake=False) as client:
        client.write(frames.PREFACE + frames.frame(frames.PING, 0, 0, bytes(8)))
        assert client.goaway() == frames.PROTOCOL_ERROR


def test_drain_completes_requests_in_flight(served: Served) -> None:
    served.handlers.held_http.clear()
    with FrameClient(served.port) as client:
        client.request(1, "/hold")
        served.wait_until(lambda: bool(served.handlers.held_http))
        drain(served)
        first = client.until(frames.GOAWAY)
        assert int.from_bytes(first.payload[:4], "big") == frames.MAX_WINDOW
        # A request in transit is still served.
        client.request(3)
        ping = client.until(frames.PING)
        client.write(frames.frame(frames.PING, frames.ACK, 0, ping.payload))
        last = None
        while last is None:
            frame = client.read_frame()
            assert frame is not None
            last = frame if frame.kind == frames.GOAWAY else None
        assert int.from_bytes(last.payload[:4], "big") == 3
        client.request(5)
        assert client.until(frames.RST_STREAM, 5).code == frames.REFUSED_STREAM
        served.run(lambda: served.handlers.held_http.pop().respond(200, [], [b"done"]))
        assert client.until(frames.DATA, 1).payload == b"done"
        assert client.ended()


def test_drain_closes_an_idle_connection(served: Served) -> None:
    with FrameClient(served.port) as client:
        client.request(1)
        client.response(1)
        drain(served)
        assert client.goaway() == frames.NO_ERROR
        assert client.ended()


def test_goaway_from_the_client_closes_after_open_requests(served: Served) -> None:
    served.handlers.held_http.clear()
    with FrameClient(served.port) as client:
        client.request(1, "/hold")
        client.write(frames.goaway(0, 0))
        served.wait_until(lambda: bool(served.handlers.held_http))
        served.run(lambda: served.handlers.held_http.pop().respond(200, [], [b"done"]))
        assert client.until(frames.DATA, 1).payload == b"done"
        assert client.ended()


def test_disconnect_notifies_all_requests_even_if_one_answers_another(
    served: Served,
) -> None:
    handlers = served.handlers
    handlers.held_http.clear()
    handlers.cancelled.clear()
    with FrameClient(served.port) as client:
        for number in (1, 3, 5):
            client.request(number, "/hold")
        served.wait_until(lambda: len(handlers.held_http) == 3)
        first, second, _ = handlers.held_http
        first.on_abandon = lambda: second.respond(200, [], [b"nobody takes it"])
        second.on_abandon = None
    served.wait_until(lambda: not served.wire.requests)
    assert handlers.cancelled.is_set(), "the third one"


def test_silent_client_is_closed() -> None:
    with serve(Limits(header_timeout=0.1)) as served, FrameClient(served.port, handshake=False) as client:
        assert client.ended()
        served.wait_until(lambda: not served.wire.connections)


def test_incomplete_frame_times_out() -> None:
    with serve(Limits(header_timeout=0.5)) as served, FrameClient(served.port) as client:
        client.write(frames.frame(frames.PING, 0, 0, bytes(8))[:12])
        assert client.goaway() == frames.PROTOCOL_ERROR


def test_incomplete_header_block_times_out() -> None:
    with serve(Limits(header_timeout=0.5)) as served, FrameClient(served.port) as client:
        client.write(frames.frame(frames.HEADERS, 0, 1, b""))
        assert client.goaway() == frames.PROTOCOL_ERROR


def test_idle_connection_is_closed() -> None:
    with serve(Limits(idle_timeout=0.5)) as served, FrameClient(served.port) as client:
        client.request(1)
        client.response(1)
        assert client.goaway() == frames.NO_ERROR
        assert client.ended()


def test_stalled_body_gets_408() -> None:
    with serve(Limits(progress_timeout=0.1)) as served, FrameClient(served.port) as client:
        block = client.encoder.encode(
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        )
        client.write(
            frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
            + frames.frame(frames.DATA, 0, 1, b"half")
        )
        assert client.response(1)[0][":status"] == "408"


def test_dead_client_with_an_open_stream_is_detected() -> None:
    with serve(Limits(idle_timeout=0.5, progress_timeout=0.5)) as served, FrameClient(served.port) as client:
        client.request(1, "/hold")
        assert client.until(frames.PING).payload == b"standing"
        served.wait_until(lambda: not served.wire.connections)


def test_client_that_does_not_read_the_last_response_is_disconnected() -> None:
    with (
        serve(Limits(progress_timeout=0.3)) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 30}) as client,
    ):
        client.write(frames.window_update(0, 1 << 30))
        client.request(1, "/large?60000000")
        client.write(frames.goaway(0, 0))
        served.wait_until(lambda: not served.wire.connections)


def test_frame_may_stay_incomplete_while_the_server_does_not_read() -> None:
    with (
        serve(sweep_interval=1000) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 28}) as client,
    ):
        client.write(frames.window_update(0, 1 << 28))
        block = client.encoder.encode(
            [(":method", "GET"), (":scheme", "http"), (":path", f"/large?{32 * MIB}"), (":authority", "test")]
        )
        request = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block)
        client.write(request + b"\0")  # and the first byte of another frame
        client.until(frames.HEADERS, 1)

        def sweep() -> None:
            (connection,) = served.wire.connections
            assert isinstance(connection, Http2Connection)
            blocked.append(connection.reader.mid_frame and connection.reader.write_blocked)
            now = time.monotonic()
            for seconds in (0, 15, 25):
                connection.sweep(now + seconds)

        blocked: list[bool] = []
        served.run(sweep)
        assert blocked == [True]
        taken = 0
        while taken < 32 * MIB:
            taken += len(client.until(frames.DATA, 1).payload)


def test_slow_reader_of_a_full_connection_is_not_disconnected() -> None:
    with (
        serve(sweep_interval=1000) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 28}) as client,
    ):
        client.write(frames.window_update(0, 1 << 28))
        client.request(1, f"/large?{32 * MIB}")
        client.until(frames.HEADERS, 1)
        (connection,) = served.run(lambda: list(served.wire.connections))
        served.wait_until(lambda: connection.reader.write_blocked)
        now = time.monotonic()
        served.run(lambda: connection.sweep(now))
        taken = 0
        for step in range(1, 4):
            before = served.run(lambda: connection.output.sent - connection.unsent()[1])
            while served.run(lambda: connection.output.sent - connection.unsent()[1]) < before + 100_000:
                taken += len(client.until(frames.DATA, 1).payload)
            served.run(partial(connection.sweep, now + 25 * step))
        while taken < 32 * MIB:
            taken += len(client.until(frames.DATA, 1).payload)
