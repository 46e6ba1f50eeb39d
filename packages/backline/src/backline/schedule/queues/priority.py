"""Creates the queue of a model: a PlainQueue or FairQueue if a single line is enough, otherwise a
PriorityQueue.

A PriorityQueue has a line for each priority level. If the configuration says so, it also keeps requests that
have waited longer than the queue's timeout, and serves them later.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from math import inf
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from backline.engine.ticket import Ticket
from backline.schedule.queues.fair import FairQueue
from backline.schedule.queues.plain import PlainQueue
from backline.schedule.queues.queue import Queue, QueueSettings, limit_wait, nobody_asks, waited_too_long

_by_rank = attrgetter("rank")


class Level(Protocol):
    """The requests of one rank. Ranks are comparable; the lowest rank is served first."""

    @property
    def rank(self) -> Any: ...


L = TypeVar("L", bound=Level)


class Levels(dict[Any, L], Generic[L]):
    """Levels by rank. A level is created for the first request with its rank, and removed once it is empty.

    Ranks without requests take neither memory nor time, so there may be any number of ranks.
    """

    __slots__ = ("_make", "ordered")

    def __init__(self, make: Callable[[Any], L]) -> None:
        super().__init__()
        self._make = make
        #: The levels in ascending order of their ranks.
        self.ordered: list[L] = []

    def __missing__(self, rank: Any) -> L:
        level = self[rank] = self._make(rank)
        insort(self.ordered, level, key=_by_rank)
        return level

    def drop(self, level: L) -> None:
        """Removes an empty level."""
        del self[level.rank]
        self.ordered.remove(level)

    def clear(self) -> None:
        super().clear()
        self.ordered.clear()


def make_queue(settings: QueueSettings) -> Queue:
    """Returns an empty queue with these settings. The queue has no levels if none are needed."""
    if settings.levels or settings.policy.delay:
        return PriorityQueue(settings)
    return FairQueue(settings.policy) if settings.fair else PlainQueue(settings.policy)


Line: TypeAlias = PlainQueue | FairQueue


class PriorityQueue:
    """A Queue with a line for each level. If requests remain queued after the queue's timeout, each level
    has another line for these late requests. This line is served after the first one. A line is a PlainQueue,
    or a FairQueue if callers take turns.
    """

    __slots__ = ("_lines", "_settings", "_size", "expired", "on_displaced", "on_left")

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        #: The lines by rank. A rank consists of the priority level, and whether the requests are late.
        self._lines = Levels(self._make_line)
        self._size = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.on_displaced: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    def _make_line(self, rank: tuple[int, bool]) -> Line:
        kind = FairQueue if self._settings.fair else PlainQueue
        line = kind(self._settings.policy_of(rank[0]), rank)
        line.on_left = self._left
        line.on_displaced = self._displaced
        return line

    @property
    def size(self) -> int:
        return self._size

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        number = ticket.level = self._settings.level_of(ticket)
        line = self._lines[number, False]
        delay = line.policy.delay
        late = self._lines.get((number, True)) if delay else None
        if line.size + (0 if late is None else late.size) >= line.limit and not anyway:
            line.make_room(ticket)
            if line.size + (0 if late is None else late.size) >= line.limit:
                return False
        if not delay:
            limit_wait(ticket, line.policy)
        line.append(ticket)
        self._size += 1
        return True

    def next(self, now: float) -> Ticket | None:
        lines = self._lines
        while lines.ordered:
            line = lines.ordered[0]
            ticket = line.next(now)
            if line.expired:
                self._collect(line)
            if ticket is None:
                lines.drop(line)
            elif line.policy.delay and line.rank == (ticket.level, False) and self._is_late(ticket, now):
                lines[ticket.level, True].append(ticket)
            else:
                self._size -= 1
                return ticket
        return None

    def take(self, max_items: int, now: float) -> tuple[list[Ticket], int]:
        taken: list[Ticket] = []
        items = 0
        while (ticket := self.next(now)) is not None:
            if taken and (items + ticket.batch_size > max_items or ticket.batch_key != taken[0].batch_key):
                self.put_back([ticket], now)
                break
            taken.append(ticket)
            items += ticket.batch_size
            if items >= max_items:
                break
        return taken, items

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        for ticket in reversed(tickets):
            self._lines[ticket.level, self._is_late(ticket, now)].put_back([ticket], now)
        self._size += len(tickets)

    def sweep(self, now: float) -> float:
        nearest = inf
        for line in self._lines.ordered:
            nearest = min(nearest, line.sweep(now))
            self._collect(line)
        return nearest

    def clear(self) -> list[Ticket]:
        tickets = [ticket for line in self._lines.ordered for ticket in line.clear()]
        self._lines.clear()
        self._size = 0
        return tickets

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        policy = self._settings.policy_of(ticket.level)
        return not policy.delay and waited_too_long(ticket, policy, now)

    def _is_late(self, ticket: Ticket, now: float) -> bool:
        policy = self._settings.policy_of(ticket.level)
        return policy.delay and waited_too_long(ticket, policy, now)

    def _collect(self, line: Line) -> None:
        """Moves the expired requests of a line to `expired`."""
        self._size -= len(line.expired)
        self.expired += line.expired
        line.expired = []

    def _left(self, ticket: Ticket) -> None:
        """Called when a ticket in one of the lines has been cancelled."""
        self._size -= 1
        self.on_left(ticket)

    def _displaced(self, ticket: Ticket) -> None:
        """Called when a ticket in one of the lines has been displaced to make room for another ticket."""
        self._size -= 1
        self.on_displaced(ticket)
