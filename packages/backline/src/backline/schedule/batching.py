"""The batching policy: decides when the next batch is formed, and which queued requests it contains. This
module performs no I/O and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final

from backline.engine.ticket import Ticket
from backline.schedule.queues.queue import Queue

#: A run outside the event loop counts as brief if it takes less time than this, in nanoseconds: handing over
#: the batch, and taking back its outputs, then costs the loop about as much time as the run itself.
BRIEF_NS: Final = 200_000
#: The maximum time, in nanoseconds, for which a batch gathers requests.
LONGEST_GATHERING_NS: Final = 1_000_000
#: The minimum of `Gathering.group`, unless the maximum batch size is smaller. Smaller batches cost the loop
#: more time than they save.
SMALLEST_GROUP: Final = 8


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The rules for forming batches. A batch has at most `max_items` items, and a request waits for up to
    `delay_ns` nanoseconds for other requests to join it, even if an instance is free.

    Without `preferred` sizes and without a delay, the policy is work-conserving: a free instance takes
    whatever is queued. Otherwise the policy works like Triton's dynamic batcher
    (core/src/dynamic_batch_scheduler.cc): if the first requests add up to a preferred size, a batch of the
    largest such size runs immediately. If they do not, the requests wait until the oldest has waited for
    `delay_ns`, or until the batch cannot grow any more.

    With a `reach`, the requests of a batch need not be adjacent in the queue: up to `reach` requests with
    other batch keys are skipped, and keep their positions. No request is skipped forever, because the first
    request in the queue is taken, or waits for at most `delay_ns`.
    """

    max_items: int = 1
    preferred: tuple[int, ...] = ()
    delay_ns: int = 0
    reach: int = 0
    #: Whether a batch simply consists of the first queued requests, up to `max_items` items.
    takes_all: bool = field(init=False)
    #: Whether a batch may gather the requests of several turns of the event loop.
    gathers: bool = field(init=False)
    #: On the event loop, a batch with more requests than this, but fewer than the maximum, waits for one
    #: further turn (see Gathering.fills).
    nearly_full: int = field(init=False)

    def __post_init__(self) -> None:
        whole = not self.preferred or self.preferred == (self.max_items,)
        takes_all = whole and not self.delay_ns and not self.reach
        # The scheduler reads these several times for each batch, so they are fields rather than properties.
        object.__setattr__(self, "takes_all", takes_all)
        object.__setattr__(self, "gathers", takes_all and self.max_items > 1)
        nearly_full = max(SMALLEST_GROUP, self.max_items * 5 // 8) if takes_all else self.max_items
        object.__setattr__(self, "nearly_full", nearly_full)


@dataclass(slots=True)
class Formed:
    """The requests of the next batch, which have `items` items in total.

    If there are no requests, either the queue is empty, or the first requests wait for other requests until
    `wait_until` (in nanoseconds of time.monotonic_ns()). Before that time, the decision can change only if
    `lacking` more items arrive, or if a request with a batch key other than `key` arrives.
    """

    tickets: list[Ticket]
    items: int = 0
    wait_until: int = 0
    lacking: int = 0
    key: object = None


class Gathering:
    """Decides whether a free instance waits for more requests, one turn of the event loop at a time.

    While runs are brief, each batch costs the loop as much time as several requests. So a batch gathers
    requests as long as more arrive in every turn of the loop, but for at most LONGEST_GATHERING_NS. The loop
    reads and writes in these turns, so it is never idle while a batch gathers requests.

    If one batch took the requests of all clients, the loop would be idle while the batch runs. So the batch
    starts as soon as a `group` of requests is queued. The clients then form one group more than there are
    instances: while each instance runs the batch of one group, the loop serves the remaining group.

    A client that sends one request at a time is not delayed: a single request does not wait after a run that
    was not brief, or that was itself for a single request.

    A call to another server takes longer than a run in a worker process, and the number of instances says
    only how many calls may be in flight. So a call counts as brief if it ends within LONGEST_GATHERING_NS,
    and there are no groups. If no call is in flight, requests are sent in the turn in which they arrive, so
    that the other server is not idle. Those that arrive in the meantime gather for the next call.

    A run on the event loop stops the loop from serving anybody. A request that arrives just too late for such
    a run has to wait for the next one too, so its latency is almost twice that of the others. So a nearly
    full batch waits for one turn: while the loop read its requests, the missing ones have probably arrived.
    """

    __slots__ = ("_calls", "_seen", "_share", "_until_ns", "group", "last")

    def __init__(self, *, calls: bool = False) -> None:
        """`calls` says whether batches are calls to other servers."""
        self._calls = calls
        #: The number of requests in the last batch if its run was brief; otherwise 0, so that the next batch
        #: does not gather requests.
        self.last = 0
        #: The number of queued requests at which a batch starts immediately; 0 if batches do not gather.
        self.group = 0.0
        #: The moving average of the shares passed to `ran`.
        self._share = 0.0
        #: The number of queued requests at the last decision to keep gathering; 0 if no batch is gathering.
        self._seen = 0
        self._until_ns = 0

    def ran(self, requests: int, run_ns: int, share: float, max_items: int) -> None:
        """Learns from a batch of at most `max_items` items that ran outside the event loop.

        `run_ns` is 0 if the time is unknown. `share` is the number of requests that were running or queued
        when the run ended, divided by the number of groups.
        """
        if not 0 < run_ns < (LONGEST_GATHERING_NS if self._calls else BRIEF_NS):
            self.last = self.group = 0
            return
        self.last = requests
        if self._calls:
            self.group = inf
            return
        # While clients are still preparing their next requests, the share is too small, so the average falls
        # slowly.
        self._share = max(share, self._share + (share - self._share) / 8)
        self.group = min(max(SMALLEST_GROUP, self._share), max_items)

    def goes_on(self, queued: int, in_flight: int, now_ns: int) -> bool:
        """Returns whether the next batch waits for another turn, while `queued` requests are waiting and
        `in_flight` batches are running outside the event loop.
        """
        seen = self._seen
        if (
            not self.last
            or (self._calls and not in_flight)
            or queued <= seen
            or queued >= self.group
            or queued + self.last <= 2
            or (seen and now_ns >= self._until_ns)
        ):
            self._seen = 0
            return False
        if not seen:
            self._until_ns = now_ns + LONGEST_GATHERING_NS
        self._seen = queued
        return True

    def fills(self, queued: int, max_items: int) -> bool:
        """Returns whether a nearly full batch, which will run on the event loop, waits for another turn."""
        self._seen = 0 if self._seen or queued >= max_items else queued
        return self._seen > 0


def form_batch(queue: Queue, policy: BatchPolicy, now_ns: int) -> Formed:
    """Removes and returns the requests of the next batch in `queue`. They are in the order of the queue, have
    the same batch key, and have at most `policy.max_items` items in total.

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
    """Forms the next batch from the requests `waiting`, and reads no more of them than necessary."""
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
            # Requests with a lower priority must not overtake a skipped request.
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
    """Returns a batch of requests with another batch key. This batch may run while the first requests in the
    queue wait.

    If there is no such batch, returns the decision to wait. If several requests are waiting, any new request
    may then end the wait.
    """
    others = seen
    until = formed.wait_until
    while others := [ticket for ticket in others if ticket.batch_key != formed.key]:
        formed = _choose(others, policy, now_ns)
        if formed.tickets:
            return formed
        until = min(until, formed.wait_until)
    return Formed([], wait_until=until, lacking=1 if len(seen) > 1 else formed.lacking, key=formed.key)
