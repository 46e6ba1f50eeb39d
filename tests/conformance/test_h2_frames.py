"""HTTP/2 preface and frames: the situations of h2spec for RFC 7540, sections 3, 4 and 6."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conformance.h2probe import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Probe,
    frame,
    settings_payload,
)

#: A type that no specification defines.
UNKNOWN = 0x16

# 3.5 HTTP/2 connection preface


def test_http2_3_5_preface_is_answered_with_settings(raw: Probe) -> None:
    raw.send(PREFACE + frame(SETTINGS, 0, 0, settings_payload((INITIAL_WINDOW_SIZE, 65535))))
    raw.expect(SETTINGS)


def test_http2_3_5_invalid_preface_ends_the_connection(raw: Probe) -> None:
    raw.send(b"INVALID CONNECTION PREFACE\r\n\r\n")
    raw.expect_closed()


# 4.1 Frame format


def test_http2_4_1_unknown_type_is_ignored(h2: Probe) -> None:
    h2.frame(UNKNOWN, 0, 0, bytes(8))
    h2.ping()
    h2.expect(PING)


def test_http2_4_1_undefined_flags_are_ignored(h2: Probe) -> None:
    h2.frame(PING, 0x16, 0, bytes(8))
    h2.expect(PING)


def test_http2_4_1_reserved_bit_is_ignored(h2: Probe) -> None:
    h2.frame(PING, 0x16, 0x80000000, bytes(8))
    h2.expect(PING)


# 4.2 Frame size


def test_http2_4_2_data_of_the_maximum_size(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, b"x" * h2.settings.get(MAX_FRAME_SIZE, 16384))
    h2.expect(HEADERS)


def test_http2_4_2_data_above_the_maximum_size(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, b"x" * (h2.settings.get(MAX_FRAME_SIZE, 16384) + 1))
    h2.expect_stream_error(FRAME_SIZE_ERROR)


def test_http2_4_2_headers_above_the_maximum_size(h2: Probe) -> None:
    # About 17,500 bytes, whatever the server announces: h2spec's default cannot exceed it.
    h2.headers(1, h2.fields(extra=h2.filler(5)))
    h2.expect_connection_error(FRAME_SIZE_ERROR)


# 4.3 Header compression and decompression


def test_http2_4_3_invalid_header_block(h2: Probe) -> None:
    h2.headers(1, b"\x40")
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_http2_4_3_priority_inside_a_header_block(h2: Probe) -> None:
    h2.headers(1, end=False, end_headers=False)
    h2.priority(1)
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_4_3_headers_of_another_stream_inside_a_header_block(h2: Probe) -> None:
    h2.headers(1, end=False, end_headers=False)
    h2.headers(3)
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


# 6.1 DATA


def test_http2_6_1_data_on_stream_0(h2: Probe) -> None:
    h2.data(0)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_1_data_on_a_stream_that_is_not_open(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"))
    h2.data(1)
    h2.expect_stream_error(STREAM_CLOSED)


def test_http2_6_1_data_with_invalid_pad_length(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST", extra=[("content-length", "4")]), end=False)
    h2.send(bytes.fromhex("000005000900000001") + b"\x06test")
    h2.expect_connection_error(PROTOCOL_ERROR)


# 6.2 HEADERS


def test_http2_6_2_priority_instead_of_continuation(h2: Probe) -> None:
    h2.headers(1, end=False, end_headers=False)
    h2.priority(1)
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_2_headers_of_another_stream_instead_of_continuation(h2: Probe) -> None:
    h2.headers(1, end=False, end_headers=False)
    h2.headers(3)
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_2_headers_on_stream_0(h2: Probe) -> None:
    h2.headers(0)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_2_headers_with_invalid_pad_length(h2: Probe) -> None:
    block = h2.encode(h2.fields())
    h2.frame(HEADERS, 0x0D, 1, bytes([len(block) + 2]) + block)
    h2.expect_stream_error(PROTOCOL_ERROR)


# 6.3 PRIORITY


def test_http2_6_3_priority_on_stream_0(h2: Probe) -> None:
    h2.priority(0)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_3_priority_of_4_bytes(h2: Probe) -> None:
    h2.headers(1)
    h2.frame(PRIORITY, 0, 1, bytes.fromhex("80000001"))
    h2.expect_stream_error(FRAME_SIZE_ERROR)


# 6.4 RST_STREAM


def test_http2_6_4_rst_stream_on_stream_0(h2: Probe) -> None:
    h2.reset(0)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_4_rst_stream_on_idle_stream(h2: Probe) -> None:
    h2.reset(1)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_4_rst_stream_of_3_bytes(h2: Probe) -> None:
    h2.headers(1)
    h2.frame(RST_STREAM, 0, 1, bytes(3))
    h2.expect_stream_error(FRAME_SIZE_ERROR)


# 6.5 SETTINGS


def test_http2_6_5_settings_acknowledgement_with_payload(h2: Probe) -> None:
    h2.frame(SETTINGS, ACK, 0, b"\0")
    h2.expect_connection_error(FRAME_SIZE_ERROR)


def test_http2_6_5_settings_on_stream_1(h2: Probe) -> None:
    h2.frame(SETTINGS, 0, 1, bytes.fromhex("000300000064"))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_5_settings_of_3_bytes(h2: Probe) -> None:
    h2.frame(SETTINGS, 0, 0, bytes.fromhex("000300"))
    h2.expect_connection_error(FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        pytest.param(ENABLE_PUSH, 2, PROTOCOL_ERROR, id="enable-push-2"),
        pytest.param(INITIAL_WINDOW_SIZE, 1 << 31, FLOW_CONTROL_ERROR, id="initial-window-size-2^31"),
        pytest.param(MAX_FRAME_SIZE, 16383, PROTOCOL_ERROR, id="max-frame-size-16383"),
        pytest.param(MAX_FRAME_SIZE, 1 << 24, PROTOCOL_ERROR, id="max-frame-size-2^24"),
    ],
)
def test_http2_6_5_2_setting_out_of_range(h2: Probe, setting: int, value: int, code: int) -> None:
    h2.set((setting, value))
    h2.expect_connection_error(code)


def test_http2_6_5_2_unknown_setting_is_ignored(h2: Probe) -> None:
    h2.set((0xFF, 1))
    h2.ping()
    h2.expect(PING)


def test_http2_6_5_3_values_are_taken_in_order(h2: Probe, answer_length: Callable[[int], None]) -> None:
    answer_length(1)
    h2.set((INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1))
    h2.expect_settings_ack()
    h2.headers(1)
    assert len(h2.expect(DATA).payload) == 1


def test_http2_6_5_3_settings_are_acknowledged(h2: Probe) -> None:
    h2.set((ENABLE_PUSH, 0))
    h2.expect_settings_ack()


# 6.7 PING


def test_http2_6_7_ping_is_answered_with_its_payload(h2: Probe) -> None:
    h2.ping(b"backline")
    h2.expect_ping_ack(b"backline")


def test_http2_6_7_ping_acknowledgement_is_not_answered(h2: Probe) -> None:
    h2.ping(b"unwanted", ack=True)
    h2.ping(b"expected")
    h2.expect_ping_ack(b"expected")


def test_http2_6_7_ping_on_stream_1(h2: Probe) -> None:
    h2.frame(PING, 0, 1, bytes(8))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_7_ping_of_6_bytes(h2: Probe) -> None:
    h2.frame(PING, 0, 0, bytes(6))
    h2.expect_connection_error(FRAME_SIZE_ERROR)


# 6.8 GOAWAY


def test_http2_6_8_goaway_on_stream_1(h2: Probe) -> None:
    h2.frame(GOAWAY, 0, 1, bytes(8))
    h2.expect_connection_error(PROTOCOL_ERROR)


# 6.9 WINDOW_UPDATE


def test_http2_6_9_window_update_of_0(h2: Probe) -> None:
    h2.window_update(0, 0)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_9_window_update_of_0_on_a_stream(h2: Probe) -> None:
    h2.headers(1, end=False)
    h2.window_update(1, 0)
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_6_9_window_update_of_3_bytes(h2: Probe) -> None:
    h2.frame(WINDOW_UPDATE, 0, 0, bytes.fromhex("000001"))
    h2.expect_connection_error(FRAME_SIZE_ERROR)


def test_http2_6_9_1_window_of_1_byte_is_respected(h2: Probe, answer_length: Callable[[int], None]) -> None:
    answer_length(1)
    h2.set((INITIAL_WINDOW_SIZE, 1))
    h2.expect_settings_ack()
    h2.headers(1)
    assert len(h2.expect(DATA).payload) == 1


def test_http2_6_9_1_window_above_the_maximum(h2: Probe) -> None:
    h2.window_update(0, 2**31 - 1)
    h2.window_update(0, 2**31 - 1)
    # A close is not enough here: the code must be sent.
    assert h2.expect(GOAWAY).code == FLOW_CONTROL_ERROR


def test_http2_6_9_1_window_above_the_maximum_on_a_stream(h2: Probe) -> None:
    h2.headers(1, end=False)
    h2.window_update(1, 2**31 - 1)
    h2.window_update(1, 2**31 - 1)
    answer = h2.expect(RST_STREAM)
    assert answer.stream == 1
    assert answer.code == FLOW_CONTROL_ERROR


def test_http2_6_9_2_initial_window_size_changes_open_streams(
    h2: Probe, answer_length: Callable[[int], None]
) -> None:
    answer_length(1)
    h2.set((INITIAL_WINDOW_SIZE, 0))
    h2.expect_settings_ack()
    h2.headers(1)
    h2.set((INITIAL_WINDOW_SIZE, 1))
    assert len(h2.expect(DATA).payload) == 1


def test_http2_6_9_2_windows_may_become_negative(h2: Probe, answer_length: Callable[[int], None]) -> None:
    # At least 5 bytes: 3 are sent at first, one once the window is positive again, and some must remain.
    answer_length(5)
    h2.set((INITIAL_WINDOW_SIZE, 3))
    h2.expect_settings_ack()
    h2.headers(1)
    first = h2.expect(DATA)
    assert len(first.payload) == 3
    h2.set((INITIAL_WINDOW_SIZE, 2))
    h2.expect_settings_ack()
    h2.window_update(1, 2)
    assert len(h2.expect(DATA).payload) == 1


def test_http2_6_9_2_initial_window_size_above_the_maximum(h2: Probe) -> None:
    h2.send(bytes.fromhex("000006040000000000") + bytes.fromhex("000480000000"))
    h2.expect_connection_error(FLOW_CONTROL_ERROR)


# 6.10 CONTINUATION


def test_http2_6_10_several_continuations(h2: Probe) -> None:
    h2.headers(1, end_headers=False)
    h2.continuation(1, h2.filler(1), end_headers=False)
    h2.continuation(1, h2.filler(1))
    h2.expect(HEADERS)


def test_http2_6_10_continuation_followed_by_data(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False, end_headers=False)
    h2.continuation(1, h2.filler(1), end_headers=False)
    h2.data(1)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_10_continuation_on_stream_0(h2: Probe) -> None:
    h2.headers(1, end_headers=False)
    h2.continuation(0, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_10_continuation_after_complete_headers(h2: Probe) -> None:
    h2.headers(1)
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_10_continuation_after_complete_continuation(h2: Probe) -> None:
    h2.headers(1, end_headers=False)
    h2.continuation(1, h2.filler(1))
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_6_10_continuation_after_data(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False, end_headers=False)
    h2.data(1)
    h2.continuation(1, h2.filler(1), end_headers=False)
    h2.frame(CONTINUATION, 0x4, 0, h2.encode(h2.filler(1)))
    h2.expect_connection_error(PROTOCOL_ERROR)
