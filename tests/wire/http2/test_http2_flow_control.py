"""Windows and frame sizes, both ways (RFC 9113, sections 5.2, 6.5.2 and 6.9)."""

from __future__ import annotations

import time
from functools import partial

from backline.wire.http2 import frames
from backline.wire.http2.frames import LARGE_MAX_FRAME_SIZE, OUR_STREAM_WINDOW
from backline.wire.limits import Limits
from wire.http2.served import FrameClient, Served, serve


def data_of(client: FrameClient, stream: int, size: int) -> bytes:
    """Reads `size` octets of DATA of a stream."""
    body = b""
    while len(body) < size:
        body += client.until(frames.DATA, stream).payload
    return body


def nothing_more(client: FrameClient) -> bool:
    """Whether the server answers a PING before it sends DATA."""
    client.write(frames.frame(frames.PING, 0, 0, b"anything"))
    frame = client.read_frame()
    return frame is not None and frame.kind == frames.PING


def test_response_stays_within_the_streams_window(served: Served) -> None:
    with FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1000}) as client:
        client.request(1, "/large?2500")
        assert len(data_of(client, 1, 1000)) == 1000
        assert nothing_more(client)
        client.write(frames.window_update(1, 1500))
        assert len(data_of(client, 1, 1500)) == 1500


def test_response_stays_within_the_connections_window(client: FrameClient) -> None:
    client.write(frames.window_update(1 - 1, 1) + frames.frame(frames.SETTINGS, 0, 0, b"\0\4\0\x10\0\0"))
    client.request(1, "/large?70000")
    assert len(data_of(client, 1, 65_536)) == 65_536
    assert nothing_more(client)
    client.write(frames.window_update(0, 10_000))
    assert len(data_of(client, 1, 70_000 - 65_536)) == 70_000 - 65_536


def test_window_may_become_negative(served: Served) -> None:
    with FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1000}) as client:
        client.request(1, "/large?2000")
        data_of(client, 1, 1000)
        client.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 400}))
        client.until(frames.SETTINGS)
        client.write(frames.window_update(1, 600))  # the window is now 0
        assert nothing_more(client)
        client.write(frames.window_update(1, 1))
        assert len(client.until(frames.DATA, 1).payload) == 1


def test_larger_initial_window_resumes_open_streams(served: Served) -> None:
    with FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0}) as client:
        client.request(1, "/large?100")
        client.until(frames.HEADERS, 1)
        client.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
        assert len(data_of(client, 1, 100)) == 100


def test_data_within_new_windows_follows_the_acknowledgement(served: Served) -> None:
    """A client that announces a larger window, then a smaller one, enforces the last acknowledged."""
    with FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0}) as client:
        client.request(1, "/large?100")
        client.until(frames.HEADERS, 1)
        client.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
        assert client.read_frame().kind == frames.SETTINGS
        assert client.read_frame().kind == frames.DATA


def test_frames_respect_the_max_frame_size_of_the_client(served: Served) -> None:
    with FrameClient(
        served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 20, frames.MAX_FRAME_SIZE: 20_000}
    ) as client:
        client.request(1, "/large?50000")
        sizes = [len(client.until(frames.DATA, 1).payload) for _ in range(3)]
        assert sizes == [20_000, 20_000, 10_000]


def test_a_stream_of_pieces_waits_for_a_client_with_large_windows() -> None:
    with serve(Limits(max_unsent_bytes=64 * 1024)) as served:
        largest = frames.MAX_WINDOW
        with FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: largest}) as client:
            client.write(frames.window_update(0, largest - frames.DEFAULT_WINDOW))
            client.request(1, "/stream?400")
            size = 0
            while size < 400 * 50_000:
                size += len(client.until(frames.DATA, 1).payload)


def test_streams_take_turns(served: Served) -> None:
    with FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 24}) as client:
        client.request(1, "/large?3000000")
        client.request(3, "/large?3000000")
        client.write(frames.window_update(0, 1 << 24))
        order = [client.until(frames.DATA).stream for _ in range(150)]
        assert {1, 3} == set(order)


