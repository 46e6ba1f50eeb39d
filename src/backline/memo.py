"""A bounded store of earlier results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """Remembers results under keys that clients choose. A full memo forgets everything.

    Forgetting everything keeps lookups free of bookkeeping: `get` is the plain `dict.get`. A client that
    keeps sending new keys slows other clients down, but cannot use more memory than `limit` entries take.
    """

    __slots__ = ("_known", "_limit", "get")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[Key, Value] = {}
        #: The value of a key, None if it is not known.
        self.get: Callable[[Key], Value | None] = self._known.get

    def keep(self, key: Key, value: Value) -> Value:
        """Remembers and returns `value`."""
        if len(self._known) >= self._limit:
            self._known.clear()
        self._known[key] = value
        return value

    def clear(self) -> None:
        """Forgets everything."""
        self._known.clear()
