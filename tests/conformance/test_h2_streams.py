"""HTTP/2 streams, error codes and exchanges: the situations of h2spec for RFC 7540, sections 5, 7 and 8."""

from __future__ import annotations

import struct

import pytest

from conformance.h2probe import (
    END_HEADERS,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    PING,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    STREAM_CLOSED,
    Field,
    Probe,
    priority_payload,
)

# 5.1 Stream states


def test_http2_5_1_idle_data(h2: Probe) -> None:
    h2.data(1)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_5_1_idle_rst_stream(h2: Probe) -> None:
    h2.reset(1)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_5_1_idle_window_update(h2: Probe) -> None:
    h2.window_update(1, 100)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_5_1_idle_continuation(h2: Probe) -> None:
    h2.continuation(1, h2.fields())
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_5_1_half_closed_data(h2: Probe) -> None:
    h2.headers(1)
    h2.data(1)
    h2.expect_stream_error(STREAM_CLOSED)


def test_http2_5_1_half_closed_headers(h2: Probe) -> None:
    h2.headers(1)
    h2.headers(1)
    h2.expect_stream_error(STREAM_CLOSED)


def test_http2_5_1_half_closed_continuation(h2: Probe) -> None:
    block = h2.encode(h2.fields())
    h2.headers(1, block)
    h2.continuation(1, block)
    h2.expect_stream_error(STREAM_CLOSED, PROTOCOL_ERROR)


def test_http2_5_1_data_after_rst_stream(h2: Probe) -> None:
    h2.headers(1, end=False)
    h2.reset(1)
    h2.data(1)
    h2.expect_stream_error(STREAM_CLOSED)


def test_http2_5_1_headers_after_rst_stream(h2: Probe) -> None:
    h2.headers(1, end=False)
    h2.reset(1)
    h2.headers(1)
    h2.expect_stream_error(STREAM_CLOSED)


def test_http2_5_1_continuation_after_rst_stream(h2: Probe) -> None:
    h2.headers(1, end=False)
    h2.reset(1)
    h2.continuation(1, h2.filler(1))
    h2.expect_stream_error(STREAM_CLOSED, PROTOCOL_ERROR)


def test_http2_5_1_closed_data(h2: Probe) -> None:
    h2.headers(1)
    h2.expect_stream_closed()
    h2.data(1)
    h2.expect_stream_error(STREAM_CLOSED)


def test_http2_5_1_closed_headers(h2: Probe) -> None:
    # h2spec repeats the first HEADERS byte by byte, including indices into the dynamic table.
    block = h2.encode(h2.fields())
    h2.headers(1, block)
    h2.expect_stream_closed()
    h2.headers(1, block)
    h2.expect_connection_error(STREAM_CLOSED)


def test_http2_5_1_closed_continuation(h2: Probe) -> None:
    h2.headers(1)
    h2.expect_stream_closed()
    h2.continuation(1, h2.filler(1))
    h2.expect_connection_error(STREAM_CLOSED, PROTOCOL_ERROR)


# 5.1.1 Stream identifiers


def test_http2_5_1_1_even_stream(h2: Probe) -> None:
    h2.headers(2)
    h2.expect_connection_error(PROTOCOL_ERROR)


def test_http2_5_1_1_smaller_stream_than_before(h2: Probe) -> None:
    h2.headers(5)
    h2.headers(3)
    h2.expect_connection_error(PROTOCOL_ERROR)


# 5.1.2 Stream concurrency


def test_http2_5_1_2_more_streams_than_announced(h2: Probe) -> None:
    maximum = h2.settings.get(MAX_CONCURRENT_STREAMS)
    assert maximum is not None, "the server announces no maximum of concurrent streams"
    h2.set((INITIAL_WINDOW_SIZE, 0))
    # One block for all, as h2spec sends it: its dynamic table entries are inserted again and again.
    block = h2.encode(h2.fields())
    for number in range(maximum + 1):
        h2.headers(2 * number + 1, block)
    h2.expect_stream_error(PROTOCOL_ERROR, REFUSED_STREAM)


# 5.3.1 Stream dependencies


def test_http2_5_3_1_headers_that_depend_on_themselves(h2: Probe) -> None:
    h2.headers(1, priority=priority_payload(1))
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_5_3_1_priority_that_depends_on_itself(h2: Probe) -> None:
    h2.priority(1, depends_on=1)
    h2.expect_stream_error(PROTOCOL_ERROR)


