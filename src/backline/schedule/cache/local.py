"""The response cache in the server's own memory: a bounded number of bytes, the least recently used goes first."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from backline.engine.datatypes import DataType
from backline.engine.tensor import Tensor
from backline.schedule.cache.cache import Found, read_only

#: Bytes of an entry beside its tensors: its place in the dictionary, its key, its tuple and the numbers in it.
_ENTRY_BYTES = 320
#: Bytes of a tensor beside its data: two array objects, the Tensor, its shape.
_TENSOR_BYTES = 400


class LocalCache:
    """Keeps copies of outputs, at most `size` bytes of them with all that belongs to them."""

    def __init__(self, size: int) -> None:
        self.size = size
        #: Bytes of all entries, and how many have had to go for others.
        self.used = 0
        self.evictions = 0
        self._entries: OrderedDict[bytes, tuple[int, tuple[Tensor, ...]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, key: bytes, found: Found) -> None:
        entry = self._entries.get(key)
        if entry is None:
            found(None)
            return
        self._entries.move_to_end(key)
        found(entry[1])

    def insert(self, key: bytes, outputs: Sequence[Tensor]) -> None:
        """Keeps a copy, for which others go; what is larger than the whole cache is not kept."""
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
    """A copy: outputs are often rows of a whole batch, which would be kept alive, and whoever got them may write to them."""
    own = np.array(tensor.data, order="C")
    own.flags.writeable = False
    return read_only(Tensor(tensor.name, tensor.datatype, tensor.shape, own))
