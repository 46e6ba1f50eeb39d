"""Carries out the planner's actions (load, serve, drain, retry) and tracks which models ensembles need."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Literal

from msgspec import Struct

from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.lifecycle.changes import AwaitedChanges
from backline.lifecycle.loading.load_threads import LoadThreads
from backline.lifecycle.loading.loaded import Measured
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.memory.meter import LoadMemory
from backline.lifecycle.memory.needs import Need
from backline.lifecycle.memory.residency import NoRoom, Residency
from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.plan import Action, BeginLoad, Cancel, Forget, Serve, Unload, Update, Wanted, plan
from backline.lifecycle.servable import Servable
from backline.lifecycle.served_model import UNLOADED_SHOWN_SECONDS, ServedModel
from backline.lifecycle.served_models import ServedModels
from backline.lifecycle.sleep import Sleep
from backline.lifecycle.wanted import Source
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundVersion
from backline_client.values.errors import BacklineError

log = logging.getLogger("backline.lifecycle")

#: The pause before the first retry of a failed load, in seconds. The pause doubles with each attempt, up to
#: _LONGEST_PAUSE.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
#: Seconds after a load at which the server writes the measured memory of models to the state folder.
_SAVE_AFTER = 0.5
#: One sender of files may have the number of load slots divided by _SHARE, and all senders together _SENT
#: times the number of slots.
_SHARE, _SENT = 2, 2


class Step(Struct, frozen=True):
    """An event in the life of a version or, if `kind` is "replaced", of one of its instances.

    `reason` says why the version failed or was unloaded, or why the instance was replaced.
    """

    kind: Literal["loaded", "reloaded", "updated", "failed", "unloaded", "replaced"]
    model: Model
    reason: str = ""
    #: Whether a failed load will be retried.
    again: bool = False


class Executor:
    """Carries out plans until each model has reached its target. Use it only on the engine's event loop."""

    def __init__(self, shared: Shared, on_step: Callable[[Step], None]) -> None:
        self._shared = shared
        self._engine = shared.engine
        self._options = options = shared.options
        self._on_step = on_step
        self.models = ServedModels(
            strict_readiness=options.strict_readiness,
            require_all_versions=options.require_all_versions,
            control_as_triton=options.control_as_triton,
        )
        self.changes = AwaitedChanges(self.models, self.advance)
        self.dependencies = Dependencies(shared.engine, self.models)
        sleep = self._sleep = Sleep(self.models, self.changes, shared.total, self.advance, options)
        self._residency = Residency(
            options.memory_budget,
            tenants=sleep.tenants,
            workers=shared.worker_pids,
            put_to_sleep=sleep.put,
            held=shared.held,
            gpu_budgets=None if shared.gpu_budgets is None else shared.gpu_budgets.bytes,
            release=shared.end_idle_fork_server,
        )
        #: The task that writes the measured memory of models to the state folder.
        self._saving: asyncio.Task[None] | None = None
        self._threads = LoadThreads()
        self._keys = count(1)
        #: The number of running loads by the sender of their files, which is empty for files in repositories.
        self._loading: Counter[str] = Counter()
        #: Models with loads that wait for a free slot, by sender, in order of arrival.
        self._waiting: dict[str, dict[str, None]] = {}
        #: Models with loads that ended in this turn of the event loop.
        self._ended: dict[ServedModel, None] = {}
        #: For each model and version, the fingerprint of the files that were measured, and the measurements.
        self._measured: dict[tuple[str, str], tuple[str, Measured]] = {}
        self._closed = False

    def advance(self, names: Iterable[str]) -> None:
        """Takes every step that is possible now for the named models, and for models that wait for a load
        thread. Loads and drains run as tasks, which call this method when they end.
        """
        if self._closed:
            return
        advanced = dict.fromkeys(names)
        for name in advanced:
            self._advance(self.models[name])
        for sender, waiting in tuple(self._waiting.items()):
            for name in tuple(waiting):
                if self._free_slots(sender) <= 0:
                    break
                if name not in advanced:
                    self._advance(self.models[name])
                    advanced[name] = None
        for served in self.dependencies.review():
            self._advance(served)
            advanced[served.name] = None
        # Refreshes only the models above: with thousands of models, refreshing all of them after every step
        # would take most of the startup time.
        self._engine.refresh(advanced)
        self.models.stepped()

    def _advance(self, served: ServedModel) -> None:
        target = served.change or served.target
        sender = "" if target is None else target.source.sender
        while True:
            served.move_labels()
            served.follow_target()
            goals = served.wanted()
            # The plan includes this model's own running loads, so their slots count as available to it.
            own = sum(one.phase is VersionPhase.LOADING for one in served.held.values())
            slots = own + max(self._free_slots(sender), self._free_slots(""))
            actions = plan(goals, served.planned(), now=time.monotonic(), load_slots=slots)
            if not sum(self._carry_out(served, action) for action in actions):
                break
        there = {
            (one.model.version, one.fingerprint)
            for one in served.held.values()
            if one.phase is not VersionPhase.DRAINING
        }
        waits = any(goal.loaded and (goal.version, goal.fingerprint) not in there for goal in goals)
        if waits:
            self._waiting.setdefault(sender, {})[served.name] = None
        for other, waiting in tuple(self._waiting.items()):
            if served.name in waiting and not (waits and other == sender):
                del waiting[served.name]
                if not waiting:  # clients may come from any number of addresses
                    del self._waiting[other]
        served.publish(
            self._engine,
            goals,
            lambda version: self._sleep.stand_in(served, version),
            started=self._shared.started,
        )
        if served.gone:
            self.models.forget(served.name)
            self._engine.forget(served.name)

    def _carry_out(self, served: ServedModel, action: Action) -> bool:
        """Carries out one action; returns whether a new plan is needed now. After an action that starts or
        cancels a load, the next plan is made when the load ends.
        """
        match action:
            case BeginLoad(goal, instead):
                if self.dependencies.is_waiting(_config(goal)):
                    return False
                target, version = served.find(goal)
                if self._free_slots(target.source.sender) > 0:
                    attempt = 1 if instead is None else served.held.pop(instead).attempt + 1
                    self._begin_load(served, goal, target.source, version, attempt)
                return False
            case Serve(key):
                one = served.held[key]
                before = served.ready(one.model.version)
                one.serve()
                self._look_for_idle(one)
                self._on_step(Step("loaded" if before is None else "reloaded", one.model))
            case Update(key, goal):
                one = served.held[key]
                one.update(_config(goal))
                self._look_for_idle(one)
                self._on_step(Step("updated", one.model))
            case Unload(key):
                one = served.held[key]
                one.begin_drain()
                one.task = asyncio.get_running_loop().create_task(self._drain(served, one))
            case Cancel(key):
                task = served.held[key].task
                if task is not None and not task.cancelling():
                    task.cancel()
                return False
            case Forget(key):
                del served.held[key]
        return True

    def _look_for_idle(self, one: Servable) -> None:
        if one.model.config.idle_unload_seconds is not None:
            self._residency.look_for_idle()

    def _free_slots(self, sender: str) -> int:
        """Returns how many more loads of files from this sender may begin now.

        Security: a load may never end, so what clients send must not take the slots of the repositories, nor
        those of other senders.
        """
        most, repositories = self._options.load_threads, self._loading[""]
        if not sender:
            return most - repositories
        sent = self._loading.total() - repositories
        return min(max(1, most // _SHARE) - self._loading[sender], _SENT * most - sent)

    def _begin_load(
        self, served: ServedModel, goal: Wanted, source: Source, version: FoundVersion, attempt: int
    ) -> None:
        one = _servable_class(source.config)(
            next(self._keys),
            source.config,
            version,
            goal.fingerprint,
            lambda on_bytes: source.repository.fetch(source.found, version, on_bytes),
            self._shared,
            statistics=served.statistics(version.version),
            attempt=attempt,
            another_serves=any(other.phase is VersionPhase.READY for other in served.held.values()),
            from_elsewhere=bool(source.sender) or not isinstance(source.repository, LocalRepository),
            on_given_up=lambda model, reason: self._on_step(Step("replaced", model, reason)),
            on_redescribed=lambda one: self._load_again(served, one),
            on_resized=self.models.stepped,
        )
        served.held[one.key] = one
        if source.config.ensemble is not None:
            self.dependencies.composed.add(served.name)
        log.info("loading: %s:%s", served.name, version.version)
        self._loading[source.sender] += 1
        one.task = asyncio.get_running_loop().create_task(self._load(served, one))
        # The count of running loads is corrected in a callback, because a task that is cancelled before it
        # begins runs none of its own code, not even a `finally`.
        one.task.add_done_callback(lambda _: self._load_ended(served, one, source.sender))

    def _load_again(self, served: ServedModel, one: Servable) -> None:
        """Loads a remote version again although its files are the same, because the servers that run it have
        changed it. The current load serves until the new one is ready.
        """
        version = one.model.version
        if served.ready(version) is one and served.load_again(version):
            log.info(
                "model '%s' version %s changed on its servers, so it is loaded again", served.name, version
            )
            self.advance_known(served)

    async def _load(self, served: ServedModel, one: Servable) -> None:
        model = one.model
        began = time.monotonic()
        fingerprint, measured = self._measured.get((model.name, model.version), ("", None))
        known = measured if fingerprint == one.fingerprint else None
        requested = served.change is not None or model.version in served.awake
        evict = model.config.pinned or one.another_serves or requested
        try:
            await self._load_within_budget(one, known, evict=evict)
        except NoRoom as error:
            if evict:
                one.retry_after = error.retry_after
                self._fail(served, one, error.message, time.monotonic() - began)
            else:  # no request waits for this load, so it must not evict other versions
                del served.held[one.key]
                served.rest(model.version, "not loaded, as the memory budget is used up")
        except BacklineError as error:
            self._fail(served, one, _reason(model, error), time.monotonic() - began)
        except MemoryError:
            self._fail(served, one, "there is not enough memory to load it", time.monotonic() - began)
        except Exception as error:
            from backline.system.exhaustion import exhausted  # rarely needed

            reason = exhausted(error)
            if not reason:
                log.exception("loading '%s' version %s failed", model.name, model.version)
                reason = f"{type(error).__name__}: {error}"
            self._fail(served, one, reason, time.monotonic() - began)
        else:
            self._engine.record_load(model.name, time.monotonic() - began, succeeded=True)
            self._save_needs()
            if one.measured is not None:
                self._measured[model.name, model.version] = (one.fingerprint, one.measured)

    def _load_ended(self, served: ServedModel, one: Servable, sender: str) -> None:
        if one.phase is VersionPhase.LOADING:  # the load was cancelled
            served.held.pop(one.key, None)
        self._loading[sender] -= 1
        if not self._loading[sender]:
            del self._loading[sender]
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._advance_ended)
        self._ended[served] = None

    def _advance_ended(self) -> None:
        """Advances all models whose loads ended in this turn of the loop. Advancing them together costs less
        than advancing them one by one.
        """
        ended, self._ended = self._ended, {}
        self.advance([served.name for served in ended if self.models.find(served.name) is served])

    async def _load_within_budget(self, one: Servable, known: Measured | None, *, evict: bool) -> None:
        """Loads a version. Raises NoRoom if it does not fit into the memory budget, and the errors of
        Servable.load.
        """
        shared, residency, kind = self._shared, self._residency, one.kind
        needs = shared.needs
        label = f"model '{one.model.name}' version {one.model.version}"

        async def settle(memory: LoadMemory) -> None:
            if memory.need.measured:
                needs.learn(kind, memory.need)
            if residency.limited:
                assert reservation is not None, "it is loaded within its reservation"
                await residency.settle(reservation, memory.need)

        def need() -> Need:
            tried = known is not None or needs.of(kind).measured
            return needs.of(kind, starts_fork_server=shared.needs_fork_server(tried=tried))

        if not residency.limited:
            reservation = None
            await one.load(self._threads, known, settle)
            return
        while True:
            reservation = None
            try:
                async with residency.room(label, need, evict=evict, pids=lambda: one.pids) as reservation:
                    await residency.watch(
                        reservation,
                        one.load(self._threads, known, settle),
                        seen=lambda own: needs.learn(kind, Need(own, own)),
                    )
                return
            except NoRoom:
                if reservation is None or not reservation.crowded_out:
                    raise
                # The loop tries again, and reserves the minimum that the load is now known to need.

    def _save_needs(self) -> None:
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save_later())

    async def _save_later(self) -> None:
        await asyncio.sleep(
            _SAVE_AFTER
        )  # thousands of loads in a row must not write the file thousands of times
        await asyncio.to_thread(self._shared.needs.save)

    def _fail(self, served: ServedModel, one: Servable, reason: str, seconds: float) -> None:
        model = one.model
        self._engine.record_load(model.name, seconds, succeeded=False)
        configured = model.config.load_retries
        retries = self._options.load_retries if configured is None else configured
        again = None
        if one.attempt <= retries and not one.hopeless and not self._closed:
            pause = min(_FIRST_PAUSE * 2 ** (one.attempt - 1), _LONGEST_PAUSE)
            again = time.monotonic() + pause
            self._advance_later(pause, served)
            reason = f"{reason}; trying again in {pause:.0f} s (attempt {one.attempt + 1} of {retries + 1})"
        one.fail(reason, again)
        self._on_step(Step("failed", model, reason, again is not None))

    async def _drain(self, served: ServedModel, one: Servable) -> None:
        try:
            await one.drain(self._options.drain_seconds)
        except Exception:
            log.exception("unloading '%s' version %s failed", one.model.name, one.model.version)
        served.unloaded(one)
        self._advance_later(UNLOADED_SHOWN_SECONDS, served)
        self._on_step(Step("unloaded", one.model, self._sleep.reason(one.key)))
        self.advance((served.name,))

    def _advance_later(self, seconds: float, served: ServedModel) -> None:
        # The call is 2 ms late on purpose: timers of the event loop may fire early, when the retry is not due
        # yet.
        asyncio.get_running_loop().call_later(seconds + 0.002, self.advance_known, served)

    def advance_known(self, served: ServedModel) -> None:
        """Advances a model, unless it has been removed (and perhaps replaced by one of the same name)."""
        if self.models.find(served.name) is served:
            self.advance((served.name,))

    async def close(self) -> None:
        """Refuses new and queued requests, waits for running requests to complete, and frees the models."""
        self._closed = True
        self._residency.close()
        self.models.close()
        held = [one for served in self.models for one in served.held.values()]
        tasks = [one.task for one in held if one.task is not None and not one.task.done()]
        for task in tasks:
            task.cancel()
        for one in held:
            if one.phase in (VersionPhase.READY, VersionPhase.LOADED):
                one.begin_drain()
        self._engine.refresh()
        if tasks:
            await asyncio.wait(tasks)
        if self._saving is not None:
            self._saving.cancel()
        await asyncio.to_thread(self._shared.needs.save)
        draining = [one for one in held if one.phase is VersionPhase.DRAINING]
        # Drains all at once, because killing a worker process that does not respond takes seconds.
        await asyncio.gather(*(one.drain(0) for one in draining))
        for one in draining:
            one.end()
        self._engine.refresh()
        self._shared.close()


