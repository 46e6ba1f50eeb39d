"""An event loop that makes one turn at a time, in simulated time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """The time that `time.monotonic` and `time.monotonic_ns` return to all of Backline while `installed`."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000
        self._replaced: list[tuple[object, str, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.ns / 1e9

    def monotonic_ns(self) -> int:
        return self.ns

    def __enter__(self) -> Clock:
        real = {"monotonic": time.monotonic, "monotonic_ns": time.monotonic_ns}
        for name, module in list(sys.modules.items()):
            if not name.startswith("backline."):
                continue
            for function, original in real.items():
                if vars(module).get(function) is original:
                    self._replaced.append((module, function, original))
                    setattr(module, function, getattr(self, function))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for module, function, original in self._replaced:
            setattr(module, function, original)
        self._replaced.clear()


class SteppedLoop(asyncio.SelectorEventLoop):
    """A real event loop whose turns are made by the test, which may do several things in between."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock.monotonic()

    def turn(self) -> None:
        """Runs what is due, but nothing that this schedules."""
        self.call_soon(self.stop)
        self.run_forever()

    def later(self, seconds: float) -> None:
        """Lets time pass, along with everything due in it."""
        self._clock.ns += round(seconds * 1e9)
        for _ in range(3):
            self.turn()

    def inside(self, action: Callable[[], T]) -> T:
        """Runs something between two turns as if the loop had called it."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            return action()
        finally:
            asyncio._set_running_loop(before)
