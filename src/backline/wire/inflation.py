"""Large compressed bodies: inflated one at a time for the whole server, into one buffer of the right size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from backline.wire.application import Buffer
from backline.wire.compression import INLINE, STEP, CodingError, Inflater

if TYPE_CHECKING:
    from backline.wire.connection import Wire

KIB = 1024
MIB = 1024 * KIB
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
