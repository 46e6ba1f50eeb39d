"""The queue of a model with a latency objective. Within each priority level, the request that is due first
is served first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from backline.engine.ticket import Owner, Ticket, release_all
from backline.schedule.objective.policy import BatchSizing, Outlook, finish, item_size
from backline.schedule.queues.priority import Levels
from backline.schedule.queues.queue import QueueSettings, limit_wait, nobody_asks, waited_too_long


@dataclass(slots=True, eq=False)
class DueList:
    """The requests of the priority level `rank`, sorted by the times when they are due (`dues`, in seconds of
    time.monotonic()), and their total number of `items`. At most `limit` requests are queued.
    """

    rank: int
    limit: float
    waiting: list[Ticket] = field(default_factory=list)
    dues: list[float] = field(default_factory=list)
    items: int = 0

    def add(self, ticket: Ticket, due: float) -> None:
        if not self.dues or due >= self.dues[-1]:
            self.waiting.append(ticket)
            self.dues.append(due)
        else:
            index = bisect_right(self.dues, due)
            self.waiting.insert(index, ticket)
            self.dues.insert(index, due)
        self.items += ticket.batch_size

    def take(self, begin: int, end: int) -> list[Ticket]:
        taken = self.waiting[begin:end]
        del self.waiting[begin:end], self.dues[begin:end]
        self.items -= sum([ticket.batch_size for ticket in taken])
        return taken

    def remove(self, ticket: Ticket, due: float) -> None:
        index = bisect_left(self.dues, due)
        while index < len(self.dues) and self.dues[index] == due:
            if self.waiting[index] is ticket:
                break
            index += 1
        else:
            index = self.waiting.index(ticket)  # the ticket's deadline changed while it was queued
        self.take(index, index + 1)


class ObjectiveQueue(Owner):
    """A Queue in which a request is due `objective` seconds after its arrival, or at its deadline if that is
    earlier.

    Higher levels come first, as in every queue; within a level, requests are served in the order in which
    they are due. A batch is as large as possible without making its first request late. When a batch is
    formed, requests that cannot complete in time are refused, provided that other requests can complete in
    time. If no request can, no request is refused on the basis of an estimate, because the estimate may be
    wrong, and only a run can correct it.
    """

    def __init__(self, settings: QueueSettings, objective: float, outlook: Outlook) -> None:
        self._settings = settings
        self._objective = objective
        self._outlook = outlook
        self._sizing = BatchSizing(objective, outlook)
        self._levels = Levels(lambda number: DueList(number, settings.policy_of(number).max_size or inf))
        self._size = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.on_displaced: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    @property
    def size(self) -> int:
        return self._size

    def due(self, ticket: Ticket) -> float:
        """Returns the time when a request is due, in seconds of time.monotonic()."""
        due = ticket.request.arrived_ns / 1e9 + self._objective
        deadline = ticket.deadline
        return due if deadline is None or deadline > due else deadline

    def lateness(self, ticket: Ticket, free: Sequence[float], max_items: int) -> float:
        """Returns the number of seconds by which a request would be late if it were added now; 0 or negative
        if it would be in time. For `free`, see `finish`.
        """
        number = self._settings.level_of(ticket)
        self._limit_wait(ticket, number)
        due = self.due(ticket)
        ahead = 0
        earliest = due
        own = None
        for level in self._levels.ordered:
            if level.rank >= number:
                if level.rank > number:
                    break
                own = level
            ahead += level.items
            earliest = min(earliest, level.dues[0])
        line = self._outlook.latency.line(item_size(ticket))
        sizing = self._sizing
        if line is not sizing.planned:
            sizing.plan(line, max_items)
        first = sizing.largest(line, earliest - free[0])
        after = 0
        if own is not None and due < own.dues[-1]:
            after = own.items * (len(own.dues) - bisect_right(own.dues, due)) // len(own.dues)
        size = ticket.batch_size
        late = finish(line, free, ahead - after, size, usual=sizing.usual, first=first) + sizing.margin - due
        # The new request must not delay requests that are due after it so much that they would be late.
        if after and own is not None and late <= 0:
            last = finish(line, free, ahead, size, usual=sizing.usual, first=first)
            late = last + sizing.margin - own.dues[-1]
        if late > 0:
            sizing.refused = True
        return late

    def _limit_wait(self, ticket: Ticket, number: int) -> None:
        policy = self._settings.policy_of(number)
        if ticket.request.timeout is not None or policy.timeout_us:
            limit_wait(ticket, policy)

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        number = ticket.level = self._settings.level_of(ticket)
        level = self._levels[number]
        if len(level.waiting) >= level.limit and not anyway:
            return False
        self._limit_wait(ticket, number)
        ticket.enqueue(self)
        level.add(ticket, self.due(ticket))
        self._size += 1
        return True

    def take(self, max_items: int, now: float) -> tuple[list[Ticket], int]:
        self._refuse_late(now)
        taken: list[Ticket] = []
        items = limit = 0
        key: object = None
        for level in tuple(self._levels.ordered):
            if not limit:
                limit = self._limit(level, now, max_items)
                key = level.waiting[0].batch_key
            count = 0
            for ticket in level.waiting:
                if ticket.batch_key != key or (items and items + ticket.batch_size > limit):
                    self._sizing.complete(items if ticket.batch_key != key else max_items)
                    break
                items += ticket.batch_size
                count += 1
            complete = count < len(level.waiting)
            taken += level.take(0, count)
            self._drop_empty(level)
            if complete:
                break
        release_all(taken)
        self._size -= len(taken)
        if taken:
            self._sizing.formed(items)
        return taken, items

    def _limit(self, level: DueList, now: float, max_items: int) -> int:
        """Returns the maximum number of items in the next batch. May expire the first requests of the level,
        if a batch that is small enough for them would make later requests late.
        """
        line = self._outlook.latency.line(item_size(level.waiting[0]))
        dues = level.dues
        sizing = self._sizing
        sizing.plan(line, max_items)
        wanted = min(sizing.usual, level.items)
        left = dues[0] - now
        limit = line.largest(left, max_items)
        if limit < wanted and limit < len(dues):
            # Only a smaller batch would be in time for its first request. It is formed only if a second batch
            # can then be in time for the other requests.
            if limit and dues[limit] >= now + line.seconds(limit) + line.seconds(
                min(wanted, level.items - limit)
            ):
                return limit
            count = bisect_left(dues, now + line.seconds(wanted))
            if count < len(dues):
                self._expire(level, count)
                left = dues[0] - now
                limit = line.largest(left, max_items)
        return sizing.within(line, left, min(wanted, limit))

    def next(self, now: float) -> Ticket | None:
        taken, _ = self.take(1, now)
        return taken[0] if taken else None

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        for ticket in tickets:
            ticket.enqueue(self)
            self._levels[ticket.level].add(ticket, self.due(ticket))
        self._size += len(tickets)

    def sweep(self, now: float) -> float:
        self._refuse_overdue(now)
        return min((level.dues[0] for level in self._levels.ordered), default=inf)

    def clear(self) -> list[Ticket]:
        tickets = [ticket for level in self._levels.ordered for ticket in level.waiting]
        release_all(tickets)
        self._levels.clear()
        self._size = 0
        return tickets

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        return waited_too_long(ticket, self._settings.policy_of(ticket.level), now)

    def _refuse_overdue(self, now: float) -> None:
        """Removes requests that were due at `now` or earlier."""
        for level in tuple(self._levels.ordered):
            over = bisect_right(level.dues, now)
            if over:
                self._expire(level, over)
                self._drop_empty(level)

    def _refuse_late(self, now: float) -> None:
        """Removes overdue requests. If any other request can still be in time, also removes the requests that
        will be late.
        """
        self._refuse_overdue(now)
        late: list[tuple[DueList, int]] = []
        others = False
        for level in self._levels.ordered:
            first = level.waiting[0]
            count = bisect_left(
                level.dues, now + self._outlook.latency.line(item_size(first)).seconds(first.batch_size)
            )
            others = others or count < len(level.dues)
            if count:
                late.append((level, count))
        if others:
            for level, count in late:
                self._expire(level, count)
                self._drop_empty(level)

    def _expire(self, level: DueList, count: int) -> None:
        """Expires the first `count` requests of a level, except those whose deadline was postponed while they
        were queued.
        """
        dues = level.dues[:count]
        for ticket, due in zip(level.take(0, count), dues, strict=True):
            later = self.due(ticket)
            if later > due:
                level.add(ticket, later)
                continue
            ticket.release()
            self._size -= 1
            self.expired.append(ticket)

    def _drop_empty(self, level: DueList) -> None:
        if not level.waiting:
            self._levels.drop(level)

    def cancelled(self, ticket: Ticket) -> None:
        level = self._levels[ticket.level]
        level.remove(ticket, self.due(ticket))
        self._size -= 1
        self._drop_empty(level)
        self.on_left(ticket)
