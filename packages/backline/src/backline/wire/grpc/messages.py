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
from backline.wire.limits import KIB, BodyLimit
from backline.wire.uploads import FREE

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

#: The maximum length of a status message in bytes. Longer messages are truncated, because clients limit the
#: size of trailers (grpcio to 8 KiB).
MAX_MESSAGE = 4096

#: The header block before the first message of a response.
RESPONSE_BLOCK = frames.encode_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
#: The header block before the first message of a response with compressed messages, by the name of the
#: compression.
COMPRESSED_RESPONSE_BLOCKS = {
    name: frames.encode_fields(
        [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", name)]
    )
    for name in (b"gzip", b"deflate")
}
#: The trailers of a successful response.
OK_BLOCK = frames.encode_fields([(b"grpc-status", b"0")])

_TO_ESCAPE = re.compile(rb"[^\x20-\x24\x26-\x7e]")


def escape(message: str) -> bytes:
    """Encodes a status message for the grpc-message field: percent-encoded UTF-8.

    Spaces at the start and the end are encoded too, because the value of a field must not start or end with
    one (RFC 9113, section 8.2.1).
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
#: The number of bytes at the beginning of a large message from which the message's size limit is determined.
BEGINNING = 4 * KIB


class MessageAssembler:
    """Assembles messages from pieces of DATA.

    As soon as the length of a message is known, and before any of the message is stored, the assembler calls
    `announced(size, at_hand)`, which may raise RpcError. `at_hand` is the number of bytes that follow the
    prefix in the same piece; they may include later messages. Once the beginning of a message larger than
    FREE has arrived, the assembler calls `begun(size, compressed, beginning)`, which may raise RpcError too.
    """

    __slots__ = ("_announced", "_begun", "_body", "_encoding", "_flag", "_limit", "_prefix", "_starting")

    def __init__(
        self,
        encoding: bytes,
        limit: BodyLimit,
        announced: Callable[[int, int], None],
        begun: Callable[[int, bool, Buffer], None] | None = None,
    ) -> None:
        self._encoding = encoding
        self._limit = limit
        self._announced = announced
        self._begun = begun
        #: Whether `begun` must still be called for the current message.
        self._starting = False
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
        """The unfilled part of the current message's buffer, or an empty view if there is no buffer."""
        body = self._body
        return NO_ROOM if body is None else body.room

    @property
    def filled(self) -> bool:
        """Whether the current message is complete, so that the next `feed` returns it even without more
        bytes.
        """
        return self._body is not None and self._body.complete

    def placed(self, size: int) -> None:
        """Reports that `size` bytes were written to the beginning of `room`. Once the message is complete,
        the next `feed` returns it. Raises RpcError if the message is refused.
        """
        assert self._body is not None, "it has room"
        self._body.placed(size)
        if self._starting:
            self._start(self._body)

    def fill(self, data: Buffer, begin: int, end: int) -> None:
        """Stores data[begin:end] in the current message. There must be fewer bytes than `missing`, so that
        the message is still incomplete afterwards.

        Raises RpcError if the message is refused.
        """
        assert self._body is not None, "bytes of it are missing"
        self._body.add(data, begin, end)
        if self._starting:
            self._start(self._body)

    def _start(self, body: Body) -> None:
        """Calls `begun` with the beginning of the message, once the first BEGINNING bytes have arrived."""
        if body.filled >= BEGINNING:
            self._starting = False
            assert self._begun is not None, "it is to be called"
            self._begun(body.filled + body.missing, self._flag == 1, body.beginning(BEGINNING))

    def feed(self, data: Buffer, begin: int, end: int) -> tuple[int, tuple[bool, Buffer] | None]:
        """Consumes data[begin:end], at most to the end of a message. Raises RpcError if the message is
        malformed or refused.

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
            self._starting = size > FREE and self._begun is not None
        take = min(body.missing, end - begin)
        body.add(data, begin, begin + take)
        begin += take
        if self._starting:
            self._start(body)
        if not body.complete:
            return begin, None
        self._body = None
        self._prefix = bytearray()
        return begin, (self._flag == 1, body.take())


def check_prefix(flag: int, size: int, encoding: bytes, limit: BodyLimit) -> None:
    """Raises RpcError if the prefix is invalid or announces a message that is too large."""
    if flag > 1:
        raise RpcError(INTERNAL, f"a message has compressed flag {flag}; it must be 0 or 1")
    if flag and encoding == b"identity":
        raise RpcError(INTERNAL, "a message is flagged as compressed, but grpc-encoding names no compression")
    if size > limit.size:
        raise RpcError(RESOURCE_EXHAUSTED, limit.exceeded(f"a message of {size} bytes"))


def overfull() -> RpcError:
    return RpcError(RESOURCE_EXHAUSTED, "the server holds too many request messages; try again later")


def as_rpc_error(error: CodingError) -> RpcError:
    """Returns the RpcError for a message that cannot be inflated."""
    if error.status == 413:
        return RpcError(RESOURCE_EXHAUSTED, error.message.replace("request body", "message"))
    if error.status == 503:
        return overfull()
    return RpcError(INTERNAL, f"a compressed message cannot be inflated: {error.message}")
