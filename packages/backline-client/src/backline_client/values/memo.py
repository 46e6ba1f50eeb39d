"""Keeps earlier results in a bounded store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """Stores results under keys that clients choose. When the store is full, it is emptied completely.

    Single entries are never removed, so lookups need no bookkeeping: `get` is just `dict.get`. A client that
    keeps sending new keys slows other clients down, but cannot make the store exceed `limit` entries.
    """

    __slots__ = ("_known", "_limit", "get")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[Key, Value] = {}
        #: Returns the value of a key; None if there is no entry for the key.
        self.get: Callable[[Key], Value | None] = self._known.get

    def keep(self, key: Key, value: Value) -> Value:
        """Stores `value` under `key`, and returns `value`."""
        if len(self._known) >= self._limit:
            self._known.clear()
        self._known[key] = value
        return value

    def clear(self) -> None:
        """Removes all entries."""
        self._known.clear()
