"""gzip and deflate (RFC 9110, section 8.4): inflating request bodies within limits, compressing responses."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from backline.wire.application import Bound, Buffer, Denial, Fields
from backline.wire.limits import KIB, MIB, BodyLimit

if TYPE_CHECKING:
    from backline.wire.connection import Wire

#: Bodies up to this size (bytes) are compressed or inflated on the event loop; larger ones, and those that
#: inflate to more than STEP bytes, on a thread.
INLINE = 64 * KIB
#: The maximum number of input bytes per step. At each step, zlib copies the input that it has not consumed.
#: With pieces of limited size, the total time is linear in the size of the body.
PIECE = 64 * KIB
#: The maximum number of output bytes per step.
STEP = 256 * KIB
#: The maximum number of members in a gzip body. There must be a limit, because an empty member is only 20
#: bytes long, yet needs a new decompressor.
MAX_MEMBERS = 64
#: zlib's compression level. Clients are usually in the same network, so speed matters more than a slightly
#: smaller size.
LEVEL = 1
#: HTTP responses below this size in bytes are not compressed, because that would save too little.
WORTH_COMPRESSING = 1024

ACCEPTED = b"gzip, deflate"


class CodingError(Exception):
    """Raised for a body that cannot be inflated. `status` and `fields` are the HTTP status and header fields
    of the response.
    """

    def __init__(self, status: int, message: str, fields: Fields = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields


class Inflater:
    """A decompressor that inflates one body in steps, up to a limit (RFC 1950, 1951 and 1952)."""

    def __init__(self, coding: bytes, body: Buffer, limit: BodyLimit) -> None:
        """Raises CodingError with status 415 for a coding that is neither gzip nor deflate."""
        name = coding.strip().lower()
        if name in (b"gzip", b"x-gzip"):
            self._window = 16 + zlib.MAX_WBITS
        elif name == b"deflate":
            # "deflate" means zlib's format, but some clients send raw deflate. The first two bytes tell the
            # two apart.
            self._window = zlib.MAX_WBITS if _has_zlib_header(body) else -zlib.MAX_WBITS
        else:
            shown = coding.decode("latin-1")[:64]
            raise CodingError(
                415, f"Unsupported compression type '{shown}': use gzip, deflate or no Content-Encoding"
            )
        self._gzip = name != b"deflate"
        self._coding = name.decode()
        self._limit = limit
        self._input = memoryview(body)
        self._position = 0
        #: The part of the last piece of input that zlib has not consumed.
        self._tail: Buffer = b""
        self._members = 1
        self._inflate = zlib.decompressobj(self._window)
        self.output = bytearray()

    def step(self) -> bool:
        """Appends up to STEP bytes to `output`. Returns True when the body is complete.

        Raises CodingError with status 400 if the body is malformed, or 413 if it is too large.
        """
        if not self._tail:
            self._tail = self._input[self._position : self._position + PIECE]
            self._position += len(self._tail)
        room = self._limit.size - len(self.output)
        try:
            # This asks for one byte more than there is room for, to detect that the limit is exceeded.
            piece = self._inflate.decompress(self._tail, min(STEP, room + 1))
        except zlib.error as error:
            raise CodingError(400, f"The request body is not valid {self._coding}: {error}") from None
        if len(piece) > room:
            raise _too_large(self._limit)
        self.output += piece
        if self._inflate.eof:
            return self._next_member()
        self._tail = self._inflate.unconsumed_tail
        if not piece and not self._tail and self._position >= len(self._input):
            raise CodingError(400, f"The request body ends in the middle of its {self._coding} data")
        return False

    def _next_member(self) -> bool:
        """Continues with the next member of a gzip body (RFC 1952, section 2.2). Returns True if the body is
        complete, and raises CodingError for too many members, or bytes after deflate data.
        """
        self._tail = self._inflate.unused_data
        if not self._tail and self._position >= len(self._input):
            return True
        self._members += 1
        if not self._gzip or self._members > MAX_MEMBERS:
            found = f"more than {MAX_MEMBERS} gzip members" if self._gzip else "bytes after its deflate data"
            raise CodingError(400, f"The request body has {found}")
        self._inflate = zlib.decompressobj(self._window)
        return False


def _has_zlib_header(body: Buffer) -> bool:
    """Returns whether a body starts with a header of zlib's format: the compression method is 8, and the
    first two bytes form a multiple of 31 (RFC 1950, section 2.2).
    """
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


class ResponseCoding:
    """A content coding for responses: its name, and the `wbits` argument that selects it in zlib."""

    __slots__ = ("name", "window")

    #: Responses up to this size, in bytes, are compressed on the event loop.
    INLINE_SIZE: ClassVar[int] = INLINE

    def __init__(self, name: bytes, window: int) -> None:
        self.name = name
        self.window = window


GZIP = ResponseCoding(b"gzip", 16 + zlib.MAX_WBITS)
DEFLATE = ResponseCoding(b"deflate", zlib.MAX_WBITS)
#: The codings of gRPC messages, by their names in grpc-encoding.
GRPC_CODINGS = {b"gzip": GZIP, b"deflate": DEFLATE}


def negotiate(accept_encoding: bytes, fields: Fields = ()) -> ResponseCoding | None:
    """Returns the content coding for a response, given the request's Accept-Encoding (RFC 9110, section
    12.5.3).

    Returns None if the client accepts neither gzip nor deflate, if it prefers an uncompressed response, or if
    `fields` already contains a content-encoding.
    """
    for name, _ in fields:
        if name == b"content-encoding":
            return None
    weights = parse_weights(accept_encoding)
    anything = weights.get(b"*", 0.0)
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", anything))
    deflate = weights.get(b"deflate", anything)
    # The response may always be sent without a coding (identity), but that is preferred only if the client
    # gives identity a higher weight.
    best = max(gzip, deflate)
    if best <= 0.0 or weights.get(b"identity", 0.0) > best:
        return None
    return GZIP if gzip >= deflate else DEFLATE


def parse_weights(value: bytes) -> dict[bytes, float]:
    """Returns the first 32 codings in an Accept-Encoding field with their q-values. A malformed q-value is
    0.
    """
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
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, coding.window)
    return b"".join((*(packer.compress(part) for part in body), packer.flush()))


async def compress_in_steps(
    loop: asyncio.AbstractEventLoop, coding: ResponseCoding, body: Sequence[Buffer]
) -> AsyncIterator[bytes]:
    """Yields the compressed body in pieces, each compressed on a thread of the loop's executor."""
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


