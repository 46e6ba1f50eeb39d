"""Returns to the operating system the memory that the C library would keep after large requests and
responses.
"""

from __future__ import annotations

from backline.system.memory import resident_bytes, trim
from backline.wire.connection import Wire

#: Seconds between two checks of the resident memory.
INTERVAL = 0.5
#: A trim takes milliseconds, so the heap is trimmed only if memory has grown by this many bytes.
WORTH_TRIMMING = 16 * 1024 * 1024
#: The server counts as idle while it holds fewer bytes of bodies and responses than this.
IDLE_BYTES = 1024 * 1024


class Heap:
    """Watches the resident memory of the process while a server runs, and trims the heap after peaks."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        #: The maximum number of bytes of bodies and responses that the server has held at the same time since
        #: the last trim.
        self._peak = 0
        #: The minimum resident memory seen so far. A trim sets it to the memory after the trim, less the
        #: bodies and responses held at that time.
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
        """Trims the heap, on a thread: trimming blocks the C library's allocator, but not the interpreter."""
        trim()
        # Memory that could not be returned is in use. The part that models use becomes the new baseline. The
        # part that bodies and responses use does not, so another trim follows when they have been freed.
        self._lowest = max(0, resident_bytes() - self._wire.buffered_bytes)
