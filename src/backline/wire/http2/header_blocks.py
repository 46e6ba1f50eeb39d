"""Decodes header blocks into request heads: HPACK (RFC 7541), with a memo of repeated blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from hpack import Decoder, HeaderTuple, OversizedHeaderListError
from hpack.exceptions import HPACKDecodingError, HPACKError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from backline.wire.application import Application, Ingress, UnaryMethod
from backline.wire.grpc.stream_exchange import StreamExchange
from backline.wire.grpc.unary_exchange import UnaryExchange
from backline.wire.http2 import frames
from backline.wire.http2.frames import ConnectionFailure
from backline.wire.http2.http_exchange import HttpExchange
from backline.wire.http2.huffman import decode_long
from backline.wire.http2.request_head import RequestHead, parse_head
from backline.wire.http2.stream import Stream
from backline.wire.limits import Limits

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection

# Security: at DEBUG, hpack logs every header field, including the keys of all callers.
logging.getLogger("hpack").setLevel(logging.INFO)

Head = TypeVar("Head")

_CACHED_BLOCKS = 64
_CACHED_BLOCK_SIZE = 1024
#: Header lists up to this multiple of the limit are still decoded, so that the request gets a response and
#: the connection survives.
_DECODED = 2
#: Blocks with up to this multiple of the limit on fields, counted in instructions, are still decoded, for the
#: same reason.
_INSTRUCTIONS = 4
#: The number of bytes of Huffman-coded strings in a block that hpack decodes; the table for long strings
#: decodes the rest.
_SHORT_STRINGS = 2048


class _WatchedTable(HeaderTable):
    """HPACK's dynamic table, which records whether it has changed."""

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


class _BoundedDecoder(Decoder):
    """An HPACK decoder with a limit on the instructions of a block: fields, and changes to the table's size.

    An instruction takes only a byte to send but microseconds to decode, and the limit on the size of the
    header list does not cover instructions that change the table's size.
    """

    def __init__(self, max_header_list_size: int, max_instructions: int) -> None:
        super().__init__(max_header_list_size)
        self._most = max_instructions
        self._left = max_instructions
        self._short = _SHORT_STRINGS

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        self._left = self._most
        self._short = _SHORT_STRINGS
        return super().decode(data, raw)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OversizedHeaderListError

    def _decode_indexed(self, data: bytes | memoryview) -> tuple[HeaderTuple, int]:
        self._count()
        return super()._decode_indexed(data)

    def _decode_literal(self, data: bytes | memoryview, should_index: bool) -> tuple[HeaderTuple, int]:
        """Replaces the inherited method, which copies the rest of the block for each field."""
        self._count()
        index, end = decode_integer(data, 6 if should_index else 4)
        if index:
            name = self.header_table.get_by_index(index)[0]
        else:
            name, end = self._string(data, end)
        value, end = self._string(data, end)
        if should_index:
            self.header_table.add(name, value)
        return HeaderTuple(name, value), end

    def _string(self, data: bytes | memoryview, start: int) -> tuple[bytes, int]:
        """Returns the string that starts at `start`, and the position where it ends."""
        length, size = decode_integer(data[start:], 7)
        end = start + size + length
        if end > len(data):
            raise HPACKDecodingError("truncated header block")
        text = bytes(data[start + size : end])
        if data[start] & 0x80:
            self._short -= length
            text = decode_huffman(text) if self._short >= 0 else decode_long(text)
        return text, end

    def _update_encoding_context(self, data: bytes | memoryview) -> int:
        self._count()
        return super()._update_encoding_context(data)


class FieldBlocks(Generic[Head]):
    """A decoder for the header blocks of one connection, in the order in which they arrive.

    Invariant of the memo `known`: it contains a block only if decoding the block left the dynamic table
    unchanged, and every block that changes the table clears the memo. So a lookup returns what decoding would
    return, and skipping the decoder leaves the table as decoding would. The number of entries and the size of
    each entry are bounded.
    """

    def __init__(self, limits: Limits) -> None:
        self.known: dict[bytes, Head] = {}
        self._decoder = _BoundedDecoder(
            _DECODED * limits.max_header_size, _INSTRUCTIONS * limits.max_header_fields
        )
        self._table = _WatchedTable()
        self._decoder.header_table = self._table

    def keep(self, block: bytes, head: Head) -> None:
        """Caches the meaning of the last decoded block, provided that an identical block would decode to the
        same fields.
        """
        if not self._table.changed and len(block) <= _CACHED_BLOCK_SIZE:
            if len(self.known) >= _CACHED_BLOCKS:
                self.known.clear()
            self.known[block] = head

    def fields(self, block: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Decodes any header block.

        Raises ConnectionFailure if decoding fails, since the dynamic tables of both sides would then differ.
        """
        table = self._table
        table.changed = False
        try:
            fields = cast(Sequence[tuple[bytes, bytes]], self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "the header list is far larger than the server's limits"
            ) from None
        # In a few places hpack raises built-in exceptions for malformed blocks.
        except (HPACKError, IndexError, ValueError):
            raise ConnectionFailure(frames.COMPRESSION_ERROR, "the header block cannot be decoded") from None
        finally:
            if table.changed:
                self.known.clear()
        return fields


class HeaderBlocks(FieldBlocks[RequestHead]):
    """A decoder for the header blocks of requests.

    Heads are immutable, so requests may share them, along with the gate's decision to admit them, which
    depends only on the head.
    """

    def __init__(self, application: Application, limits: Limits, ingress: Ingress) -> None:
        super().__init__(limits)
        self._application = application
        self._ingress = ingress
        self._limits = limits

    def request(self, block: bytes) -> RequestHead:
        """Decodes a request's block. Raises StreamFailure for a malformed request, or ConnectionFailure."""
        head = parse_head(self.fields(block), self._application, self._limits)
        head.refusal = self._application.gate.refusal(head.method, head.path, head.headers, self._ingress)
        head.exchange, head.prompt = exchange_for(head)
        # Refusals are not cached: a key that is unknown now may be valid a second later.
        if head.refusal is None:
            self.keep(block, head)
        return head


def exchange_for(head: RequestHead) -> tuple[Callable[[Http2Connection, int, RequestHead], Stream], bool]:
    """Returns the Stream subclass for this head, and whether its `begin` must run before the body arrives."""
    if not head.is_grpc or head.method != b"POST":
        return HttpExchange, True
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
