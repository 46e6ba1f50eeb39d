"""Decodes header blocks into request heads: HPACK (RFC 7541), with a memo of repeated blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from hpack import OversizedHeaderListError
from hpack.exceptions import HPACKDecodingError, HPACKError
from hpack.huffman_table import (
    HUFFMAN_COMPLETE,
    HUFFMAN_EMIT_SYMBOL,
    HUFFMAN_FAIL,
    HUFFMAN_TABLE,
    decode_huffman,
)
from hpack.table import HeaderTable

from backline.wire.application import Application, Ingress, UnaryMethod
from backline.wire.grpc.stream_exchange import StreamExchange
from backline.wire.grpc.unary_exchange import UnaryExchange
from backline.wire.http2 import frames
from backline.wire.http2.frames import ConnectionFailure
from backline.wire.http2.http_exchange import HttpExchange, VitalExchange
from backline.wire.http2.request_head import RequestHead, parse_head
from backline.wire.http2.stream import Stream
from backline.wire.limits import Limits

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection


#: The effect of one byte: the row for the next byte, the decoded characters, and whether the string may end
#: here. A row has 256 such entries; mypy cannot express the recursive type.
_Entry: TypeAlias = tuple[list[Any], bytes, int]


def decode_long(coded: bytes) -> bytes:
    """Decodes a long Huffman-coded string (RFC 7541, section 5.2) a byte at a time.

    Raises HPACKDecodingError if the string is malformed or ends within a character.

    hpack's decoder takes two steps in Python for each byte, or 10 ms for the longest header block. With the
    table of `_first_row`, each byte takes one short step, which is five times as fast. But the table takes 10
    ms to build, so it is built only when the first long string arrives, and hpack decodes short strings.
    """
    entry: _Entry = (_first_row(), b"", HUFFMAN_COMPLETE)
    text = b"".join([(entry := entry[0][byte])[1] for byte in coded])
    if not entry[2]:
        raise HPACKDecodingError("malformed Huffman string")
    return text


@cache
def _first_row() -> list[_Entry]:
    """Builds the table by joining pairs of steps in hpack's table. Each step there decodes four bits."""
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


# Security: at DEBUG, hpack logs every header field, including the keys of all callers.
logging.getLogger("hpack").setLevel(logging.INFO)

Head = TypeVar("Head")

_CACHED_BLOCKS = 64
_CACHED_BLOCK_SIZE = 1024
#: Header lists up to this multiple of the size limit are still decoded, so that the request gets an error
#: response, and the connection stays open.
_DECODED = 2
#: Header blocks with up to this many instructions for each field that the limit allows are still decoded, so
#: that the request gets an error response, and the connection stays open.
_INSTRUCTIONS = 4
#: The maximum number of bytes of Huffman-coded strings per block that hpack decodes; `decode_long` decodes
#: the rest.
_SHORT_STRINGS = 2048
#: The number of decoded strings that are remembered for all connections, and the maximum size of such a
#: string in bytes before it is decoded. Keys are longer.
_CACHED_STRINGS = 256
_REPEATED_STRING = 48
#: The maximum number of bits of an integer after its prefix.
_INTEGER_BITS = 28
#: The size of a field counts this many bytes besides its name and value (RFC 9113, section 6.5.2).
_FIELD_OVERHEAD = 32


