"""The queue of a version that is loaded when a request comes: it holds requests until the one load that all wait for has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic

from backline.engine.errors import BacklineError, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from backline.engine.model import Model
from backline.engine.ticket import Ticket
from backline.schedule.queues.priority import make_queue
from backline.schedule.queues.queue import QueueSettings, QueueTotal

log = logging.getLogger("backline.lifecycle")

#: Seconds after a failed load in which requests get its reason, and no further load is begun for them.
FAILURE_PAUSE = 1.0
#: Seconds that are waited at least for the next deadline.
_SHORTEST_WAIT = 0.001


def check_later(_: Ticket) -> None:
    """The check of a version that is not loaded: its real one is made when it is."""


class OnDemandQueue:
    """Takes requests for `model`, which is not loaded, and has it loaded by `load`. Lives on the event loop.

    When `load` has ended without an error, `model.check` and `model.queue` are those of the version that answers now, and what was held is
    handed to them. When it raises, every request gets its reason. A request whose deadline passes before is refused then, and a cancelled
    one leaves at once; the load goes on for those that come after.
    """

    def __init__(
        self,
        model: Model,
        load: Callable[[], Awaitable[None]],
        settings: QueueSettings,
        total: QueueTotal,
    ) -> None:
        self._model = model
        self._load = load
        self._total = total
        self._settings = settings
        self._held = make_queue(settings)
        self._held.on_left = self._left
        self._loading: asyncio.Task[None] | None = None
        self._failure: BacklineError | None = None
        self._failed_at = -inf
        self._expiry = inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pending(self) -> int:
        """Requests that wait for the load."""
        return self._held.size

    def submit(self, ticket: Ticket) -> None:
        """Holds a request until the version is loaded. Raises Unavailable when too many wait, or the reason of a load that just failed."""
        model = self._model
        self._raise_recent_failure()
        if self._total.full:
            model.statistics.rejected_total += 1
            raise self._total.refusal(model.name)
        if not self._held.add(ticket):
            model.statistics.rejected_full += 1
            limit = self._settings.policy_of(ticket.level).max_size
            raise Unavailable(
                f"Exceeds maximum queue size of {limit} for model '{model.name}', which is being loaded, try again later",
                retry_after=1,
            )
        self._total.waiting += 1
        if ticket.deadline is not None and ticket.deadline < self._expiry:
            self._wait_for(ticket.deadline)
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
            self._fail(
                Internal(
                    f"loading '{self._model.name}' version {self._model.version} failed: {type(error).__name__}: {error}"
                )
            )
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
        if (
            self._loading is None
            and self._failure is not None
            and monotonic() - self._failed_at < FAILURE_PAUSE
        ):
            raise _again(self._failure)

    def _hand_over(self) -> None:
        model = self._model
        statistics = model.statistics
        check, queue = model.check, model.queue
        if check is None or queue is None or queue is self:
            self._refuse(
                Unavailable(f"model '{model.name}' version {model.version} was unloaded again", retry_after=1)
            )
            return
        for ticket in self._take_all():
            try:
                check(ticket)
                queue.submit(ticket)
            except BacklineError as error:
                if isinstance(error, InvalidArgument):
                    statistics.rejected_invalid += 1
                ticket.complete(None, error)

    def _refuse(self, error: BacklineError) -> None:
        for ticket in self._take_all():
            ticket.complete(None, _again(error))

    def _take_all(self) -> list[Ticket]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._expiry = None, inf
        held = self._held.clear()
        self._total.waiting -= len(held)
        return held

    def _left(self, ticket: Ticket) -> None:
        self._total.waiting -= 1
        self._model.statistics.record_cancelled(ticket)

    def _wait_for(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expiry = deadline
        self._timer = asyncio.get_running_loop().call_later(
            max(deadline - monotonic(), _SHORTEST_WAIT), self._expire
        )

    def _expire(self) -> None:
        self._timer, self._expiry = None, inf
        now = monotonic()
        nearest = self._held.sweep(now)
        if nearest < inf:
            self._wait_for(nearest)
        expired, self._held.expired = self._held.expired, []
        self._total.waiting -= len(expired)
        for ticket in expired:
            self._model.statistics.record_expired(ticket)
            where = f"after {(now - ticket.request.arrived_ns / 1e9) * 1000:.0f} ms in which model '{self._model.name}' was being loaded"
            if self._held.timed_out(ticket, now):
                ticket.expire(Unavailable(f"Request timeout expired {where}"))
            else:
                ticket.expire(DeadlineExceeded(f"The deadline of the request passed {where}"))


def _again(error: BacklineError) -> BacklineError:
    """The same failure as an exception of its own: one that is raised twice collects the tracebacks of both."""
    copy = type(error)(error.message)
    copy.retry_after = error.retry_after
    return copy
