"""The batching policy: decides which queued requests form the next batch. It performs no I/O and reads no
clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from backline.engine.ticket import Ticket
from backline.schedule.queues.queue import Queue


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed. A batch has at most `max_items` items, and a request waits up to `delay_ns` for
    others to join it, even if an instance is free.

    Without `preferred` sizes and a delay, the policy is work-conserving: a free instance takes whatever is
    queued. With them it works like Triton's dynamic batcher: if the first requests add up to preferred sizes,
    the largest of these runs at once; otherwise the requests wait until the oldest has waited `delay_ns`, or
    until the batch cannot grow any more (core/src/dynamic_batch_scheduler.cc).

    With a `reach`, the requests of a batch need not be adjacent in the queue: up to `reach` requests with
    other batch keys are skipped and keep their places. The first request in the queue is always taken, so no
    request is skipped forever.
    """

    max_items: int = 1
    preferred: tuple[int, ...] = ()
    delay_ns: int = 0
    reach: int = 0

    @property
    def takes_all(self) -> bool:
        """Whether a batch simply takes what is queued, up to `max_items`."""
        return (
            not self.delay_ns
            and (not self.preferred or self.preferred == (self.max_items,))
            and not self.reach
        )


@dataclass(slots=True)
class Formed:
    """The requests of the next batch, `items` in total.

    If there are no requests, either the queue is empty, or the first requests wait for others until
    `wait_until` (nanoseconds). Before then, only `lacking` more items, or a request whose batch key is not
    `key`, can change the decision.
    """

    tickets: list[Ticket]
    items: int = 0
    wait_until: int = 0
    lacking: int = 0
    key: object = None


def form_batch(queue: Queue, policy: BatchPolicy, now_ns: int) -> Formed:
    """Takes the next batch out of `queue`: requests in queue order, with the same batch key, at most
    `policy.max_items` items.

    A request with more items than that runs alone. Requests that have expired by `now_ns` are moved to
    `queue.expired`.
    """
    now = now_ns / 1e9
    if policy.takes_all:
        return Formed(*queue.take(policy.max_items, now))
    seen: list[Ticket] = []
    formed = _choose(_draw(queue, now, seen), policy, now_ns)
    if formed.wait_until and policy.reach:
        formed = _choose_another(formed, seen, policy, now_ns)
    if len(formed.tickets) < len(seen):
        taken = set(map(id, formed.tickets))
        queue.put_back([ticket for ticket in seen if id(ticket) not in taken], now)
    return formed


def _draw(queue: Queue, now: float, seen: list[Ticket]) -> Iterator[Ticket]:
    while (ticket := queue.next(now)) is not None:
        seen.append(ticket)
        yield ticket


def _choose(waiting: Iterable[Ticket], policy: BatchPolicy, now_ns: int) -> Formed:
    """Returns the next batch formed from `waiting`, which is read only as far as necessary."""
    sizes = policy.preferred or (policy.max_items,)
    largest = max(sizes)
    tickets: list[Ticket] = []
    items = 0
    # The numbers of requests and items in the best batch that can run without waiting for more requests.
    best = best_items = 0
    complete = False
    oldest = now_ns
    passed = 0
    for ticket in waiting:
        size = ticket.batch_size
        if tickets:
            first = tickets[0]
            other = ticket.batch_key != first.batch_key
            if other and passed < policy.reach and ticket.level == first.level:
                passed += 1
                continue
            if not best and items + size > largest:
                best, best_items = len(tickets), items
            # Requests of a lower level must not overtake a skipped request.
            if items + size > policy.max_items or other or (passed and ticket.level != first.level):
                complete = True
                break
        tickets.append(ticket)
        items += size
        oldest = min(oldest, ticket.request.arrived_ns)
        if items in sizes:
            best, best_items = len(tickets), items
        if items >= policy.max_items:
            break
    if not tickets:
        return Formed(tickets)
    delay_over = policy.delay_ns > 0 and now_ns - oldest >= policy.delay_ns
    if best and not delay_over:
        return Formed(tickets[:best], best_items)
    if complete or delay_over or not policy.delay_ns or items >= largest:
        return Formed(tickets, items)
    lacking = min(size for size in sizes if size > items) - items
    return Formed([], wait_until=oldest + policy.delay_ns, lacking=lacking, key=tickets[0].batch_key)


def _choose_another(formed: Formed, seen: list[Ticket], policy: BatchPolicy, now_ns: int) -> Formed:
    """Returns the next batch of requests with another batch key, which may run while the first requests wait.

    If there is no such batch, any new request may change the decision.
    """
    others = seen
    until = formed.wait_until
    while others := [ticket for ticket in others if ticket.batch_key != formed.key]:
        formed = _choose(others, policy, now_ns)
        if formed.tickets:
            return formed
        until = min(until, formed.wait_until)
    return Formed([], wait_until=until, lacking=1 if len(seen) > 1 else formed.lacking, key=formed.key)