class _WatchedTable(HeaderTable):
    """HPACK's dynamic table, with a record of whether it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def add(self, name: bytes, value: bytes) -> None:
        before = len(self.dynamic_entries)
        super().add(name, value)
        # Clients that disable the table set its size to 0: adding an entry then changes nothing.
        self.changed = self.changed or before > 0 or len(self.dynamic_entries) > 0

    @property
    def maxsize(self) -> int:
        return int(self._maxsize)

    @maxsize.setter
    def maxsize(self, size: int) -> None:
        self.changed = self.changed or size != self._maxsize
        HeaderTable.maxsize.fset(self, size)  # type: ignore[attr-defined]


@lru_cache(_CACHED_STRINGS)
def _decode_repeated(coded: bytes) -> bytes:
    """Decodes a string that other connections probably send too, such as the name of a route."""
    return decode_huffman(coded)


def _integer(data: bytes, at: int, mask: int) -> tuple[int, int]:
    """Returns the integer that starts in the bits `mask` of data[at], and the position where it ends
    (RFC 7541, section 5.1).
    """
    number = data[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in range(0, _INTEGER_BITS, 7):
        byte = data[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise HPACKDecodingError("an integer is too long")


class _Decoder:
    """Decodes header blocks, with limits on the size of the header list, and on the number of instructions in
    a block. An instruction is a field, or a change to the size of `table`.

    Security: an instruction takes microseconds to decode, but may be only one byte long, and the limit on the
    size of the header list does not cover instructions that change the table's size.

    hpack's own decoder takes three times as long. Each connection has to decode at least one block.
    """

    def __init__(self, table: HeaderTable, max_header_list_size: int, max_instructions: int) -> None:
        self._table = table
        self._max_size = max_header_list_size
        self._max_instructions = max_instructions
        self._short = 0

    def decode(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Returns the fields of a block. Raises OversizedHeaderListError if it exceeds a limit; HPACKError or
        IndexError if it is malformed.
        """
        self._short = _SHORT_STRINGS
        table = self._table
        fields: list[tuple[bytes, bytes]] = []
        left = self._max_instructions
        size = at = 0
        while at < len(data):
            left -= 1
            if left < 0:
                raise OversizedHeaderListError
            first = data[at]
            if first & 0x80:
                index, at = _integer(data, at, 0x7F)
                name, value = table.get_by_index(index)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HPACKDecodingError("the table's size changes after the first field")
                table_size, at = _integer(data, at, 0x1F)
                if table_size > HeaderTable.DEFAULT_SIZE:
                    raise HPACKDecodingError("the table's size exceeds the limit")
                table.maxsize = table_size
                continue
            else:
                index, at = _integer(data, at, 0x3F if first & 0x40 else 0x0F)
                if index:
                    name = table.get_by_index(index)[0]
                else:
                    name, at = self._string(data, at)
                value, at = self._string(data, at)
                if first & 0x40:
                    table.add(name, value)
            fields.append((name, value))
            size += len(name) + len(value) + _FIELD_OVERHEAD
            if size > self._max_size:
                raise OversizedHeaderListError
        return fields

    def _string(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Returns the string that starts at `at`, and the position where it ends."""
        length, start = _integer(data, at, 0x7F)
        end = start + length
        if end > len(data):
            raise HPACKDecodingError("truncated header block")
        text = data[start:end]
        if data[at] & 0x80:
            self._short -= length
            if length <= _REPEATED_STRING:
                text = _decode_repeated(text)
            else:
                text = decode_huffman(text) if self._short >= 0 else decode_long(text)
        return text, end


class FieldBlocks(Generic[Head]):
    """A decoder for the header blocks of one connection, in the order in which they arrive.

    Invariant of the memo `known`: it contains a block only if decoding the block left the dynamic table
    unchanged, and every block that changes the table clears the memo. So a lookup returns what decoding would
    return, and skipping the decoder leaves the table as decoding would. The number of entries and the size of
    each entry are bounded.
    """

    def __init__(self, limits: Limits) -> None:
        self.known: dict[bytes, Head] = {}
        self._table = _WatchedTable()
        self._decoder = _Decoder(
            self._table, _DECODED * limits.max_header_size, _INSTRUCTIONS * limits.max_header_fields
        )

    def keep(self, block: bytes, head: Head) -> None:
        """Caches the head from the last decoded block, provided that an identical block would decode to the
        same fields.
        """
        if not self._table.changed and len(block) <= _CACHED_BLOCK_SIZE:
            if len(self.known) >= _CACHED_BLOCKS:
                self.known.clear()
            self.known[block] = head

    def fields(self, block: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Decodes any header block.

        Raises ConnectionFailure if decoding fails, because the dynamic tables of both sides may differ from
        then on.
        """
        table = self._table
        table.changed = False
        try:
            return self._decoder.decode(block)
        except OversizedHeaderListError:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "the header list is far larger than the server's limits"
            ) from None
        except (HPACKError, IndexError):  # IndexError: the block ends within an instruction
            raise ConnectionFailure(frames.COMPRESSION_ERROR, "the header block cannot be decoded") from None
        finally:
            if table.changed:
                self.known.clear()


class HeaderBlocks(FieldBlocks[RequestHead]):
    """A decoder for the header blocks of requests.

    Heads are immutable, so requests may share a head. They also share the gate's decision to admit the
    request, because that decision depends only on the head.
    """

    def __init__(self, application: Application, limits: Limits, ingress: Ingress) -> None:
        super().__init__(limits)
        self._application = application
        self._ingress = ingress
        self._limits = limits

    def request(self, block: bytes) -> RequestHead:
        """Decodes a request's header block.

        Raises ConnectionFailure if the block cannot be decoded, StreamFailure if the request is malformed.
        """
        head = parse_head(self.fields(block), self._application, self._limits)
        head.refusal = self._application.gate.refusal(head.method, head.path, head.headers, self._ingress)
        head.exchange, head.prompt = exchange_for(head)
        head.apart = head.vital or head.exchange is StreamExchange
        # Refusals are not cached, because a key that is unknown now may be valid a second later.
        if head.refusal is None:
            self.keep(block, head)
        return head


def exchange_for(head: RequestHead) -> tuple[Callable[[Http2Connection, int, RequestHead], Stream], bool]:
    """Returns the Stream subclass for this head, and whether its `begin` must run before the body arrives."""
    if not head.is_grpc or head.method != b"POST":
        return VitalExchange if head.vital else HttpExchange, True
    if head.rpc is None or head.too_large is not None or head.refusal is not None:
        return UnaryExchange, True
    if isinstance(head.rpc, UnaryMethod):
        plain = (
            head.timeout is None
            and head.timeout_error is None
            and head.encoding in (b"identity", b"gzip", b"deflate")
        )
        return UnaryExchange, not plain
    return StreamExchange, True
