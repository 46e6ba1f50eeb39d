"""Responses do not depend on how the bytes are fragmented, and no bytes break the server."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import cast

from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backline.wire.application import REMOTE, Denial
from backline.wire.connection import Wire
from backline.wire.http2 import frames
from backline.wire.http2.connection import Http2Connection
from backline.wire.http2.header_blocks import HeaderBlocks
from backline.wire.limits import Limits
from support.open_gate import OpenGate
from wire.http2.served import Handlers


class Recorder(asyncio.Transport):
    """A transport that records writes and never blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def exchange(data: bytes, cuts: list[int], limits: Limits) -> bytes:
    """What a server sends in response to `data`, received in pieces cut at `cuts`."""
    loop = asyncio.new_event_loop()
    try:
        wire = Wire(Handlers().application(), limits, loop)
        transport = Recorder()
        connection = Http2Connection(wire)
        connection.attach(cast(asyncio.Transport, transport), b"")
        places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for begin, end in pairwise(places):
            if begin < end and not transport.closing:
                connection.data_received(data[begin:end])
            for _ in range(4):
                loop.call_soon(loop.stop)
                loop.run_forever()
        connection.connection_lost(None)
        assert wire.requests == 0
        assert wire.buffered_bytes == 0
        assert not wire.connections
        return answers(bytes(transport.written))
    finally:
        loop.close()


def answers(written: bytes) -> bytes:
    """The frames in order, without dates."""
    out = []
    at = 0
    while at < len(written):
        length = int.from_bytes(written[at : at + 3], "big")
        frame = written[at : at + 9 + length]
        at += 9 + length
        date = frame.find(b" GMT")
        out.append(frame if date < 0 else frame[: date - 25] + frame[date:])
    return b"".join(out)


def conversation() -> bytes:
    encoder = Encoder()

    def head(method: str, path: str, **extra: str) -> bytes:
        more = [(name.replace("_", "-"), value) for name, value in extra.items()]
        return encoder.encode(
            [(":method", method), (":scheme", "http"), (":path", path), (":authority", "test"), *more]
        )

    def message(body: bytes) -> bytes:
        return b"\0" + len(body).to_bytes(4, "big") + body

    grpc = "application/grpc"
    block = head("POST", "/", x_long="y" * 300)
    return b"".join(
        (
            frames.PREFACE,
            frames.settings({frames.INITIAL_WINDOW_SIZE: 100_000}),
            frames.frame(frames.HEADERS, 5, 1, head("GET", "/")),
            frames.frame(frames.HEADERS, 4, 3, head("POST", "/test.Test/Echo", content_type=grpc)),
            frames.frame(frames.DATA, 0, 3, message(b"hello")[:3]),
            frames.frame(frames.PING, 0, 0, b"12345678"),
            frames.frame(frames.DATA, frames.PADDED | 1, 3, b"\x02" + message(b"hello")[3:] + b"\0\0"),
            frames.frame(frames.HEADERS, 4, 5, head("POST", "/test.Test/Echo", content_type=grpc)),
            frames.frame(frames.DATA, 1, 5, message(b"z" * 5000)),
            frames.frame(99, 0, 0, b"unknown" * 20),
            frames.frame(frames.HEADERS, 0, 7, block[:100]),
            frames.frame(frames.CONTINUATION, 0, 7, block[100:200]),
            frames.frame(frames.CONTINUATION, 4, 7, block[200:]),
            frames.frame(frames.DATA, 1, 7, b"body"),
            frames.frame(frames.HEADERS, 4, 9, head("POST", "/test.Test/Echo", content_type=grpc)),
            frames.frame(frames.DATA, 1, 9, message(b"two") + message(b"messages")),
            frames.frame(frames.HEADERS, 5, 11, head("GET", "/large?70000")),
            frames.window_update(0, 50_000),
            frames.frame(frames.HEADERS, 5, 13, head("GET", "no-slash")),
        )
    )


CONVERSATION = conversation()
WHOLE = exchange(CONVERSATION, [], Limits())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=40))
def test_responses_do_not_depend_on_fragmentation(cuts: list[int]) -> None:
    assert exchange(CONVERSATION, cuts, Limits()) == WHOLE


