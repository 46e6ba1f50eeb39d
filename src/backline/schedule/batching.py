"""The batching policy: how much to take from the queue, and what. Plain data in, decision out; no clock of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from backline.engine.messages import InferRequest


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed. `max_items` is the largest batch; `delay_ns` how long a request may wait for company beside a free instance.

    Without a delay the policy is work-conserving: a free instance takes whatever has queued. With one it waits until a preferred size (or
    the maximum) is reached or the oldest request has waited that long, as Triton's dynamic batcher does.
    """

    max_items: int = 1
    preferred: tuple[int, ...] = ()
    delay_ns: int = 0

    def items_to_take(self, queued_items: int, waited_ns: int) -> int:
        """How many items the next batch may have when `queued_items` wait, the oldest for `waited_ns`; 0 to wait for more."""
        if not self.preferred and not self.delay_ns:
            return self.max_items
        if queued_items >= self.max_items:
            return self.max_items
        reachable = [size for size in self.preferred if size <= queued_items]
        if reachable:
            return max(reachable)
        return self.max_items if waited_ns >= self.delay_ns else 0


@dataclass(slots=True)
class Taken:
    """What was taken from the queue: the `requests` to run, `items` in all, and those that `expired` or were `cancelled` before."""

    requests: list[InferRequest]
    items: int
    expired: list[InferRequest]
    cancelled: list[InferRequest]


def take_batch(queue: deque[InferRequest], max_items: int, now: float) -> Taken:
    """Takes from the head of `queue` the requests that may run together: of one batch key, at most `max_items` items.

    Requests that were cancelled or whose deadline is before `now` (seconds of the deadline's clock) are taken out and never run. A single
    request with more than `max_items` items is taken alone.
    """
    requests: list[InferRequest] = []
    expired: list[InferRequest] = []
    cancelled: list[InferRequest] = []
    items = 0
    key: object = None
    while queue:
        request = queue[0]
        if request.cancelled:
            cancelled.append(queue.popleft())
            continue
        if request.deadline is not None and request.deadline <= now:
            expired.append(queue.popleft())
            continue
        if not requests:
            key = request.batch_key
        elif items + request.batch_size > max_items or request.batch_key != key:
            break
        requests.append(queue.popleft())
        items += request.batch_size
        if items >= max_items:
            break
    return Taken(requests, items, expired, cancelled)


def take_expired(queue: deque[InferRequest], now: float) -> tuple[list[InferRequest], float]:
    """Takes from `queue` the requests whose deadline is before `now`; returns them and the nearest deadline of the others, or infinity."""
    expired: list[InferRequest] = []
    kept: list[InferRequest] = []
    nearest = inf
    for request in queue:
        deadline = request.deadline
        if deadline is not None and deadline <= now:
            expired.append(request)
            continue
        kept.append(request)
        if deadline is not None and deadline < nearest:
            nearest = deadline
    if expired:
        queue.clear()
        queue.extend(kept)
    return expired, nearest
