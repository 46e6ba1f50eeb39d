"""Plain HTTP requests over HTTP/2."""

from __future__ import annotations

import gzip

import pytest

from backline.wire import compression
from backline.wire.http2 import frames
from backline.wire.limits import Limits
from wire.http2.served import FrameClient, Served, serve


def test_get_is_answered(client: FrameClient) -> None:
    client.request(1)
    fields, body, _ = client.response(1)
    assert fields[":status"] == "200"
    assert fields["content-length"] == "12"
    assert fields["date"].endswith("GMT")
    assert "connection" not in fields
    assert body == b"hello world\n"


def test_body_may_arrive_in_any_number_of_frames(client: FrameClient) -> None:
    client.write(
        frames.frame(
            frames.HEADERS,
            frames.END_HEADERS,
            1,
            client.encoder.encode(
                [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
            ),
        )
    )
    for piece in (b"abc", b"", b"def"):
        client.write(frames.frame(frames.DATA, 0, 1, piece))
    client.write(frames.frame(frames.DATA, frames.END_STREAM, 1, b"ghi"))
    assert client.response(1)[1] == b"abcdefghi"


def test_padding_is_not_part_of_the_body(client: FrameClient) -> None:
    block = client.encoder.encode(
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
    )
    client.write(
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PADDED, 1, b"\x03" + block + b"\0\0\0")
    )
    client.write(frames.frame(frames.DATA, frames.END_STREAM | frames.PADDED, 1, b"\x04body" + bytes(4)))
    assert client.response(1)[1] == b"body"


def test_trailers_end_a_request(client: FrameClient) -> None:
    client.request(1, method="POST", body=None)
    assert client.response(1)[1] == b"hello world\n"
    block = client.encoder.encode(
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
    )
    client.write(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 3, block) + frames.frame(frames.DATA, 0, 3, b"body")
    )
    trailers = client.encoder.encode([("x-checksum", "1")])
    client.write(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 3, trailers))
    assert client.response(3)[1] == b"body"


def test_response_to_head_has_no_body(client: FrameClient) -> None:
    client.request(1, method="HEAD")
    fields, body, _ = client.response(1)
    assert fields["content-length"] == "12"
    assert body == b""


def test_expectation_is_answered_before_the_body(client: FrameClient) -> None:
    block = client.encoder.encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "test"),
            ("expect", "100-continue"),
        ]
    )
    client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block))
    client.until(frames.HEADERS, 1)
    assert client.fields == {":status": "100"}
    client.write(frames.frame(frames.DATA, frames.END_STREAM, 1, b"body"))
    assert client.response(1)[1] == b"body"


def test_gzip_body_is_inflated(client: FrameClient) -> None:
    body = b"text " * 1000
    client.request(1, method="POST", extra=(("content-encoding", "gzip"),), body=gzip.compress(body))
    assert client.response(1)[1] == body


GZIP = (("content-encoding", "gzip"),)
#: A body that is inflated in its turn, on a thread.
LARGE_GZIP = gzip.compress(bytes(600_000))


def test_a_gzip_body_of_several_members_counts_once() -> None:
    body = gzip.compress(bytes(200_000)) + gzip.compress(bytes(400_000))
    with serve() as served, FrameClient(served.port) as client:
        client.request(1, "/hold", method="POST", extra=GZIP, body=body)
        assert served.handlers.arrived.wait(5)
        assert served.run(lambda: served.wire.buffered_bytes) == 600_000


def test_a_body_that_cannot_be_inflated_for_lack_of_memory_gets_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(compression, "_fill", fail)
    with serve() as served, FrameClient(served.port) as client:
        client.request(1, method="POST", extra=GZIP, body=LARGE_GZIP)
        assert client.response(1)[0][":status"] == "503"
        message = b"\1" + len(LARGE_GZIP).to_bytes(4, "big") + LARGE_GZIP
        client.call(3, "/test.Test/Echo", message, (("grpc-encoding", "gzip"),))
        assert client.response(3)[0]["grpc-status"] == "8"  # RESOURCE_EXHAUSTED
        monkeypatch.undo()
        client.request(5, method="POST", extra=GZIP, body=gzip.compress(b"later"))
        assert client.response(5)[1] == b"later"
        served.wait_until(lambda: served.wire.requests == served.wire.buffered_bytes == 0)


def test_a_fault_while_inflating_resets_the_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(compression, "_fill", fail)
    with serve() as served, FrameClient(served.port) as client:
        client.request(1, method="POST", extra=GZIP, body=LARGE_GZIP)
        assert client.until(frames.RST_STREAM, 1).code == frames.INTERNAL_ERROR
        client.request(3)
        assert client.response(3)[0][":status"] == "200"
        served.wait_until(lambda: served.wire.requests == served.wire.buffered_bytes == 0)
    assert "broken on purpose" in caplog.text


def test_an_announced_body_that_cannot_be_allocated_gets_503() -> None:
    huge = 1 << 50
    with (
        serve(Limits(max_body_size=huge, max_buffered_bytes=huge)) as served,
        FrameClient(served.port) as client,
    ):
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")]
        block = client.encoder.encode([*fields, ("content-length", str(huge))])
        client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block))
        client.write(frames.frame(frames.DATA, 0, 1, bytes(1000)))
        assert client.response(1)[0][":status"] == "503"
        client.request(3)
        assert client.response(3)[0][":status"] == "200"


def test_unknown_coding_is_refused(client: FrameClient) -> None:
    client.request(1, method="POST", extra=(("content-encoding", "br"),), body=b"body")
    assert client.response(1)[0][":status"] == "415"


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_response_is_compressed_for_a_client_that_accepts_it(client: FrameClient, size: int) -> None:
    client.write(frames.window_update(0, 1 << 20))
    client.request(1, f"/large?{size}", extra=(("accept-encoding", "gzip"),))
    fields, body, _ = client.response(1)
    assert fields["content-encoding"] == "gzip"
    assert len(body) < size // 10
    assert gzip.decompress(body) == bytes(size)


