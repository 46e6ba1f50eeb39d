"""The queues of a model: PlainQueue, or PriorityQueue with levels or if late requests stay queued."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from math import inf
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import QUEUED, Owner, Ticket, release_all
from backline.schedule.queues.queue import Queue, QueueSettings, limit_wait, nobody_asks, waited_too_long

#: The queue is rebuilt once it holds more cancelled requests than this, and more than live ones.
FEW = 16


class PlainQueue(Owner):
    """A first-in, first-out Queue. Cancelled tickets do not count, but stay in the deque until their turn."""

    __slots__ = ("_gone", "_waiting", "expired", "limit", "on_left", "policy", "rank")

    def __init__(self, policy: QueuePolicy, rank: object = None) -> None:
        """`rank` identifies the queue within a PriorityQueue."""
        self.rank = rank
        self.policy = policy
        self.limit = policy.max_size or inf
        self._waiting: deque[Ticket] = deque()
        #: The number of cancelled tickets in the deque.
        self._gone = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    @property
    def size(self) -> int:
        return len(self._waiting) - self._gone

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        if len(self._waiting) - self._gone >= self.limit and not anyway:
            return False
        policy = self.policy
        if ticket.request.timeout is not None or policy.timeout_us:
            limit_wait(ticket, policy)
        ticket.enqueue(self)
        self._waiting.append(ticket)
        return True

    def append(self, ticket: Ticket) -> None:
        """Adds a ticket at the end, whatever the limits are."""
        ticket.enqueue(self)
        self._waiting.append(ticket)

    def next(self, now: float) -> Ticket | None:
        waiting = self._waiting
        while waiting:
            ticket = waiting.popleft()
            deadline = ticket.deadline
            if ticket.state is not QUEUED or (deadline is not None and deadline <= now):
                self._skip(ticket)
                continue
            ticket.owner = None
            return ticket
        return None

    def take(self, max_items: int, now: float) -> tuple[list[Ticket], int]:
        # Does not use `next`: a call per request would take a tenth of the total cost of scheduling one.
        waiting = self._waiting
        taken: list[Ticket] = []
        items = 0
        key: object = None
        while waiting:
            ticket = waiting[0]
            deadline = ticket.deadline
            if ticket.state is not QUEUED or (deadline is not None and deadline <= now):
                self._skip(waiting.popleft())
                continue
            if not taken:
                key = ticket.batch_key
            elif items + ticket.batch_size > max_items or ticket.batch_key != key:
                break
            waiting.popleft()
            ticket.owner = None
            taken.append(ticket)
            items += ticket.batch_size
            if items >= max_items:
                break
        return taken, items

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        for ticket in tickets:
            ticket.enqueue(self)
        self._waiting.extendleft(reversed(tickets))

    def sweep(self, now: float) -> float:
        kept: deque[Ticket] = deque()
        nearest = inf
        for ticket in self._waiting:
            if ticket.state is not QUEUED:
                continue
            deadline = ticket.deadline
            if deadline is not None:
                if deadline <= now:
                    ticket.release()
                    self.expired.append(ticket)
                    continue
                nearest = min(nearest, deadline)
            kept.append(ticket)
        self._waiting, self._gone = kept, 0
        return nearest

    def clear(self) -> list[Ticket]:
        tickets = [ticket for ticket in self._waiting if ticket.state is QUEUED]
        self._waiting.clear()
        self._gone = 0
        release_all(tickets)
        return tickets

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        return waited_too_long(ticket, self.policy, now)

    def _skip(self, ticket: Ticket) -> None:
        """Handles a ticket that was taken out and is cancelled or expired."""
        if ticket.state is not QUEUED:
            self._gone -= 1
            return
        ticket.release()
        self.expired.append(ticket)

    def cancelled(self, ticket: Ticket) -> None:
        self._gone += 1
        if self._gone > FEW and self._gone > len(self._waiting) // 2:
            self._waiting = deque(other for other in self._waiting if other.state is QUEUED)
            self._gone = 0
        self.on_left(ticket)


_by_rank = attrgetter("rank")


class Level(Protocol):
    """The requests of one rank. Ranks are comparable; the lowest is served first."""

    @property
    def rank(self) -> Any: ...


L = TypeVar("L", bound=Level)


class Levels(dict[Any, L], Generic[L]):
    """Levels by rank. A level is created for the first request of its rank and dropped once empty.

    There may be any number of ranks, and those without requests cost nothing.
    """

    __slots__ = ("_make", "ordered")

    def __init__(self, make: Callable[[Any], L]) -> None:
        super().__init__()
        self._make = make
        #: The levels, sorted by rank, the lowest first.
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
    """An empty queue with these settings: a PlainQueue if that is enough."""
    if settings.levels or settings.policy.delay:
        return PriorityQueue(settings)
    return PlainQueue(settings.policy)


class PriorityQueue:
    """A Queue with one PlainQueue per level, each followed by one for the level's late requests if those
    stay queued.
    """

    __slots__ = ("_lines", "_settings", "_size", "expired", "on_left")

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        #: The PlainQueues by rank: the priority level, and whether the requests are late.
        self._lines = Levels(self._make_line)
        self._size = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    def _make_line(self, rank: tuple[int, bool]) -> PlainQueue:
        line = PlainQueue(self._settings.policy_of(rank[0]), rank)
        line.on_left = self._left
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

    def _collect(self, line: PlainQueue) -> None:
        """Moves the expired requests of one line to `expired`."""
        self._size -= len(line.expired)
        self.expired += line.expired
        line.expired = []

    def _left(self, ticket: Ticket) -> None:
        """Called when a ticket in one of the lines is cancelled."""
        self._size -= 1
        self.on_left(ticket)
