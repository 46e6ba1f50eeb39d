"""The one that carries plans out: loads in parallel, switches, drains, tries again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

from backline.engine.engine import Engine, Model, ModelState
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.model_config import ModelConfig
from backline.lifecycle.budget import Tenant
from backline.lifecycle.call_graph import CallGraph
from backline.lifecycle.composed import ComposedServable, composed_of
from backline.lifecycle.ensemble_steps import unanswered_step
from backline.lifecycle.load_threads import LoadThreads
from backline.lifecycle.loader import Measured
from backline.lifecycle.model_calls import ModelCalls
from backline.lifecycle.on_demand import OnDemandQueue, check_later
from backline.lifecycle.plan import Action, Cancel, Forget, Load, Phase, Serve, Unload, Update, Wanted, plan
from backline.lifecycle.queueing import queue_settings
from backline.lifecycle.residency import NoRoom, Residency
from backline.lifecycle.servable import Servable
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.target import Target
from backline.observe.recording import recorded_file
from backline.repository.local import LocalRepository
from backline.schedule.cache import ResponseCache
from backline.schedule.permits import Permits
from backline.schedule.state_store import MemoryStateStore
from backline.schedule.total import QueueTotal
from backline.workers.core_budget import CoreBudget
from backline.workers.environments.store import Environments

log = logging.getLogger("backline.lifecycle")

#: Seconds until a failed load is tried again; doubled with every attempt, up to the second number.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """Something became of a version, or with "replaced" of one of its instances; `reason` is why it failed, or was put to sleep."""

    kind: Literal["loaded", "reloaded", "updated", "failed", "unloaded", "replaced"]
    model: Model
    reason: str = ""
    #: Whether a load that failed is tried again.
    again: bool = False


class Executor:
    """Holds the models, and brings each to its target. Lives on the engine's event loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        load_slots: int,
        retries: int,
        drain_seconds: float,
        strict_readiness: bool,
        trust_pickle: bool,
        trust_remote_code: bool,
        may_complete: bool,
        memory_budget: int | None,
        max_queued_requests: int | None,
        cores: CoreBudget | None,
        permits: Permits | None,
        response_cache: ResponseCache | None,
        state_folder: Path,
        environments: Environments,
        debugged_model: str,
        on_step: Callable[[Step], None],
    ) -> None:
        self._engine = engine
        self._load_slots = load_slots
        self._retries = retries
        self._drain_seconds = drain_seconds
        self._strict_readiness = strict_readiness
        self._trust_pickle = trust_pickle
        self._trust_remote_code = trust_remote_code
        self._may_complete = may_complete
        self._state_folder = state_folder
        self._environments = environments
        self._debugged_model = debugged_model
        self._total = QueueTotal(max_queued_requests)
        self._permits = permits
        self._cores = cores
        #: Outlives the loads of versions, so that sequences go on with the next one.
        self._states = MemoryStateStore()
        self._cache = response_cache
        self._on_step = on_step
        self._residency = Residency(memory_budget, tenants=self._tenants, put_to_sleep=self._put_to_sleep)
        self._threads = LoadThreads()
        self._keys = count(1)
        self._call_graph = CallGraph()
        self._models: dict[str, ServedModel] = {}
        self._loading = 0
        #: Why versions that are being unloaded were put to sleep, by key.
        self._sent_to_sleep: dict[int, str] = {}
        #: Names of models whose change is to end, whatever it has come to.
        self._ended_changes: set[str] = set()
        #: Names of models with loads for which no slot was free, in their order.
        self._waiting: dict[str, None] = {}
        #: What loads have measured, by name, version and fingerprint.
        self._measured: dict[tuple[str, str], tuple[str, Measured]] = {}
        self._watchers: list[asyncio.Future[None]] = []
        self._started = False
        self._closed = False

    def model(self, name: str) -> ServedModel:
        """The model of a name; a new one has no target."""
        return self._models.setdefault(name, ServedModel(name, strict_readiness=self._strict_readiness))

    def find(self, name: str) -> ServedModel | None:
        return self._models.get(name)

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def started(self) -> None:
        """What the start was to load is loaded, or has failed."""
        self._started = True

    # steps

    def advance(self, names: Iterable[str]) -> None:
        """Takes all steps that can be taken now; those that take time go on by themselves."""
        if self._closed:
            return
        mine = dict.fromkeys(names)
        for name in (*mine, *(name for name in self._waiting if name not in mine)):
            if name in mine or self._loading < self._load_slots:
                self._advance(self.model(name))
        self._review_composed()
        self._engine.refresh()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _advance(self, served: ServedModel) -> None:
        while True:
            served.move_labels()
            own = sum(one.phase is Phase.LOADING for one in served.held.values())
            slots = self._load_slots - self._loading + own
            actions = plan(served.wanted(), [one.held() for one in served.held.values()], now=time.monotonic(), load_slots=slots)
            if not sum(self._carry_out(served, action) for action in actions):
                break
        there = {(one.model.version, one.fingerprint) for one in served.held.values() if one.phase is not Phase.DRAINING}
        if any(goal.loaded and (goal.version, goal.fingerprint) not in there for goal in served.wanted()):
            self._waiting[served.name] = None
        else:
            self._waiting.pop(served.name, None)
        served.publish(self._engine, lambda version: self._asleep(served, version), started=self._started)
        if served.gone:
            del self._models[served.name]
            self._engine.forget(served.name)

    def _review_composed(self) -> None:
        """Ensembles go out of service with the models they ask, and come back with them; one may ask another."""
        changed = True
        while changed:
            changed = False
            for served in tuple(self._models.values()):
                for one in tuple(served.held.values()):
                    if isinstance(one, ComposedServable) and one.review():
                        changed = True
                        if one.phase is Phase.FAILED and not unanswered_step(self._engine, one.model.config):
                            del served.held[one.key]
                        self._advance(served)

    def _waits_for_steps(self, config: ModelConfig) -> bool:
        """Whether an ensemble is not loaded yet, as loads of models that it asks are under way."""
        if not unanswered_step(self._engine, config) or self._asks(config, config.name, set()):
            return False
        steps = (self._models.get(name) for name in composed_of(config))
        return any(step is not None and not step.settled for step in steps)

    def _asks(self, config: ModelConfig, name: str, seen: set[str]) -> bool:
        """Whether a model asks another, perhaps by others in between."""
        for asked in composed_of(config) - seen:
            seen.add(asked)
            served = self._models.get(asked)
            target = served.target if served is not None else None
            if asked == name or (target is not None and self._asks(target.source.config, name, seen)):
                return True
        return False

    def asking(self, name: str) -> list[str]:
        """The models that are to be served and ask this one, perhaps by others in between."""
        targets = {other: served.target for other, served in self._models.items() if served.target is not None}
        return [other for other, target in targets.items() if self._asks(target.source.config, name, set())]

    def _carry_out(self, served: ServedModel, action: Action) -> bool:
        """Returns whether there was something to do."""
        match action:
            case Load(goal, instead):
                if isinstance(goal.settings, ModelConfig) and goal.settings.ensemble is not None and self._waits_for_steps(goal.settings):
                    return False
                attempt = 1 if instead is None else served.held.pop(instead).attempt + 1
                self._begin_load(served, goal, attempt)
            case Serve(key):
                one = served.held[key]
                before = served.ready(one.model.version)
                one.serve()
                if one.model.config.idle_unload_seconds is not None:
                    self._residency.look_for_idle()
                self._on_step(Step("loaded" if before is None else "reloaded", one.model))
            case Update(key, goal):
                served.held[key].update(goal.settings)  # type: ignore[arg-type]  # the settings are the configuration
                if served.held[key].model.config.idle_unload_seconds is not None:
                    self._residency.look_for_idle()
                self._on_step(Step("updated", served.held[key].model))
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

    def _begin_load(self, served: ServedModel, goal: Wanted, attempt: int) -> None:
        target, version = served.find(goal)
        source = target.source
        make = partial(ComposedServable, self._engine) if source.config.ensemble is not None else Servable
        one: Servable = make(
            next(self._keys),
            source.config,
            version,
            goal.fingerprint,
            lambda on_bytes: source.repository.fetch(source.found, version, on_bytes),
            statistics=served.statistics(version.version),
            total=self._total,
            permits=self._permits,
            cores=self._cores,
            states=self._states,
            cache=self._cache,
            meter=self._residency.meter,
            recorded=recorded_file(self._state_folder, served.name),
            attempt=attempt,
            at_start=not self._started,
            trust_pickle=self._trust_pickle,
            refresh=self._engine.refresh,
            on_given_up=lambda model, reason: self._on_step(Step("replaced", model, reason)),
            calls=partial(ModelCalls, self._engine, self._call_graph),
            environments=self._environments,
            debugged=served.name == self._debugged_model,
            may_complete=self._may_complete,
            may_run_code=self._trust_remote_code or (source.own_files and isinstance(source.repository, LocalRepository)),
            beside_serving=any(other.phase is Phase.READY for other in served.held.values()),
        )
        served.held[one.key] = one
        self._loading += 1
        one.task = asyncio.get_running_loop().create_task(self._load(served, one))

    async def _load(self, served: ServedModel, one: Servable) -> None:
        model = one.model
        began = time.monotonic()
        known = self._measured.get((model.name, model.version))
        evict = model.config.pinned or one.beside_serving or served.change is not None or model.version in served.awake
        try:
            async with self._residency.room(f"model '{model.name}' version {model.version}", one.file_bytes, evict=evict):
                await one.load(self._threads, known[1] if known is not None and known[0] == one.fingerprint else None)
        except asyncio.CancelledError:
            served.held.pop(one.key, None)
        except NoRoom as error:
            if evict:
                one.retry_after = error.retry_after
                self._fail(served, one, error.message, time.monotonic() - began)
            else:  # nobody asked for it yet
                del served.held[one.key]
                served.rest(model.version, "not loaded, as the memory budget is used up")
        except BacklineError as error:
            self._fail(served, one, error.message, time.monotonic() - began)
        except Exception as error:
            log.exception("loading '%s' version %s failed", model.name, model.version)
            self._fail(served, one, f"{type(error).__name__}: {error}", time.monotonic() - began)
        else:
            self._engine.record_load(model.name, time.monotonic() - began, succeeded=True)
            if one.measured is not None:
                self._measured[model.name, model.version] = (one.fingerprint, one.measured)
        finally:
            self._loading -= 1
            self.advance((served.name,))

    def _fail(self, served: ServedModel, one: Servable, reason: str, seconds: float) -> None:
        model = one.model
        self._engine.record_load(model.name, seconds, succeeded=False)
        retries = model.config.load_retries if model.config.load_retries is not None else self._retries
        again = None
        if one.attempt <= retries and not self._closed:
            pause = min(_FIRST_PAUSE * 2 ** (one.attempt - 1), _LONGEST_PAUSE)
            again = time.monotonic() + pause
            loop = asyncio.get_running_loop()
            # A little later than planned: the loop's timers may be early.
            loop.call_later(pause + 0.002, self.advance, (served.name,))
            reason = f"{reason}; tried again in {pause:.0f} s (attempt {one.attempt + 1} of {retries + 1})"
        one.fail(reason, again)
        self._on_step(Step("failed", model, reason, again is not None))

    async def _drain(self, served: ServedModel, one: Servable) -> None:
        try:
            await one.drain(self._drain_seconds)
        except Exception:
            log.exception("unloading '%s' version %s failed", one.model.name, one.model.version)
        await self._residency.give_back()
        served.unloaded(one)
        self._on_step(Step("unloaded", one.model, self._sent_to_sleep.pop(one.key, "")))
        self.advance((served.name,))

    # on demand

    def _asleep(self, served: ServedModel, version: str) -> Model:
        """What stands for a version that is loaded when a request comes."""
        target = served.target
        assert target is not None, "what is asleep is wanted"
        model = Model(served.name, version, target.source.config)
        model.state = ModelState.UNAVAILABLE
        reason = served.resting.get(version)
        model.reason = f"{reason}; loaded again when a request comes" if reason else "loaded when a request comes"
        served.take_over(model)
        model.on_demand = True
        model.check = check_later
        queue = OnDemandQueue(
            model,
            lambda: self._wake(served, model),
            queue_settings(model.config),
            self._total,
        )
        model.queue = queue
        model.wake = queue.wake
        return model

    async def _wake(self, served: ServedModel, asleep: Model) -> None:
        version = asleep.version
        why = served.resting.get(version)
        await self._load_now(served, version)
        one = served.ready(version)
        if one is None:
            reason = self._ended(served, version)
            failed = [other.retry_after for other in served.held.values() if other.phase is Phase.FAILED and other.model.version == version]
            served.awake.discard(version)
            if why is not None:
                served.rest(version, why)
            asleep.reason = f"the last load failed: {reason}; tried again when a request comes"
            self.advance((served.name,))
            raise Unavailable(f"model '{served.name}' version {version} cannot be loaded: {reason}", failed[-1] if failed else None)
        asleep.check, asleep.queue = one.model.check, one.model.queue

    async def bring_up(self, served: ServedModel, version: str) -> bool:
        """Returns when a version is ready, and whether it was added to the target. Raises InvalidArgument when it cannot be loaded."""
        before = served.target
        if served.ready(version) is not None or before is None:
            return False
        served.target = replace(before, beside=before.beside | {version}, without=before.without - {version})
        await self._load_now(served, version)
        if served.ready(version) is None:
            reason = self._ended(served, version)
            if served.target is not None and version not in before.beside:
                served.target = replace(served.target, beside=served.target.beside - {version})
            self.advance((served.name,))
            raise InvalidArgument(f"version {version} of '{served.name}' cannot be loaded: {reason}")
        return version not in before.beside

    async def _load_now(self, served: ServedModel, version: str) -> None:
        """Returns when the load of a wanted version has ended, well or not."""
        served.awake.add(version)
        served.resting.pop(version, None)
        for one in [one for one in served.held.values() if one.phase is Phase.FAILED and one.model.version == version]:
            del served.held[one.key]
        self.advance((served.name,))
        await self.until(lambda: self._ended(served, version) is not None)

    def _ended(self, served: ServedModel, version: str) -> str | None:
        """None while a version is being loaded, else why it failed, empty when it is ready."""
        if served.ready(version) is not None:
            return ""
        held = [one for one in served.held.values() if one.model.version == version and one.phase is not Phase.DRAINING]
        failed = [one.model.reason for one in held if one.phase is Phase.FAILED and one.retry_at is None]
        if failed:
            return failed[-1]
        return None if any(goal.version == version for goal in served.wanted()) else "it is no longer served"

    # memory

    def _tenants(self) -> list[Tenant]:
        return [
            Tenant(
                (served.name, one.key),
                one.model.memory_bytes,
                one.last_used,
                pinned=one.model.config.pinned,
                busy=one.busy or not served.may_rest(one),
                idle_limit=one.model.config.idle_unload_seconds,
            )
            for served in self._models.values()
            for one in served.held.values()
            if one.phase is Phase.READY
        ]

    async def _put_to_sleep(self, keys: Collection[Hashable], reason: str) -> None:
        leaving = [(served, one) for served in self._models.values() for one in served.held.values() if (served.name, one.key) in keys]
        for served, one in leaving:
            served.rest(one.model.version, reason)
            self._sent_to_sleep[one.key] = reason
        self.advance({served.name for served, _ in leaving})
        await self.until(lambda: all(one.key not in served.held for served, one in leaving))

    # waiting, and the end

    async def until(self, reached: Callable[[], bool]) -> None:
        """Returns when something that steps bring about has come."""
        while not reached():
            if self._closed:
                raise Unavailable("the server is stopping")
            watcher = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            await watcher

    async def settle(self, names: Iterable[str] | None = None) -> None:
        """Returns when nothing more happens by itself, to some models or to all."""
        for name in self.names if names is None else names:
            await self.until(lambda name=name: name not in self._models or self._models[name].settled)  # type: ignore[misc]

    async def change(self, name: str, target: Target) -> None:
        """Brings a model to a target as a whole. When a version fails everything stays as it was, and InvalidArgument has the reasons."""
        served = self.model(name)
        served.failures.clear()
        served.change = target
        for one in [one for one in served.held.values() if one.phase is Phase.FAILED]:
            del served.held[one.key]
        self.advance((name,))
        try:
            await self.until(lambda: served.outcome() is not None or name in self._ended_changes)
            if name in self._ended_changes:
                raise Unavailable(f"the load of '{name}' was ended by a request to unload it")
            failures = served.outcome() or {}
        except BaseException:
            served.change = None
            self.advance((name,))
            raise
        finally:
            self._ended_changes.discard(name)
        served.change = None
        if not failures:
            served.target = target
        else:
            served.note_failures(target, failures)
        self.advance((name,))
        if failures:
            # Triton's words.
            reasons = "".join(f"version {version} is at UNAVAILABLE state: {reason};\n" for version, reason in failures.items())
            raise InvalidArgument(f"load failed for model '{name}': {reasons}")

    def end_change(self, name: str) -> None:
        """Ends the change of a model that is under way, if one is: its load may have no end of its own."""
        served = self._models.get(name)
        if served is not None and served.change is not None and served.outcome() is None:
            self._ended_changes.add(name)
            self.advance((name,))

    async def close(self) -> None:
        """Takes no further request, refuses what still waits, lets what runs end, and gives the models' memory back."""
        self._closed = True
        self._residency.close()
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        held = [one for served in self._models.values() for one in served.held.values()]
        tasks = [one.task for one in held if one.task is not None and not one.task.done()]
        for task in tasks:
            task.cancel()
        for one in held:
            if one.phase in (Phase.READY, Phase.LOADED):
                one.begin_drain()
        self._engine.refresh()
        if tasks:
            await asyncio.wait(tasks)
        for one in held:
            if one.phase is Phase.DRAINING:
                await one.drain(0)
        self._engine.refresh()
