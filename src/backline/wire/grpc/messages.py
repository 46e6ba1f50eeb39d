"""gRPC messages: a flag, four octets of length, and that many octets (the protocol's "Length-Prefixed-Message")."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from backline.wire.application import Buffer, RpcError
from backline.wire.compression import CodingError
from backline.wire.grpc import status
from backline.wire.http2.body import Body

PREFIX = Struct(">BI")
PREFIX_SIZE = 5


class MessageAssembler:
    """Puts messages together out of pieces of DATA.

    `announced(size, at_hand)` is called as soon as a message's length is known, before anything of it is kept: `at_hand` bytes have been
    received of it, or of it and what follows. It may raise RpcError.
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
        """Frees what there is of a message."""
        self._body = None

    @property
    def between_messages(self) -> bool:
        return self._body is None and not self._prefix

    def feed(self, data: Buffer, begin: int, end: int) -> tuple[int, tuple[bool, Buffer] | None]:
        """Takes from data[begin:end]. Returns where it stopped, and (compressed, message) if one is complete. Raises RpcError."""
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
                raise RpcError(
                    status.RESOURCE_EXHAUSTED, "the server holds too many bytes of requests; try again"
                ) from None
        take = min(body.missing, end - begin)
        body.add(data, begin, begin + take)
        begin += take
        if not body.complete:
            return begin, None
        self._body = None
        self._prefix = bytearray()
        return begin, (self._flag == 1, body.take())


def check_prefix(flag: int, size: int, encoding: bytes, limit: int) -> None:
    """Raises RpcError when a message cannot be taken."""
    if flag > 1:
        raise RpcError(
            status.INTERNAL, f"the flag before a message is {flag}; it is 0 (plain) or 1 (compressed)"
        )
    if flag and encoding == b"identity":
        raise RpcError(
            status.INTERNAL, "a message is flagged as compressed, but grpc-encoding names no compression"
        )
    if size > limit:
        raise RpcError(
            status.RESOURCE_EXHAUSTED,
            f"a message of {size} bytes is larger than the server's limit of {limit} bytes",
        )


def as_rpc_error(error: CodingError) -> RpcError:
    """What inflating found wrong, in gRPC's terms."""
    if error.status == 413:
        return RpcError(status.RESOURCE_EXHAUSTED, error.message.replace("request body", "message"))
    if error.status == 503:
        return RpcError(status.RESOURCE_EXHAUSTED, "the server holds too many bytes of requests; try again")
    return RpcError(status.INTERNAL, f"a compressed message cannot be inflated: {error.message}")
