"""The levels of a queue that requests wait in."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

_by_number = attrgetter("number")


class Level(Protocol):
    """Requests of one level; 1 is the highest."""

    @property
    def number(self) -> int: ...


L = TypeVar("L", bound=Level)


class Levels(dict[int, L], Generic[L]):
    """Those of which requests wait, by number. There may be any number of others, which cost nothing: a level is made for the first request
    of it, and dropped behind the last one.
    """

    __slots__ = ("_make", "ordered")

    def __init__(self, make: Callable[[int], L]) -> None:
        super().__init__()
        self._make = make
        #: The highest first.
        self.ordered: list[L] = []

    def __missing__(self, number: int) -> L:
        level = self[number] = self._make(number)
        insort(self.ordered, level, key=_by_number)
        return level

    def drop(self, level: L) -> None:
        """No request of it waits any more."""
        del self[level.number]
        self.ordered.remove(level)

    def clear(self) -> None:
        super().clear()
        self.ordered.clear()
