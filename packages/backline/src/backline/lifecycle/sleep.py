"""Unloads versions that are loaded again when a request needs them, and holds requests during such a load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from math import inf
from time import monotonic

from backline.engine.model import NOT_SERVED, Model
from backline.engine.ticket import Ticket
from backline.lifecycle.changes import AwaitedChanges
from backline.lifecycle.loading.queueing import queue_settings
from backline.lifecycle.memory.room import Tenant
from backline.lifecycle.options import LifecycleOptions
from backline.lifecycle.phase import StandIn, VersionPhase
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.served_models import ServedModels
from backline.schedule.queues.priority import make_queue
from backline.schedule.queues.queue import QueueSettings, QueueTotal, queue_full
from backline.schedule.turn import Alarm
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)

log = logging.getLogger("backline.lifecycle")


class Sleep:
    """Unloads versions, and makes the placeholders that load versions again on request. Use it only on the
    event loop.
    """

    def __init__(
        self,
        models: ServedModels,
        changes: AwaitedChanges,
        total: QueueTotal,
        advance: Callable[[Iterable[str]], None],
        options: LifecycleOptions,
    ) -> None:
        self._models = models
        self._changes = changes
        self._total = total
        self._advance = advance
        self._options = options
        #: The reasons why versions that are being unloaded were put to sleep, by the key of the load.
        self._reasons: dict[int, str] = {}

    def tenants(self) -> list[Tenant]:
        """Returns the loaded versions in the form that Residency needs."""
        return [
            Tenant(
                (served.name, one.key),
                one.model.memory_bytes,
                0.0
                if served.only_kept(one.model.version)
                else one.last_used,  # versions that are only kept for rollbacks are evicted first
                pinned=one.model.config.pinned and not served.only_kept(one.model.version),
                busy=one.busy or not served.may_rest(one),
                idle_limit=None
                if served.only_kept(one.model.version)
                else one.model.config.idle_unload_seconds,
                gpus={} if one.memory is None else one.memory.need.gpus,
                pids=tuple(one.pids),
            )
            for served in self._models
            for one in served.held.values()
            if one.phase is VersionPhase.READY
        ]

    async def put(self, keys: Collection[Hashable], reason: str) -> None:
        """Unloads the tenants with these keys, until a request needs them. Returns when all of them are
        unloaded.
        """
        held = [(served, one) for served in self._models for one in served.held.values()]
        leaving = [(served, one) for served, one in held if (served.name, one.key) in keys]
        for served, one in leaving:
            served.rest(one.model.version, reason)
            self._reasons[one.key] = reason
        self._advance({served.name for served, _ in leaving})
        await self._models.until(lambda: all(one.key not in served.held for served, one in leaving))

    def reason(self, key: int) -> str:
        """Removes and returns the reason why an unloaded version was put to sleep; "" if it was not."""
        return self._reasons.pop(key, "")

    def stand_in(self, served: ServedModel, version: str) -> StandIn:
        """Makes the placeholder for a version that is loaded on request."""
        target = served.target
        assert target is not None, "what is asleep is wanted"
        reason = served.resting.get(version)
        asleep = StandIn(
            served.name,
            version,
            target.source.config,
            VersionPhase.ASLEEP,
            f"{reason}; the next request loads it" if reason else "loaded by its first request",
        )
        served.take_over(asleep)
        model = asleep.model
        queue = OnDemandQueue(
            model,
            lambda: self._wake(served, asleep),
            queue_settings(model.config, self._options),
            self._total,
        )
        asleep.hold_requests(check_later, queue, queue.wake)
        return asleep

    async def _wake(self, served: ServedModel, asleep: StandIn) -> None:
        version = asleep.model.version
        why = served.resting.get(version)
        reason = await self._changes.load_now(served, version)
        one = served.ready(version)
        if one is None:
            failed = [
                other.retry_after
                for other in served.held.values()
                if other.phase is VersionPhase.FAILED and other.model.version == version
            ]
            served.awake.discard(version)
            if why is not None:
                served.rest(version, why)
            asleep.fail_to_wake(reason)
            self._advance((served.name,))
            raise Unavailable(
                f"model '{served.name}' version {version} cannot be loaded: {reason}",
                failed[-1] if failed else None,
            )
        asleep.hand_over(one.model)


#: The pause after a failed load, in seconds, unless its error has a `retry_after`. During the pause, requests
#: get the error of that load, and do not start another.
FAILURE_PAUSE = 1.0
#: The minimum duration of a timer for a deadline, in seconds.
_SHORTEST_WAIT = 0.001


def check_later(_: Ticket) -> None:
    """Accepts any request, because the signature is unknown. The real check runs once the version is
    loaded.
    """


class OnDemandQueue:
    """A queue that holds requests for `model` while `load` loads the model. Use it only on the event loop.

    `load` sets `model.serving` to the check and queue of the loaded version, to which the held requests are
    then passed. If `load` raises an error, every held request gets that error. The load
    continues even if all requests expire or are cancelled.
    """

    def __init__(
        self, model: Model, load: Callable[[], Awaitable[None]], settings: QueueSettings, total: QueueTotal
    ) -> None:
        self._model = model
        self._load = load
        self._total = total
        self._settings = settings
        self._held = make_queue(settings)
        self._held.on_left, self._held.on_displaced = self._left, self._displaced
        self._loading: asyncio.Task[None] | None = None
        self._failure: BacklineError | None = None
        self._failed_at = -inf
        self._expiry = Alarm(self._expire, asyncio.get_running_loop(), pause=_SHORTEST_WAIT)

    @property
    def pending(self) -> int:
        """The number of requests waiting for the load."""
        return self._held.size

    def submit(self, ticket: Ticket) -> None:
        """Holds a request until the version is loaded. Raises Unavailable if no more requests can be held, or
        the error of a load that failed recently.
        """
        model = self._model
        self._raise_recent_failure()
        if self._total.full:
            model.statistics.rejected_total += 1
            raise self._total.refusal(model.name)
        if not self._held.add(ticket):
            model.statistics.rejected_full += 1
            raise self._full(ticket)
        self._total.waiting += 1
        if ticket.deadline is not None:
            self._expiry.set(ticket.deadline)
        self._begin()

    async def wake(self) -> None:
        """Loads the version, and returns once it is loaded. Raises BacklineError, with the reason, if the
        load fails.
        """
        self._raise_recent_failure()
        await asyncio.shield(self._begin())
        if self._failure is not None:
            raise _again(self._failure)

    def close(self, reason: str) -> None:
        """Cancels the load, and refuses the held requests with `reason`, which says why the version will not
        be loaded.
        """
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
            what = f"loading '{self._model.name}' version {self._model.version} failed"
            self._fail(Internal(f"{what}: {type(error).__name__}: {error}"))
        else:
            self._hand_over()
        finally:
            self._loading = None

    def _fail(self, error: BacklineError) -> None:
        self._failure = error
        if error.retry_after is None:  # otherwise, the next request may try again immediately
            self._failed_at = monotonic()
        self._refuse(error)

    def _raise_recent_failure(self) -> None:
        recent = monotonic() - self._failed_at < FAILURE_PAUSE
        if self._loading is None and self._failure is not None and recent:
            raise _again(self._failure)

    def _hand_over(self) -> None:
        model = self._model
        statistics = model.statistics
        check, queue = model.serving.check, model.serving.queue
        if model.serving is NOT_SERVED or queue is self:
            what = f"model '{model.name}' version {model.version}"
            self._refuse(Unavailable(f"{what} was unloaded again; try again later", retry_after=1))
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
        self._expiry.stop()
        held = self._held.clear()
        self._total.waiting -= len(held)
        return held

    def _full(self, ticket: Ticket) -> Unavailable:
        limit = self._settings.policy_of(ticket.level).max_size
        return queue_full(self._model.name, limit, ", which is being loaded")

    def _displaced(self, ticket: Ticket) -> None:
        self._total.waiting -= 1
        self._model.statistics.rejected_full += 1
        ticket.complete(None, self._full(ticket))

    def _left(self, ticket: Ticket) -> None:
        self._total.waiting -= 1
        self._model.statistics.record_cancelled(ticket)

    def _expire(self) -> None:
        now = monotonic()
        self._expiry.set(self._held.sweep(now))
        expired, self._held.expired = self._held.expired, []
        self._total.waiting -= len(expired)
        for ticket in expired:
            self._model.statistics.record_expired(ticket)
            waited = (now - ticket.request.arrived_ns / 1e9) * 1000
            where = f"after {waited:.0f} ms while model '{self._model.name}' was loading"
            if self._held.timed_out(ticket, now):
                ticket.expire(Unavailable(f"Request timeout expired {where}"))
            else:
                ticket.expire(DeadlineExceeded(f"The deadline of the request passed {where}"))


def _again(error: BacklineError) -> BacklineError:
    """Copies an error to raise it again: an exception that is raised twice would collect both tracebacks."""
    copy = type(error)(error.message)
    copy.retry_after = error.retry_after
    return copy
