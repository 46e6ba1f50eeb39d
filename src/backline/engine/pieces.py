"""Work that would keep everybody waiting, done in pieces between other turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import TypeVar

#: Seconds that such work may take of one turn of the event loop; then requests have theirs.
_PIECE = 0.0005

Piece = TypeVar("Piece")


async def in_pieces(work: Iterable[Piece]) -> list[Piece]:
    """What `work` gives, each piece of which should take microseconds; between two turns whatever it looks at may change."""
    done = []
    turn = monotonic() + _PIECE
    for piece in work:
        done.append(piece)
        if monotonic() > turn:
            await asyncio.sleep(0)
            turn = monotonic() + _PIECE
    return done