# 5.4.1 Connection error handling


def test_http2_5_4_1_connection_error_closes_the_connection(h2: Probe) -> None:
    h2.frame(PING, 0, 3, bytes(8))
    h2.expect_closed()


# 5.5 Extending HTTP/2


def test_http2_5_5_unknown_frame_is_ignored(h2: Probe) -> None:
    h2.frame(0x16, 0, 0, bytes(8))
    h2.ping()
    h2.expect(PING)


def test_http2_5_5_unknown_frame_inside_a_header_block(h2: Probe) -> None:
    h2.headers(1, end_headers=False)
    h2.frame(0x16, 0, 0, bytes(8))
    h2.expect_connection_error(PROTOCOL_ERROR)


# 7 Error codes


def test_http2_7_goaway_with_unknown_code(h2: Probe) -> None:
    h2.goaway(code=0xFF)
    h2.expect_closed()


def test_http2_7_rst_stream_with_unknown_code(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.reset(1, code=0xFF)
    h2.ping()
    h2.expect(PING)


# 8.1 HTTP request/response exchange


def test_http2_8_1_second_headers_without_end_of_stream(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, end=False)
    h2.headers(1, [("x-test", "ok")], end=False)
    h2.expect_stream_error(PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(("X-TEST", "ok"), id="8_1_2_upper_case_name"),
        pytest.param((":test", "ok"), id="8_1_2_1_unknown_pseudo_header"),
        pytest.param((":status", "200"), id="8_1_2_1_pseudo_header_of_a_response"),
        pytest.param(("connection", "keep-alive"), id="8_1_2_2_connection_field"),
    ],
)
def test_http2_malformed_by_one_field(h2: Probe, field: Field) -> None:
    h2.headers(1, h2.fields(extra=[field]))
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_1_2_1_pseudo_header_as_trailer(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, end=False)
    # Without END_STREAM, as h2spec sends it; the strict form is below.
    h2.headers(1, [(":method", "POST")], end=False)
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_1_2_1_pseudo_header_after_a_field(h2: Probe) -> None:
    h2.headers(1, [("x-test", "ok"), *h2.fields()])
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_1_2_2_te_other_than_trailers(h2: Probe) -> None:
    h2.headers(1, h2.fields(extra=[("trailers", "test"), ("te", "trailers, deflate")]))
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_1_2_3_empty_path(h2: Probe) -> None:
    h2.headers(1, h2.fields(path=""))
    h2.expect_stream_error(PROTOCOL_ERROR)


@pytest.mark.parametrize("name", [":method", ":scheme", ":path"])
def test_http2_8_1_2_3_missing_pseudo_header(h2: Probe, name: str) -> None:
    h2.headers(1, [field for field in h2.fields() if field[0] != name])
    h2.expect_stream_error(PROTOCOL_ERROR)


@pytest.mark.parametrize("name", [":method", ":scheme", ":path"])
def test_http2_8_1_2_3_duplicated_pseudo_header(h2: Probe, name: str) -> None:
    h2.headers(1, h2.fields(extra=[field for field in h2.fields() if field[0] == name]))
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_1_2_6_content_length_differs_from_data(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST", extra=[("content-length", "1")]), end=False)
    h2.data(1)
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_1_2_6_content_length_differs_from_several_data(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST", extra=[("content-length", "1")]), end=False)
    h2.data(1, end=False)
    h2.data(1)
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_8_2_push_promise(h2: Probe) -> None:
    h2.frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 3) + h2.encode(h2.fields()))
    h2.expect_connection_error(PROTOCOL_ERROR)


# Beyond h2spec's 146 cases: it runs the first two only with --strict, the third never


def test_http2_strict_8_1_2_1_pseudo_header_as_last_trailer(h2: Probe) -> None:
    h2.headers(1, h2.fields("POST"), end=False)
    h2.data(1, end=False)
    h2.headers(1, [(":method", "POST")])
    h2.expect_stream_error(PROTOCOL_ERROR)


def test_http2_strict_5_4_1_connection_error_sends_goaway(h2: Probe) -> None:
    h2.frame(PING, 0, 3, bytes(8))
    assert h2.expect(GOAWAY).code == PROTOCOL_ERROR


def test_http2_strict_6_3_priority_of_an_idle_stream_leaves_lower_streams_usable(h2: Probe) -> None:
    h2.priority(3)
    h2.headers(1)
    h2.expect(HEADERS)
