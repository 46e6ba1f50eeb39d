"""A queue that serves requests in the order of their arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import QUEUED, Owner, Ticket, release_all
from backline.schedule.queues.queue import limit_wait, nobody_asks, waited_too_long

#: The deque is rebuilt once it contains more cancelled requests than this, and also more cancelled requests
#: than other requests.
FEW = 16


class PlainQueue(Owner):
    """A first-in, first-out Queue. Cancelled tickets do not count towards the size of the queue, but stay
    in the deque until they reach the front or the deque is rebuilt.
    """

    __slots__ = ("_gone", "expired", "limit", "on_displaced", "on_left", "policy", "rank", "waiting")

    def __init__(self, policy: QueuePolicy, rank: object = None) -> None:
        """Creates an empty queue. `rank` identifies the queue within a PriorityQueue."""
        self.rank = rank
        self.policy = policy
        self.limit = policy.max_size or inf
        #: The tickets in the order of their arrival, including the cancelled ones.
        self.waiting: deque[Ticket] = deque()
        #: The number of cancelled tickets in the deque.
        self._gone = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.on_displaced: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    @property
    def size(self) -> int:
        return len(self.waiting) - self._gone

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        if len(self.waiting) - self._gone >= self.limit and not anyway:
            return False
        policy = self.policy
        if ticket.request.timeout is not None or policy.timeout_us:
            limit_wait(ticket, policy)
        ticket.enqueue(self)
        self.waiting.append(ticket)
        return True

    def append(self, ticket: Ticket) -> None:
        """Adds a ticket at the end, regardless of any limits."""
        ticket.enqueue(self)
        self.waiting.append(ticket)

    def make_room(self, ticket: Ticket) -> None:
        """Displaces no request, because the requests that arrived first are kept."""

    def remove_last(self) -> Ticket | None:
        """Removes and returns the request at the end; None if the queue is empty."""
        waiting = self.waiting
        while waiting:
            ticket = waiting.pop()
            if ticket.state is QUEUED:
                ticket.owner = None
                return ticket
            self._gone -= 1
        return None

    def next(self, now: float) -> Ticket | None:
        waiting = self.waiting
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
        # This does not call `next`, because a call per request would take a tenth of the total time for
        # scheduling a request.
        waiting = self.waiting
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
        self.waiting.extendleft(reversed(tickets))

    def sweep(self, now: float) -> float:
        kept: deque[Ticket] = deque()
        nearest = inf
        for ticket in self.waiting:
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
        self.waiting, self._gone = kept, 0
        return nearest

    def clear(self) -> list[Ticket]:
        tickets = [ticket for ticket in self.waiting if ticket.state is QUEUED]
        self.waiting.clear()
        self._gone = 0
        release_all(tickets)
        return tickets

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        return waited_too_long(ticket, self.policy, now)

    def _skip(self, ticket: Ticket) -> None:
        """Handles a ticket that has been removed from the deque and is cancelled or expired."""
        if ticket.state is not QUEUED:
            self._gone -= 1
            return
        ticket.release()
        self.expired.append(ticket)

    def cancelled(self, ticket: Ticket) -> None:
        self._gone += 1
        if self._gone == len(self.waiting):
            # All tickets are cancelled. They are removed now, because an idle queue, for which `next` is not
            # called, must not keep their requests in memory.
            self.waiting.clear()
            self._gone = 0
        elif self._gone > FEW and self._gone > len(self.waiting) // 2:
            self.waiting = deque(other for other in self.waiting if other.state is QUEUED)
            self._gone = 0
        self.on_left(ticket)
