"""A queue in which callers take turns, so that no caller can make others wait longer by sending more
requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from math import inf

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Ticket
from backline.schedule.queues.plain import PlainQueue
from backline.schedule.queues.queue import limit_wait, nobody_asks, waited_too_long

#: The maximum number of callers that are considered when a batch is filled up with requests of callers whose
#: turn has not come.
_REACH = 64
#: The maximum number of flows that are kept when they have no requests.
_KEPT = 16


class _Flow(PlainQueue):
    """The queued requests of a caller, and the caller's debt, which is the number of turns that the caller
    must skip.

    A request costs as many turns as it has items. One of them is the turn in which the request is taken; the
    other turns are added to the debt. If a request joined a batch before the caller's turn, all its turns are
    added to the debt.
    """

    __slots__ = ("debt", "name")

    def __init__(self, name: str, policy: QueuePolicy) -> None:
        super().__init__(policy)
        self.name = name
        self.debt = 0


class FairQueue:
    """A Queue that serves its callers in turn, one item each: deficit round robin with a quantum of one item
    (Shreedhar and Varghese, 1995), except that the cost of a large request is charged after the request is
    taken, not before. A caller that joins the ring is served before the callers that had a turn while it was
    absent, like new flows in FQ-CoDel (RFC 8290). So a caller with few requests need not wait for a caller
    with thousands of requests.

    Invariant: between two turns of a waiting caller, each other caller has at most one turn. A caller that is
    served goes to the end of the ring, and can join again only after a full round of the ring.

    `Ticket.identity` identifies the caller. Requests of the same caller are served in the order of their
    arrival. If the queue is full and a caller has at least two queued requests fewer than another, its
    request is admitted, and displaces the last request of the caller that has the most. Debts are cancelled
    once no request is queued.
    """

    __slots__ = (
        "_flows",
        "_joined",
        "_ring",
        "expired",
        "limit",
        "on_displaced",
        "on_left",
        "policy",
        "rank",
        "size",
    )

    def __init__(self, policy: QueuePolicy, rank: object = None) -> None:
        """Creates an empty queue. `rank` identifies the queue within a PriorityQueue."""
        self.rank = rank
        self.policy = policy
        self.limit = policy.max_size or inf
        #: The number of queued requests.
        self.size = 0
        self._flows: dict[str, _Flow] = {}
        #: The flows in the order of their turns. Flows without requests remain in the ring while they have
        #: debts.
        self._ring: deque[_Flow] = deque()
        #: The number of flows at the start of the ring that have not had a turn since they joined.
        self._joined = 0
        self.on_left: Callable[[Ticket], None] = nobody_asks
        self.on_displaced: Callable[[Ticket], None] = nobody_asks
        self.expired: list[Ticket] = []

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        if self.size >= self.limit and not anyway:
            self.make_room(ticket)
            if self.size >= self.limit:  # completing the displaced request may have added another
                return False
        policy = self.policy
        if ticket.request.timeout is not None or policy.timeout_us:
            limit_wait(ticket, policy)
        flow = self._flows.get(ticket.identity)
        if flow is None:
            self.append(ticket)
        else:
            ticket.enqueue(flow)
            flow.waiting.append(ticket)  # this is `flow.append`, inlined for speed
            self.size += 1
        return True

    def append(self, ticket: Ticket) -> None:
        """Adds a ticket after the other requests of its caller, regardless of any limits."""
        flow = self._flows.get(ticket.identity)
        if flow is None:
            flow = self._join(ticket.identity)
            self._ring.insert(self._joined, flow)
            self._joined += 1
        flow.append(ticket)
        self.size += 1

    def make_room(self, ticket: Ticket) -> None:
        """Displaces the last request of the caller with the most queued requests, unless the caller of
        `ticket`, together with this request, has at least as many.
        """
        own = self._flows.get(ticket.identity)
        longest = max(self._ring, key=lambda flow: flow.size, default=None)
        if longest is None or longest.size <= (0 if own is None else own.size) + 1:
            return
        displaced = longest.remove_last()
        if displaced is not None:
            self.size -= 1
            self.on_displaced(displaced)

    def next(self, now: float) -> Ticket | None:
        while (flow := self._whose_turn()) is not None:
            ticket = self._from(flow, now)
            if ticket is not None:
                self._end_turn(flow, ticket)
                return ticket
        return None

    def take(self, max_items: int, now: float) -> tuple[list[Ticket], int]:
        ring = self._ring
        if self.size and (len(ring) == 1 or ring[0].size == self.size):
            # In the most common case, no other caller waits. The code for this case calls few functions, to
            # be fast.
            only = ring[0]
            only.debt = 0
            taken, items = only.take(max_items, now)
            self.size -= len(taken)
            if only.expired:
                self._collect(only)
            if self._joined or len(ring) > 1:
                self._turn()
            return taken, items
        taken, items = [], 0
        while items < max_items and (flow := self._whose_turn()) is not None:
            ticket = self._from(flow, now)
            if ticket is None:
                continue
            if taken and (items + ticket.batch_size > max_items or ticket.batch_key != taken[0].batch_key):
                self._return(flow, ticket, now)
                return self._fill(taken, items, max_items, now)
            self._end_turn(flow, ticket)
            taken.append(ticket)
            items += ticket.batch_size
        return taken, items

    def _fill(self, taken: list[Ticket], items: int, max_items: int, now: float) -> tuple[list[Ticket], int]:
        """Fills a batch with requests of other callers. Called if the requests of the caller whose turn it is
        cannot join the batch.

        That caller comes first in the next batch, and requests that join this batch are charged to later
        turns of their callers. If batches were not filled in this way, callers with different batch keys
        would prevent each other's requests from running in batches.
        """
        waiting = list(islice(self._ring, 1, 1 + _REACH))
        while waiting and items < max_items:
            fitting = []
            for flow in waiting:
                ticket = self._from(flow, now) if flow.size else None
                if ticket is None:
                    continue
                if items + ticket.batch_size > max_items or ticket.batch_key != taken[0].batch_key:
                    self._return(flow, ticket, now)
                    continue
                flow.debt += ticket.batch_size
                taken.append(ticket)
                items += ticket.batch_size
                fitting.append(flow)
            waiting = fitting
        return taken, items

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        for ticket in reversed(tickets):
            flow = self._flows.get(ticket.identity)
            if flow is None:
                flow = self._join(ticket.identity)
                self._joined += 1
            else:
                self._joined += self._ring.index(flow) >= self._joined
                self._ring.remove(flow)
            flow.debt = max(0, flow.debt - ticket.batch_size)
            self._ring.appendleft(flow)
            self._return(flow, ticket, now)

    def sweep(self, now: float) -> float:
        nearest = inf
        for flow in self._ring:
            nearest = min(nearest, flow.sweep(now))
            self._collect(flow)
        return nearest

    def clear(self) -> list[Ticket]:
        tickets = [ticket for flow in self._ring for ticket in flow.clear()]
        self._flows.clear()
        self._ring.clear()
        self._joined = self.size = 0
        return tickets

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        return waited_too_long(ticket, self.policy, now)

    def _join(self, name: str) -> _Flow:
        """Creates a flow for a caller that has none. The calling method must add the flow to the ring."""
        flow = self._flows[name] = _Flow(name, self.policy)
        flow.on_left = self._left
        return flow

    def _whose_turn(self) -> _Flow | None:
        """Returns the flow whose turn it is; None if all flows are empty. Skips flows that are in debt, and
        removes other flows that are empty.
        """
        ring = self._ring
        if not self.size:
            self._forget()
            return None
        passed = 0
        while True:
            flow = ring[0]
            if not flow.debt:
                if flow.size:
                    return flow
                self._turn()
                ring.pop()
                del self._flows[flow.name]
            elif passed < len(ring):
                flow.debt -= 1
                self._turn()
                passed += 1
            else:  # all flows are in debt: skip rounds until a flow is not
                rounds = min(other.debt for other in ring)
                for other in ring:
                    other.debt -= rounds
                passed = 0

    def _turn(self) -> None:
        """Moves the first flow to the end of the ring."""
        self._ring.rotate(-1)
        if self._joined:
            self._joined -= 1

    def _forget(self) -> None:
        """Cancels all debts. Keeps the flows unless there are more than _KEPT, because creating a flow takes
        time.
        """
        if len(self._ring) > _KEPT:
            self._flows.clear()
            self._ring.clear()
        self._joined = 0
        for flow in self._ring:
            flow.debt = 0

    def _end_turn(self, flow: _Flow, ticket: Ticket) -> None:
        """Ends the turn of the first flow, in which `ticket` was taken."""
        flow.debt = max(0, ticket.batch_size - 1)
        self._turn()

    def _from(self, flow: _Flow, now: float) -> Ticket | None:
        """Removes and returns the next request of a flow that may run at `now`; None if there is none."""
        ticket = flow.next(now)
        self._collect(flow)
        if ticket is not None:
            self.size -= 1
        return ticket

    def _return(self, flow: _Flow, ticket: Ticket, now: float) -> None:
        """Puts a request back at the front of its flow."""
        flow.put_back([ticket], now)
        self.size += 1

    def _collect(self, flow: _Flow) -> None:
        """Moves the expired requests of a flow to `expired`."""
        if flow.expired:
            self.size -= len(flow.expired)
            self.expired += flow.expired
            flow.expired = []

    def _left(self, ticket: Ticket) -> None:
        """Called when a queued request has been cancelled."""
        self.size -= 1
        self.on_left(ticket)
