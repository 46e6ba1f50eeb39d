"""The queue of a model with a latency objective: within a level the one comes first that must be answered first."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from math import inf

from backline.engine.messages import InferRequest
from backline.schedule.latency_model import Line
from backline.schedule.objective import Outlook, finish, item_size
from backline.schedule.queue import QueueSettings, limit_wait, waited_too_long

#: The part of the objective that a batch may take: in half of it everybody who comes while it runs can be answered after it. When more
#: come than can be answered anyway, larger batches answer more of them: those who come in the last part of a run.
_LEAST_SHARE, _MOST_SHARE, _SHARE_STEP = 0.5, 0.85, 0.01
#: A batch is full from this part of its usual size on.
_FULL = 0.9
#: The part of the objective that may be kept for answers that come later than expected.
_MOST_MARGIN = 0.25
#: The weight of the newest batch in the mean of those that could not be joined with what waited behind them.
_RATE = 0.1


class _Level:
    """The requests of one level, by the moment at which they are to be answered: `dues`, in seconds, and their items."""

    __slots__ = ("dues", "items", "limit", "waiting")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.waiting: list[InferRequest] = []
        self.dues: list[float] = []
        self.items = 0

    def add(self, request: InferRequest, due: float) -> None:
        if not self.dues or due >= self.dues[-1]:
            self.waiting.append(request)
            self.dues.append(due)
        else:
            index = bisect_right(self.dues, due)
            self.waiting.insert(index, request)
            self.dues.insert(index, due)
        self.items += request.batch_size

    def take(self, begin: int, end: int) -> list[InferRequest]:
        taken = self.waiting[begin:end]
        del self.waiting[begin:end], self.dues[begin:end]
        self.items -= sum([request.batch_size for request in taken])
        return taken

    def remove(self, request: InferRequest, due: float) -> None:
        index = bisect_left(self.dues, due)
        while index < len(self.dues) and self.dues[index] == due:
            if self.waiting[index] is request:
                break
            index += 1
        else:
            index = self.waiting.index(request)  # its deadline has changed while it waited
        self.take(index, index + 1)


class ObjectiveQueue:
    """Requests are to be answered `objective` seconds after they came, or before their own deadline if that is earlier.

    A level is taken before all lower ones, as in every queue. Within a level who must be answered first goes first. A batch is as large as
    the first of its requests allows. Who cannot be answered in time any more when a batch is formed is refused as long as anybody else can
    be; but a guess alone refuses nobody while nothing better is to be done: it may be wrong, and only a run can tell.
    """

    __slots__ = (
        "_joined",
        "_levels",
        "_longest",
        "_margin",
        "_numbers",
        "_objective",
        "_on_cancel",
        "_outlook",
        "_planned",
        "_refused",
        "_settings",
        "_share",
        "_size",
        "_usual",
        "expired",
        "on_left",
    )

    def __init__(self, settings: QueueSettings, objective: float, outlook: Outlook) -> None:
        self._settings = settings
        self._objective = objective
        self._outlook = outlook
        self._levels: dict[int, _Level] = {}
        #: Of the levels with requests, in order.
        self._numbers: list[int] = []
        self._size = 0
        #: The mean items of batches that others waited behind who could not be joined.
        self._joined = 0.0
        #: The part of the objective that a batch may take, and whether anybody was refused since the last one was taken.
        self._share = _LEAST_SHARE
        self._refused = False
        #: The line that the next batches are planned by: the largest that leaves to those who come while it runs the time for another one,
        #: the seconds that answers may be later than expected, and those of the largest batch of all, with these.
        self._planned: Line | None = None
        self._usual = 1
        self._margin = 0.0
        self._longest = 0.0
        self._on_cancel = self._cancelled
        self.on_left: Callable[[InferRequest], None] | None = None
        self.expired: list[InferRequest] = []

    @property
    def size(self) -> int:
        return self._size

    def due(self, request: InferRequest) -> float:
        """When a request is to be answered."""
        due = request.arrived_ns / 1e9 + self._objective
        deadline = request.deadline
        return due if deadline is None or deadline > due else deadline

    def lateness(self, request: InferRequest, free: Sequence[float], max_items: int) -> float:
        """How many seconds too late a request would be answered, if it were added now; below 0 is in time. `free` as in `finish`."""
        number = self._number(request)
        self._limit_wait(request, number)
        due = self.due(request)
        ahead = 0
        earliest = due
        level = None
        for other in self._numbers:
            if other > number:
                break
            level = self._levels[other]
            ahead += level.items
            earliest = min(earliest, level.dues[0])
        line = self._outlook.latency.line(0 if request.batch_key is None else item_size(request))
        if line is not self._planned:
            self._plan(line, max_items)
        margin, usual = self._margin, self._usual
        left = earliest - free[0]
        if left >= self._longest:
            first = max_items
        else:
            first = max(1, min(usual, line.largest(left, max_items)), line.largest(left - margin, max_items))
        after = 0
        if level is not None and due < level.dues[-1] and other == number:
            after = level.items * (len(level.dues) - bisect_right(level.dues, due)) // len(level.dues)
        size = request.batch_size
        late = finish(line, free, ahead - after, size, usual=usual, first=first) + margin - due
        if after and level is not None and late <= 0:  # those behind it must not come too late for its sake
            late = finish(line, free, ahead, size, usual=usual, first=first) + margin - level.dues[-1]
        if late > 0:
            self._refused = True
        return late

    def _limit_wait(self, request: InferRequest, number: int) -> None:
        policy = self._settings.policy_of(number)
        if request.timeout is not None or policy.timeout_us:
            limit_wait(request, policy)

    def _plan(self, line: Line, max_items: int) -> None:
        """Notes what batches of a line are like; until the next one is formed they are taken to be so."""
        self._planned = line
        self._margin = min(self._outlook.margin, _MOST_MARGIN * self._objective)
        most = max(1, min(max_items, round(self._joined))) if self._joined else max_items
        self._usual = line.largest((self._objective - self._margin) * self._share, most) or 1
        self._longest = line.seconds(max_items) + self._margin

    def _adapt(self, items: int) -> None:
        """Lets batches grow as long as they are full and not enough for all, and shrink when they are not."""
        self._planned = None
        if items < _FULL * self._usual:
            self._share = max(_LEAST_SHARE, self._share - 2 * _SHARE_STEP)
        elif self._refused:
            self._share = min(_MOST_SHARE, self._share + _SHARE_STEP)
        self._refused = False

    def add(self, request: InferRequest) -> bool:
        number = request.priority = self._number(request)
        level = self._level(number)
        if len(level.waiting) >= level.limit:
            return False
        self._limit_wait(request, number)
        request.on_cancel = self._on_cancel
        level.add(request, self.due(request))
        self._size += 1
        return True

    def take(self, max_items: int, now: float) -> tuple[list[InferRequest], int]:
        self._refuse_late(now)
        taken: list[InferRequest] = []
        items = limit = 0
        key: object = None
        for number in tuple(self._numbers):
            level = self._levels[number]
            if not limit:
                limit = self._limit(level, now, max_items)
                key = level.waiting[0].batch_key
            count = 0
            for request in level.waiting:
                if request.batch_key != key or (items and items + request.batch_size > limit):
                    self._note_company(items if request.batch_key != key else max_items)
                    break
                items += request.batch_size
                count += 1
            complete = count < len(level.waiting)
            taken += level.take(0, count)
            self._drop_empty(number)
            if complete:
                break
        for request in taken:
            request.on_cancel = None
        self._size -= len(taken)
        if taken:
            self._adapt(items)
        return taken, items

    def _limit(self, level: _Level, now: float, max_items: int) -> int:
        """How large the next batch may be."""
        line = self._outlook.latency.line(item_size(level.waiting[0]))
        dues = level.dues
        self._plan(line, max_items)
        wanted = min(self._usual, level.items)
        left = dues[0] - now
        limit = line.largest(left, max_items)
        if limit < wanted and limit < len(dues):
            # A small batch for the sake of the first ones: will those that it leaves behind still be in time?
            if limit and dues[limit] >= now + line.seconds(limit) + line.seconds(min(wanted, level.items - limit)):
                return limit
            count = bisect_left(dues, now + line.seconds(wanted))
            if count < len(dues):
                self._expire(level.take(0, count))
                left = dues[0] - now
                limit = line.largest(left, max_items)
        return max(1, min(wanted, limit), line.largest(left - self._margin, max_items))

    def next(self, now: float) -> InferRequest | None:
        taken, _ = self.take(1, now)
        return taken[0] if taken else None

    def put_back(self, requests: list[InferRequest], now: float) -> None:
        for request in requests:
            self._level(request.priority).add(request, self.due(request))
            request.on_cancel = self._on_cancel
        self._size += len(requests)

    def sweep(self, now: float) -> float:
        nearest = inf
        for number in tuple(self._numbers):
            level = self._levels[number]
            over = bisect_right(level.dues, now)
            if over:
                self._expire(level.take(0, over))
            if level.dues:
                nearest = min(nearest, level.dues[0])
            self._drop_empty(number)
        return nearest

    def clear(self) -> list[InferRequest]:
        requests = [request for number in self._numbers for request in self._levels[number].waiting if not request.cancelled]
        for request in requests:
            request.on_cancel = None
        self._levels.clear()
        self._numbers.clear()
        self._size = 0
        return requests

    def timed_out(self, request: InferRequest, now: float) -> bool:
        return waited_too_long(request, self._settings.policy_of(request.priority), now)

    def _refuse_late(self, now: float) -> None:
        """Takes out whose moment has passed; and those who cannot be answered in time any more, if there are others who can."""
        late: list[tuple[int, int]] = []
        others = False
        for number in tuple(self._numbers):
            level = self._levels[number]
            over = bisect_right(level.dues, now)
            if over:
                self._expire(level.take(0, over))
            if level.dues:
                first = level.waiting[0]
                count = bisect_left(level.dues, now + self._outlook.latency.line(item_size(first)).seconds(first.batch_size))
                others = others or count < len(level.dues)
                if count:
                    late.append((number, count))
        if others:
            for number, count in late:
                self._expire(self._levels[number].take(0, count))
        for number in tuple(self._numbers):
            self._drop_empty(number)

    def _expire(self, requests: list[InferRequest]) -> None:
        for request in requests:
            request.on_cancel = None
        self._size -= len(requests)
        self.expired += requests

    def _note_company(self, items: int) -> None:
        """A batch was complete with so many items, or could have had so many."""
        self._joined = items if not self._joined else self._joined + _RATE * (items - self._joined)

    def _number(self, request: InferRequest) -> int:
        settings = self._settings
        return request.priority if 1 <= request.priority <= settings.levels else settings.default_level

    def _level(self, number: int) -> _Level:
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = _Level(self._settings.policy_of(number).max_size or inf)
            insort(self._numbers, number)
        return level

    def _drop_empty(self, number: int) -> None:
        if not self._levels[number].waiting:
            del self._levels[number]
            self._numbers.remove(number)

    def _cancelled(self, request: InferRequest) -> None:
        level = self._levels[request.priority]
        level.remove(request, self.due(request))
        self._size -= 1
        self._drop_empty(request.priority)
        if self.on_left is not None:
            self.on_left(request)
