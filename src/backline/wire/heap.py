"""Memory that large requests took and the C library keeps: given back to the system when the server is idle again."""

from __future__ import annotations

from backline.process_memory import resident_bytes, trim
from backline.wire.connection import Wire

#: Seconds between two looks.
INTERVAL = 0.5
#: The growth that is worth the milliseconds of a trim, in bytes.
WORTH_TRIMMING = 16 * 1024 * 1024
#: The server counts as idle up to so many bytes of bodies in flight.
IDLE_BYTES = 1024 * 1024


class Heap:
    """Watches the resident memory of the process while a server runs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lowest = resident_bytes()
        self._timer = wire.loop.call_later(INTERVAL, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._wire.loop.call_later(INTERVAL, self._look)
        resident = resident_bytes()
        self._lowest = min(self._lowest, resident)
        if resident > self._lowest + WORTH_TRIMMING and self._wire.buffered_bytes < IDLE_BYTES:
            self._wire.loop.run_in_executor(None, self._give_back)

    def _give_back(self) -> None:
        """On a thread: the C library is held for a moment, the interpreter is not."""
        trim()
        # What could not be returned is in use; only growth from here on is looked at again.
        self._lowest = resident_bytes()
