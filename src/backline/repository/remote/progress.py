"""How far the download of a version is."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from backline.repository.repository import OnBytes


class Progress:
    """Bytes that arrive on threads, told on the event loop as often as it has time to hear of them."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        """`total` is in bytes; on the event loop `on_bytes` is called with what is here of them, and `total`."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._total = total
        self._on_bytes = on_bytes
        self._here = 0
        self._announced = False

    def add(self, count: int) -> None:
        """So many bytes more are here. Called on any thread."""
        with self._lock:
            self._here += count
            if self._announced:
                return
            self._announced = True
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        with self._lock:
            self._announced = False
            here = self._here
        self._on_bytes(here, self._total)

    def end(self) -> None:
        """Tells the last bytes at once, and nothing after."""
        with self._lock:
            on_bytes, self._on_bytes = self._on_bytes, _say_nothing
            here = self._here
        on_bytes(here, self._total)


def _say_nothing(here: int, total: int) -> None:
    """After the end."""
