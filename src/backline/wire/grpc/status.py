"""gRPC status codes, and the trailers that carry them."""

from __future__ import annotations

import re
from functools import lru_cache

from backline.wire.application import Fields
from backline.wire.http2 import field_block

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

#: Longer texts are cut, so that the trailers fit into what clients take (8 KiB in grpcio).
MAX_MESSAGE = 4096

#: Before the first message of a response, and after the last one when all went well.
RESPONSE_BLOCK = field_block.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
COMPRESSED_RESPONSE_BLOCKS = {
    name: field_block.encode(
        [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", name)]
    )
    for name in (b"gzip", b"deflate")
}
OK_BLOCK = field_block.encode([(b"grpc-status", b"0")])

_TO_ESCAPE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


def escape(message: str) -> bytes:
    """grpc-message: percent-encoded UTF-8."""
    text = message.encode("utf-8", "replace")[:MAX_MESSAGE].strip(b" ")
    return _TO_ESCAPE.sub(lambda match: b"%%%02X" % match[0][0], text)


def status_block(code: int, message: str, trailers: Fields, started: bool) -> bytes:
    """The block that ends a call; with :status and content-type when no response headers went before it (Trailers-Only)."""
    if trailers:
        return _status_block(code, message, started) + field_block.encode(trailers)
    return _status_block(code, message, started)


@lru_cache(maxsize=256)
def _status_block(code: int, message: str, started: bool) -> bytes:
    block = field_block.encode([(b"grpc-status", b"%d" % code)])
    if message:
        block += field_block.encode([(b"grpc-message", escape(message))])
    return block if started else RESPONSE_BLOCK + block
