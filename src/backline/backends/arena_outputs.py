"""Outputs that lie in a runtime's arena: only a bounded part of them stays there while clients take their answers."""

from __future__ import annotations

from weakref import ref

import numpy as np

MIB = 1024 * 1024
#: Smaller outputs are not counted.
LARGE = MIB // 4
#: Bytes of outputs that may lie in the arena at once.
MAX_HELD = 16 * MIB


class ArenaOutputs:
    """Copies outputs out of the arena while too many of its bytes are held.

    An arena grows for outputs that are still in use, and keeps what it grew by when they are freed: a burst of large answers that nobody
    reads would stay resident for as long as the model is loaded. Copies go back to the system when they are freed. As long as clients take
    their answers nothing is copied.

    Outputs are freed on any thread, and at any moment of the interpreter's choice. So nothing here takes a lock: single operations on
    the dictionary are atomic.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[ref[np.ndarray], int]] = {}

    @property
    def held(self) -> int:
        """Bytes of outputs that lie in the arena and are in use."""
        return sum(size for _, size in tuple(self._held.values()))

    def limit(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs of a run, in the arena or copied."""
        for array in outputs:
            if type(array) is np.ndarray and array.nbytes >= LARGE:
                return [self._limit(array) for array in outputs]
        return outputs

    def _limit(self, array: np.ndarray) -> np.ndarray:
        if type(array) is not np.ndarray or array.nbytes < LARGE or array.dtype == object:
            return array
        if self.held + array.nbytes > MAX_HELD:
            return array.copy()
        held, key = self._held, id(array)
        held[key] = (ref(array, lambda _: held.pop(key, None)), array.nbytes)
        return array
