"""Responses that a client does not read: how many the server produces, and what ends them."""

from __future__ import annotations

import gzip
import socket

import pytest

from backline.wire.http2 import frames
from backline.wire.limits import MIB, Limits
from wire.http2.served import FrameClient, Served, serve

SHUT = {frames.INITIAL_WINDOW_SIZE: 0}
LIMITS = Limits(max_held_answer_bytes=1 * MIB, max_unsent_bytes=100_000)


def prefixed(message: bytes, compressed: bool = False) -> bytes:
    return bytes((compressed,)) + len(message).to_bytes(4, "big") + message


def ask_for(client: FrameClient, count: int, size: int) -> None:
    for number in range(1, 2 * count, 2):
        client.request(number, f"/large?{size}")
    # Acknowledged after everything before it was read.
    client.write(frames.frame(frames.PING, 0, 0, b"all read"))
    client.until(frames.PING)


def test_large_responses_are_produced_up_to_the_budget() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 50, 200_000)
        assert 200_000 <= served.run(lambda: served.wire.held_answer_bytes) <= MIB
        assert served.run(lambda: served.wire.buffered_bytes) <= MIB
        assert served.run(lambda: served.wire.requests) == 50


def test_waiting_requests_are_answered_in_order() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 20, 200_000)
        client.write(
            frames.window_update(0, 1 << 30) + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20})
        )
        started: list[int] = []
        taken: dict[int, int] = {}
        while sum(taken.values()) < 20 * 200_000:
            frame = client.until(frames.DATA)
            if frame.stream not in taken:
                started.append(frame.stream)
            taken[frame.stream] = taken.get(frame.stream, 0) + len(frame.payload)
        assert started == list(range(1, 41, 2))
        served.wait_until(
            lambda: served.wire.requests == served.wire.held_answer_bytes == served.wire.buffered_bytes == 0
        )


def test_single_response_may_exceed_the_budget() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 24}) as client:
        client.write(frames.window_update(0, 1 << 24))
        for number in (1, 3):
            client.request(number, f"/large?{5 * MIB}")
        for number in (1, 3):
            assert len(client.response(number)[1]) == 5 * MIB


def test_small_responses_are_not_delayed() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 100, 1000)
        assert served.run(lambda: served.wire.held_answer_bytes) == 100_000


def test_new_connection_starts_all_requests_if_responses_are_known_to_be_small() -> None:
    with serve(LIMITS) as served:
        with FrameClient(served.port) as client:
            client.request(1, "/large?1000")
            client.response(1)
        with FrameClient(served.port) as client:
            for number in range(1, 41, 2):
                client.call(number, "/test.Test/Hold", prefixed(b""))
            served.wait_until(lambda: len(served.handlers.held) == 20)


def test_first_requests_of_a_server_run_concurrently_up_to_a_limit() -> None:
    """They may wait for each other, to form a batch."""
    with serve(LIMITS) as served, FrameClient(served.port) as client:
        for number in range(1, 41, 2):
            client.call(number, "/test.Test/Hold", prefixed(b""))
        client.write(frames.frame(frames.PING, 0, 0, b"all read"))
        client.until(frames.PING)
        served.wait_until(lambda: len(served.handlers.held) == 16)


def test_new_connection_inherits_response_sizes_from_others() -> None:
    with (
        serve(LIMITS) as served,
        FrameClient(served.port, SHUT) as taught,
        FrameClient(served.port, SHUT) as client,
    ):
        ask_for(taught, 1, 200_000)
        ask_for(client, 50, 200_000)
        assert served.run(lambda: served.wire.held_answer_bytes) <= MIB + 200_000


def test_reset_streams_free_their_responses_and_admit_others() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 20, 200_000)
        client.write(b"".join(frames.rst_stream(number, frames.CANCEL) for number in range(1, 39, 2)))
        served.wait_until(lambda: served.wire.requests == 1 and served.wire.held_answer_bytes == 200_000)
        client.write(frames.rst_stream(39, frames.CANCEL))
        served.wait_until(
            lambda: served.wire.requests == served.wire.held_answer_bytes == served.wire.buffered_bytes == 0
        )


def test_disconnect_frees_everything() -> None:
    with serve(LIMITS) as served:
        with FrameClient(served.port, SHUT) as client:
            ask_for(client, 20, 200_000)
        served.wait_until(
            lambda: served.wire.requests == served.wire.held_answer_bytes == served.wire.buffered_bytes == 0
        )