#: The number of bytes that a thread inflates before the event loop checks whether the request is still
#: wanted.
SLICE = 4 * MIB
#: `limits.max_inflation_ratio` applies to bodies that inflate to more than this.
RATIO_FROM = 32 * MIB
#: The minimum total size in bytes of the header and trailer of a gzip member. The last four bytes of the
#: trailer are the size of the original data (RFC 1952, section 2.3.1).
_GZIP_MIN = 18
#: The maximum compression ratio of deflate, which encodes up to 258 bytes in two bits.
_MAX_RATIO = 1032


class Inflation:
    """The queue of bodies that are too large to be inflated on the event loop. The server inflates one such
    body at a time.

    Invariant: memory for an inflated body is allocated only in that body's turn, after the inflated size was
    counted against the limits. A gzip body with a single member announces its inflated size. Any other body
    is first inflated only to measure the inflated size.
    """

    __slots__ = ("_slot", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._slot = asyncio.Lock()

    async def inflate(
        self,
        coding: bytes,
        body: Buffer,
        reserve: Callable[[int], bool],
        wanted: Callable[[], bool],
        bound: Bound = None,
    ) -> Buffer | None:
        """Returns the inflated body, or None if `wanted` returned False while the body waited or was
        inflated.

        `reserve(size)` counts bytes against the server's limits before they are allocated, in place of the
        bytes that an earlier call counted, and returns False if a limit is exceeded. `bound` is the limit of
        the inflated body. Raises CodingError with status 400 for a malformed body, 413 if the body or its
        compression ratio is too large, 415 for an unknown coding, 503 if the server holds too many bytes or
        has no memory left, and with the status of `bound` if that is a denial.
        """
        limit = self._wire.bounded(bound)
        if isinstance(limit, Denial):
            raise CodingError(limit.status, limit.message, limit.fields)
        async with self._slot:
            if not wanted():
                return None
            try:
                size = announced_size(coding, body)
                if size is None or size > limit.size:
                    size = await self._measure(coding, body, wanted, limit)
                inflated = await self._fill(coding, body, size, reserve, wanted)
                if inflated is None and wanted():
                    # A gzip body with several members announces only the size of the last one.
                    size = await self._measure(coding, body, wanted, limit)
                    inflated = await self._fill(coding, body, size, reserve, wanted)
                return inflated
            except MemoryError:
                raise overfull() from None

    async def _measure(
        self, coding: bytes, body: Buffer, wanted: Callable[[], bool], limit: BodyLimit
    ) -> int:
        inflater = Inflater(coding, body, limit)
        size = 0
        done = False
        while not done and wanted():
            produced, done = await self._wire.loop.run_in_executor(None, _count, inflater)
            size += produced
            if size > limit.size:
                raise _too_large(limit)
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
        """Returns the inflated body, or None if the body is no longer wanted or turns out to be larger than
        `size`.
        """
        self._check_ratio(size, body)
        if not wanted():
            return None
        if not reserve(size):
            raise overfull()
        inflater = Inflater(coding, body, self._wire.body_limit)
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
                f"The inflated request body exceeds {RATIO_FROM >> 20} MiB and {ratio:g} times its compressed"
                " size; send it uncompressed",
            )


