"""HTTP/2 that every server must accept: h2spec's generic sections 1 to 5 (RFC 7540, RFC 7541)."""

from __future__ import annotations

import pytest

from conformance.h2probe import (
    DATA,
    ENABLE_PUSH,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PING,
    PREFACE,
    SETTINGS,
    Frame,
    Probe,
    frame,
    priority_payload,
    settings_payload,
)

# 1 Starting HTTP/2


def test_generic_1_first_frame_is_settings(raw: Probe) -> None:
    raw.send(PREFACE + frame(SETTINGS, 0, 0, settings_payload((INITIAL_WINDOW_SIZE, 65535))))
    first = raw.wait()
    assert isinstance(first, Frame), str(first)
    assert first.type == SETTINGS
    assert not first.is_ack


# 2 Streams and multiplexing


def test_generic_2_priority_on_idle_stream(h2: Probe) -> None:
    h2.priority(1)
    h2.ping()
    h2.expect_ping_ack()


def test_generic_2_window_update_on_half_closed_stream(h2: Probe) -> None:
    h2.set((INITIAL_WINDOW_SIZE, 0))
    h2.headers(1)
    h2.window_update(1, 1)
    h2.expect(DATA)


def test_generic_2_priority_on_half_closed_stream(h2: Probe) -> None:
    h2.set((INITIAL_WINDOW_SIZE, 0))
    h2.headers(1)
    h2.priority(1)
    h2.window_update(1, 1)
    h2.expect(DATA)


def test_generic_2_rst_stream_on_half_closed_stream(h2: Probe) -> None:
    h2.headers(1)
    h2.reset(1)
    h2.ping()
    h2.expect_ping_ack_or_close()


def test_generic_2_priority_on_closed_stream(h2: Probe) -> None:
    h2.headers(1)
    h2.expect_stream_closed()
    h2.priority(1)
    h2.ping()
    h2.expect_ping_ack()


# 3 Frame definitions


def test_generic_3_1_data(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1)
    h2.expect_headers()


def test_generic_3_1_data_in_several_frames(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, end=False)
    h2.data(1)
    h2.expect_headers()


def test_generic_3_1_data_with_padding(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, padding=b"\0\0\0\0\0\0")
    h2.expect_headers()


def test_generic_3_2_headers(h2: Probe) -> None:
    h2.headers(1)
    h2.expect_headers()


def test_generic_3_2_headers_with_padding(h2: Probe) -> None:
    h2.headers(1, padding=8)
    h2.expect_headers()


def test_generic_3_2_headers_with_priority(h2: Probe) -> None:
    h2.headers(1, priority=priority_payload(0))
    h2.expect_headers()


@pytest.mark.parametrize("weight", [0, 255], ids=["1", "256"])
def test_generic_3_3_priority_with_weight(h2: Probe, weight: int) -> None:
    h2.priority(1, weight=weight)
    h2.headers(1)
    h2.expect_headers()


def test_generic_3_3_priority_with_dependency(h2: Probe) -> None:
    h2.priority(3, depends_on=1, weight=0)
    h2.headers(1)
    h2.expect_headers()


def test_generic_3_3_priority_exclusive(h2: Probe) -> None:
    h2.priority(1, weight=0, exclusive=True)
    h2.headers(1)
    h2.expect_headers()


def test_generic_3_3_priority_of_idle_stream_then_headers_of_lower_stream(h2: Probe) -> None:
    h2.priority(3)
    h2.headers(1)
    h2.expect_headers()


def test_generic_3_4_rst_stream(h2: Probe) -> None:
    h2.headers(1, end=False)
    h2.reset(1)
    h2.ping()
    h2.expect_ping_ack_or_close()


def test_generic_3_5_settings(h2: Probe) -> None:
    h2.set(
        (HEADER_TABLE_SIZE, 4096),
        (ENABLE_PUSH, 1),
        (MAX_CONCURRENT_STREAMS, 100),
        (INITIAL_WINDOW_SIZE, 65535),
        (MAX_FRAME_SIZE, 16384),
        (MAX_HEADER_LIST_SIZE, 100),
    )
    h2.expect_settings_ack()


def test_generic_3_7_ping(h2: Probe) -> None:
    h2.ping(b"backline")
    h2.expect_ping_ack(b"backline")


def test_generic_3_8_goaway(h2: Probe) -> None:
    h2.goaway(debug=b"done")
    h2.expect_closed()


def test_generic_3_9_window_update_on_connection(h2: Probe) -> None:
    h2.window_update(0, 1)
    h2.ping()
    h2.expect(PING)


def test_generic_3_9_window_update_on_stream(h2: Probe) -> None:
    h2.headers(1)
    h2.window_update(1, 1)
    h2.expect(HEADERS)


def test_generic_3_10_continuation(h2: Probe) -> None:
    block = h2.encode(h2.fields())
    h2.headers(1, block[:5], end_headers=False)
    h2.continuation(1, block[5:])
    h2.expect_headers()


def test_generic_3_10_several_continuations(h2: Probe) -> None:
    block = h2.encode(h2.fields())
    h2.headers(1, block[:5], end_headers=False)
    h2.continuation(1, block[5:10], end_headers=False)
    h2.continuation(1, block[10:])
    h2.expect_headers()


# 4 HTTP message exchanges


def test_generic_4_get(h2: Probe) -> None:
    h2.headers(1)
    h2.expect_headers()


def test_generic_4_head(h2: Probe) -> None:
    h2.headers(1, h2.fields("HEAD"))
    h2.expect_headers()


def test_generic_4_post(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1)
    h2.expect_headers()


def test_generic_4_post_with_trailers(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST", extra=[("trailer", "x-test")]), end=False)
    h2.data(1, end=False)
    h2.headers(1, [("x-test", "ok")])
    h2.expect_headers()


# 5 HPACK: every representation of a field (RFC 7541, section 6)

PLAIN_KNOWN = b"\x0auser-agent\x06probe1"
HUFFMAN_KNOWN = bytes.fromhex("87b505b161cc5a93") + bytes.fromhex("849c48aca4")
PLAIN_NEW = b"\x06x-test\x06probe1"
HUFFMAN_NEW = bytes.fromhex("85f2b24a84ff") + bytes.fromhex("849c48aca4")


@pytest.mark.parametrize("name", ["known", "new"])
@pytest.mark.parametrize("coding", ["plain", "huffman"])
@pytest.mark.parametrize(
    "first", [b"\x40", b"\x00", b"\x10"], ids=["incremental", "without-indexing", "never-indexed"]
)
def test_generic_5_hpack_literal(h2: Probe, first: bytes, coding: str, name: str) -> None:
    literal = {
        ("plain", "known"): PLAIN_KNOWN,
        ("huffman", "known"): HUFFMAN_KNOWN,
        ("plain", "new"): PLAIN_NEW,
        ("huffman", "new"): HUFFMAN_NEW,
    }[coding, name]
    h2.headers(1, h2.encode(h2.fields()) + first + literal)
    h2.expect_headers()


def test_generic_5_hpack_indexed(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + b"\xba")
    h2.expect_headers()


def test_generic_5_hpack_table_size_update(h2: Probe) -> None:
    h2.headers(1, b"\x20" + h2.encode(h2.fields()))
    h2.expect_headers()


def test_generic_5_hpack_several_table_size_updates(h2: Probe) -> None:
    h2.headers(1, b"\x20\x3f\xe1\x1f" + h2.encode(h2.fields()))
    h2.expect_headers()
