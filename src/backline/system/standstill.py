"""Whether this process itself stood still: how long others took meanwhile nobody can say, and what they answered was not heard."""

from __future__ import annotations

import asyncio

#: Seconds that a timer is late when the process, or its machine, was stopped; behind a busy event loop it is less.
_LATE = 1.0


def stood_still(timer: asyncio.Handle, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a timer that rings now is too late for what it was to find out."""
    when = getattr(
        timer, "when", None
    )  # uvloop makes a plain handle of a wait that is below its clock's millisecond
    return when is not None and loop.time() - when() > _LATE
