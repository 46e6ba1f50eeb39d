"""The interface of a response cache, which stores outputs by request key, and the cache in the server's
memory.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Protocol, TypeAlias

import numpy as np

from backline.engine.values.datatypes import DataType
from backline.engine.values.tensor import Tensor

#: The size in bytes of an entry without its tensors: its dictionary slot, key, tuple and numbers.
_ENTRY_BYTES = 320
#: The size in bytes of a tensor without its data: two array objects, the Tensor, and its shape.
_TENSOR_BYTES = 400
#: A callback, called on the event loop with the outputs that were found, or None. Their data is read-only.
Found: TypeAlias = Callable[[Sequence[Tensor] | None], None]


class ResponseCache(Protocol):
    """A response cache, shared by all models of a server.

    All methods are called on the event loop, and none of them blocks.

    A failing cache behaves like an empty one: it logs the failure, and requests run as usual.
    """

    def look_up(self, key: bytes, found: Found) -> None:
        """Looks up a key and calls `found` once, either before this method returns or later."""

    def insert(self, key: bytes, outputs: Sequence[Tensor]) -> None:
        """Stores a copy of the outputs if there is room for it."""

    async def close(self) -> None:
        """Releases connections and memory. Nothing may be looked up after this call."""


def read_only(tensor: Tensor) -> Tensor:
    """Returns the tensor with a read-only view of its array."""
    view = tensor.data.view()
    view.flags.writeable = False
    return Tensor(tensor.name, tensor.datatype, tensor.shape, view)


class LocalCache:
    """Stores copies of outputs in at most `size` bytes, overhead included. Evicts the least recently used
    entries.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        #: The size of all entries in bytes, and the number of entries evicted so far.
        self.used = 0
        self.evictions = 0
        #: The number of lookups that found an entry, the number of those that did not, and the duration of
        #: all lookups and insertions in nanoseconds.
        self.hits = 0
        self.misses = 0
        self.lookup_ns = 0
        self.insertion_ns = 0
        self._entries: OrderedDict[bytes, tuple[int, tuple[Tensor, ...]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, key: bytes, found: Found) -> None:
        began = monotonic_ns()
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
        else:
            self.hits += 1
            self._entries.move_to_end(key)
        self.lookup_ns += monotonic_ns() - began
        found(None if entry is None else entry[1])

    def insert(self, key: bytes, outputs: Sequence[Tensor]) -> None:
        """Stores a copy, and evicts other entries if necessary. Ignores outputs larger than the whole
        cache.
        """
        began = monotonic_ns()
        entries = self._entries
        before = entries.pop(key, None)
        if before is not None:
            self.used -= before[0]
        taken = _ENTRY_BYTES + sum(map(_bytes_of, outputs))
        if taken > self.size:
            return
        while self.used + taken > self.size:
            _, (freed, _) = entries.popitem(last=False)
            self.used -= freed
            self.evictions += 1
        entries[key] = taken, tuple(map(_copy, outputs))
        self.used += taken
        self.insertion_ns += monotonic_ns() - began

    async def close(self) -> None:
        self._entries.clear()
        self.used = 0


def _bytes_of(tensor: Tensor) -> int:
    data = tensor.data
    taken = _TENSOR_BYTES + data.nbytes
    if tensor.datatype is DataType.BYTES:
        taken += sum(map(sys.getsizeof, data.reshape(-1).tolist()))
    return taken


def _copy(tensor: Tensor) -> Tensor:
    """Copies an output, because the original may keep a large batch in memory and may be changed later."""
    own = np.array(tensor.data, order="C")
    own.flags.writeable = False
    return read_only(Tensor(tensor.name, tensor.datatype, tensor.shape, own))
