"""gzip and deflate: request bodies inflated within limits, responses compressed on request (RFC 9110, section 8.4)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from backline.wire.application import Buffer, Fields
from backline.wire.limits import KIB, MIB

if TYPE_CHECKING:
    from backline.wire.connection import Wire

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


#: Bytes that a thread produces before it looks whether they are still wanted.
SLICE = 4 * MIB
#: Bodies that become larger than this must not be compressed better than limits.max_inflation_ratio says.
RATIO_FROM = 32 * MIB
#: A gzip member is at least this long; its last four bytes are the size of what it was made from (RFC 1952, 2.3.1).
_GZIP_MIN = 18
#: No better can deflate be: 258 bytes from two bits.
_MAX_RATIO = 1032


class Inflation:
    """The queue of bodies that are too large to be inflated on the loop.

    A body that a client has made small becomes large only when it is its turn, is counted before memory is taken for it, and takes no
    memory while its size is not known: then it is inflated twice, once to measure it. gzip tells the size, which is tried first.
    """

    __slots__ = ("_slot", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._slot = asyncio.Lock()

    async def inflate(
        self, coding: bytes, body: Buffer, reserve: Callable[[int], bool], wanted: Callable[[], bool]
    ) -> Buffer | None:
        """The inflated body, or None when it is not `wanted` any more.

        `reserve(size)` counts bytes against the limits of the server before they are there; False refuses them. Raises CodingError 400
        for a body that is broken, 413 for one that is too large, or larger than an honest client's would be, 415 for a coding that is
        not known, and 503 when the server holds too many bytes already.
        """
        async with self._slot:
            if not wanted():
                return None
            size = announced_size(coding, body)
            if size is None or size > self._wire.limits.max_body_size:
                size = await self._measure(coding, body, wanted)
            inflated = await self._fill(coding, body, size, reserve, wanted)
            if inflated is None and wanted():
                # gzip of several members tells only the size of the last one.
                size = await self._measure(coding, body, wanted)
                inflated = await self._fill(coding, body, size, reserve, wanted)
            return inflated

    async def _measure(self, coding: bytes, body: Buffer, wanted: Callable[[], bool]) -> int:
        limit = self._wire.limits.max_body_size
        inflater = Inflater(coding, body, limit)
        size = 0
        done = False
        while not done and wanted():
            produced, done = await self._wire.loop.run_in_executor(None, _count, inflater)
            size += produced
            if size > limit:
                raise CodingError(413, f"The inflated request body exceeds the maximum of {limit} bytes")
            self._check_ratio(size, body)
        return size

    async def _fill(
        self,
        coding: bytes,
        body: Buffer,
        size: int,
        reserve: Callable[[int], bool],
        wanted: Callable[[], bool],
    ) -> Buffer | None:
        """None when the body is not wanted any more, or larger than `size`."""
        self._check_ratio(size, body)
        if not wanted():
            return None
        if not reserve(size):
            raise CodingError(503, "The server holds too many bytes of requests; try again")
        inflater = Inflater(coding, body, self._wire.limits.max_body_size)
        room = np.empty(size, np.uint8).data
        filled = 0
        done = False
        while not done:
            if not wanted():
                return None
            filled, done = await self._wire.loop.run_in_executor(None, _fill, inflater, room, filled)
            if filled > size:
                return None
        return room[:filled]

    def _check_ratio(self, size: int, body: Buffer) -> None:
        ratio = self._wire.limits.max_inflation_ratio
        if size > RATIO_FROM and size > ratio * len(body):
            raise CodingError(
                413,
                f"The inflated request body exceeds {RATIO_FROM >> 20} MiB and {ratio:g} times what was sent",
            )


def inflate_small(coding: bytes, body: Buffer, limit: int) -> Buffer | None:
    """The inflated body if it is a small one, else None: then it has to wait for its turn. Raises CodingError."""
    size = announced_size(coding, body)
    if len(body) > INLINE or (size is not None and size > STEP):
        return None
    inflater = Inflater(coding, body, limit)
    return inflater.output if inflater.step() else None


def announced_size(coding: bytes, body: Buffer) -> int | None:
    """What a gzip body says of its inflated size; None for other codings, and for what cannot be."""
    if coding.strip().lower() not in (b"gzip", b"x-gzip") or len(body) < _GZIP_MIN:
        return None
    size = int.from_bytes(body[-4:], "little")
    return size if size <= len(body) * _MAX_RATIO else None


def _count(inflater: Inflater) -> tuple[int, bool]:
    """Inflates a slice for its size alone."""
    produced = 0
    done = False
    while not done and produced < SLICE:
        done = inflater.step()
        produced += len(inflater.output)
        inflater.output = bytearray()
    return produced, done


def _fill(inflater: Inflater, room: memoryview, filled: int) -> tuple[int, bool]:
    """Inflates a slice into `room`, from `filled` on. Returns more than there is room for when the body is larger."""
    end = filled + SLICE
    done = False
    while not done and filled < end:
        done = inflater.step()
        piece = inflater.output
        inflater.output = bytearray()
        if filled + len(piece) > len(room):
            return len(room) + 1, True
        room[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled, done
