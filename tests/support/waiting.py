"""Waits for conditions that nothing signals."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(reached: Callable[[], object], log: Callable[[], str] = lambda: "", seconds: float = 30.0) -> None:
    """Returns once `reached()` holds; fails with the text of `log` if it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, log() or "the condition never held"
        time.sleep(0.01)


def settled(count: Callable[[], int], pause: float = 0.3) -> int:
    """The value of a counter once it has not grown for `pause` seconds."""
    last, value = -1, count()
    while value != last:
        time.sleep(pause)
        last, value = value, count()
    return value
