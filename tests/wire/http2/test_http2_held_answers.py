"""Answers that a client does not take: how many are made, and what becomes of it."""

from __future__ import annotations

import gzip

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
    # Answered after all that came before it was read.
    client.write(frames.frame(frames.PING, 0, 0, b"all read"))
    client.until(frames.PING)


def test_large_answers_are_made_as_far_as_they_may_be_held() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 50, 200_000)
        assert 200_000 <= served.run(lambda: served.wire.held_answer_bytes) <= MIB
        assert served.run(lambda: served.wire.buffered_bytes) <= MIB
        assert served.run(lambda: served.wire.requests) == 50


def test_requests_that_waited_are_answered_in_their_order() -> None:
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


def test_one_answer_may_be_larger_than_all_that_is_held() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 24}) as client:
        client.write(frames.window_update(0, 1 << 24))
        for number in (1, 3):
            client.request(number, f"/large?{5 * MIB}")
        for number in (1, 3):
            assert len(client.response(number)[1]) == 5 * MIB


def test_small_answers_are_not_held_back() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 100, 1000)
        assert served.run(lambda: served.wire.held_answer_bytes) == 100_000


def test_requests_of_a_new_connection_are_all_in_flight_where_answers_are_known_to_be_small() -> None:
    with serve(LIMITS) as served:
        with FrameClient(served.port) as client:
            client.request(1, "/large?1000")
            client.response(1)
        with FrameClient(served.port) as client:
            for number in range(1, 41, 2):
                client.call(number, "/test.Test/Hold", prefixed(b""))
            served.wait_until(lambda: len(served.handlers.held) == 20)


def test_the_first_requests_of_a_server_are_in_flight_together_up_to_a_limit() -> None:
    """They may wait for each other: a model's batch is formed of them."""
    with serve(LIMITS) as served, FrameClient(served.port) as client:
        for number in range(1, 41, 2):
            client.call(number, "/test.Test/Hold", prefixed(b""))
        client.write(frames.frame(frames.PING, 0, 0, b"all read"))
        client.until(frames.PING)
        served.wait_until(lambda: len(served.handlers.held) == 16)


def test_a_new_connection_is_held_to_the_large_answers_of_another() -> None:
    with (
        serve(LIMITS) as served,
        FrameClient(served.port, SHUT) as taught,
        FrameClient(served.port, SHUT) as client,
    ):
        ask_for(taught, 1, 200_000)
        ask_for(client, 50, 200_000)
        assert served.run(lambda: served.wire.held_answer_bytes) <= MIB + 200_000


def test_streams_that_are_reset_free_their_answers_and_let_others_begin() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 20, 200_000)
        client.write(b"".join(frames.rst_stream(number, frames.CANCEL) for number in range(1, 39, 2)))
        served.wait_until(lambda: served.wire.requests == 1 and served.wire.held_answer_bytes == 200_000)
        client.write(frames.rst_stream(39, frames.CANCEL))
        served.wait_until(
            lambda: served.wire.requests == served.wire.held_answer_bytes == served.wire.buffered_bytes == 0
        )


def test_client_that_leaves_frees_everything() -> None:
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


def test_deadline_ends_a_call_that_waits() -> None:
    with serve(LIMITS) as served, FrameClient(served.port, SHUT) as client:
        ask_for(client, 20, 200_000)
        client.call(101, "/test.Test/Echo", prefixed(bytes(10_000)), extra=(("grpc-timeout", "50m"),))
        assert client.response(101)[0]["grpc-status"] == "4"


@pytest.mark.parametrize("crumbs", [False, True])
def test_client_that_takes_hardly_anything_is_cut_off(crumbs: bool) -> None:
    limits = Limits(max_unsent_bytes=100_000, progress_timeout=0.3, min_taking_rate=10_000)
    with serve(limits) as served, FrameClient(served.port, SHUT) as client:
        for number in (1, 3, 5):
            client.request(number, "/large?100000")
        client.until(frames.HEADERS, 5)
        if crumbs:
            # Every stream makes some progress whenever the server looks.
            def dribble() -> bool:
                for connection in served.wire.connections:
                    connection.data_received(
                        b"".join(frames.window_update(number, 1) for number in (1, 3, 5))
                    )
                return not served.wire.connections

            served.wait_until(dribble)
        served.wait_until(lambda: not served.wire.connections and served.wire.held_answer_bytes == 0)


def test_handler_of_a_stream_gets_no_more_while_its_client_takes_nothing(served: Served) -> None:
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
