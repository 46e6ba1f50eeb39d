"""The queue of a model with priorities, or whose policy lets late requests wait on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from backline.engine.model_config import QueuePolicy
from backline.engine.ticket import QUEUED, Owner, Ticket, release_all
from backline.schedule.queues.levels import Levels
from backline.schedule.queues.plain import FEW, PlainQueue, still_there, without_expired
from backline.schedule.queues.queue import Queue, QueueSettings, limit_wait, nobody_asks, waited_too_long


def make_queue(settings: QueueSettings) -> Queue:
    """An empty queue with these settings: the plain one where that is enough."""
    if settings.levels or settings.policy.delay:
        return PriorityQueue(settings)
    return PlainQueue(settings.policy)


class _Level:
    """The requests of one level: those in time, and those whose timeout is over and that wait for a moment without others."""

    __slots__ = ("gone", "late", "limit", "number", "policy", "waiting")

    def __init__(self, number: int, policy: QueuePolicy) -> None:
        self.number = number
        self.policy = policy
        self.limit = policy.max_size or inf
        self.waiting: deque[Ticket] = deque()
        self.late: deque[Ticket] = deque()
        #: How many of both are cancelled.
        self.gone = 0

    @property
    def size(self) -> int:
        return len(self.waiting) + len(self.late) - self.gone

    def is_late(self, ticket: Ticket, now: float) -> bool:
        return self.policy.delay and waited_too_long(ticket, self.policy, now)

    def drop_cancelled(self) -> None:
        self.waiting, self.late, self.gone = still_there(self.waiting), still_there(self.late), 0


class PriorityQueue(Owner):
    """See Queue. Levels, the lowest number first; within a level first come, first served, and what is late behind what is not."""

    __slots__ = ("_levels", "_settings", "_size", "expired", "on_left")

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._levels = Levels(lambda number: _Level(number, settings.policy_of(number)))
        self._size = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    @property
    def size(self) -> int:
        return self._size

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        number = ticket.level = self._settings.level_of(ticket)
        level = self._levels[number]
        if level.size >= level.limit and not anyway:
            return False
        if not level.policy.delay:
            limit_wait(ticket, level.policy)
        ticket.enqueue(self)
        level.waiting.append(ticket)
        self._size += 1
        return True

    def next(self, now: float) -> Ticket | None:
        while self._levels.ordered:
            level = self._levels.ordered[0]
            ticket = self._next_of(level, now)
            if ticket is not None:
                self._size -= 1
                return ticket
            self._levels.drop(level)
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

    def _next_of(self, level: _Level, now: float) -> Ticket | None:
        delay = level.policy.delay
        for tickets in (level.waiting, level.late):
            while tickets:
                ticket = tickets.popleft()
                deadline = ticket.deadline
                if ticket.state is not QUEUED or (deadline is not None and deadline <= now):
                    self._skip(level, ticket)
                elif delay and tickets is level.waiting and level.is_late(ticket, now):
                    level.late.append(ticket)
                else:
                    ticket.owner = None
                    return ticket
        return None

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        for ticket in reversed(tickets):
            ticket.enqueue(self)
            level = self._levels[ticket.level]
            (level.late if level.is_late(ticket, now) else level.waiting).appendleft(ticket)
        self._size += len(tickets)

    def sweep(self, now: float) -> float:
        nearest = inf
        before = len(self.expired)
        for level in self._levels.ordered:
            level.waiting, of_waiting = without_expired(level.waiting, now, self.expired)
            level.late, of_late = without_expired(level.late, now, self.expired)
            level.gone = 0
            nearest = min(nearest, of_waiting, of_late)
        self._size -= len(self.expired) - before
        return nearest

    def clear(self) -> list[Ticket]:
        tickets = [
            ticket
            for level in self._levels.ordered
            for line in (level.waiting, level.late)
            for ticket in still_there(line)
        ]
        release_all(tickets)
        self._levels.clear()
        self._size = 0
        return tickets

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        policy = self._settings.policy_of(ticket.level)
        return not policy.delay and waited_too_long(ticket, policy, now)

    def _skip(self, level: _Level, ticket: Ticket) -> None:
        """A ticket was taken out that is not to run."""
        if ticket.state is not QUEUED:
            level.gone -= 1
            return
        ticket.release()
        self._size -= 1
        self.expired.append(ticket)

    def cancelled(self, ticket: Ticket) -> None:
        self._size -= 1
        level = self._levels[ticket.level]
        level.gone += 1
        if level.gone > FEW and level.gone > level.size:
            level.drop_cancelled()
        self.on_left(ticket)
