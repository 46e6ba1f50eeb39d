"""A timer that fires far too late means that the process was suspended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import uvloop

from backline.system.standstill import stood_still


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    ("wait", "still", "expected"),
    [(0.01, 0.0, False), (0.01, 1.1, True), (0.0002, 0.0, False), (0.0, 0.0, False)],
)
def test_only_a_timer_later_than_a_second_means_a_suspension(
    make_loop: Callable[[], asyncio.AbstractEventLoop], wait: float, still: float, expected: bool
) -> None:
    loop = make_loop()

    async def ring() -> bool:
        rung = loop.create_future()
        timer = loop.call_later(wait, lambda: rung.set_result(stood_still(timer, loop)))
        loop.call_soon(time.sleep, still)
        return bool(await rung)

    try:
        assert loop.run_until_complete(ring()) is expected
    finally:
        loop.close()
