"""gRPC messages (the "Length-Prefixed-Message" of the protocol) and the status that ends a call."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from struct import Struct

from backline.wire.application import Buffer, Fields, RpcError
from backline.wire.body import NO_ROOM, Body
from backline.wire.compression import CodingError
from backline.wire.http2 import frames
from backline.wire.limits import INCREASE_BODY_LIMIT

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

#: The maximum length of a status message in bytes. Longer messages are cut, so that the trailers fit the
#: limit of clients (8 KiB in grpcio).
MAX_MESSAGE = 4096

#: The header blocks that precede the first message of a response and, on success, follow the last one.
RESPONSE_BLOCK = frames.encode_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
COMPRESSED_RESPONSE_BLOCKS = {
    name: frames.encode_fields(
        [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", name)]
    )
    for name in (b"gzip", b"deflate")
}
OK_BLOCK = frames.encode_fields([(b"grpc-status", b"0")])

_TO_ESCAPE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


def escape(message: str) -> bytes:
    """Encodes a status message for the grpc-message field: percent-encoded UTF-8.

    Blanks at the ends are encoded, too: RFC 9113, section 8.2.1, allows none at the ends of a field's value.
    """
    text = message.encode("utf-8", "replace")[:MAX_MESSAGE]
    begun = text.lstrip(b" ")
    inner = begun.rstrip(b" ")
    escaped = _TO_ESCAPE.sub(lambda match: b"%%%02X" % match[0][0], inner)
    return b"%20" * (len(text) - len(begun)) + escaped + b"%20" * (len(begun) - len(inner))


def status_block(code: int, message: str, trailers: Fields, started: bool) -> bytes:
    """Returns the header block that ends a call. If not `started`, it includes the response headers
    (Trailers-Only).
    """
    if trailers:
        return _status_block(code, message, started) + frames.encode_fields(trailers)
    return _status_block(code, message, started)


@lru_cache(maxsize=256)
def _status_block(code: int, message: str, started: bool) -> bytes:
    block = frames.encode_fields([(b"grpc-status", b"%d" % code)])
    if message:
        block += frames.encode_fields([(b"grpc-message", escape(message))])
    return block if started else RESPONSE_BLOCK + block


PREFIX = Struct(">BI")
PREFIX_SIZE = 5


class MessageAssembler:
    """An assembler of messages from pieces of DATA.

    As soon as the length of a message is known, and before any of the message is stored, the assembler calls
    `announced(size, at_hand)`, which may raise RpcError. `at_hand` is the number of bytes that follow the
    prefix in the same piece; they may include later messages.
    """

    __slots__ = ("_announced", "_body", "_encoding", "_flag", "_limit", "_prefix")

    def __init__(self, encoding: bytes, limit: int, announced: Callable[[int, int], None]) -> None:
        self._encoding = encoding
        self._limit = limit
        self._announced = announced
        self._prefix = bytearray()
        self._flag = 0
        self._body: Body | None = None

    def close(self) -> None:
        """Drops an incomplete message."""
        self._body = None

    @property
    def between_messages(self) -> bool:
        return self._body is None and not self._prefix

    @property
    def missing(self) -> int:
        """The number of bytes that the current message still lacks, or 0 if its length is unknown."""
        body = self._body
        return 0 if body is None or body.size is None else body.size - body.filled

    @property
    def room(self) -> memoryview:
        """The unfilled rest of the current message's buffer, or an empty view if there is no buffer."""
        body = self._body
        return NO_ROOM if body is None else body.room

    @property
    def filled(self) -> bool:
        """Whether the current message is complete, so that `feed` returns it without further bytes."""
        return self._body is not None and self._body.complete

    def placed(self, size: int) -> None:
        """Reports that `size` bytes were written to the beginning of `room`. `feed` returns the complete
        message.
        """
        assert self._body is not None, "it has room"
        self._body.placed(size)

    def fill(self, data: Buffer, begin: int, end: int) -> None:
        """Stores data[begin:end], which must be shorter than the number of bytes in `missing`."""
        assert self._body is not None, "bytes of it are missing"
        self._body.add(data, begin, end)

    def feed(self, data: Buffer, begin: int, end: int) -> tuple[int, tuple[bool, Buffer] | None]:
        """Consumes data[begin:end] up to the end of a message, and raises RpcError for an invalid one.

        Returns the position reached, and (compressed, message) if a message is complete.
        """
        body = self._body
        if body is None:
            take = min(PREFIX_SIZE - len(self._prefix), end - begin)
            self._prefix += memoryview(data)[begin : begin + take]
            begin += take
            if len(self._prefix) < PREFIX_SIZE:
                return begin, None
            self._flag, size = PREFIX.unpack(self._prefix)
            check_prefix(self._flag, size, self._encoding, self._limit)
            self._announced(size, end - begin)
            try:
                body = self._body = Body(size)
            except MemoryError:
                raise overfull() from None
        take = min(body.missing, end - begin)
        body.add(data, begin, begin + take)
        begin += take
        if not body.complete:
            return begin, None
        self._body = None
        self._prefix = bytearray()
        return begin, (self._flag == 1, body.take())


def check_prefix(flag: int, size: int, encoding: bytes, limit: int) -> None:
    """Raises RpcError if the prefix is invalid or announces a message that is too large."""
    if flag > 1:
        raise RpcError(INTERNAL, f"a message has compressed flag {flag}; it must be 0 or 1")
    if flag and encoding == b"identity":
        raise RpcError(INTERNAL, "a message is flagged as compressed, but grpc-encoding names no compression")
    if size > limit:
        raise RpcError(
            RESOURCE_EXHAUSTED,
            f"a message of {size} bytes is larger than the server's limit of {limit} bytes."
            f" {INCREASE_BODY_LIMIT}",
        )


def overfull() -> RpcError:
    return RpcError(RESOURCE_EXHAUSTED, "the server holds too many bytes of requests; try again later")


def as_rpc_error(error: CodingError) -> RpcError:
    """Returns the gRPC status for a message that cannot be inflated."""
    if error.status == 413:
        return RpcError(RESOURCE_EXHAUSTED, error.message.replace("request body", "message"))
    if error.status == 503:
        return overfull()
    return RpcError(INTERNAL, f"a compressed message cannot be inflated: {error.message}")
