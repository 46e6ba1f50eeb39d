"""The seam to a response cache: outputs of earlier requests, by key, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from backline.engine.tensor import Tensor

#: Called on the event loop with the outputs that were found, or None. Their data is read-only.
Found: TypeAlias = Callable[[Sequence[Tensor] | None], None]


class ResponseCache(Protocol):
    """One for all models of a server; every method is called on the event loop, and none of them waits.

    A cache that fails is a cache that finds nothing: it tells the log, never those who ask.
    """

    def look_up(self, key: bytes, found: Found) -> None:
        """Calls `found` once: before this returns, or later."""

    def insert(self, key: bytes, outputs: Sequence[Tensor]) -> None:
        """Keeps a copy of the outputs, unless it cannot."""

    async def close(self) -> None:
        """Gives back what it holds. Nothing is looked up any more."""


def read_only(tensor: Tensor) -> Tensor:
    """The same tensor, through an array that cannot be written to."""
    view = tensor.data.view()
    view.flags.writeable = False
    return Tensor(tensor.name, tensor.datatype, tensor.shape, view)