def _too_large(limit: BodyLimit) -> CodingError:
    return CodingError(413, limit.exceeded("The inflated request body"))


def overfull() -> CodingError:
    """Returns the error for a body that the server has no room to inflate."""
    return CodingError(503, "The server holds too many request bodies; try again later")


def inflate_small(coding: bytes, body: Buffer, limit: BodyLimit) -> Buffer | None:
    """Returns the inflated body, or None if it is so large that it must wait for `Inflation`. Raises
    CodingError if it cannot be inflated.
    """
    size = announced_size(coding, body)
    if len(body) > INLINE or (size is not None and size > STEP):
        return None
    inflater = Inflater(coding, body, limit)
    try:
        return inflater.output if inflater.step() else None
    except MemoryError:
        raise overfull() from None


def inflated_beginning(coding: bytes, body: Buffer, size: int, limit: BodyLimit) -> bytes:
    """Returns at most `size` bytes from the beginning of the inflated body, or b"" if inflating it fails."""
    try:
        inflater = Inflater(coding, body, limit)
        inflater.step()
    except CodingError:
        return b""
    return bytes(inflater.output[:size])


def announced_size(coding: bytes, body: Buffer) -> int | None:
    """Returns the inflated size that a gzip body announces. Returns None for other codings, or if the size is
    implausible.
    """
    if coding.strip().lower() not in (b"gzip", b"x-gzip") or len(body) < _GZIP_MIN:
        return None
    size = int.from_bytes(body[-4:], "little")
    return size if size <= len(body) * _MAX_RATIO else None


def _count(inflater: Inflater) -> tuple[int, bool]:
    """Inflates up to SLICE bytes and discards them. Returns their number and whether the body is complete."""
    produced = 0
    done = False
    while not done and produced < SLICE:
        done = inflater.step()
        produced += len(inflater.output)
        inflater.output = bytearray()
    return produced, done


def _fill(inflater: Inflater, room: memoryview, filled: int) -> tuple[int, bool]:
    """Inflates up to SLICE bytes into `room`, starting at `filled`.

    Returns the end of the filled part, and whether the body is complete. If the end is beyond `room`, the
    body did not fit.
    """
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
