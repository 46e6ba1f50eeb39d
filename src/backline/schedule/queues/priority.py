"""The queue of a model with priorities, or whose policy lets late requests wait on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from backline.engine.messages import InferRequest
from backline.engine.model_config import QueuePolicy
from backline.schedule.queues.levels import Levels
from backline.schedule.queues.plain import FEW, PlainQueue, still_there, without_expired
from backline.schedule.queues.queue import Queue, QueueSettings, limit_wait, nobody_asks, waited_too_long


def make_queue(settings: QueueSettings) -> Queue:
    """An empty queue with these settings: the plain one where that is enough."""
    if settings.levels or settings.policy.delay:
        return PriorityQueue(settings)
    return PlainQueue(settings.policy)


class _Level:
    """The requests of one level: those in time, and those whose timeout is over and that wait for a moment without others."""

    __slots__ = ("gone", "late", "limit", "number", "policy", "waiting")

    def __init__(self, number: int, policy: QueuePolicy) -> None:
        self.number = number
        self.policy = policy
        self.limit = policy.max_size or inf
        self.waiting: deque[InferRequest] = deque()
        self.late: deque[InferRequest] = deque()
        #: How many of both are cancelled.
        self.gone = 0

    @property
    def size(self) -> int:
        return len(self.waiting) + len(self.late) - self.gone

    def is_late(self, request: InferRequest, now: float) -> bool:
        return self.policy.delay and waited_too_long(request, self.policy, now)

    def drop_cancelled(self) -> None:
        self.waiting, self.late, self.gone = still_there(self.waiting), still_there(self.late), 0


class PriorityQueue:
    """See Queue. Levels, the lowest number first; within a level first come, first served, and what is late behind what is not."""

    __slots__ = ("_levels", "_on_cancel", "_settings", "_size", "expired", "on_left")

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._levels = Levels(lambda number: _Level(number, settings.policy_of(number)))
        self._size = 0
        self._on_cancel = self._cancelled
        self.on_left: Callable[[InferRequest], None] = nobody_asks
        self.expired: list[InferRequest] = []

    @property
    def size(self) -> int:
        return self._size

    def add(self, request: InferRequest, *, anyway: bool = False) -> bool:
        number = request.priority = self._settings.level_of(request)
        level = self._levels[number]
        if level.size >= level.limit and not anyway:
            return False
        if not level.policy.delay:
            limit_wait(request, level.policy)
        request.on_cancel = self._on_cancel
        level.waiting.append(request)
        self._size += 1
        return True

    def next(self, now: float) -> InferRequest | None:
        while self._levels.ordered:
            level = self._levels.ordered[0]
            request = self._next_of(level, now)
            if request is not None:
                self._size -= 1
                return request
            self._levels.drop(level)
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
                deadline = request.deadline
                if request.cancelled or (deadline is not None and deadline <= now):
                    self._skip(level, request)
                elif delay and requests is level.waiting and level.is_late(request, now):
                    level.late.append(request)
                else:
                    request.on_cancel = None
                    return request
        return None

    def put_back(self, requests: list[InferRequest], now: float) -> None:
        for request in reversed(requests):
            request.on_cancel = self._on_cancel
            level = self._levels[request.priority]
            (level.late if level.is_late(request, now) else level.waiting).appendleft(request)
        self._size += len(requests)

    def sweep(self, now: float) -> float:
        nearest = inf
        before = len(self.expired)
        for level in self._levels.ordered:
            level.waiting, of_waiting = without_expired(level.waiting, now, self.expired)
            level.late, of_late = without_expired(level.late, now, self.expired)
            level.gone = 0
            nearest = min(nearest, of_waiting, of_late)
        self._size -= len(self.expired) - before
        return nearest

    def clear(self) -> list[InferRequest]:
        requests = [
            request
            for level in self._levels.ordered
            for line in (level.waiting, level.late)
            for request in still_there(line)
        ]
        for request in requests:
            request.on_cancel = None
        self._levels.clear()
        self._size = 0
        return requests

    def timed_out(self, request: InferRequest, now: float) -> bool:
        policy = self._settings.policy_of(request.priority)
        return not policy.delay and waited_too_long(request, policy, now)

    def _skip(self, level: _Level, request: InferRequest) -> None:
        """A request was taken out that is not to run."""
        if request.on_cancel is None:
            level.gone -= 1
            return
        request.on_cancel = None
        self._size -= 1
        if request.cancelled:  # before it came here
            self.on_left(request)
        else:
            self.expired.append(request)

    def _cancelled(self, request: InferRequest) -> None:
        self._size -= 1
        level = self._levels[request.priority]
        level.gone += 1
        if level.gone > FEW and level.gone > level.size:
            level.drop_cancelled()
        self.on_left(request)