def test_data_beyond_the_stream_window_is_an_error(client: FrameClient) -> None:
    block = client.encoder.encode(
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
    )
    client.write(
        frames.frame(
            frames.HEADERS,
            frames.END_HEADERS,
            1,
            block + client.encoder.encode([("content-type", "application/grpc")]),
        )
    )
    assert client.until(frames.HEADERS, 1)  # UNIMPLEMENTED immediately; the stream is reset
    block = client.encoder.encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/test.Test/Deaf"),
            (":authority", "test"),
            ("content-type", "application/grpc"),
        ]
    )
    client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 3, block))
    # No handler takes the message, so the window is not replenished.
    client.write(
        b"".join(
            frames.frame(frames.DATA, 0, 3, (b"\0" + (11_995).to_bytes(4, "big")).ljust(12_000, b"x"))
            for _ in range(88)
        )
    )
    assert client.until(frames.RST_STREAM, 3).code == frames.FLOW_CONTROL_ERROR


def test_announced_body_is_granted_its_window(client: FrameClient) -> None:
    size = 3 * OUR_STREAM_WINDOW
    block = client.encoder.encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "test"),
            ("content-length", str(size)),
        ]
    )
    client.write(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block) + frames.frame(frames.DATA, 0, 1, b"first")
    )
    settings = client.until(frames.SETTINGS)
    while settings.flags & frames.ACK or LARGE_MAX_FRAME_SIZE.to_bytes(4, "big") not in settings.payload:
        settings = client.until(frames.SETTINGS)
    update = client.until(frames.WINDOW_UPDATE, 1)
    assert int.from_bytes(update.payload, "big") == size - OUR_STREAM_WINDOW


def test_handler_waits_for_a_client_that_does_not_read(served: Served) -> None:
    served.handlers.sent = 0
    with FrameClient(served.port) as client:
        client.request(1, "/stream?1000")
        data_of(client, 1, 65_535)
        assert nothing_more(client)
        assert served.run(lambda: served.handlers.sent) <= 200_000
        served.handlers.cancelled.clear()
    assert served.handlers.cancelled.wait(5)


def test_stream_is_reset_if_its_window_is_never_opened() -> None:
    with (
        serve(Limits(progress_timeout=0.2)) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0}) as client,
    ):
        client.request(1, "/large?1000")
        assert client.until(frames.RST_STREAM, 1).code == frames.CANCEL
        served.wait_until(lambda: served.wire.requests == 0 and served.wire.buffered_bytes == 0)


def test_smaller_header_table_is_applied_in_the_next_block(served: Served) -> None:
    with FrameClient(served.port, {frames.HEADER_TABLE_SIZE: 0}) as client:
        client.decoder.max_allowed_table_size = 0
        client.request(1)
        assert client.response(1)[0][":status"] == "200"


def test_responses_that_wait_for_each_other_are_not_reset() -> None:
    with serve(sweep_interval=1000) as served, FrameClient(served.port) as client:
        for number in range(1, 33, 2):
            client.request(number, "/large?60000")
        now = time.monotonic()
        ended: set[int] = set()
        for step in range(110):
            client.write(frames.frame(frames.PING, 0, 0, bytes(8)))
            while (frame := client.read_frame()) is not None and frame.kind != frames.PING:
                assert frame.kind != frames.RST_STREAM
                if frame.kind == frames.DATA and frame.flags & frames.END_STREAM:
                    ended.add(frame.stream)
            # The client reads 25,000 bytes every 20 s. That is above min_taking_rate, but most responses wait
            # for longer than progress_timeout.
            (connection,) = served.run(lambda: list(served.wire.connections))
            served.run(partial(connection.sweep, now + 20 * step))
            client.write(frames.window_update(0, 25_000))
        assert ended == set(range(1, 33, 2))


def test_response_is_reset_if_its_window_is_opened_a_byte_at_a_time() -> None:
    with (
        serve(Limits(progress_timeout=0.4)) as served,
        FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 0}) as client,
    ):
        client.request(1, "/large?1000")
        client.until(frames.HEADERS, 1)
        client.socket.settimeout(0.02)
        for _ in range(900):
            client.write(frames.window_update(1, 1))
            client.until(frames.DATA, 1)
            try:
                frame = client.until(frames.RST_STREAM, 1)
            except TimeoutError:
                continue
            break
        assert frame.code == frames.CANCEL