def test_compressed_calls_wait_before_they_are_inflated() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        message = prefixed(gzip.compress(bytes(600_000)), compressed=True)
        for number in range(1, 101, 2):
            client.call(number, "/test.Test/Echo", message, extra=(("grpc-encoding", "gzip"),))
        served.wait_until(lambda: served.wire.held_answer_bytes >= 600_000)
        assert served.run(lambda: served.wire.held_answer_bytes) <= 2 * MIB
        client.write(
            frames.window_update(0, 1 << 30) + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20})
        )
        for _ in range(50):
            while not client.until(frames.HEADERS).flags & frames.END_STREAM:
                pass
            assert client.fields["grpc-status"] == "0"
        served.wait_until(
            lambda: served.wire.requests == served.wire.held_answer_bytes == served.wire.buffered_bytes == 0
        )


def test_deadline_ends_a_waiting_call() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 20, 200_000)
        client.call(101, "/test.Test/Echo", prefixed(bytes(10_000)), extra=(("grpc-timeout", "50m"),))
        assert client.response(101)[0]["grpc-status"] == "4"


@pytest.mark.parametrize("crumbs", [False, True])
def test_client_that_reads_too_slowly_is_disconnected(crumbs: bool) -> None:
    limits = Limits(max_unsent_bytes=100_000, progress_timeout=0.3, min_taking_rate=10_000)
    with serve(limits) as served, FrameClient(served.port, SHUT) as client:
        for number in (1, 3, 5):
            client.request(number, "/large?100000")
        client.until(frames.HEADERS, 5)
        if crumbs:
            # Every stream makes some progress between two sweeps.
            def dribble() -> bool:
                for connection in served.wire.connections:
                    connection.data_received(
                        b"".join(frames.window_update(number, 1) for number in (1, 3, 5))
                    )
                return not served.wire.connections

            served.wait_until(dribble)
        served.wait_until(lambda: not served.wire.connections and served.wire.held_answer_bytes == 0)


def test_stream_handler_gets_no_messages_while_its_client_does_not_read(served: Served) -> None:
    with FrameClient(served.port, SHUT) as client:
        message = prefixed(bytes(100_000))
        client.call(1, "/test.Test/Each", message[:16_000], end=False)
        rest = message[16_000:] + message * 4
        client.write(
            b"".join(
                frames.frame(frames.DATA, 0, 1, rest[at : at + 16_000]) for at in range(0, len(rest), 16_000)
            )
        )
        served.wait_until(lambda: served.wire.held_answer_bytes > 100_000)
        client.write(frames.frame(frames.PING, 0, 0, bytes(8)))
        client.until(frames.PING)
        assert served.run(lambda: served.wire.held_answer_bytes) < 110_000
        client.write(frames.window_update(0, 1 << 24) + frames.window_update(1, 1 << 24))
        taken = 0
        while taken < 5 * len(message):
            taken += len(client.until(frames.DATA, 1).payload)


def test_reset_response_lets_stream_handlers_go_on() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        client.request(1, f"/large?{2 * MIB}")
        message = prefixed(bytes(100_000))
        client.call(3, "/test.Test/Sum", None, end=False)
        for at in range(0, len(message), 16_000):
            client.write(frames.frame(frames.DATA, 0, 3, message[at : at + 16_000]))
        client.write(frames.frame(frames.DATA, frames.END_STREAM, 3, b"") + frames.window_update(3, 1000))
        served.wait_until(lambda: served.wire.held_answer_bytes == 2 * MIB and served.wire.streams == 1)
        client.write(frames.frame(frames.PING, 0, 0, bytes(8)))
        client.until(frames.PING)
        client.write(frames.rst_stream(1, frames.CANCEL))
        assert client.until(frames.DATA, 3).payload == prefixed(b"100000")


def test_client_is_not_blamed_for_many_responses_at_once() -> None:
    settings = {frames.INITIAL_WINDOW_SIZE: 1 << 24, frames.MAX_FRAME_SIZE: 1 << 17}
    with serve() as served, FrameClient(served.port, settings) as client:
        client.write(frames.window_update(0, 1 << 28))
        client.call(1, "/test.Test/Echo", prefixed(b""))
        client.response(1)
        for number in range(3, 259, 2):
            client.call(number, "/test.Test/Hold", prefixed(b""))
        held = served.handlers.held
        served.wait_until(lambda: len(held) == 128)
        (connection,) = served.run(lambda: list(served.wire.connections))
        # Over a network, unlike on one machine, the kernel accepts little of them.
        connected = connection.transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        served.run(lambda: [call.reply(bytes(60_000)) for call in held])
        for _ in range(128):
            assert len(client.until(frames.DATA).payload) == 60_005
