"""Who answers a request: decided once per header block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from backline.wire.application import UnaryMethod
from backline.wire.grpc.stream_exchange import StreamExchange
from backline.wire.grpc.unary_exchange import UnaryExchange
from backline.wire.http2.http_exchange import HttpExchange

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection
    from backline.wire.http2.request_head import RequestHead
    from backline.wire.http2.stream import Stream


def exchange_for(head: RequestHead) -> tuple[Callable[[Http2Connection, int, RequestHead], Stream], bool]:
    """The class of the exchange, and whether it has something to do before the body is there."""
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
