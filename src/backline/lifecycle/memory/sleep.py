"""Versions that are not in memory until a request asks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable

from backline.engine.errors import Unavailable
from backline.engine.model import Model, ModelState
from backline.lifecycle.changes import Changes
from backline.lifecycle.loading.queueing import queue_settings
from backline.lifecycle.memory.budget import Tenant
from backline.lifecycle.memory.on_demand import OnDemandQueue, check_later
from backline.lifecycle.plan import Phase
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.served_models import ServedModels
from backline.schedule.queues.queue import QueueTotal


class Sleep:
    """Puts versions to sleep, stands in for them, and wakes them. `advance` takes the steps of some models. Lives on the event loop."""

    def __init__(
        self,
        models: ServedModels,
        changes: Changes,
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
        """The versions that are in memory, for Residency."""
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
            if one.phase is Phase.READY
        ]

    async def put(self, keys: Collection[Hashable], reason: str) -> None:
        """Unloads tenants, to be loaded again on request; returns when they are gone."""
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
        """Why a version that was unloaded was put to sleep; empty where it was not. To be asked once."""
        return self._reasons.pop(key, "")

    def stand_in(self, served: ServedModel, version: str) -> Model:
        """What stands for a version that is loaded when a request comes."""
        target = served.target
        assert target is not None, "what is asleep is wanted"
        model = Model(served.name, version, target.source.config)
        model.state = ModelState.UNAVAILABLE
        reason = served.resting.get(version)
        model.reason = (
            f"{reason}; loaded again when a request comes" if reason else "loaded when a request comes"
        )
        served.take_over(model)
        model.on_demand = True
        model.check = check_later
        queue = OnDemandQueue(
            model, lambda: self._wake(served, model), queue_settings(model.config), self._total
        )
        model.queue = queue
        model.wake = queue.wake
        return model

    async def _wake(self, served: ServedModel, asleep: Model) -> None:
        version = asleep.version
        why = served.resting.get(version)
        reason = await self._changes.load_now(served, version)
        one = served.ready(version)
        if one is None:
            failed = [
                other.retry_after
                for other in served.held.values()
                if other.phase is Phase.FAILED and other.model.version == version
            ]
            served.awake.discard(version)
            if why is not None:
                served.rest(version, why)
            asleep.reason = f"the last load failed: {reason}; tried again when a request comes"
            self._advance((served.name,))
            raise Unavailable(
                f"model '{served.name}' version {version} cannot be loaded: {reason}",
                failed[-1] if failed else None,
            )
        asleep.check, asleep.queue = one.model.check, one.model.queue
