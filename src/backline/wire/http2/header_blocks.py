"""From header blocks to requests: HPACK (RFC 7541), with a memory of blocks that mean the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hpack import Decoder, OversizedHeaderListError
from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

from backline.wire.application import Application
from backline.wire.http2 import frames
from backline.wire.http2.exchanges import exchange_for
from backline.wire.http2.frames import ConnectionFailure
from backline.wire.http2.request_head import RequestHead, parse_head
from backline.wire.limits import Limits

_CACHED_BLOCKS = 64
_CACHED_BLOCK_SIZE = 1024
#: A header list is decoded up to so many times the limit, so that the request gets an answer and the connection lives on.
_DECODED = 2


class _WatchedTable(HeaderTable):
    """HPACK's dynamic table that notes that it was changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def add(self, name: bytes, value: bytes) -> None:
        before = len(self.dynamic_entries)
        super().add(name, value)
        # Clients that want no table add to one of size 0.
        self.changed = self.changed or before > 0 or len(self.dynamic_entries) > 0

    @property
    def maxsize(self) -> int:
        return int(self._maxsize)

    @maxsize.setter
    def maxsize(self, size: int) -> None:
        self.changed = self.changed or size != self._maxsize
        HeaderTable.maxsize.fset(self, size)  # type: ignore[attr-defined]


class HeaderBlocks:
    """The header blocks of one connection, to be given in their order.

    As long as the dynamic table does not change, equal blocks decode to equal fields: `known` maps such blocks to requests that are
    decoded and validated already. A block that changes the table empties it.
    """

    def __init__(self, application: Application, limits: Limits) -> None:
        self.known: dict[bytes, RequestHead] = {}
        self._application = application
        #: Whether the connection is over a Unix socket.
        self.local = False
        self._limits = limits
        self._decoder = Decoder(max_header_list_size=_DECODED * limits.max_header_size)
        self._table = _WatchedTable()
        self._decoder.header_table = self._table

    def request(self, block: bytes) -> RequestHead:
        """Raises ConnectionFailure when the block cannot be decoded, StreamFailure when the request is malformed."""
        head = parse_head(self.fields(block), self._application, self._limits)
        head.refusal = self._application.gate.refusal(head.method, head.path, head.headers, local=self.local)
        head.exchange, head.prompt = exchange_for(head)
        if not self._table.changed and len(block) <= _CACHED_BLOCK_SIZE:
            if len(self.known) >= _CACHED_BLOCKS:
                self.known.clear()
            self.known[block] = head
        return head

    def fields(self, block: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Raises ConnectionFailure when the block cannot be decoded: both sides' tables would differ from here on."""
        table = self._table
        table.changed = False
        try:
            fields = cast(Sequence[tuple[bytes, bytes]], self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise ConnectionFailure(
                frames.ENHANCE_YOUR_CALM, "the header list is far larger than MAX_HEADER_LIST_SIZE"
            ) from None
        # hpack lets indexing mistakes out as they are in a few places.
        except (HPACKError, IndexError, ValueError):
            raise ConnectionFailure(frames.COMPRESSION_ERROR, "the header block cannot be decoded") from None
        finally:
            if table.changed:
                self.known.clear()
        return fields
