"""Header blocks of responses.

They use the static table and literals without indexing (RFC 7541, section 6.2.2), so that one encoding is
valid on all connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from hpack.table import HeaderTable

_STATIC_NAMES: dict[bytes, int] = {}
_STATIC_FIELDS: dict[tuple[bytes, bytes], int] = {}
for _index, _field in enumerate(HeaderTable.STATIC_TABLE, 1):
    _STATIC_NAMES.setdefault(_field[0], _index)
    _STATIC_FIELDS.setdefault(_field, _index)


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encodes fields; names must be lower-case."""
    return b"".join([_encode_field(name, value) for name, value in fields])


def encode_status(status: int) -> bytes:
    return _encode_status(status)


@lru_cache(maxsize=64)
def _encode_status(status: int) -> bytes:
    return _encode_field(b":status", str(status).encode())


def _encode_field(name: bytes, value: bytes) -> bytes:
    exact = _STATIC_FIELDS.get((name, value)) if value else None
    if exact is not None:
        return bytes((0x80 | exact,))
    index = _STATIC_NAMES.get(name)
    head = _integer(index, 4, 0) if index is not None else b"\x00" + _integer(len(name), 7, 0) + name
    return head + _integer(len(value), 7, 0) + value


def _integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    """RFC 7541, section 5.1."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    out = bytearray((pattern | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
