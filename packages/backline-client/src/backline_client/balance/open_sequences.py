"""Remembers a value for each open sequence, in a bounded store that callers share."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class OpenSequences(Generic[Value]):
    """A store of one value for each sequence, for at most `most` sequences. Any hashable object can be a key.

    Security: when the store is full, the caller with the most sequences loses the one that it stored least
    recently. So a caller that opens many sequences loses its own, and not those of callers that have few.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: The caller and the value of each sequence.
        self._entries: dict[Hashable, tuple[str, Value]] = {}
        #: The sequences of each caller. The least recently stored one is first.
        self._of_caller: dict[str, dict[Hashable, None]] = {}
        #: The callers by the number of their sequences, and the largest number. With these, the caller with
        #: the most sequences is found without a search, however many callers there are.
        self._by_count: dict[int, dict[str, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> tuple[str, Value] | None:
        """Returns the caller and the value of a sequence; None if the sequence is not in the store."""
        return self._entries.get(key)

    def keep(self, key: Hashable, caller: str, value: Value) -> None:
        """Stores a value, in place of any earlier value for the same key. Of its caller's sequences, this one
        is now the last to be lost.
        """
        self.drop(key)
        self._entries[key] = caller, value
        sequences = self._of_caller.setdefault(caller, {})
        sequences[key] = None
        self._count(caller, len(sequences) - 1, len(sequences))
        if len(self._entries) > self._most:
            largest = next(iter(self._by_count[self._largest]))
            self.drop(next(iter(self._of_caller[largest])))

    def drop(self, key: Hashable) -> None:
        """Removes a sequence. Has no effect if it is not in the store."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        caller = entry[0]
        sequences = self._of_caller[caller]
        del sequences[key]
        self._count(caller, len(sequences) + 1, len(sequences))
        if not sequences:
            del self._of_caller[caller]

    def _count(self, caller: str, before: int, now: int) -> None:
        """Records that the number of a caller's sequences has changed by one, from `before` to `now`."""
        if before:
            callers = self._by_count[before]
            del callers[caller]
            if not callers:
                del self._by_count[before]
        if now:
            self._by_count.setdefault(now, {})[caller] = None
        if now > self._largest or (before == self._largest and before not in self._by_count):
            self._largest = now
