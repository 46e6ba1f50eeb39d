"""The interface of response caches, which store outputs by the key of the request, and the cache in the
server's memory.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Protocol, TypeAlias

import numpy as np

from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor

#: The approximate size, in bytes, of an entry without its tensors: the slot in the dictionary, the key, the
#: tuple and the numbers.
_ENTRY_BYTES = 320
#: The approximate size, in bytes, of a tensor without its data: two array objects, the Tensor, and its shape.
_TENSOR_BYTES = 400
#: A callback that is called on the event loop with the outputs that were found, or with None. The data of the
#: outputs are read-only.
Found: TypeAlias = Callable[[Sequence[Tensor] | None], None]


class ResponseCache(Protocol):
    """A response cache, shared by all models of a server.

    All methods are called on the event loop, and none of them blocks.

    If a cache fails, it logs the failure and behaves like an empty cache, so that requests are run.
    """

    def look_up(self, key: bytes, found: Found) -> None:
        """Looks up a key, and calls `found` once with the result, either before this method returns or
        later.
        """

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
    """A cache that stores copies of outputs in at most `size` bytes, overhead included, and evicts the least
    recently used entries.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        #: The total size of all entries in bytes.
        self.used = 0
        #: The number of entries evicted so far.
        self.evictions = 0
        #: The number of lookups that found an entry.
        self.hits = 0
        #: The number of lookups that found no entry.
        self.misses = 0
        #: The total duration of all lookups in nanoseconds.
        self.lookup_ns = 0
        #: The total duration of all insertions in nanoseconds.
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
        """Stores a copy of the outputs, and evicts other entries if necessary. Stores nothing if the outputs
        are larger than the whole cache.
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
