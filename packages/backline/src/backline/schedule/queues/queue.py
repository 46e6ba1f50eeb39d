"""The interface of all queues, the settings, time limits and errors of queues, and the limit for the queues
of all models together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct, field

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Ticket
from backline_client.values.errors import BacklineError, DeadlineExceeded, Unavailable

_ANY = QueuePolicy()


class QueueSettings(Struct, frozen=True):
    """The settings of a model's queue. `policy` applies to all levels that have no policy in `policies`.

    If `levels` is 0, there is a single level. Otherwise requests have levels from 1 (the highest) to
    `levels`. As in Triton, requests without a level, or with a level out of range, get `default_level`.
    Levels are strict: no request is taken while a request with a higher level waits.
    """

    policy: QueuePolicy = _ANY
    levels: int = 0
    default_level: int = 0
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    #: Whether the callers within a level take turns. If not, requests are served in the order of arrival.
    fair: bool = False

    def level_of(self, ticket: Ticket) -> int:
        """Returns the priority level of a request."""
        priority = ticket.request.priority
        return priority if 1 <= priority <= self.levels else self.default_level

    def policy_of(self, level: int) -> QueuePolicy:
        """Returns the policy of a level, or the policy of all requests if there are no levels."""
        return self.policies.get(level, self.policy) if self.levels else self.policy


class Queue(Protocol):
    """A queue of requests. It reads no clock: callers pass the current time, in seconds of time.monotonic().

    The queue owns the tickets in it, so it is notified of a cancelled ticket, which leaves the queue
    immediately. Tickets that the queue has handed out, or put into `expired`, have no owner.
    """

    #: Called with a request that was cancelled, after the request has left the queue.
    on_left: Callable[[Ticket], None]
    #: Called with a request that was removed from a full queue to make room for another caller's request. The
    #: function must complete the removed request.
    on_displaced: Callable[[Ticket], None]
    #: The requests that were removed because they expired. Callers of `next`, `take` and `sweep` must
    #: complete these requests and clear the list.
    expired: list[Ticket]

    @property
    def size(self) -> int:
        """The number of queued requests."""

    def add(self, ticket: Ticket, *, anyway: bool = False) -> bool:
        """Adds a request to its level, and sets its deadline according to the queue's timeout.

        Returns False if the level is full and no request can be displaced, unless `anyway` is set.
        """

    def next(self, now: float) -> Ticket | None:
        """Removes and returns the next request that may run at `now`; None if there is none."""

    def take(self, max_items: int, now: float) -> tuple[list[Ticket], int]:
        """Removes and returns the next requests that may run together at `now`, and their total number of
        items.

        The requests have the same batch key, and at most `max_items` items in total. A request with more
        items is taken alone.
        """

    def put_back(self, tickets: list[Ticket], now: float) -> None:
        """Puts the last requests that `next` or `take` returned at `now` back at their old positions.
        `tickets` must be in the order in which these methods returned them.
        """

    def sweep(self, now: float) -> float:
        """Removes expired requests. Returns the time at which the next of the other requests expires, or
        infinity.
        """

    def clear(self) -> list[Ticket]:
        """Removes and returns all requests, in the order of the queue, or, if callers take turns, caller by
        caller.
        """

    def timed_out(self, ticket: Ticket, now: float) -> bool:
        """Returns whether a request expired because of the queue's timeout rather than its caller's
        deadline.
        """


def nobody_asks(ticket: Ticket) -> None:
    """Does nothing. This is the default for `on_left` and `on_displaced`."""


def limit_wait(ticket: Ticket, policy: QueuePolicy) -> None:
    """Sets the deadline of a request to the time until which the policy allows the request to wait in the
    queue, unless its deadline is earlier.
    """
    timeout = policy.timeout(ticket.request.timeout)
    if timeout is None:
        return
    end = ticket.request.arrived_ns / 1e9 + timeout
    if ticket.deadline is None or end < ticket.deadline:
        ticket.deadline = end


def waited_too_long(ticket: Ticket, policy: QueuePolicy, now: float) -> bool:
    """Returns whether a request has waited in the queue for as long as the policy allows."""
    timeout = policy.timeout(ticket.request.timeout)
    return timeout is not None and ticket.request.arrived_ns / 1e9 + timeout <= now


@dataclass(slots=True, eq=False)
class QueueTotal:
    """Counts the requests that wait in the queues of all models together. `limit` is the maximum number of
    such requests; None means no limit.

    The owner of a queue adds 1 to `waiting` when a request is queued, and subtracts 1 when the request leaves
    the queue.
    """

    limit: int | None = None
    waiting: int = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached, so that no more requests may be queued."""
        return self.limit is not None and self.waiting >= self.limit

    def refusal(self, model: str) -> Unavailable:
        """Returns the error for a request that exceeds the limit."""
        return Unavailable(
            f"Exceeds maximum queue size of {self.limit} requests for all models"
            f" (this request is for model '{model}'), try again later",
            retry_after=1,
        )


def queue_full(model: str, limit: int | None, where: str = "") -> Unavailable:
    """Returns the error for a request to a full queue. `limit` is the maximum number of queued requests, and
    `where` is added after the name of the model.
    """
    return Unavailable(
        f"Exceeds maximum queue size of {limit} for model '{model}'{where}, try again later", retry_after=1
    )


def being_unloaded(model: str) -> Unavailable:
    """Returns the error for requests to a model that is being unloaded."""
    return Unavailable(f"model '{model}' is being unloaded, try again later", retry_after=1)


def expired_in_queue(ticket: Ticket, now: float, model: str, *, by_policy: bool) -> BacklineError:
    """Returns the error for a request that expired in a queue at `now` (in seconds of time.monotonic()).

    `by_policy` says whether the request expired because of the queue's timeout, rather than the caller's
    deadline.
    """
    waited = f"after {(now - ticket.request.arrived_ns / 1e9) * 1000:.0f} ms in the queue of model '{model}'"
    if by_policy:
        return Unavailable(f"Request timeout expired {waited}")
    return DeadlineExceeded(f"The deadline of the request passed {waited}")