def test_responses_do_not_depend_on_fragmentation_into_single_bytes() -> None:
    assert exchange(CONVERSATION, list(range(len(CONVERSATION))), Limits()) == WHOLE


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.lists(st.integers(0, len(CONVERSATION)), max_size=10))
def test_responses_do_not_depend_on_the_budget_of_a_turn(frames_per_turn: int, cuts: list[int]) -> None:
    limits = Limits(frames_per_turn=frames_per_turn)
    data = CONVERSATION + frames.frame(frames.PING, 0, 0, b"the last") * 2
    assert exchange(data, cuts + list(range(len(data) - 34, len(data))), limits)[:200] == WHOLE[:200]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_random_bytes_cause_no_internal_error(junk: bytes, cuts: list[int]) -> None:
    answer = exchange(frames.PREFACE + frames.settings({}) + junk, cuts, Limits())
    assert frames.INTERNAL_ERROR.to_bytes(4, "big") + b"a fault of the server" not in answer


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            frames.frame,
            st.integers(0, 10),
            st.integers(0, 255),
            st.integers(0, 9),
            st.one_of(
                st.binary(max_size=20),
                st.just(
                    Encoder().encode(
                        [
                            (":method", "POST"),
                            (":scheme", "http"),
                            (":path", "/test.Test/Each"),
                            ("content-type", "application/grpc"),
                        ],
                        huffman=False,
                    )
                ),
            ),
        ),
        max_size=30,
    )
)
def test_random_frames_cause_no_internal_error(sent: list[bytes]) -> None:
    answer = exchange(frames.PREFACE + frames.settings({}) + b"".join(sent), [], Limits())
    assert b"a fault of the server" not in answer


def blocks() -> HeaderBlocks:
    return HeaderBlocks(Handlers().application(), Limits(), REMOTE)


FIELDS = [(":method", "GET"), (":scheme", "http"), (":path", "/a"), (":authority", "test")]


def test_equal_blocks_are_decoded_once_while_the_table_is_unchanged() -> None:
    decoder = blocks()
    encoder = Encoder()
    decoder.request(encoder.encode(FIELDS))
    indexed = encoder.encode(FIELDS)
    assert decoder.known == {}
    head = decoder.request(indexed)
    assert decoder.known[indexed] is head


def test_equal_blocks_are_decoded_once_with_a_disabled_table() -> None:
    decoder = blocks()
    encoder = Encoder()
    encoder.header_table_size = 0
    begin = encoder.encode(FIELDS)
    assert begin.startswith(b"\x20")
    decoder.request(begin)
    assert decoder.known == {}  # the block shrank the table
    head = decoder.request(begin)
    assert decoder.known[begin] is head
    decoder.fields(b"\x3f\xe1\x1f")
    assert decoder.known == {}  # the table has 4096 bytes again


def test_table_change_clears_the_memo() -> None:
    decoder = blocks()
    encoder = Encoder()
    decoder.request(encoder.encode(FIELDS))
    indexed = encoder.encode(FIELDS)
    assert decoder.request(indexed).path == b"/a"
    # New entries shift the old ones: the same index now refers to another field.
    decoder.request(encoder.encode([*FIELDS[:2], (":path", "/b"), FIELDS[3]]))
    assert decoder.known == {}


def test_a_refused_head_is_judged_again_when_it_is_repeated() -> None:
    denials = [Denial(401, 16, "the key is unknown"), None]
    gate = OpenGate()
    gate.refusal = lambda *arguments: denials.pop(0)  # type: ignore[method-assign]
    decoder = HeaderBlocks(replace(Handlers().application(), gate=gate), Limits(), REMOTE)
    block = b"\x82\x86\x84\x41\x04test"  # GET http / test, of which the table keeps the last
    decoder.fields(block)
    indexed = b"\x82\x86\x84\xbe"
    assert decoder.request(indexed).refusal is not None
    assert decoder.known == {}
    assert decoder.request(indexed).refusal is None
    assert indexed in decoder.known


def test_memo_of_blocks_is_bounded() -> None:
    decoder = blocks()
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.encode(FIELDS)
    decoder.fields(b"\x20")
    for number in range(1000):
        fields = [*FIELDS[:2], (":path", f"/{number}"), FIELDS[3]]
        decoder.request(
            b"".join(
                b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
                for name, value in fields
            )
        )
    assert 0 < len(decoder.known) <= 64
