"""What all queues of requests share: settings, the protocol, how long a request may wait, and what it is refused with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from backline.engine.errors import BacklineError, DeadlineExceeded, Unavailable
from backline.engine.model_config import QueuePolicy
from backline.engine.ticket import Ticket

_ANY = QueuePolicy()


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The queue of one model. `policy` is for all levels without one of their own in `policies`.

    `levels` 0 is one queue for all. Otherwise a request has a level of 1 (the highest) to `levels`, and is of `default_level` when it asks
    for none or for one that there is not, as Triton's. Levels are strict: nobody is taken while a request of a higher level waits.
    """

    policy: QueuePolicy = _ANY
    levels: int = 0
    default_level: int = 0
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def level_of(self, ticket: Ticket) -> int:
        """The level that a request belongs to."""
        priority = ticket.request.priority
        return priority if 1 <= priority <= self.levels else self.default_level

    def policy_of(self, level: int) -> QueuePolicy:
        """The policy of a level; of all requests where there are none."""
        return self.policies.get(level, self.policy) if self.levels else self.policy


class Queue(Protocol):
    """Requests that wait. Plain data: the moment is always given, in seconds of the deadlines' clock.

    The queue owns the tickets in it, so a cancelled one leaves at once. Those that it has handed out, or put into
    `expired`, have no owner.
    """

    #: Called with a request that was cancelled, once it has left.
    on_left: Callable[[Ticket], None]
    #: Requests that were taken out as their time was over; whoever calls `next`, `take` or `sweep` tells those who asked, and clears it.
    expired: list[Ticket]

    @property
    def size(self) -> int:
        """The requests that wait."""

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        """Puts a request at the end of its level, with its timeout as its deadline; False when that is full, unless `anyway`."""

    def next(self, now: float) -> Ticket | None:
        """Takes the next request out that may run at `now`; None when there is none."""

    def take(self, max_items: int, now: float) -> tuple[list[Ticket], int]:
        """Takes the next requests out that may run together at `now`, of one batch key, and tells their items: at most `max_items`.

        A request with more items than that is taken alone.
        """

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        """Puts the last requests that `next` gave at `now`, in that order, where they were, as if they had not been taken."""

    def sweep(self, now: float) -> float:
        """Takes the requests out whose deadline is over; returns the nearest deadline of the others, or infinity."""

    def clear(self) -> list[Ticket]:
        """Takes all requests out, in their order."""

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        """Whether a request that has expired did so by the queue's policy; otherwise its caller's own deadline was over."""


def nobody_asks(ticket: Ticket) -> None:
    """The `on_left` of a queue whose owner does not want to know."""


def limit_wait(ticket: Ticket, policy: QueuePolicy) -> None:
    """Makes the end of the time that a request may queue its deadline, unless it has an earlier one."""
    timeout = policy.timeout(ticket.request.timeout)
    if timeout is None:
        return
    end = ticket.request.arrived_ns / 1e9 + timeout
    if ticket.deadline is None or end < ticket.deadline:
        ticket.deadline = end


def waited_too_long(ticket: Ticket, policy: QueuePolicy, now: float) -> bool:
    """Whether the time is over that a request may queue."""
    timeout = policy.timeout(ticket.request.timeout)
    return timeout is not None and ticket.request.arrived_ns / 1e9 + timeout <= now


class QueueTotal:
    """How many requests wait in the queues of all models together, and how many may; `limit` None is no limit.

    Whoever enqueues a request adds it to `waiting`, and subtracts it when it runs or is done.
    """

    __slots__ = ("limit", "waiting")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether no more requests may queue."""
        return self.limit is not None and self.waiting >= self.limit

    def refusal(self, model: str) -> Unavailable:
        """The error of a request that would be one too many."""
        return Unavailable(
            f"Exceeds maximum queue size of {self.limit} requests of all models; the request is for model '{model}', try again later",
            retry_after=1,
        )


def queue_full(model: str, limit: int | None, where: str = "") -> Unavailable:
    """The queue is full, which holds `limit` requests."""
    return Unavailable(
        f"Exceeds maximum queue size of {limit} for model '{model}'{where}, try again later", retry_after=1
    )


def being_unloaded(model: str) -> Unavailable:
    """The model goes away."""
    return Unavailable(f"model '{model}' is being unloaded", retry_after=1)


def expired_in_queue(ticket: Ticket, now: float, model: str, *, by_policy: bool) -> BacklineError:
    """Its time was over at `now`, of time.monotonic(): that which the queue's policy gives, or its caller."""
    waited = f"after {(now - ticket.request.arrived_ns / 1e9) * 1000:.0f} ms in the queue of model '{model}'"
    if by_policy:
        return Unavailable(f"Request timeout expired {waited}")
    return DeadlineExceeded(f"The deadline of the request passed {waited}")
