"""Versions that are unloaded until a request comes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable

from backline.engine.errors import Unavailable
from backline.lifecycle.changes import AwaitedChanges
from backline.lifecycle.loading.queueing import queue_settings
from backline.lifecycle.memory.budget import Tenant
from backline.lifecycle.memory.on_demand import OnDemandQueue, check_later
from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.served_models import ServedModels
from backline.lifecycle.shown_version import StandIn
from backline.schedule.total import QueueTotal


class Sleep:
    """Unloads versions, stands in for them, and reloads them on request. Lives on the event loop."""

    def __init__(
        self,
        models: ServedModels,
        changes: AwaitedChanges,
        total: QueueTotal,
        advance: Callable[[Iterable[str]], None],
    ) -> None:
        self._models = models
        self._changes = changes
        self._total = total
        self._advance = advance
        #: Why versions that are being unloaded were put to sleep, by key.
        self._reasons: dict[int, str] = {}

    def tenants(self) -> list[Tenant]:
        """The loaded versions, for Residency."""
        return [
            Tenant(
                (served.name, one.key),
                one.model.memory_bytes,
                one.last_used,
                pinned=one.model.config.pinned,
                busy=one.busy or not served.may_rest(one),
                idle_limit=one.model.config.idle_unload_seconds,
            )
            for served in self._models
            for one in served.held.values()
            if one.phase is VersionPhase.READY
        ]

    async def put(self, keys: Collection[Hashable], reason: str) -> None:
        """Unloads tenants, to be reloaded on request; returns when they are gone."""
        leaving = [
            (served, one)
            for served in self._models
            for one in served.held.values()
            if (served.name, one.key) in keys
        ]
        for served, one in leaving:
            served.rest(one.model.version, reason)
            self._reasons[one.key] = reason
        self._advance({served.name for served, _ in leaving})
        await self._models.until(lambda: all(one.key not in served.held for served, one in leaving))

    def reason(self, key: int) -> str:
        """Why an unloaded version was put to sleep, "" if it was not. Can be asked once."""
        return self._reasons.pop(key, "")

    def stand_in(self, served: ServedModel, version: str) -> StandIn:
        """Makes the stand-in for a version that is loaded on request."""
        target = served.target
        assert target is not None, "what is asleep is wanted"
        reason = served.resting.get(version)
        asleep = StandIn(
            served.name,
            version,
            target.source.config,
            VersionPhase.ASLEEP,
            f"{reason}; loaded again when a request comes" if reason else "loaded when a request comes",
        )
        served.take_over(asleep)
        model = asleep.model
        queue = OnDemandQueue(
            model, lambda: self._wake(served, asleep), queue_settings(model.config), self._total
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
