"""Errors on the wire get a status immediately."""

from __future__ import annotations

import gzip
import zlib

import pytest

from backline.wire.grpc.messages import MessageAssembler, escape
from backline.wire.grpc.timeout import InvalidTimeout, parse_timeout
from backline.wire.http2 import frames
from backline.wire.limits import BodyLimit, Limits
from wire.http2.served import FrameClient, serve


def prefixed(message: bytes, flag: int = 0, size: int | None = None) -> bytes:
    return bytes((flag,)) + (len(message) if size is None else size).to_bytes(4, "big") + message


GZIP = (("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"))
WRONG = {
    "no message": (None, (), 3),
    "prefix cut to 3 bytes": (b"\0\0\0", (), 3),
    "prefix longer than the body": (prefixed(b"abc", size=10), (), 3),
    "prefix shorter than the body": (prefixed(b"abcdef", size=3), (), 3),
    "two messages": (prefixed(b"abc") * 2, (), 3),
    "compressed without encoding": (prefixed(b"abc", 1), (), 13),
    "compressed, not gzip": (prefixed(b"abc", 1), GZIP, 13),
    "compressed, cut": (prefixed(gzip.compress(b"abc" * 100)[:-9], 1), GZIP, 13),
    "flag 2": (prefixed(b"abc", 2), (), 13),
    "unknown encoding": (prefixed(b"abc"), (("grpc-encoding", "lzma"),), 12),
    "a gigabyte announced": (prefixed(b"abc", size=1 << 30), (), 8),
    "timeout that is none": (prefixed(b"abc"), (("grpc-timeout", "soon"),), 3),
    "timeout of 0": (prefixed(b"abc"), (("grpc-timeout", "0n"),), 4),
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_call_gets_a_status(client: FrameClient, name: str) -> None:
    body, extra, status = WRONG[name]
    client.call(1, "/test.Test/Echo", body, extra)
    fields, data, _ = client.response(1)
    assert fields[":status"] == "200"
    assert fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == str(status)
    assert fields["grpc-message"]
    assert data == b""
    client.call(3, "/test.Test/Echo", prefixed(b"next"))
    assert client.response(3)[1] == prefixed(b"next")


@pytest.mark.parametrize("body", [prefixed(b"", size=1 << 30), prefixed(b"", 2), prefixed(b"a") + b"b"])
def test_invalid_call_is_refused_before_it_ends(client: FrameClient, body: bytes) -> None:
    client.call(1, "/test.Test/Echo", body, end=False)
    assert int(client.response(1)[0]["grpc-status"]) in (3, 8, 13)
    assert client.until(frames.RST_STREAM, 1).code == frames.NO_ERROR


def test_unknown_encoding_is_refused_with_the_supported_ones(client: FrameClient) -> None:
    client.call(1, "/test.Test/Echo", prefixed(b"abc"), (("grpc-encoding", "lzma"),))
    assert client.response(1)[0]["grpc-accept-encoding"] == "identity, deflate, gzip"


@pytest.mark.parametrize(
    ("name", "packed"),
    [("gzip", gzip.compress(b"abc" * 100)), ("deflate", zlib.compress(b"abc" * 100))],
    ids=["gzip", "deflate"],
)
def test_response_to_a_compressed_request_is_compressed(
    client: FrameClient, name: str, packed: bytes
) -> None:
    client.call(
        1,
        "/test.Test/Echo",
        prefixed(packed, 1),
        (("grpc-encoding", name), ("grpc-accept-encoding", f"identity,{name}")),
    )
    fields, data, trailers = client.response(1)
    assert fields["grpc-encoding"] == name
    assert data[0] == 1
    assert zlib.decompress(data[5:], 47) == b"abc" * 100
    assert trailers == {"grpc-status": "0"}


def test_response_to_a_plain_request_is_plain(client: FrameClient) -> None:
    client.call(1, "/test.Test/Echo", prefixed(b"abc"), (("grpc-accept-encoding", "gzip"),))
    fields, data, _ = client.response(1)
    assert "grpc-encoding" not in fields
    assert data == prefixed(b"abc")


def test_gzip_bomb_is_refused() -> None:
    with serve(Limits(max_body_size=1_000_000)) as served, FrameClient(served.port) as client:
        client.call(1, "/test.Test/Echo", prefixed(gzip.compress(bytes(10_000_000)), 1), GZIP)
        assert client.response(1)[0]["grpc-status"] == "8"


@pytest.mark.parametrize("path", ["/test.Test/Each", "/test.Test/Sum"])
def test_stream_that_ends_within_a_message_is_refused(client: FrameClient, path: str) -> None:
    client.call(1, path, prefixed(b"abc", size=10))
    assert client.response(1)[0]["grpc-status"] == "3"


def test_stream_with_a_message_above_the_limit_gets_a_status() -> None:
    with serve(Limits(max_body_size=1000)) as served, FrameClient(served.port) as client:
        client.call(1, "/test.Test/Sum", prefixed(b"abc", size=1001), end=False)
        assert client.response(1)[0]["grpc-status"] == "8"
        served.wait_until(lambda: served.wire.requests == 0 and served.wire.buffered_bytes == 0)


def test_incomplete_message_times_out_with_a_status() -> None:
    with serve(Limits(progress_timeout=0.1)) as served, FrameClient(served.port) as client:
        client.call(1, "/test.Test/Echo", prefixed(b"abc", size=10), end=False)
        assert client.response(1)[0]["grpc-status"] == "4"


def test_silent_stream_stays_open() -> None:
    with serve(Limits(progress_timeout=0.1)) as served, FrameClient(served.port) as client:
        client.call(1, "/test.Test/Each", prefixed(b"abc"), end=False)
        assert client.until(frames.DATA, 1).payload == prefixed(b"abc")
        connection = next(iter(served.wire.connections))
        served.run(
            lambda: [connection.sweep(connection.time_limits.quiet_since + second) for second in range(1, 50)]
        )
        client.write(frames.frame(frames.DATA, frames.END_STREAM, 1, prefixed(b"def")))
        assert client.until(frames.DATA, 1).payload == prefixed(b"def")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"250m", 0.25), (b"10u", 1e-5), (b"99999999n", 0.099999999)],
)
def test_timeout_is_parsed(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", b"1 S"])
def test_malformed_timeout_is_rejected(value: bytes) -> None:
    with pytest.raises(InvalidTimeout):
        parse_timeout(value)


def test_status_message_is_percent_encoded() -> None:
    assert escape("100 % ü\n.") == b"100 %25 %C3%BC%0A."


def test_blanks_at_the_ends_of_a_status_message_are_kept() -> None:
    assert escape("  got [2]. ") == b"%20%20got [2].%20"
    assert escape(" ") == b"%20"


@pytest.mark.parametrize("piece", [1, 2, 5, 7, 100])
def test_messages_are_assembled_from_pieces(piece: int) -> None:
    sent = [b"", b"a", b"b" * 50, b"", b"c" * 9]
    data = b"".join(prefixed(message) for message in sent)
    assembler = MessageAssembler(b"identity", BodyLimit(100), lambda size, at_hand: None)
    got = []
    for begin in range(0, len(data), piece):
        end = min(begin + piece, len(data))
        at = begin
        while at < end:
            at, complete = assembler.feed(data, at, end)
            if complete is not None:
                got.append(bytes(complete[1]))
    assert got == sent
    assert assembler.between_messages
