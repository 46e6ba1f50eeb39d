"""Queues of requests: who comes next, and for how long one may wait. Plain data; the moment is always given."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from backline.engine.messages import InferRequest
from backline.engine.model_config import QueuePolicy

#: Cancelled requests that a queue may hold before it is rebuilt without them, unless those that wait are more.
_FEW = 16


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

    def policy_of(self, level: int) -> QueuePolicy:
        """The policy of a level; of all requests where there are none."""
        return self.policies.get(level, self.policy) if self.levels else self.policy

    def make(self) -> Queue:
        """An empty queue with these settings: the plain one where that is enough."""
        if self.levels or self.policy.delay:
            return PriorityQueue(self)
        return PlainQueue(self.policy)


class Queue(Protocol):
    """Requests that wait. As long as a request is in it, its `on_cancel` is the queue's, so that it leaves at once when it is cancelled."""

    #: Called with a request that was cancelled, once it has left.
    on_left: Callable[[InferRequest], None] | None
    #: Requests that `next` and `sweep` took out because their time was over; whoever calls them tells those who asked, and clears it.
    expired: list[InferRequest]

    @property
    def size(self) -> int:
        """The requests that wait."""

    def add(self, request: InferRequest) -> bool:
        """Puts a request at the end of its level, with its timeout as its deadline; False when that is full."""

    def next(self, now: float) -> InferRequest | None:
        """Takes the next request out that may run at `now`, in seconds of the deadline's clock; None when there is none."""

    def take(self, max_items: int, now: float) -> tuple[list[InferRequest], int]:
        """Takes the next requests out that may run together at `now`, of one batch key, and tells their items: at most `max_items`.

        A request with more items than that is taken alone.
        """

    def put_back(self, requests: list[InferRequest], now: float) -> None:
        """Puts the last requests that `next` gave at `now`, in that order, where they were, as if they had not been taken."""

    def sweep(self, now: float) -> float:
        """Takes the requests out whose deadline is over; returns the nearest deadline of the others, or infinity."""

    def clear(self) -> list[InferRequest]:
        """Takes all requests out, in their order."""

    def timed_out(self, request: InferRequest, now: float) -> bool:
        """Whether a request that has expired did so by the queue's policy; otherwise its caller's own deadline was over."""


