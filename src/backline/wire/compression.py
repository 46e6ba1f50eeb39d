"""gzip and deflate, both ways: request bodies inflated under a limit, responses compressed when the client accepts it (RFC 9110, 8.4)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import ClassVar

from backline.wire.application import Buffer, Fields

KIB = 1024
#: What is inflated or compressed on the loop at a time, in bytes; larger work goes to a thread.
INLINE = 64 * KIB
#: Bytes of input given to one step, and bytes of output it may produce. What zlib leaves of a piece is copied at each step, so a piece is
#: small; the time stays linear in the body.
PIECE = 64 * KIB
STEP = 256 * KIB
#: Members of one gzip body: each costs a new inflater, and an empty one is 20 bytes.
MAX_MEMBERS = 64
#: Speed matters more than the last percent: both ends are usually near each other.
LEVEL = 1

ACCEPTED = b"gzip, deflate"


class CodingError(Exception):
    """A body that cannot be inflated. `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Inflater:
    """Inflates one body in steps, never producing more than `limit` bytes. Source: RFC 1950, 1951 and 1952."""

    def __init__(self, coding: bytes, body: Buffer, limit: int) -> None:
        """Raises CodingError 415 for a coding that is not gzip or deflate."""
        name = coding.strip().lower()
        if name in (b"gzip", b"x-gzip"):
            self._window = 16 + zlib.MAX_WBITS
        elif name == b"deflate":
            # The name means zlib's format, but some clients send raw deflate; the first two bytes tell.
            self._window = zlib.MAX_WBITS if _has_zlib_header(body) else -zlib.MAX_WBITS
        else:
            shown = coding.decode("latin-1")[:64]
            raise CodingError(
                415,
                f"Content-Encoding '{shown}' is not supported; send the body as gzip, deflate or without a coding",
            )
        self._gzip = name != b"deflate"
        self._coding = name.decode()
        self._limit = limit
        self._input = memoryview(body)
        self._position = 0
        #: What zlib has not taken of the last piece of input.
        self._tail: Buffer = b""
        self._members = 1
        self._inflate = zlib.decompressobj(self._window)
        self.output = bytearray()

    def step(self) -> bool:
        """Produces up to STEP bytes more; True when the body is complete. Raises CodingError 400 (broken) or 413 (too large)."""
        if not self._tail:
            self._tail = self._input[self._position : self._position + PIECE]
            self._position += len(self._tail)
        room = self._limit - len(self.output)
        try:
            # One byte more than there is room for: to see that the limit is passed.
            piece = self._inflate.decompress(self._tail, min(STEP, room + 1))
        except zlib.error as error:
            raise CodingError(400, f"The request body is not valid {self._coding}: {error}") from None
        if len(piece) > room:
            raise CodingError(413, f"The inflated request body exceeds the maximum of {self._limit} bytes")
        self.output += piece
        if self._inflate.eof:
            return self._next_member()
        self._tail = self._inflate.unconsumed_tail
        if not piece and not self._tail and self._position >= len(self._input):
            raise CodingError(400, f"The request body ends in the middle of its {self._coding} data")
        return False

    def _next_member(self) -> bool:
        """A gzip body may consist of several members (RFC 1952, 2.2)."""
        self._tail = self._inflate.unused_data
        if not self._tail and self._position >= len(self._input):
            return True
        self._members += 1
        if not self._gzip or self._members > MAX_MEMBERS:
            raise CodingError(400, f"The request body has bytes behind the end of its {self._coding} data")
        self._inflate = zlib.decompressobj(self._window)
        return False

    def finish(self) -> bytearray:
        """All that is left, for a thread. Raises CodingError."""
        while not self.step():
            pass
        return self.output


def _has_zlib_header(body: Buffer) -> bool:
    """RFC 1950, 2.2: method 8, and the first two bytes are a multiple of 31."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


class ResponseCoding:
    """A coding that a response can be sent in."""

    __slots__ = ("name", "window")

    #: Up to this size a response is compressed on the loop.
    INLINE_SIZE: ClassVar[int] = INLINE

    def __init__(self, name: bytes, window: int) -> None:
        self.name = name
        self.window = window


GZIP = ResponseCoding(b"gzip", 16 + zlib.MAX_WBITS)
DEFLATE = ResponseCoding(b"deflate", zlib.MAX_WBITS)


def negotiate(accept_encoding: bytes, fields: Fields = ()) -> ResponseCoding | None:
    """The coding for a response (RFC 9110, 12.5.3); None for identity, or when the application has chosen a coding itself."""
    for name, _ in fields:
        if name == b"content-encoding":
            return None
    weights = parse_weights(accept_encoding)
    anything = weights.get(b"*", 0.0)
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", anything))
    deflate = weights.get(b"deflate", anything)
    # Identity is always acceptable, but only preferred over a coding when the client weighs it higher.
    best = max(gzip, deflate)
    if best <= 0.0 or weights.get(b"identity", 0.0) > best:
        return None
    return GZIP if gzip >= deflate else DEFLATE


def parse_weights(value: bytes) -> dict[bytes, float]:
    """The codings of an Accept-Encoding field with their q-values; a member that is malformed counts as not acceptable."""
    weights: dict[bytes, float] = {}
    for member in value.lower().split(b",", 32)[:32]:
        name, *parameters = member.split(b";")
        weight = 1.0
        for parameter in parameters:
            key, _, number = parameter.partition(b"=")
            if key.strip() == b"q":
                weight = _weight(number.strip())
        if name.strip():
            weights[name.strip()] = weight
    return weights


def _weight(number: bytes) -> float:
    try:
        weight = float(number)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


def compress(coding: ResponseCoding, body: Sequence[Buffer]) -> bytes:
    """The whole body in one piece."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, coding.window)
    return b"".join((*(packer.compress(part) for part in body), packer.flush()))


async def compress_in_steps(
    loop: asyncio.AbstractEventLoop, coding: ResponseCoding, body: Sequence[Buffer]
) -> AsyncIterator[bytes]:
    """The body in pieces, each compressed on a thread of the loop's executor."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, coding.window)
    for part in _slices(body):
        piece = await loop.run_in_executor(None, packer.compress, part)
        if piece:
            yield piece
    yield await loop.run_in_executor(None, packer.flush)


def _slices(body: Sequence[Buffer]) -> Iterator[memoryview]:
    for part in body:
        view = memoryview(part).cast("B")
        for start in range(0, len(view), STEP):
            yield view[start : start + STEP]
