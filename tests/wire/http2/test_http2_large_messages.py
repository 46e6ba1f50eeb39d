"""Large messages arrive unharmed in whatever frames they come, and whatever comes between the frames."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.wire.http2 import frames
from backline.wire.http2.read_ahead import DirectProtocol
from backline.wire.limits import KIB, Limits
from wire.http2.served import FrameClient, Served, serve

PING = frames.frame(frames.PING, 0, 0, b"in-order")
LONGEST = frames.MIN_MAX_FRAME_SIZE


@pytest.fixture(scope="module")
def limited() -> Iterator[Served]:
    with serve(Limits(max_buffered_bytes=500_000)) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[FrameClient]:
    """A client whose windows are wide enough for all responses."""
    with wide(served) as connected:
        yield connected


def wide(served: Served) -> FrameClient:
    client = FrameClient(served.port, {frames.INITIAL_WINDOW_SIZE: 1 << 24})
    client.write(frames.window_update(0, 1 << 24))
    return client


def message(size: int, seed: int = 0) -> bytes:
    """A gRPC message of random bytes, with its prefix."""
    return b"\0" + size.to_bytes(4, "big") + random.Random(seed).randbytes(size)


def in_frames(stream: int, body: bytes, lengths: list[int], *, ended: bool) -> list[bytes]:
    """DATA frames of these lengths, the last of which is repeated; `ended` marks the last frame."""
    sent: list[bytes] = []
    at = 0
    while at < len(body):
        length = lengths[min(len(sent), len(lengths) - 1)]
        last = ended and at + length >= len(body)
        sent.append(
            frames.frame(frames.DATA, frames.END_STREAM if last else 0, stream, body[at : at + length])
        )
        at += length
    return sent


def call(client: FrameClient, stream: int, extra: tuple[tuple[str, str], ...] = ()) -> None:
    client.call(stream, "/test.Test/Echo", None, extra, end=False)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(65 * KIB, 700 * KIB),
    lengths=st.lists(st.sampled_from((LONGEST, 8000, 4096, 1500, 70)), min_size=1, max_size=5),
    pings=st.sets(st.integers(0, 60), max_size=4),
    cut=st.integers(1, 300_000),
    ended=st.booleans(),
    method=st.sampled_from(("/test.Test/Echo", "/test.Test/Each")),
)
def test_message_is_received_in_any_frames(
    served: Served, size: int, lengths: list[int], pings: set[int], cut: int, ended: bool, method: str
) -> None:
    lengths = [*lengths, LONGEST]
    body = message(size)
    with wide(served) as client:
        for stream in (1, 3):  # the first large message makes the connection receive the second directly
            client.call(stream, method, None, end=False)
            sent = in_frames(stream, body, lengths, ended=ended)
            for place in sorted(pings, reverse=True):
                sent.insert(place, PING)
            if not ended:
                sent.append(frames.frame(frames.DATA, frames.END_STREAM, stream, b""))
            whole = b"".join(sent)
            client.write(whole[:cut])
            client.write(whole[cut:])
            _, echoed, trailers = client.response(stream)
            assert echoed == body
            assert trailers["grpc-status"] == "0"


def test_connection_with_large_messages_receives_them_directly(client: FrameClient, served: Served) -> None:
    call(client, 1)
    for frame in in_frames(1, message(300_000), [LONGEST], ended=True):
        client.write(frame)
    client.response(1)
    protocols = served.run(
        lambda: [type(connection.transport.get_protocol()) for connection in served.wire.connections]  # type: ignore[attr-defined]
    )
    assert DirectProtocol in protocols


def test_requests_between_the_frames_of_a_large_message_are_answered(client: FrameClient) -> None:
    """Each frame is one that the server cannot have guessed: those of two messages alternate."""
    first, second = message(200_000, 1), message(250_000, 2)
    for stream in (1, 3):
        call(client, stream)
    one, other = (
        in_frames(stream, body, [LONGEST], ended=True) for stream, body in ((1, first), (3, second))
    )
    client.write(b"".join(one[:3]))
    client.call(5, "/test.Test/Echo", message(100, 3))
    assert client.response(5)[1] == message(100, 3)
    client.write(b"".join(frame for pair in zip(one[3:], other, strict=False) for frame in pair))
    client.write(b"".join(other[len(one) - 3 :]))
    answers = {1: b"", 3: b""}
    ended = 0
    while ended < 2:
        frame = client.read_frame()
        assert frame is not None
        if frame.kind == frames.DATA:
            answers[frame.stream] += frame.payload
        elif frame.kind == frames.HEADERS:
            client.decoder.decode(frame.payload)
            ended += frame.flags & frames.END_STREAM
    assert answers == {1: first, 3: second}


def test_bytes_after_a_large_message_are_refused(client: FrameClient) -> None:
    call(client, 1)
    client.write(b"".join(in_frames(1, message(300_000) + b"x" * 100, [LONGEST], ended=True)))
    fields, _, trailers = client.response(1)
    assert (fields | trailers)["grpc-status"] == "3"


def test_large_message_that_is_cut_short_is_refused(client: FrameClient) -> None:
    call(client, 1)
    client.write(b"".join(in_frames(1, message(300_000)[:250_000], [LONGEST], ended=True)))
    fields, _, trailers = client.response(1)
    assert (fields | trailers)["grpc-status"] == "3"


def test_large_message_must_have_its_content_length(client: FrameClient) -> None:
    call(client, 1, (("content-length", "200000"),))
    client.write(b"".join(in_frames(1, message(300_000), [LONGEST], ended=True)))
    assert client.until(frames.RST_STREAM, 1).code == frames.PROTOCOL_ERROR


def test_large_message_above_the_buffers_of_the_server_is_refused(limited: Served) -> None:
    with FrameClient(limited.port) as client:
        call(client, 1)
        client.write(b"".join(in_frames(1, message(700_000), [LONGEST], ended=True)))
        fields, _, trailers = client.response(1)
        assert (fields | trailers)["grpc-status"] == "8"
        limited.wait_until(lambda: limited.wire.buffered_bytes == 0)
        client.call(3, "/test.Test/Echo", message(10))
        assert client.response(3)[1] == message(10)


def test_client_that_leaves_in_a_large_message_leaves_nothing_behind(served: Served) -> None:
    with FrameClient(served.port) as client:
        call(client, 1)
        client.write(b"".join(in_frames(1, message(600_000), [LONGEST], ended=True)[:20]))
    served.wait_until(lambda: not served.wire.connections and served.wire.buffered_bytes == 0)


def test_large_messages_that_follow_each_other_at_once_are_all_answered(client: FrameClient) -> None:
    bodies = {stream: message(100_000 + stream, stream) for stream in (1, 3, 5, 7)}
    call(client, 1)
    client.write(b"".join(in_frames(1, bodies[1], [LONGEST], ended=True)))
    assert client.response(1)[1] == bodies[1]  # the first large message makes the connection read directly
    for stream in (3, 5, 7):
        call(client, stream)
        client.write(b"".join(in_frames(stream, bodies[stream], [LONGEST], ended=True)))
    for stream in (3, 5, 7):
        assert client.response(stream)[1] == bodies[stream]


class CountingTransport:
    """A transport that records how many bytes each write has."""

    def __init__(self, inner: asyncio.Transport) -> None:
        self.inner = inner
        self.writes: list[int] = []

    def write(self, data: bytes) -> None:
        self.writes.append(len(data))
        self.inner.write(data)

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.writes.append(sum(map(len, parts)))
        self.inner.writelines(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_large_response_is_written_at_once_with_its_headers_and_trailers(
    client: FrameClient, served: Served
) -> None:
    client.call(1, "/test.Test/Hold", message(10))
    served.wait_until(lambda: len(served.handlers.held) == 1)

    def reply() -> CountingTransport:
        held = served.handlers.held.pop()
        output = held.connection.output  # type: ignore[attr-defined]
        output._transport = counting = CountingTransport(output._transport)
        held.reply(bytes(600_000))
        return counting

    counting = served.run(reply)
    _, body, trailers = client.response(1)
    assert body == b"\0" + (600_000).to_bytes(4, "big") + bytes(600_000)
    assert trailers["grpc-status"] == "0"
    assert len(counting.writes) == 1
    assert counting.writes[0] > 600_000
