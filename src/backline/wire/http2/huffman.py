"""Decodes long Huffman-coded strings of header blocks (RFC 7541, section 5.2) a byte at a time.

hpack's decoder takes two steps in Python for each byte, 10 ms for the longest header block. The table here
needs one short step for each byte, a fifth of the time, but is large and takes 10 ms to build. So the first
long string builds the table, and short strings are decoded by hpack.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

#: The effect of one byte: the row for the next byte, the decoded characters, and whether the string may end
#: here. A row has 256 such entries; mypy cannot express the recursive type.
_Entry: TypeAlias = tuple[list[Any], bytes, int]


def decode_long(coded: bytes) -> bytes:
    """Decodes a string. Raises HPACKDecodingError if it is malformed or ends within a character."""
    entry: _Entry = (_first_row(), b"", HUFFMAN_COMPLETE)
    text = b"".join([(entry := entry[0][byte])[1] for byte in coded])
    if not entry[2]:
        raise HPACKDecodingError("malformed Huffman string")
    return text


@cache
def _first_row() -> list[_Entry]:
    """Builds the table by joining pairs of steps of hpack's table, which takes four bits in each step."""
    rows: list[list[_Entry]] = [[] for _ in range(256)]
    # Once a string is malformed, decoding remains in this row until the string ends.
    malformed: list[_Entry] = []
    failed: _Entry = (malformed, b"", 0)
    malformed += [failed] * 256
    symbols = [bytes([symbol]) for symbol in range(256)]
    for state, row in enumerate(rows):
        for middle, flags, symbol in HUFFMAN_TABLE[16 * state : 16 * state + 16]:
            if flags & HUFFMAN_FAIL:
                row += [failed] * 16
                continue
            begun = symbols[symbol] if flags & HUFFMAN_EMIT_SYMBOL else b""
            row += [
                failed
                if end & HUFFMAN_FAIL
                else (
                    rows[next],
                    begun + symbols[last] if end & HUFFMAN_EMIT_SYMBOL else begun,
                    end & HUFFMAN_COMPLETE,
                )
                for next, end, last in HUFFMAN_TABLE[16 * middle : 16 * middle + 16]
            ]
    return rows[0]
