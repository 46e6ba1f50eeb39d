"""What is served, and who may change it: the repositories, their configurations, and requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from backline.engine.control import ANY_VERSION, STABLE, Action, Change, Overrides
from backline.engine.engine import Engine, ModelState, version_order
from backline.engine.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from backline.lifecycle.audit import AuditLog
from backline.lifecycle.composed import composed_of
from backline.lifecycle.cores import usable_cores
from backline.lifecycle.executor import Executor, Step
from backline.lifecycle.labelling import Labelling
from backline.lifecycle.labels import LabelStore
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.lifecycle.overriding import OverridingFiles, with_configuration
from backline.lifecycle.residency import TO_MAKE_ROOM, WHEN_IDLE
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.sources import Sources
from backline.lifecycle.state_folder import default_state_folder
from backline.lifecycle.target import Source, Target, listed
from backline.lifecycle.version_policy import select
from backline.repository.repository import Repository
from backline.schedule.cache_config import open_cache
from backline.schedule.permits import Permits
from backline.schedule.rate_limits import RateLimits, parse_resources
from backline.workers.core_budget import CoreBudget
from backline.workers.environments.store import Environments, default_folder

log = logging.getLogger("backline.lifecycle")

#: In the audit log, who changed what nobody asked for by name: a change in a repository, a request to a version that was on demand, ...
REPOSITORY = "repository"
REQUEST = "request"
SERVER = "server"
_SLEEP: Mapping[str, str] = {TO_MAKE_ROOM: "memory budget", WHEN_IDLE: "idle limit"}
#: Characters of a name in a request that are repeated in an answer.
_LONGEST_NAME = 256
_AUDITED: Mapping[str, Action] = {"loaded": "add", "reloaded": "reload", "updated": "reload", "failed": "fail", "unloaded": "remove"}


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """A model version changed its state; `done` of `total` loads of the start have ended. `seconds` is how long its load took."""

    name: str
    version: str
    state: ModelState
    reason: str
    seconds: float
    done: int
    total: int


OnEvent = Callable[[LoadEvent], None]


def _core_budget(threads: int | None) -> CoreBudget | None:
    count = usable_cores() if threads is None else threads
    return CoreBudget(count) if count else None


class Lifecycle:
    """The models of some repositories, in one engine: implements engine.control.Control. Lives on the engine's event loop."""

    def __init__(self, engine: Engine, repositories: Sequence[Repository], options: LifecycleOptions | None = None) -> None:
        """Raises BacklineError when the state on disk is damaged, namespaces are the same, or a package for the cache is missing."""
        self._engine = engine
        self._options = options = options or LifecycleOptions()
        self._sources = Sources(repositories, namespacing=options.namespacing)
        self.state_folder = folder = options.state_folder or default_state_folder(self._sources.locations)
        self._audit = AuditLog(folder)
        self._cache = None if options.response_cache is None else open_cache(options.response_cache)
        self._executor = Executor(
            engine,
            load_slots=options.load_threads,
            retries=options.load_retries,
            drain_seconds=options.drain_seconds,
            strict_readiness=options.strict_readiness,
            trust_pickle=options.trust_pickle,
            trust_remote_code=options.trust_remote_code,
            may_complete=not options.complete_configs,
            memory_budget=options.memory_budget,
            max_queued_requests=options.max_queued_requests,
            cores=_core_budget(options.compute_threads),
            permits=None if options.rate_limit is None else Permits(RateLimits(parse_resources(options.rate_limit))),
            response_cache=self._cache,
            state_folder=folder,
            debugged_model=options.debugged_model,
            environments=Environments(options.environments_folder or default_folder()),
            on_step=self._on_step,
        )
        self._labelling = Labelling(
            engine,
            self._executor,
            LabelStore(folder),
            self._audit,
            allowed=options.mode != "none",
            changing=self._changing,
            versions_now=self._versions_now,
            note=self._note,
        )
        self._overriding = OverridingFiles(complete=options.complete_configs)
        self._on_event: OnEvent = lambda _: None
        self._known: dict[str, Source] = {}
        self._warned: dict[str, tuple[str, ...]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._changes: Counter[str] = Counter()
        self._scanning = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._started = False
        self._done = 0
        self._total = 0
        engine.control = self

    # from the start to the end

    async def start(self, on_event: OnEvent | None = None) -> None:
        """Loads what is to be served, and in mode poll watches the repositories from then on.

        A model that fails becomes UNAVAILABLE with its reason and does not stop the others. Raises BacklineError for a repository that
        does not exist or cannot be read.
        """
        if on_event is not None:
            self._on_event = on_event
        self._known = await self._sources.scan(first=True)
        chosen = self._chosen_at_start()
        for name, source in self._known.items():
            if name in chosen:
                self._aim(source)
            else:
                self._engine.declare(name)
        self._total = sum(goal.loaded for name in chosen for goal in self._executor.model(name).wanted())
        self._executor.advance(chosen)
        await self._executor.settle()
        self._started = True
        self._executor.started()
        self._engine.started()
        if self._options.mode == "poll":
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    def _chosen_at_start(self) -> list[str]:
        options = self._options
        if options.mode != "explicit" or ALL_MODELS in options.load_models:
            return list(self._known)
        for name in options.load_models:
            if name not in self._known:
                problem = f"failed to load '{name}', failed to poll from model repository: {self._held_by_repositories()}"
                self._known[name] = self._sources.missing(name, problem)
        return list(options.load_models)

    async def close(self) -> None:
        """Takes no further request, refuses what still waits, lets what runs end, and gives the models' memory back."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        await self._executor.close()
        if self._cache is not None:
            await self._cache.close()
        await self._sources.close()
        self._overriding.close()

    # what the repositories hold

    async def refresh(self) -> None:
        """See Control."""
        await self._look()
        await self._executor.settle()

    async def _watch(self) -> None:
        async for _ in self._sources.changes(self._options.poll_seconds):
            try:
                await self._look()
            except Exception:
                log.exception("looking for changes in the model repositories failed")

    async def _look(self) -> None:
        async with self._scanning:
            before, self._known = self._known, await self._sources.scan()
        # What is as it was needs no look, which many models would notice.
        touched = {name for name in {**before, **self._known} if before.get(name) != self._known.get(name)}
        for name in touched:
            source = self._known.get(name)
            served = self._executor.find(name)
            if served is not None:
                served.known_versions = frozenset(source.versions) if source is not None else frozenset()
            if source is None:
                self._gone(name, served)
            elif self._options.mode == "explicit":
                self._engine.declare(name)
            else:
                self._aim(source)
        self._executor.advance(touched & set(self._executor.names))

    def _gone(self, name: str, served: ServedModel | None) -> None:
        """The repositories no longer hold a model. One that was loaded by request goes on."""
        if served is None:
            self._engine.forget(name)
        elif self._options.mode != "explicit":
            served.target = None

    def _aim(self, source: Source) -> None:
        """A model should be served as its repository says now."""
        served = self._executor.model(source.name)
        old = served.target
        if old is not None and source.found.problem and not old.source.found.problem:
            served.target = replace(old, trouble=source.found.problem)
            return
        self._warn(source)
        known = frozenset(source.versions)
        served.target = Target(source, old.beside & known, old.without & known) if old is not None else Target(source)
        served.known_versions = known
        served.labels = self._labelling.in_force(source)

    def _warn(self, source: Source) -> None:
        found = source.found
        warnings = found.warnings + tuple(
            f"label '{label}' of {found.config.source or source.name} points to version {version}, which does not exist;"
            f" there {listed(source.versions)}"
            for label, version in found.config.labels.items()
            if version not in source.versions
        )
        for warning in warnings:
            if warning not in self._warned.get(source.name, ()):
                log.warning("%s", warning)
        self._warned[source.name] = warnings

    # what requests change

    async def load(self, model: str, version: str = "", *, overrides: Overrides | None = None, who: str) -> None:
        """See Control."""
        self._check_loading()
        async with self._changing(model):
            await self._look()
            source = await self._source(model, overrides)
            await self._load_steps(source, who)
            served = self._executor.model(model)
            before = self._newest(served)
            target = self._target_of_load(source, served.target, version)
            served.known_versions = frozenset(source.versions)
            labels, served.labels = served.labels, self._labelling.in_force(source)
            served.awake |= set(source.versions)
            served.resting.clear()
            try:
                await self._executor.change(model, target)
            except BacklineError as error:
                served.labels = labels
                served.known_versions = self._versions_in_repositories(model)
                self._overriding.failed(source)
                self._executor.advance((model,))
                self._note("fail", who, model, version, before=before, detail=error.message)
                raise
            await self._executor.settle(self._executor.asking(model))
            self._overriding.loaded(source)
            self._warn(source)
            self._note("load", who, model, version or self._newest(served), before=before)

    async def _load_steps(self, source: Source, who: str) -> None:
        """Loads the models that an ensemble asks and that are not served yet."""
        for name in sorted(composed_of(source.config)):
            served = self._executor.find(name)
            # One that is being changed is loaded already, perhaps because it asks for this one: a circle, which the load refuses.
            if name in self._known and name not in self._locks and (served is None or served.target is None):
                await self.load(name, who=who)

    def _target_of_load(self, source: Source, old: Target | None, version: str) -> Target:
        if not version:
            return Target(source)
        if version not in source.versions:
            raise NotFound(
                f"failed to load '{source.name}', version {version[:_LONGEST_NAME]} does not exist; there {listed(source.versions)}"
            )
        if old is not None:
            return self._with_version(old, source, version)
        selected, _ = select(source.versions, source.found.config.version_policy)
        return Target(source, frozenset({version}), frozenset(selected) - {version})

    def _with_version(self, old: Target, source: Source, version: str) -> Target:
        """One version beside the others, which stay as they are, whatever has become of their files and the policy would say now."""
        present = {one.version for one in old.versions() if not one.problem}
        return Target(old.source.with_version_of(source, version), old.beside | present | {version}, old.without - {version})

    async def _source(self, model: str, overrides: Overrides | None) -> Source:
        if overrides is not None and overrides.files:
            return await self._overriding.source(model, overrides)
        source = self._known.get(model)
        if source is None:
            raise NotFound(
                f"failed to load '{model[:_LONGEST_NAME]}', failed to poll from model repository: {self._held_by_repositories()}"
            )
        if overrides is not None and overrides.config is not None:
            return await with_configuration(source, overrides.config, complete=self._options.complete_configs)
        return source

    def _versions_in_repositories(self, model: str) -> frozenset[str]:
        source = self._known.get(model)
        return frozenset(source.versions) if source is not None else frozenset()

    async def unload(self, model: str, version: str = "", *, dependents: bool = False, who: str) -> None:
        """See Control. `dependents` are the models that an ensemble asks, except those that another one needs."""
        self._check_loading()
        if not version:
            self._executor.end_change(model)
        async with self._changing(model):
            served = self._executor.find(model)
            if served is None and model not in self._known:
                raise NotFound(f"failed to unload '{model[:_LONGEST_NAME]}': {self._held_by_repositories()}")
            if served is None or served.target is None:
                return
            before = self._newest(served)
            steps = composed_of(served.target.source.config)
            served.failures.clear()
            if version:
                self._check_unload(served, served.target, version)
                served.target = replace(served.target, beside=served.target.beside - {version}, without=served.target.without | {version})
                served.awake.discard(version)
            else:
                served.target = None
                served.known_versions = self._versions_in_repositories(model)
                served.awake.clear()
                served.resting.clear()
                self._overriding.forget(model)
            self._executor.advance((model,))
            self._note("unload", who, model, version, before=version or before)
        if dependents and steps and served.target is None:
            needed = {name for other in self._executor.names if (found := self._executor.find(other)) and found.target
                      for name in composed_of(found.target.source.config)}  # fmt: skip
            for name in sorted(steps - needed):
                await self.unload(name, dependents=True, who=who)

    def _check_unload(self, served: ServedModel, target: Target, version: str) -> None:
        labels = [label for label, labelled in served.labels.items() if labelled == version]
        if labels:
            raise InvalidArgument(
                f"failed to unload '{served.name}' version {version}: label '{labels[0]}' points to it; move or remove the label first"
            )
        there = [one.version for one in target.versions(served.labels.values())]
        if version not in there:
            raise NotFound(f"failed to unload '{served.name}': version {version[:_LONGEST_NAME]} is not loaded; there {listed(there)}")

    # labels

    async def set_label(self, model: str, label: str, version: str, *, expected: str = ANY_VERSION, who: str) -> Change:
        """See Control."""
        return await self._labelling.move("label", model, label, version, expected, who)

    async def promote(self, model: str, version: str, *, expected: str = ANY_VERSION, who: str) -> Change:
        """See Control."""
        return await self._labelling.move("promote", model, STABLE, version, expected, who)

    async def rollback(self, model: str, *, label: str = STABLE, who: str) -> Change:
        """See Control."""
        return await self._labelling.rollback(model, label, who)

    async def remove_label(self, model: str, label: str, *, expected: str = ANY_VERSION, who: str) -> Change:
        """See Control."""
        return await self._labelling.remove(model, label, expected, who)

    async def _versions_now(self, served: ServedModel, version: str) -> tuple[str, ...]:
        """The versions that a label may point to; the repository is looked at when it is not known to hold `version`."""
        assert served.target is not None, "it is loaded"
        if version in served.target.source.versions or served.ready(version) is not None:
            return served.target.source.versions
        await self._look()
        source = self._known.get(served.name)
        if source is not None and version in source.versions and self._options.mode == "explicit":
            target = self._with_version(served.target, source, version)
            served.target = replace(target, beside=target.beside - {version})  # it stays as long as the label holds it
            self._executor.advance((served.name,))
        return served.target.source.versions

    def labels(self, model: str) -> Mapping[str, str]:
        """See Control."""
        return self._engine.labels(model)

    def history(self, model: str = "", limit: int = 100) -> Sequence[Change]:
        """See Control."""
        return self._audit.history(model, limit)

    # who may change what

    def _check_loading(self) -> None:
        if self._options.mode != "explicit":
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")  # Triton's words, for mode none too

    @asynccontextmanager
    async def _changing(self, model: str) -> AsyncIterator[None]:
        """Changes of one model by request are made one after the other."""
        lock = self._locks.setdefault(model, asyncio.Lock())
        self._changes[model] += 1
        try:
            async with lock:
                yield
        finally:
            self._changes[model] -= 1
            if not self._changes[model]:  # names may be made up by clients: none is kept
                del self._changes[model], self._locks[model]

    # what is said of it

    def _held_by_repositories(self) -> str:
        return f"no repository holds it; there {listed(sorted(self._known))}"

    def _newest(self, served: ServedModel) -> str:
        return max(served.ready_versions, key=version_order, default="")

    def _note(self, action: Action, who: str, model: str, version: str, *, label: str = "", before: str = "", detail: str = "") -> Change:
        change = Change(time.time(), who, action, model, version, label, before, detail)
        self._audit.append(change)
        log.info(
            "%s: %s of '%s' version %s%s", who, action, model, version or "-", f", label '{label}' was at {before or '-'}" if label else ""
        )
        return change

    def _on_step(self, step: Step) -> None:
        model = step.model
        if step.kind == "replaced":
            self._audit.append(Change(time.time(), SERVER, "replace", model.name, model.version, before=model.version, detail=step.reason))
            return
        if step.kind == "failed":
            log.error("model '%s' version %s is not available: %s", model.name, model.version, step.reason)
        else:
            log.info("model '%s' version %s was %s", model.name, model.version, step.kind)
        if not self._started:
            self._done += not step.again
            self._on_event(
                LoadEvent(model.name, model.version, model.state, model.reason, model.statistics.load_seconds, self._done, self._total)
            )
        elif self._options.mode == "poll":
            served = self._executor.find(model.name)
            others = [] if served is None else [one for one in served.ready_versions if step.kind == "reloaded" or one != model.version]
            before = model.version if step.kind in ("updated", "unloaded") else max(others, key=version_order, default="")
            who, reason = self._cause(step, served)
            self._audit.append(Change(time.time(), who, _AUDITED[step.kind], model.name, model.version, before=before, detail=reason))

    def _cause(self, step: Step, served: ServedModel | None) -> tuple[str, str]:
        """Who brought a step about in mode poll, and why."""
        if step.reason in _SLEEP:
            return _SLEEP[step.reason], step.reason
        by_request = served is not None and step.kind in ("loaded", "failed") and step.model.version in served.awake
        return REQUEST if by_request else REPOSITORY, step.reason
