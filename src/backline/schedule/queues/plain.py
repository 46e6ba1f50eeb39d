"""The queue of a model without priorities: first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from backline.engine.messages import InferRequest
from backline.engine.model_config import QueuePolicy
from backline.schedule.queues.queue import limit_wait, nobody_asks, waited_too_long

#: Cancelled requests that a line may hold before it is rebuilt without them, unless those that wait are more.
FEW = 16


class PlainQueue:
    """See Queue. Who is cancelled leaves at once for everybody, but is only skipped when its turn comes."""

    __slots__ = ("_gone", "_limit", "_on_cancel", "_policy", "_waiting", "expired", "on_left")

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._limit = policy.max_size or inf
        self._waiting: deque[InferRequest] = deque()
        #: How many of them are cancelled.
        self._gone = 0
        self._on_cancel = self._cancelled  # made once, not for every request
        self.on_left: Callable[[InferRequest], None] = nobody_asks
        self.expired: list[InferRequest] = []

    @property
    def size(self) -> int:
        return len(self._waiting) - self._gone

    def add(self, request: InferRequest, *, anyway: bool = False) -> bool:
        if len(self._waiting) - self._gone >= self._limit and not anyway:
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
                self._skip(request)
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
                self._skip(waiting.popleft())
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
        for request in requests:
            request.on_cancel = self._on_cancel
        self._waiting.extendleft(reversed(requests))

    def sweep(self, now: float) -> float:
        self._waiting, nearest = without_expired(self._waiting, now, self.expired)
        self._gone = 0
        return nearest

    def clear(self) -> list[InferRequest]:
        requests = still_there(self._waiting)
        self._waiting.clear()
        self._gone = 0
        for request in requests:
            request.on_cancel = None
        return list(requests)

    def timed_out(self, request: InferRequest, now: float) -> bool:
        return waited_too_long(request, self._policy, now)

    def _skip(self, request: InferRequest) -> None:
        """A request was taken out that is not to run."""
        if request.on_cancel is None:
            self._gone -= 1
            return
        request.on_cancel = None
        if request.cancelled:  # before it came here
            self.on_left(request)
        else:
            self.expired.append(request)

    def _cancelled(self, request: InferRequest) -> None:
        self._gone += 1
        if self._gone > FEW and self._gone > len(self._waiting) // 2:
            self._waiting = still_there(self._waiting)
            self._gone = 0
        self.on_left(request)


def still_there(requests: deque[InferRequest]) -> deque[InferRequest]:
    """The requests that have not left the queue by being cancelled."""
    return deque(request for request in requests if request.on_cancel is not None)


def without_expired(
    requests: deque[InferRequest], now: float, expired: list[InferRequest]
) -> tuple[deque[InferRequest], float]:
    """Those of `still_there` that may go on waiting, and their nearest deadline. Moves the others to `expired`."""
    kept: deque[InferRequest] = deque()
    nearest = inf
    for request in requests:
        if request.on_cancel is None:
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
