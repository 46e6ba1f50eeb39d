"""Long work on the event loop, done in pieces between its turns so that requests need not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import TypeVar

#: Maximum time in seconds that such work takes per turn of the loop.
_PIECE = 0.0005

Piece = TypeVar("Piece")


async def in_pieces(work: Iterable[Piece]) -> list[Piece]:
    """Does `work`, whose pieces should take microseconds each, and returns its results.

    Whatever the work reads may change between turns.
    """
    done = []
    turn = monotonic() + _PIECE
    for piece in work:
        done.append(piece)
        if monotonic() > turn:
            await asyncio.sleep(0)
            turn = monotonic() + _PIECE
    return done