class PlainQueue:
    """First come, first served."""

    __slots__ = ("_gone", "_limit", "_on_cancel", "_policy", "_waiting", "expired", "on_left")

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._limit = policy.max_size or inf
        self._waiting: deque[InferRequest] = deque()
        #: How many of them are cancelled: they are only skipped.
        self._gone = 0
        self._on_cancel = self._cancelled  # made once, not for every request
        self.on_left: Callable[[InferRequest], None] | None = None
        self.expired: list[InferRequest] = []

    @property
    def size(self) -> int:
        return len(self._waiting) - self._gone

    def add(self, request: InferRequest) -> bool:
        if len(self._waiting) - self._gone >= self._limit:
            return False
        policy = self._policy
        if request.timeout is not None or policy.timeout_us:
            limit_wait(request, policy)
        request.on_cancel = self._on_cancel
        self._waiting.append(request)
        return True

    def next(self, now: float) -> InferRequest | None:
        waiting = self._waiting
        while waiting:
            request = waiting.popleft()
            deadline = request.deadline
            if request.cancelled or (deadline is not None and deadline <= now):
                self._drop(request)
                continue
            request.on_cancel = None
            return request
        return None

    def take(self, max_items: int, now: float) -> tuple[list[InferRequest], int]:
        # Not by `next`: a call for every request is a tenth of all that it costs to schedule one.
        waiting = self._waiting
        taken: list[InferRequest] = []
        items = 0
        key: object = None
        while waiting:
            request = waiting[0]
            deadline = request.deadline
            if request.cancelled or (deadline is not None and deadline <= now):
                self._drop(waiting.popleft())
                continue
            if not taken:
                key = request.batch_key
            elif items + request.batch_size > max_items or request.batch_key != key:
                break
            waiting.popleft()
            request.on_cancel = None
            taken.append(request)
            items += request.batch_size
            if items >= max_items:
                break
        return taken, items

    def put_back(self, requests: list[InferRequest], now: float) -> None:
        for request in reversed(requests):
            request.on_cancel = self._on_cancel
            self._waiting.appendleft(request)

    def sweep(self, now: float) -> float:
        kept, nearest = _without_expired(self._waiting, now, self.expired)
        self._waiting = kept
        self._gone = 0
        return nearest

    def clear(self) -> list[InferRequest]:
        requests = [request for request in self._waiting if not request.cancelled]
        for request in requests:
            request.on_cancel = None
        self._waiting.clear()
        self._gone = 0
        return requests

    def timed_out(self, request: InferRequest, now: float) -> bool:
        return waited_too_long(request, self._policy, now)

    def _drop(self, request: InferRequest) -> None:
        """A request was taken out that is not to run. One whose cancellation was not told to the queue leaves only now."""
        if not request.cancelled:
            request.on_cancel = None
            self.expired.append(request)
        elif request.on_cancel is None:
            self._gone -= 1
        elif self.on_left is not None:
            request.on_cancel = None
            self.on_left(request)

    def _cancelled(self, request: InferRequest) -> None:
        self._gone += 1
        if self._gone > _FEW and self._gone > len(self._waiting) // 2:
            self._waiting = deque(other for other in self._waiting if other.on_cancel is not None)
            self._gone = 0
        if self.on_left is not None:
            self.on_left(request)


class _Level:
    """The requests of one level: those in time, and those whose timeout is over and that wait for a moment without others."""

    __slots__ = ("gone", "late", "limit", "policy", "waiting")

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.limit = policy.max_size or inf
        self.waiting: deque[InferRequest] = deque()
        self.late: deque[InferRequest] = deque()
        self.gone = 0

    @property
    def size(self) -> int:
        return len(self.waiting) + len(self.late) - self.gone

    def drop_cancelled(self) -> None:
        self.waiting = deque(request for request in self.waiting if request.on_cancel is not None)
        self.late = deque(request for request in self.late if request.on_cancel is not None)
        self.gone = 0


