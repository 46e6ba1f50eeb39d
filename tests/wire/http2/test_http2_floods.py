"""Clients that flood the server with useless work, and clients that only seem to."""

from __future__ import annotations

import pytest

from backline.wire.grpc.messages import PREFIX
from backline.wire.http2 import frames
from backline.wire.limits import Limits
from wire.http2.served import FrameClient, Served, serve

SMALL = Limits(idle_frames_burst=100, max_idle_frames_rate=1.0)
PING = frames.frame(frames.PING, 0, 0, bytes(8))
FLOODS = {
    "PING": PING,
    "acknowledged PING": frames.frame(frames.PING, frames.ACK, 0, bytes(8)),
    "SETTINGS": frames.settings({}),
    "acknowledged SETTINGS": frames.frame(frames.SETTINGS, frames.ACK, 0),
    "PRIORITY": frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
    "unknown": frames.frame(77, 0, 0, b"anything"),
    "WINDOW_UPDATE": frames.window_update(0, 1),
    "empty DATA": frames.frame(frames.DATA, 0, 1),
    "DATA of padding": frames.frame(frames.DATA, frames.PADDED, 1, b"\x0a" + bytes(10)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_flood_ends_the_connection(name: str) -> None:
    with serve(SMALL) as served, FrameClient(served.port) as client:
        block = client.encoder.encode(
            [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        )
        client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block))
        client.write(FLOODS[name] * 300)
        assert client.goaway() == frames.ENHANCE_YOUR_CALM
        assert client.ended()
        served.wait_until(lambda: not served.wire.connections and served.wire.requests == 0)


def begun_call(client: FrameClient, path: str) -> bytes:
    """The frame that begins call 1 of a gRPC method."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
    block = client.encoder.encode([*fields, ("content-type", "application/grpc")])
    return frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)


def test_flood_of_empty_messages_in_one_frame_ends_the_connection() -> None:
    with serve(SMALL) as served, FrameClient(served.port) as client:
        client.write(begun_call(client, "/test.Test/Deaf") + frames.frame(frames.DATA, 0, 1, bytes(5) * 300))
        assert client.goaway() == frames.ENHANCE_YOUR_CALM
        served.wait_until(lambda: not served.wire.connections)


def test_handler_of_many_small_messages_lets_others_continue(served: Served) -> None:
    message = PREFIX.pack(0, 20) + bytes(20)
    with FrameClient(served.port) as client:
        data = frames.frame(frames.DATA, frames.END_STREAM, 1, message * 600)
        client.write(begun_call(client, "/test.Test/Ticks") + data)
        answer = client.until(frames.DATA, 1).payload
        assert int(answer[PREFIX.size :]) < 20


def test_rapid_reset_ends_the_connection_and_leaks_nothing() -> None:
    with serve(SMALL) as served, FrameClient(served.port) as client:
        client.request(1, "/hold")
        block = client.encoder.encode(
            [(":method", "GET"), (":scheme", "http"), (":path", "/hold"), (":authority", "test")]
        )
        head = frames.END_HEADERS | frames.END_STREAM
        client.write(
            b"".join(
                frames.frame(frames.HEADERS, head, number, block) + frames.rst_stream(number, frames.CANCEL)
                for number in range(3, 603, 2)
            )
        )
        assert client.goaway() == frames.ENHANCE_YOUR_CALM
        served.wait_until(lambda: served.wire.requests == 0)


def test_provoked_resets_count_as_a_flood() -> None:
    with serve(SMALL) as served, FrameClient(served.port) as client:
        block = client.encoder.encode(
            [(":method", "POST"), (":scheme", "http"), (":path", "/hold"), (":authority", "test")]
        )
        attack = b"".join(
            frames.frame(frames.HEADERS, frames.END_HEADERS, number, block) + frames.window_update(number, 0)
            for number in range(1, 601, 2)
        )
        client.write(attack)
        assert client.goaway() == frames.ENHANCE_YOUR_CALM
        served.wait_until(lambda: served.wire.requests == 0)


def test_answered_requests_earn_pings() -> None:
    with serve(SMALL) as served, FrameClient(served.port) as client:
        for number in range(1, 2001, 2):
            client.write(PING + frames.window_update(0, 12))
            client.request(number)
            assert client.response(number)[0][":status"] == "200"


def test_other_connections_are_served_during_a_flood(served: Served) -> None:
    with FrameClient(served.port) as flooding, FrameClient(served.port) as honest:
        flooding.write(PING * 1500)
        honest.request(1)
        assert honest.response(1)[0][":status"] == "200"


def test_all_frames_of_a_large_packet_are_handled(client: FrameClient) -> None:
    client.write(PING * 1500)
    for _ in range(1500):
        assert client.until(frames.PING).flags == frames.ACK


@pytest.mark.parametrize("fragment", [b"", b"x" * 10_000])
def test_endless_header_block_ends_the_connection(client: FrameClient, fragment: bytes) -> None:
    client.write(
        frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(frames.CONTINUATION, 0, 1, fragment) * 20
    )
    assert client.goaway() == frames.ENHANCE_YOUR_CALM


def test_hpack_bomb_ends_the_connection(client: FrameClient) -> None:
    block = client.encoder.encode([("x-long", "x" * 3000)]) + b"\xbe" * 5000
    client.write(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block))
    assert client.goaway() == frames.ENHANCE_YOUR_CALM


def test_too_many_fields_are_refused(client: FrameClient) -> None:
    client.request(1, extra=tuple((f"x-{number}", "1") for number in range(200)))
    assert client.response(1)[0][":status"] == "431"
    client.request(3)
    assert client.response(3)[0][":status"] == "200"


def test_too_large_header_list_is_refused_and_the_table_stays_in_step(client: FrameClient) -> None:
    block = client.encoder.encode(
        [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "test"),
            ("x-long", "x" * 3000),
        ]
    )
    client.write(
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block + b"\xbe" * 25)
    )
    assert client.response(1)[0][":status"] == "431"
    client.request(3, extra=(("x-long", "x" * 3000),))
    assert client.response(3)[0][":status"] == "200"


def test_call_with_too_many_fields_is_refused(client: FrameClient) -> None:
    client.call(
        1, "/test.Test/Echo", b"\0\0\0\0\0", extra=tuple((f"x-{number}", "1") for number in range(200))
    )
    fields = client.response(1)[0]
    assert (fields[":status"], fields["grpc-status"]) == ("200", "8")


def test_server_stops_reading_a_client_that_does_not_read(served: Served) -> None:
    limits = Limits(max_unsent_bytes=20_000, idle_frames_burst=1_000_000, progress_timeout=0.5)
    with serve(limits) as small, FrameClient(small.port) as client:
        client.socket.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):
            client.write(PING * 2_000_000)
        # The connection may also be closed, for not reading.
        small.wait_until(lambda: not small.wire.connections)
