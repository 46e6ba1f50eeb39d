"""The queue of a version that is loaded when a request comes: it holds requests until the one load that all wait for has ended."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic

from backline.engine.engine import Model
from backline.engine.errors import BacklineError, Internal, InvalidArgument, Unavailable
from backline.engine.messages import InferRequest

log = logging.getLogger("backline.lifecycle")

#: Seconds after a failed load in which requests get its reason, and no further load is begun for them.
FAILURE_PAUSE = 1.0
#: Seconds that are waited at least for the next deadline.
_SHORTEST_WAIT = 0.001


def check_later(_: InferRequest) -> None:
    """The check of a version that is not loaded: its real one is made when it is."""


class OnDemandQueue:
    """Takes requests for `model`, which is not loaded, and has it loaded by `load`. Lives on the event loop.

    When `load` has ended without an error, `model.check` and `model.queue` are those of the version that answers now, and what was held is
    handed to them. When it raises, every request gets its reason. A request whose deadline passes before is refused then, and a cancelled
    one is dropped; the load goes on for those that come after.
    """

    def __init__(
        self,
        model: Model,
        load: Callable[[], Awaitable[None]],
        *,
        max_queue_size: int,
        default_timeout: float | None = None,
    ) -> None:
        self._model = model
        self._load = load
        self._max_queue_size = max_queue_size
        self._default_timeout = default_timeout
        self._held: deque[InferRequest] = deque()
        self._loading: asyncio.Task[None] | None = None
        self._failure: BacklineError | None = None
        self._failed_at = -inf
        self._expiry = inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pending(self) -> int:
        """Requests that wait for the load."""
        return len(self._held)

    def submit(self, request: InferRequest) -> None:
        """Holds a request until the version is loaded. Raises Unavailable when too many wait, or the reason of a load that just failed."""
        model = self._model
        if len(self._held) >= self._max_queue_size:
            raise Unavailable(
                f"Exceeds maximum queue size of {self._max_queue_size} for model '{model.name}', which is being loaded, try again later",
                retry_after=1,
            )
        self._raise_recent_failure()
        deadline = request.deadline
        if deadline is None and self._default_timeout is not None:
            deadline = request.deadline = request.arrived_ns / 1e9 + self._default_timeout
        if deadline is not None and deadline < self._expiry:
            self._wait_for(deadline)
        self._held.append(request)
        self._begin()

    async def wake(self) -> None:
        """Returns when the version is loaded. Raises BacklineError with the reason when it cannot be."""
        self._raise_recent_failure()
        await asyncio.shield(self._begin())
        if self._failure is not None:
            raise _again(self._failure)

    def close(self, reason: str) -> None:
        """Refuses what is held, as the version will not be loaded any more."""
        if self._loading is not None:
            self._loading.cancel()
        self._refuse(Unavailable(reason, retry_after=1))

    def _begin(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._run())
        return self._loading

    async def _run(self) -> None:
        self._failure = None
        try:
            await self._load()
        except BacklineError as error:
            self._fail(error)
        except Exception as error:
            log.exception("loading '%s' version %s failed", self._model.name, self._model.version)
            self._fail(Internal(f"loading '{self._model.name}' version {self._model.version} failed: {type(error).__name__}: {error}"))
        else:
            self._hand_over()
        finally:
            self._loading = None

    def _fail(self, error: BacklineError) -> None:
        self._failure = error
        if error.retry_after is None:  # else it may be otherwise in the next moment
            self._failed_at = monotonic()
        self._refuse(error)

    def _raise_recent_failure(self) -> None:
        if self._loading is None and self._failure is not None and monotonic() - self._failed_at < FAILURE_PAUSE:
            raise _again(self._failure)

    def _hand_over(self) -> None:
        model = self._model
        statistics = model.statistics
        check, queue = model.check, model.queue
        if check is None or queue is None or queue is self:
            self._refuse(Unavailable(f"model '{model.name}' version {model.version} was unloaded again", retry_after=1))
            return
        for request in self._take_all():
            if request.cancelled:
                statistics.cancelled += 1
                continue
            try:
                check(request)
                queue.submit(request)
            except BacklineError as error:
                if isinstance(error, InvalidArgument):
                    statistics.rejected_invalid += 1
                else:
                    statistics.rejected_full += 1
                self._complete(request, error)

    def _refuse(self, error: BacklineError) -> None:
        for request in self._take_all():
            self._complete(request, _again(error))

    def _take_all(self) -> list[InferRequest]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._expiry = None, inf
        held = list(self._held)
        self._held.clear()
        return held

    def _wait_for(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expiry = deadline
        self._timer = asyncio.get_running_loop().call_later(max(deadline - monotonic(), _SHORTEST_WAIT), self._expire)

    def _expire(self) -> None:
        self._timer, self._expiry = None, inf
        now = monotonic()
        expired = [request for request in self._held if request.deadline is not None and request.deadline <= now]
        self._held = deque(request for request in self._held if request.deadline is None or request.deadline > now)
        nearest = min((request.deadline for request in self._held if request.deadline is not None), default=inf)
        if nearest < inf:
            self._wait_for(nearest)
        self._model.statistics.expired += len(expired)
        for request in expired:
            waited = (monotonic() - request.arrived_ns / 1e9) * 1000
            text = f"Request timeout expired after {waited:.0f} ms in which model '{self._model.name}' was being loaded"
            self._complete(request, Unavailable(text))

    def _complete(self, request: InferRequest, error: BacklineError) -> None:
        if request.cancelled:
            self._model.statistics.cancelled += 1
            return
        try:
            request.on_complete(request, None, error)
        except Exception:
            log.exception("the answer of model '%s' could not be delivered", self._model.name)


def _again(error: BacklineError) -> BacklineError:
    """The same failure as an exception of its own: one that is raised twice collects the tracebacks of both."""
    copy = type(error)(error.message)
    copy.retry_after = error.retry_after
    return copy
