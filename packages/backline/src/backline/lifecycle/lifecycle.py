"""Decides which models a server serves, based on its repositories and on requests to load, unload and label
models.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.lifecycle.audit_log import AuditLog
from backline.lifecycle.audit_thread import AuditThread
from backline.lifecycle.changes import load_failed
from backline.lifecycle.executor import Executor, composed_of
from backline.lifecycle.holdings import Holdings
from backline.lifecycle.journal import Journal, OnEvent
from backline.lifecycle.labels.labelling import Labelling
from backline.lifecycle.labels.store import open_labels
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.options import LifecycleOptions
from backline.lifecycle.overriding import OverridingFiles, remove_stale, with_configuration
from backline.lifecycle.records import default_state_folder, warn_of_folder
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.wanted import Source, Sources, Target, listed, select, step_failed
from backline.repository.configuration.document import CreationFault
from backline.repository.layouts.layouts import FIRST_VERSION
from backline.repository.repository import FoundModel, Repository
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.control import (
    LOG_SETTINGS,
    Attempt,
    Change,
    LabelMove,
    MayChange,
    Overrides,
    Page,
    RepositoryState,
    Result,
    may_change_all,
    unreadable,
)
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from backline_client.values.names import check_name, version_order

log = logging.getLogger("backline.lifecycle")

#: Seconds between attempts to read repositories that could not be read at start.
_LOOK_FOR_REPOSITORIES = 0.5


class Lifecycle:
    """The Control of an engine that serves models from repositories. Use it only on the event loop."""

    def __init__(
        self, engine: Engine, repositories: Sequence[Repository], options: LifecycleOptions | None = None
    ) -> None:
        """Raises BacklineError if stored labels are damaged or cannot be read, two repositories have the same
        namespace, or an option cannot be used, for example because it needs a package that is not installed.
        """
        self._engine = engine
        self._options = options = options or LifecycleOptions()
        if options.labels and options.mode == "none":
            raise InvalidArgument(
                "labels can be shared only by servers that can change them: start this server with"
                " --model-control-mode poll or explicit, or without --labels"
            )
        self._sources = Sources(repositories, namespacing=options.namespacing)
        self.state_folder = folder = options.state_folder or default_state_folder(self._sources.locations)
        self._audit = AuditThread(AuditLog(folder))
        self._journal = Journal(self._audit, audit_steps=options.mode == "poll")
        self._shared = Shared(engine, options, folder)
        self._executor = Executor(
            self._shared, lambda step: self._journal.on_step(step, self._models.find(step.model.name))
        )
        self._models = self._executor.models
        self._labelling = Labelling(
            engine,
            self._executor,
            open_labels(options.labels, self._sources.locations, folder),
            self._journal,
            keep_seconds=options.keep_previous_seconds,
            check=lambda: self.check_changeable("labels"),
            changing=self._changing,
            versions_now=self._versions_now,
        )
        self._holdings = Holdings(self._shared, self._sources, self._executor, self._labelling.in_force)
        self._overriding = OverridingFiles(
            complete=options.complete_configs, may_name_servers=options.trust_remote_code
        )
        #: For each model whose last load request contained a configuration: the model as it was in the
        #: repository at that time, and the configuration.
        self._configurations: dict[str, tuple[FoundModel, str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._changes: Counter[str] = Counter()
        self._watching: asyncio.Task[None] | None = None
        self._awaiting: asyncio.Task[None] | None = None
        engine.control = self
        engine.namespaces = self._sources.namespaces
        engine.local_names = self._sources.local_names
        engine.ambiguous = self._sources.ambiguous
        engine.loads_by_request = options.mode == "explicit"

    @property
    def poll(self) -> BusyPoll:
        """The busy poll of the event loop. Polling is off unless the owner of the loop allows it."""
        return self._shared.poll

    async def start(self, on_event: OnEvent | None = None) -> None:
        """Loads the models that the options select; in poll mode, also starts watching the repositories.

        A model that fails to load becomes UNAVAILABLE, with the reason, and does not affect the others.
        Raises BacklineError for a repository that does not exist or cannot be read, unless the options say to
        wait for such repositories. With that option, their models are loaded once all repositories can be
        read, and the engine is not ready until then.
        """
        if self._options.mode != "none":  # otherwise, requests can neither move labels nor send files
            await asyncio.to_thread(warn_of_folder, self.state_folder)
            await asyncio.to_thread(remove_stale)
        chosen = await self._holdings.open()
        loads = sum(goal.loaded for name in chosen for goal in self._models[name].wanted())
        if self._options.control_as_triton:
            self._engine.not_live = self._sources.missing_repositories()
        self._journal.starting(on_event or (lambda event: None), loads)
        self._executor.advance(chosen)
        await self._models.settle()
        self._shared.started = True
        self._journal.started()
        loop = asyncio.get_running_loop()
        if self._sources.complete:
            self._engine.started()
        else:
            self._awaiting = loop.create_task(self._await_repositories())
        self._labelling.start(follow=self._options.mode != "none")
        if self._options.mode == "poll":
            self._watching = loop.create_task(self._holdings.watch())

    async def _await_repositories(self) -> None:
        """Waits until all repositories can be read, then loads what would have been loaded at start."""
        while not self._sources.complete:
            await asyncio.sleep(_LOOK_FOR_REPOSITORIES)
            await self._sources.scan()
        self._engine.not_live = ""
        self._executor.advance(await self._holdings.open())
        await self._models.settle()
        self._engine.started()

    def stopping(self) -> None:
        """Fails the load requests in progress, because a load that never ends would keep them waiting."""
        self._executor.changes.end_all("the server's shutdown")

    async def close(self) -> None:
        """Refuses new and queued requests, waits for running requests to complete, and frees the models."""
        tasks = [task for task in (self._watching, self._awaiting) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._labelling.close()
        await self._executor.close()
        if self._shared.cache is not None:
            await self._shared.cache.close()
        await self._sources.close()
        self._overriding.close()
        await self._audit.close()

    async def refresh(self) -> None:
        await self._holdings.look()
        await self._models.settle()

    async def load(
        self,
        model: str,
        version: str = "",
        *,
        overrides: Overrides | None = None,
        who: str,
        caller: str = "",
        may_change: MayChange = may_change_all,
    ) -> None:
        self._check_loading()
        async with self._changing(model, version):
            await self._holdings.look()
            source = await self._source(model, overrides, caller or who)
            try:
                if overrides is not None:
                    self._check_steps(source, may_change)
                await self._load_from(source, version, who)
            except BaseException:
                self._overriding.failed(source)
                raise
            self._keep_configuration(model, overrides)
        await self._rename(model, who)

    async def _rename(self, model: str, who: str) -> None:
        """Makes ensembles call the `model` that was loaded if their steps mean it. A model that was loaded
        when no other repository had its name is replaced by its load under the name that says its repository,
        so that its plain name, which now means two models, is refused.
        """
        callers = self._holdings.aim_callers(model)
        self._executor.advance(callers)
        await self._models.settle(callers)
        for plain, name in self._holdings.renamed().items():
            if name == model:
                await self.unload(plain, who=who)
            elif plain in self._sources.ambiguous and model in self._sources.ambiguous[plain]:
                await self.load(name, who=who)

    async def _load_from(self, source: Source, version: str, who: str) -> None:
        model = source.name
        await self._load_steps(source, who)
        served = self._models[model]
        before = _newest(served)
        old = served.target
        target = self._target_of_load(source, old, version)
        served.known_versions = frozenset(source.versions)
        labels, served.labels.wanted = served.labels.wanted, self._labelling.in_force(source)
        served.awake |= set(source.versions)
        served.resting.clear()
        try:
            await self._executor.changes.change(model, target)
        except BacklineError as error:
            served.labels.wanted = labels
            served.known_versions = self._holdings.versions(model)
            if model not in self._holdings:  # clients may invent names: failures must not pile up
                served.failures.clear()
            self._executor.advance((model,))
            self._journal.note("fail", who, model, version, before=before, detail=error.message)
            raise
        self._overriding.loaded(source)  # the files are in use now, even if the caller stops waiting
        await self._models.settle((model, *self._executor.dependencies.asking(model)))
        failures = served.resize_failures
        if failures and served.target is target and old is not None:
            served.target = old
            self._executor.advance((model,))
            text = load_failed(model, failures)
            self._journal.note("fail", who, model, version, before=before, detail=text)
            raise InvalidArgument(text)
        self._holdings.warn(source)
        self._journal.note("load", who, model, version or _newest(served), before=before)

    def _check_steps(self, source: Source, may_change: MayChange) -> None:
        """Checks that the caller may change each model that the load request adds to the steps of an
        ensemble.

        Security: a caller that may run an ensemble can thereby run the models that the ensemble calls.
        Without this check, a caller that is limited to some models could run every model by loading an
        ensemble that calls it. Steps that the ensemble already has in the repository need no permission.
        """
        repository = self._holdings.find(source.name)
        own = frozenset() if repository is None else composed_of(repository.config)
        for name in sorted(composed_of(source.config) - own):
            may_change(name)

    async def _load_steps(self, source: Source, who: str) -> None:
        """Loads the models that an ensemble calls and that are not served yet."""
        for name in sorted(composed_of(source.config)):
            served = self._models.find(name)
            # A model with a lock is already being changed. If that model calls this ensemble, waiting for the
            # model's lock would deadlock. The load of the ensemble refuses such a cycle later.
            if (
                name in self._holdings
                and name not in self._locks
                and (served is None or served.target is None)
            ):
                try:
                    await self.load(name, who=who)
                except InvalidArgument as error:
                    text = step_failed(source.name, name, error.message)
                    raise InvalidArgument(f"load failed for model '{source.name}': {text}") from None

    def _target_of_load(self, source: Source, old: Target | None, version: str) -> Target:
        if not version:
            return Target(source)
        if version not in source.versions:
            raise NotFound(
                f"failed to load '{source.name}', version {version} does not exist; available:"
                f" {listed(source.versions)}"
            )
        if old is not None:
            return _with_version(old, source, version)
        selected, _ = select(source.versions, source.found.config.version_policy)
        return Target(source, frozenset({version}), frozenset(selected) - {version})

    async def _source(self, model: str, overrides: Overrides | None, caller: str) -> Source:
        try:
            return await self._overridden(model, overrides, caller)
        except NotFound as error:
            log.error(
                "failed to poll model '%s': %s", model, error.message.removeprefix(unreadable(model, ""))
            )
            raise
        except CreationFault as fault:
            held = self._holdings.find(model)
            newest = held.versions[-1] if held is not None and held.versions else FIRST_VERSION
            raise InvalidArgument(load_failed(model, {newest: fault.reason})) from None
        except InvalidArgument as error:
            raise InvalidArgument(unreadable(model, error.message)) from None

    async def _overridden(self, model: str, overrides: Overrides | None, caller: str) -> Source:
        if overrides is not None and overrides.files:
            return await self._overriding.source(model, overrides, caller)
        source = self._holdings.source(model)
        found, text = self._configurations.get(model, (None, None))
        if overrides is not None:
            text = overrides.config
        elif found != source.found:
            text = None
        if text is None:
            return source
        served = self._models.find(model)
        return await with_configuration(
            source,
            text,
            complete=self._options.complete_configs,
            may_name_servers=self._options.trust_remote_code,
            served=None if served is None else served.in_force,
        )

    def _keep_configuration(self, model: str, overrides: Overrides | None) -> None:
        """Keeps the configuration of a load request for later loads of the model, as in Triton, until the
        model is unloaded or its files change.
        """
        if overrides is None:
            return
        self._configurations.pop(model, None)
        if overrides.config is not None and not overrides.files:
            self._configurations[model] = self._holdings.source(model).found, overrides.config

    async def unload(
        self,
        model: str,
        version: str = "",
        *,
        dependents: bool = False,
        who: str,
        may_change: MayChange = may_change_all,
    ) -> None:
        """Unloads a model or version. If a whole ensemble is unloaded, `dependents` also unloads the models
        that it calls and that no other ensemble calls.
        """
        self._check_loading()
        if dependents and not version:
            for name in self._executor.dependencies.only_of(model):
                may_change(name)
        if not version and not self._options.control_as_triton:
            # A load request in progress holds the lock of the model, perhaps forever, so it is aborted first.
            self._executor.changes.end(model)
        async with self._changing(model, version):
            served = self._models.find(model)
            if served is None and model not in self._holdings:
                raise NotFound(f"failed to unload '{model}': {self._holdings.described}")
            if served is None or served.target is None:
                return
            before = _newest(served)
            steps = composed_of(served.target.source.config)
            served.failures.clear()
            if version:
                self._check_unload(served, served.target, version)
                served.target = replace(
                    served.target,
                    added=served.target.added - {version},
                    removed=served.target.removed | {version},
                )
                served.awake.discard(version)
                served.labels.kept.drop(version)
            else:
                served.target = None
                served.known_versions = self._holdings.versions(model)
                served.awake.clear()
                served.resting.clear()
                self._overriding.forget(model)
                self._configurations.pop(model, None)
            self._executor.advance((model,))
            self._journal.note("unload", who, model, version, before=version or before)
        if dependents and steps and served.target is None:
            needed = self._executor.dependencies.needed()
            for name in sorted(steps - needed):
                may_change(name)  # again: the ensembles may have changed while this method waited
                await self.unload(name, dependents=True, who=who, may_change=may_change)

    def _check_unload(self, served: ServedModel, target: Target, version: str) -> None:
        if served.only_kept(version):
            return
        labels = served.labels.of(version)
        if labels:
            raise InvalidArgument(
                f"failed to unload '{served.name}' version {version}: label '{labels[0]}' points to it; move"
                " or remove the label first"
            )
        there = [one.version for one in target.versions(served.labels.wanted.values())]
        if version not in there:
            raise NotFound(
                f"failed to unload '{served.name}': version {version} is not loaded; available:"
                f" {listed(there)}"
            )

    async def move_label(self, move: LabelMove, *, who: str) -> Change:
        return await self._labelling.move(move, who)

    async def _versions_now(self, served: ServedModel, version: str) -> tuple[str, ...]:
        """Returns the versions that a label may point to. If `version` is unknown, scans the repositories
        and, in explicit mode, adds the version to the source of the target, so that it can be loaded.
        """
        assert served.target is not None, "it is loaded"
        if version in served.target.source.versions or served.ready(version) is not None:
            return served.target.source.versions
        await self._holdings.look()
        source = self._holdings.find(served.name)
        if source is not None and version in source.versions and self._options.mode == "explicit":
            target = _with_version(served.target, source, version)
            # The version is loaded only for the label. It must not serve requests that name no version.
            served.target = replace(
                target, added=target.added - {version}, removed=target.removed | {version}
            )
            self._executor.advance((served.name,))
        return served.target.source.versions

    def repositories(self) -> Sequence[RepositoryState]:
        options = self._options
        return self._sources.states(options.mode, options.poll_seconds if options.mode == "poll" else 0.0)

    def worker_pids(self) -> Sequence[int]:
        return self._shared.worker_pids()

    def labels(self, model: str) -> Mapping[str, str]:
        return self._engine.labels(model)

    async def history(
        self, model: str = "", limit: int = 100, cursor: str = "", *, form: Callable[[Page[Change]], Result]
    ) -> Result:
        return await self._audit.read(lambda audit: form(audit.history(model, limit, cursor)))

    def note(self, attempt: Attempt) -> None:
        self._audit.append(attempt)

    async def audit(
        self,
        limit: int = 100,
        after: float = 0.0,
        cursor: str = "",
        *,
        form: Callable[[Page[Change | Attempt]], Result],
    ) -> Result:
        return await self._audit.read(lambda audit: form(audit.entries(limit, after, cursor)))

    def check_changeable(self, what: str) -> None:
        if self._options.mode == "none" and not (what == LOG_SETTINGS and self._options.control_as_triton):
            raise Unavailable(
                f"{what} cannot be changed by request: this server's model control mode is none; start it"
                " with --model-control-mode poll or explicit"
            )

    def _check_loading(self) -> None:
        mode = self._options.mode
        if mode != "explicit":
            # Triton's text, which Triton uses in every mode but explicit.
            text = "explicit model load / unload is not allowed if polling is enabled"
            held = ", so it serves what its repositories held when it started" if mode == "none" else ""
            raise Unavailable(
                f"{text}: this server's mode is {mode}{held}; start it with --model-control-mode explicit"
            )

    @asynccontextmanager
    async def _changing(self, model: str, version: str = "") -> AsyncIterator[None]:
        """Holds the lock of a model, so that only one request at a time changes the model.

        Raises InvalidArgument if the name of the model or version is invalid, because a load may create
        folders with these names.
        """
        # Names of known models are not checked: with namespaces, they contain the name of a folder, which may
        # be any text.
        if model not in self._holdings and self._models.find(model) is None:
            check_name("model", model)
        if version:
            check_name("version", version)
        lock = self._locks.setdefault(model, asyncio.Lock())
        self._changes[model] += 1
        try:
            async with lock:
                yield
        finally:
            self._changes[model] -= 1
            if not self._changes[model]:  # clients may invent names, so unused locks are removed
                del self._changes[model], self._locks[model]


def _newest(served: ServedModel) -> str:
    return max(served.ready_versions, key=version_order, default="")


def _with_version(old: Target, source: Source, version: str) -> Target:
    """Returns a target with one more version, from `source`. The other versions keep the files from which
    they were loaded.
    """
    present = {one.version for one in old.versions() if not one.problem}
    return Target(
        old.source.with_version_of(source, version), old.added | present | {version}, old.removed - {version}
    )