class PriorityQueue:
    """Levels, the lowest number first; within a level first come, first served, and what is late behind what is not.

    A level costs nothing while no request of it waits, so that there may be any number of them.
    """

    __slots__ = ("_levels", "_numbers", "_on_cancel", "_settings", "_size", "expired", "on_left")

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._levels: dict[int, _Level] = {}
        #: Of the levels with requests, in order.
        self._numbers: list[int] = []
        self._size = 0
        self._on_cancel = self._cancelled
        self.on_left: Callable[[InferRequest], None] | None = None
        self.expired: list[InferRequest] = []

    @property
    def size(self) -> int:
        return self._size

    def add(self, request: InferRequest) -> bool:
        settings = self._settings
        if not 1 <= request.priority <= settings.levels:
            request.priority = settings.default_level
        level = self._level(request.priority)
        if level.size >= level.limit:
            return False
        if not level.policy.delay:
            limit_wait(request, level.policy)
        request.on_cancel = self._on_cancel
        level.waiting.append(request)
        self._size += 1
        return True

    def next(self, now: float) -> InferRequest | None:
        while self._numbers:
            number = self._numbers[0]
            level = self._levels[number]
            request = self._next_of(level, now)
            if request is not None:
                self._size -= 1
                return request
            del self._levels[number], self._numbers[0]
        return None

    def take(self, max_items: int, now: float) -> tuple[list[InferRequest], int]:
        taken: list[InferRequest] = []
        items = 0
        while (request := self.next(now)) is not None:
            if taken and (items + request.batch_size > max_items or request.batch_key != taken[0].batch_key):
                self.put_back([request], now)
                break
            taken.append(request)
            items += request.batch_size
            if items >= max_items:
                break
        return taken, items

    def _next_of(self, level: _Level, now: float) -> InferRequest | None:
        delay = level.policy.delay
        for requests in (level.waiting, level.late):
            while requests:
                request = requests.popleft()
                if request.cancelled:
                    self._skip(level, request)
                    continue
                deadline = request.deadline
                if deadline is not None and deadline <= now:
                    request.on_cancel = None
                    self._size -= 1
                    self.expired.append(request)
                    continue
                if delay and requests is level.waiting and waited_too_long(request, level.policy, now):
                    level.late.append(request)
                    continue
                request.on_cancel = None
                return request
        return None

    def put_back(self, requests: list[InferRequest], now: float) -> None:
        for request in reversed(requests):
            level = self._level(request.priority)
            request.on_cancel = self._on_cancel
            late = level.policy.delay and waited_too_long(request, level.policy, now)
            (level.late if late else level.waiting).appendleft(request)
        self._size += len(requests)

    def sweep(self, now: float) -> float:
        nearest = inf
        before = len(self.expired)
        for level in self._levels.values():
            level.waiting, of_waiting = _without_expired(level.waiting, now, self.expired)
            level.late, of_late = _without_expired(level.late, now, self.expired)
            level.gone = 0
            nearest = min(nearest, of_waiting, of_late)
        self._size -= len(self.expired) - before
        return nearest

    def clear(self) -> list[InferRequest]:
        requests = [
            request
            for number in self._numbers
            for request in (*self._levels[number].waiting, *self._levels[number].late)
            if not request.cancelled
        ]
        for request in requests:
            request.on_cancel = None
        self._levels.clear()
        self._numbers.clear()
        self._size = 0
        return requests

    def timed_out(self, request: InferRequest, now: float) -> bool:
        policy = self._settings.policy_of(request.priority)
        return not policy.delay and waited_too_long(request, policy, now)

    def _level(self, number: int) -> _Level:
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = _Level(self._settings.policy_of(number))
            insort(self._numbers, number)
        return level

    def _skip(self, level: _Level, request: InferRequest) -> None:
        if request.on_cancel is None:
            level.gone -= 1
            return
        request.on_cancel = None
        self._size -= 1
        if self.on_left is not None:
            self.on_left(request)

    def _cancelled(self, request: InferRequest) -> None:
        self._size -= 1
        level = self._levels[request.priority]
        level.gone += 1
        if level.gone > _FEW and level.gone > level.size:
            level.drop_cancelled()
        if self.on_left is not None:
            self.on_left(request)


def limit_wait(request: InferRequest, policy: QueuePolicy) -> None:
    """Makes the end of the time that a request may queue its deadline, unless it has an earlier one."""
    timeout = policy.timeout(request.timeout)
    if timeout is None:
        return
    end = request.arrived_ns / 1e9 + timeout
    if request.deadline is None or end < request.deadline:
        request.deadline = end


def waited_too_long(request: InferRequest, policy: QueuePolicy, now: float) -> bool:
    """Whether the time is over that a request may queue."""
    timeout = policy.timeout(request.timeout)
    return timeout is not None and request.arrived_ns / 1e9 + timeout <= now


def _without_expired(requests: deque[InferRequest], now: float, expired: list[InferRequest]) -> tuple[deque[InferRequest], float]:
    """The requests that may go on waiting, without those that are cancelled; and their nearest deadline. Moves the others to `expired`."""
    kept: deque[InferRequest] = deque()
    nearest = inf
    for request in requests:
        if request.cancelled and request.on_cancel is None:
            continue
        deadline = request.deadline
        if deadline is not None:
            if deadline <= now:
                request.on_cancel = None
                expired.append(request)
                continue
            nearest = min(nearest, deadline)
        kept.append(request)
    return kept, nearest