def _config(goal: Wanted) -> ModelConfig:
    assert isinstance(goal.settings, ModelConfig), "the settings of a goal are its configuration"
    return goal.settings


def _servable_class(config: ModelConfig) -> type[Servable]:
    if config.ensemble is None:
        return Servable
    # Imported late, so that servers without ensembles do not import their queue.
    from backline.lifecycle.composed import ComposedServable

    return ComposedServable


def composed_of(config: ModelConfig) -> frozenset[str]:
    """Returns the names of the models that an ensemble calls; none for other models."""
    return config.ensemble.models if config.ensemble is not None else frozenset()


class Dependencies:
    """Determines which models are called by which ensembles. Use it only on the event loop."""

    def __init__(self, engine: Engine, models: ServedModels) -> None:
        self._engine = engine
        self._models = models
        #: The names of all ensembles that were loaded. May include models that are no longer ensembles.
        self.composed: set[str] = set()

    def asking(self, name: str) -> list[str]:
        """Returns the models that should be served and that call the model `name`, directly or through
        others.
        """
        targets = {served.name: served.target for served in self._models if served.target is not None}
        return [other for other, target in targets.items() if self._asks(target.source.config, name, set())]

    def needed(self) -> set[str]:
        """Returns the models that are called directly by ensembles that should be served."""
        sources = (served.target.source for served in self._models if served.target)
        return {name for source in sources for name in composed_of(source.config)}

    def only_of(self, name: str) -> list[str]:
        """Returns the models that are called only by the ensemble `name`, or only by it and other models in
        the result.
        """
        targets = {served.name: served.target for served in self._models if served.target is not None}
        steps = {other: composed_of(target.source.config) for other, target in targets.items()}
        found = {name}
        while True:
            needed: set[str] = set().union(*(called for other, called in steps.items() if other not in found))
            more = {step for other in found for step in steps.get(other, ())} - needed - found
            if not more:
                return sorted(found - {name})
            found |= more

    def is_waiting(self, config: ModelConfig) -> bool:
        """Returns whether the load of an ensemble must wait for loads of models that it calls."""
        if config.ensemble is None:
            return False
        from backline.lifecycle.composed import unanswered_step

        if not unanswered_step(self._engine, config) or self._asks(config, config.name, set()):
            return False
        steps = (self._models.find(name) for name in config.ensemble.models)
        return any(step is not None and not step.settled for step in steps)

    def review(self) -> Iterator[ServedModel]:
        """Takes an ensemble out of service if a model that it calls is out of service, and allows a new load
        of the ensemble once all the models that it calls are ready again.

        Yields the models for which the executor has to take further steps. Repeats until nothing changes,
        because an ensemble may call another ensemble.
        """
        changed = True
        while changed:
            changed = False
            for served in filter(None, map(self._models.find, sorted(self.composed))):
                for one in tuple(served.held.values()):
                    if one.review():
                        changed = True
                        if one.phase is VersionPhase.FAILED and one.may_come_back:
                            del served.held[one.key]
                        yield served

    def _asks(self, config: ModelConfig, name: str, seen: set[str]) -> bool:
        """Returns whether a model calls the model `name`, directly or through others."""
        for asked in composed_of(config) - seen:
            seen.add(asked)
            served = self._models.find(asked)
            target = served.target if served is not None else None
            if asked == name or (target is not None and self._asks(target.source.config, name, seen)):
                return True
        return False


def _reason(model: Model, error: BacklineError) -> str:
    """Returns why a load failed, without the model's name and version, because every place that shows the
    reason shows these too.

    If the model's own code failed, the reason begins with "Internal:", as in Triton.
    """
    named = f"model '{model.name}' version {model.version} cannot be loaded: "
    message = error.message
    return f"Internal: {message.removeprefix(named)}" if message.startswith(named) else message
