"""Memory that large requests and answers took and the C library keeps: given back to the system."""

from __future__ import annotations

from backline.system.memory import resident_bytes, trim
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
        #: The most bytes of bodies and answers that were held at once since the last trim.
        self._peak = 0
        #: The least resident memory seen, without what bodies and answers held at that time.
        self._lowest = resident_bytes()
        self._timer = wire.loop.call_later(INTERVAL, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._wire.loop.call_later(INTERVAL, self._look)
        resident = resident_bytes()
        held = self._wire.buffered_bytes
        self._lowest = min(self._lowest, resident)
        self._peak = max(self._peak, held)
        freed = self._peak - held
        if resident > self._lowest + WORTH_TRIMMING and (
            held < IDLE_BYTES or freed >= max(WORTH_TRIMMING, self._peak // 2)
        ):
            self._peak = held
            self._wire.loop.run_in_executor(None, self._give_back)

    def _give_back(self) -> None:
        """On a thread: the C library is held for a moment, the interpreter is not."""
        trim()
        # What could not be returned is in use: by models, whose growth is not looked at again, or by bodies and answers, whose memory is
        # worth another trim as soon as they are gone.
        self._lowest = max(0, resident_bytes() - self._wire.buffered_bytes)
