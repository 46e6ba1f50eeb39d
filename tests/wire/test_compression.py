"""gzip and deflate, for requests and responses."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.wire.compression import DEFLATE, GZIP, CodingError, Inflater, ResponseCoding, negotiate
from backline.wire.limits import BodyLimit

from .conftest import WireServer, read_all, read_answer

Start = Callable[..., WireServer]


def inflated(inflater: Inflater) -> bytearray:
    while not inflater.step():
        pass
    return inflater.output


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def post(path: bytes, coding: bytes, body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Encoding: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path,
        coding,
        lines,
        len(body),
        body,
    )


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        (b"gzip", gzip.compress),
        (b"GZIP", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", raw_deflate),
    ],
)
@pytest.mark.parametrize(
    "content",
    [b"", b"hello" * 100, bytes(5_000_000), os.urandom(1_000_000)],
    ids=["empty", "small", "zeros", "random"],
)
def test_compressed_body_reaches_the_application_inflated(
    echo_server: WireServer, coding: bytes, pack: Callable[[bytes], bytes], content: bytes
) -> None:
    with echo_server.connect() as client:
        client.sendall(post(b"/echo", coding, pack(content)) * 2)
        assert [read_answer(client)[2] for _ in range(2)] == [content, content]
    echo_server.until(lambda: echo_server.wire.buffered_bytes == 0)


def test_identity_coding_is_accepted(echo_server: WireServer) -> None:
    with echo_server.connect() as client:
        client.sendall(post(b"/echo", b"identity", b"hello"))
        assert read_answer(client)[2] == b"hello"


@pytest.mark.parametrize("size", [20_000_000, 400_000_000])
def test_gzip_bomb_is_413_and_takes_no_memory(start: Start, size: int) -> None:
    server = start(max_body_size=10_000_000)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(size // 1_000_000)) + packer.flush()
    with server.connect() as client:
        client.sendall(post(b"/echo", b"gzip", bomb))
        status, _, body = read_answer(client)
        assert (status, b"maximum of 10000000 bytes" in body) == (413, True)
        client.sendall(post(b"/echo", b"gzip", gzip.compress(b"after")))
        assert read_answer(client)[2] == b"after"
    assert server.state()[1:] == (0, 0)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
@pytest.mark.parametrize("cut", [slice(0, 10), slice(0, -1), slice(5, None)])
def test_malformed_body_is_400_and_the_connection_stays_open(
    echo_server: WireServer, coding: bytes, cut: slice
) -> None:
    packed = gzip.compress(b"hello" * 99) if coding == b"gzip" else zlib.compress(b"hello" * 99)
    with echo_server.connect() as client:
        client.sendall(post(b"/echo", coding, packed[cut]))
        assert read_answer(client)[0] == 400
        client.sendall(b"GET /dump HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(client)[0] == 200


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"\xff"])
def test_other_codings_are_415_with_the_accepted_ones(echo_server: WireServer, coding: bytes) -> None:
    with echo_server.connect() as client:
        client.sendall(post(b"/echo", coding, b"x"))
        status, fields, _ = read_answer(client)
    assert (status, fields["accept-encoding"]) == (415, "gzip, deflate")


def test_members_of_a_gzip_body_are_joined_up_to_a_bound() -> None:
    assert inflated(Inflater(b"gzip", gzip.compress(b"a") * 3, BodyLimit(100))) == b"aaa"
    with pytest.raises(CodingError) as caught:
        inflated(Inflater(b"gzip", gzip.compress(b"") * 10_000, BodyLimit(100)))
    assert caught.value.status == 400


@given(st.binary(max_size=2000), st.sampled_from([gzip.compress, zlib.compress]), st.integers(-1, 1))
def test_limit_is_exact(content: bytes, pack: Callable[[bytes], bytes], slack: int) -> None:
    inflater = Inflater(
        b"gzip" if pack is gzip.compress else b"deflate",
        pack(content),
        BodyLimit(max(0, len(content) + slack)),
    )
    if slack < 0 and content:
        with pytest.raises(CodingError) as caught:
            inflated(inflater)
        assert caught.value.status == 413
    else:
        assert inflated(inflater) == content


@given(st.binary(max_size=300), st.sampled_from([b"gzip", b"deflate"]))
def test_random_bytes_are_inflated_or_refused(body: bytes, coding: bytes) -> None:
    try:
        outcome = len(inflated(Inflater(coding, body, BodyLimit(10_000))))
    except CodingError as error:
        outcome = -error.status
    assert outcome in (-400, -413) or 0 <= outcome <= 10_000


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"gzip", GZIP),
        (b"deflate", DEFLATE),
        (b"gzip, deflate, br", GZIP),
        (b"gzip;q=0.5, deflate;q=0.8", DEFLATE),
        (b"GZIP ; Q=0.5", GZIP),
        (b"gzip;q=0", None),
        (b"gzip;q=0, *", DEFLATE),
        (b"*", GZIP),
        (b"*;q=0", None),
        (b"identity", None),
        (b"identity;q=1, gzip;q=0.5", None),
        (b"br", None),
        (b"", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=7", None),
        (b",;,=;q", None),
    ],
)
def test_negotiation_follows_the_weights(accept: bytes, coding: ResponseCoding | None) -> None:
    assert negotiate(accept) is coding


def test_coding_chosen_by_the_application_is_kept() -> None:
    assert negotiate(b"gzip", ((b"content-encoding", b"br"),)) is None


@pytest.mark.parametrize("size", [1024, 50_000, 3_000_000])
@pytest.mark.parametrize(("accept", "window"), [(b"gzip", 31), (b"deflate", 15)])
def test_response_is_compressed_when_the_client_accepts_it(
    echo_server: WireServer, size: int, accept: bytes, window: int
) -> None:
    with echo_server.connect() as client:
        client.sendall(
            b"GET /zeros?%d HTTP/1.1\r\nHost: a\r\nAccept-Encoding: %b\r\n\r\n" % (size, accept)
            + b"GET /dump HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(client)
    head, rest = answer.split(b"\r\n\r\n", 1)
    assert b"\r\ncontent-encoding: " + accept in head
    assert b"\r\nvary: accept-encoding" in head
    if b"transfer-encoding: chunked" in head:
        rest = dechunked(rest)
    assert zlib.decompressobj(window).decompress(rest) == bytes(size)


def dechunked(rest: bytes) -> bytes:
    content = b""
    while True:
        size, rest = rest.split(b"\r\n", 1)
        if int(size, 16) == 0:
            return content
        content += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def test_small_or_unrequested_responses_are_not_compressed(echo_server: WireServer) -> None:
    for size, fields in (
        (100, b"Accept-Encoding: gzip\r\n"),
        (50_000, b""),
        (50_000, b"Accept-Encoding: br\r\n"),
    ):
        answer = echo_server.send(
            b"GET /zeros?%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n" % (size, fields)
        )
        assert b"content-encoding" not in answer
        assert answer.endswith(b"\r\n\r\n" + bytes(size))
