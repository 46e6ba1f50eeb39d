"""The queue of a model without priorities: first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from backline.engine.model_config import QueuePolicy
from backline.engine.ticket import QUEUED, Owner, Ticket, release_all
from backline.schedule.queues.queue import limit_wait, nobody_asks, waited_too_long

#: Cancelled requests that a line may hold before it is rebuilt without them, unless those that wait are more.
FEW = 16


class PlainQueue(Owner):
    """See Queue. A cancelled ticket no longer counts, but stays in the line as a tombstone until its turn comes."""

    __slots__ = ("_gone", "_limit", "_policy", "_waiting", "expired", "on_left")

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._limit = policy.max_size or inf
        self._waiting: deque[Ticket] = deque()
        #: How many of them are cancelled.
        self._gone = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    @property
    def size(self) -> int:
        return len(self._waiting) - self._gone

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        if len(self._waiting) - self._gone >= self._limit and not anyway:
            return False
        policy = self._policy
        if ticket.request.timeout is not None or policy.timeout_us:
            limit_wait(ticket, policy)
        ticket.enqueue(self)
        self._waiting.append(ticket)
        return True

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
        # Not by `next`: a call for every request is a tenth of all that it costs to schedule one.
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
        self._waiting, nearest = without_expired(self._waiting, now, self.expired)
        self._gone = 0
        return nearest

    def clear(self) -> list[Ticket]:
        tickets = still_there(self._waiting)
        self._waiting.clear()
        self._gone = 0
        release_all(tickets)
        return list(tickets)

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        return waited_too_long(ticket, self._policy, now)

    def _skip(self, ticket: Ticket) -> None:
        """A ticket was taken out that is not to run."""
        if ticket.state is not QUEUED:
            self._gone -= 1
            return
        ticket.release()
        self.expired.append(ticket)

    def cancelled(self, ticket: Ticket) -> None:
        self._gone += 1
        if self._gone > FEW and self._gone > len(self._waiting) // 2:
            self._waiting = still_there(self._waiting)
            self._gone = 0
        self.on_left(ticket)


def still_there(tickets: deque[Ticket]) -> deque[Ticket]:
    """The requests that have not left the queue by being cancelled."""
    return deque(ticket for ticket in tickets if ticket.state is QUEUED)


def without_expired(tickets: deque[Ticket], now: float, expired: list[Ticket]) -> tuple[deque[Ticket], float]:
    """Those of `still_there` that may go on waiting, and their nearest deadline. Moves the others to `expired`."""
    kept: deque[Ticket] = deque()
    nearest = inf
    for ticket in tickets:
        if ticket.state is not QUEUED:
            continue
        deadline = ticket.deadline
        if deadline is not None:
            if deadline <= now:
                ticket.release()
                expired.append(ticket)
                continue
            nearest = min(nearest, deadline)
        kept.append(ticket)
    return kept, nearest