def test_streamed_response_ends(client: FrameClient) -> None:
    client.request(1, "/stream?1")
    assert client.response(1)[1] == b"x" * 50_000


def test_failing_handler_is_500_and_the_connection_stays_open(client: FrameClient) -> None:
    client.request(1, "/broken")
    assert client.response(1)[0][":status"] == "500"
    client.request(3)
    assert client.response(3)[0][":status"] == "200"


def test_reset_notifies_the_handler(served: Served, client: FrameClient) -> None:
    served.handlers.arrived.clear()
    served.handlers.cancelled.clear()
    client.request(1, "/hold")
    assert served.handlers.arrived.wait(5)
    client.write(frames.rst_stream(1, frames.CANCEL))
    assert served.handlers.cancelled.wait(5)
    assert served.run(lambda: served.wire.requests) == 0


def test_disconnect_notifies_the_handler(served: Served) -> None:
    served.handlers.arrived.clear()
    served.handlers.cancelled.clear()
    with FrameClient(served.port) as client:
        client.request(1, "/hold")
        assert served.handlers.arrived.wait(5)
    assert served.handlers.cancelled.wait(5)
    served.wait_until(lambda: served.wire.requests == 0 and not served.wire.buffered_bytes)


def test_announced_body_above_the_limit_is_refused_immediately() -> None:
    with serve(Limits(max_body_size=1000)) as served, FrameClient(served.port) as client:
        block = client.encoder.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "test"),
                ("content-length", "1001"),
            ]
        )
        client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block))
        assert client.response(1)[0][":status"] == "413"
        assert client.until(frames.RST_STREAM, 1).code == frames.NO_ERROR
        client.request(3)
        assert client.response(3)[0][":status"] == "200"


def test_body_that_grows_above_the_limit_is_refused() -> None:
    with serve(Limits(max_body_size=1000)) as served, FrameClient(served.port) as client:
        client.request(1, method="POST", body=bytes(1001))
        assert client.response(1)[0][":status"] == "413"


def test_inflated_body_above_the_limit_is_refused() -> None:
    with serve(Limits(max_body_size=100_000)) as served, FrameClient(served.port) as client:
        client.request(
            1, method="POST", extra=(("content-encoding", "gzip"),), body=gzip.compress(bytes(10_000_000))
        )
        assert client.response(1)[0][":status"] == "413"


def test_requests_above_the_limit_get_503_with_retry_after() -> None:
    with serve(Limits(max_concurrent_requests=1)) as served, FrameClient(served.port) as client:
        client.request(1, "/hold")
        client.request(3)
        fields, _, _ = client.response(3)
        assert fields[":status"] == "503"
        assert fields["retry-after"] == "1"
        assert served.run(lambda: served.wire.requests) == 1


def test_bodies_above_max_buffered_bytes_get_503() -> None:
    with serve(Limits(max_buffered_bytes=1000)) as served, FrameClient(served.port) as client:
        client.request(1, method="POST", body=bytes(1001))
        assert client.response(1)[0][":status"] == "503"
        served.wait_until(lambda: served.wire.buffered_bytes == 0)


def test_streams_above_the_limit_are_refused() -> None:
    with serve(Limits(max_concurrent_streams=2)) as served, FrameClient(served.port) as client:
        for stream in (1, 3, 5):
            client.request(stream, "/hold")
        assert client.until(frames.RST_STREAM, 5).code == frames.REFUSED_STREAM


def test_grpc_method_without_its_content_type_gets_415(client: FrameClient) -> None:
    client.request(1, "/test.Test/Echo", method="POST", extra=(("content-type", "text/plain"),), body=b"")
    assert client.response(1)[0][":status"] == "415"


def test_grpc_content_type_with_get_gets_405(client: FrameClient) -> None:
    client.request(1, "/test.Test/Echo", extra=(("content-type", "application/grpc"),))
    assert client.response(1)[0][":status"] == "405"


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "GET"), (":scheme", "http"), (":path", "")],
        [(":method", "GET"), (":scheme", "http"), (":path", "no-slash")],
        [(":method", "GET"), (":scheme", "http")],
        [(":method", "GET"), (":path", "/")],
        [(":scheme", "http"), (":path", "/")],
        [(":method", "GET"), (":method", "GET"), (":scheme", "http"), (":path", "/")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("a", "b"), (":authority", "x")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":status", "200")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("Upper", "x")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("connection", "close")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("te", "gzip")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("a", "line\r\nbreak")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("a", "nul\0")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("content-length", "x")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("content-length", "5")],
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("host", "b")],
        [(":method", "CONNECT"), (":scheme", "http"), (":path", "/")],
    ],
)
def test_malformed_request_resets_only_its_stream(client: FrameClient, fields: list[tuple[str, str]]) -> None:
    client.write(
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, client.encoder.encode(fields))
    )
    assert client.until(frames.RST_STREAM, 1).code == frames.PROTOCOL_ERROR
    client.request(3)
    assert client.response(3)[0][":status"] == "200"


def test_requests_with_the_same_header_block_share_its_fields(served: Served) -> None:
    held = served.handlers.held_http
    held.clear()
    with FrameClient(served.port) as client:
        for stream in (1, 3, 5):  # the second block refers to the table that the first one has filled
            client.request(stream, "/hold")
        served.wait_until(lambda: len(held) == 3)
        assert held[1].headers is held[2].headers
        served.run(lambda: [request.respond(200, [], []) for request in held])
        client.response(5)
    held.clear()
