"""HPACK errors end the connection with COMPRESSION_ERROR: the situations of h2spec for RFC 7541."""

from __future__ import annotations

from conformance.h2probe import COMPRESSION_ERROR, HEADER_TABLE_SIZE, Probe

#: The start of a literal without indexing, with the new name x-test in Huffman coding.
NEW_NAME = bytes.fromhex("0085f2b24a84ff")


def test_hpack_2_3_3_indexed_field_with_invalid_index(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + b"\xc6")
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_2_3_3_literal_field_with_invalid_index(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + b"\x7f\x07\x00")
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_4_2_table_size_update_at_the_end_of_a_block(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + b"\x21")
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_5_2_huffman_padding_longer_than_7_bits(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + NEW_NAME + bytes.fromhex("8449509fff"))
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_5_2_huffman_padded_by_zero(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + NEW_NAME + bytes.fromhex("83495090"))
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_5_2_huffman_contains_eos(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + bytes.fromhex("0085f2b24a87fffffffd25427f"))
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_6_1_index_0(h2: Probe) -> None:
    h2.headers(1, h2.encode(h2.fields()) + b"\x80")
    h2.expect_connection_error(COMPRESSION_ERROR)


def test_hpack_6_3_table_size_update_above_the_setting(h2: Probe) -> None:
    size = h2.settings.get(HEADER_TABLE_SIZE, 4096) + 1
    update = bytearray(b"\x3f")
    rest = size - 31
    while rest >= 128:
        update.append(0x80 | rest & 0x7F)
        rest >>= 7
    update.append(rest)
    h2.headers(1, bytes(update) + h2.encode(h2.fields()))
    h2.expect_connection_error(COMPRESSION_ERROR)
