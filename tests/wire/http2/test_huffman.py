"""Long Huffman-coded strings are decoded as hpack decodes short ones."""

from __future__ import annotations

import pytest
from hpack import Encoder, HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given
from hypothesis import strategies as st

from backline.wire.http2.frames import ConnectionFailure
from backline.wire.http2.header_blocks import FieldBlocks, RequestHead, decode_long
from backline.wire.limits import Limits

CODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@given(st.binary())
def test_every_text_is_decoded(text: bytes) -> None:
    assert decode_long(CODER.encode(text)) == text


@given(st.binary(max_size=12))
@example(b"\xff\xff\xff\xff")
@example(b"\x49\x50\x9f\xff")
@example(b"\x49\x50\x90")
def test_malformed_strings_are_refused_as_by_hpack(coded: bytes) -> None:
    try:
        expected = decode_huffman(coded)
    except HPACKDecodingError:
        with pytest.raises(HPACKDecodingError):
            decode_long(coded)
    else:
        assert decode_long(coded) == expected


@pytest.mark.parametrize("size", [10, 3000, 9000])
def test_fields_of_every_length_enter_the_dynamic_table(size: int) -> None:
    encoder, blocks = Encoder(), FieldBlocks[RequestHead](Limits())
    fields = [(b":path", b"/v2"), (b"x-long", b"\\\x01a" * (size // 3)), (b"x-short", b"yes")]

    for _ in range(2):  # the second block refers to the fields of the first one
        assert list(blocks.fields(encoder.encode(fields))) == fields


def test_malformed_long_strings_end_the_connection() -> None:
    block = b"\x00\x01x\xff" + b"\x81\x1e" + b"\xff" * 4000

    with pytest.raises(ConnectionFailure):
        FieldBlocks[RequestHead](Limits()).fields(block)
