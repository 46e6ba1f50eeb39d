"""Runs `backline` with a timer on its event loop: `python loop_timer.py FILE serve ...`.

The timer fires every millisecond. When the server stops, FILE receives a NumPy array with a row for each
time: when it fired (time.monotonic), how late it was, and the CPU time of the process since the time before,
all in seconds. A timer is late if something else occupies the event loop or the GIL, which takes CPU time of
the process, or if the machine does not run the process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np

PERIOD = 0.001


def main() -> None:
    from backline.cli.main import main as backline

    file = sys.argv.pop(1)
    times: list[tuple[float, float, float]] = []
    run = asyncio.Runner.run

    def run_timed(self: asyncio.Runner, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
        async def timed() -> Any:
            loop = asyncio.get_running_loop()

            def fire(due: float, cpu: float) -> None:
                now, used = time.monotonic(), time.process_time()
                times.append((now, now - due, used - cpu))
                loop.call_later(PERIOD, fire, now + PERIOD, used)

            fire(time.monotonic(), time.process_time())
            return await work

        return run(self, timed(), **options)

    asyncio.Runner.run = run_timed  # type: ignore[method-assign]
    try:
        backline()
    finally:
        np.save(file, np.array(times))


if __name__ == "__main__":
    main()
