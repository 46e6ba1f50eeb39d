"""Detects that this process, or its machine, was suspended.

A timeout that expires during a suspension proves nothing: the other side may have responded in time, and its
response may still be unread in a socket.
"""

from __future__ import annotations

import asyncio

#: A timer that fires this many seconds late indicates a suspension; a busy event loop delays timers less.
_LATE = 1.0


def stood_still(timer: asyncio.Handle, loop: asyncio.AbstractEventLoop) -> bool:
    """Returns whether a timer that fires now is so late that this process must have been suspended."""
    # For delays below a millisecond, uvloop's `call_later` returns a plain handle, which has no `when`.
    when = getattr(timer, "when", None)
    return when is not None and loop.time() - when() > _LATE
