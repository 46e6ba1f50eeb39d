"""Scans the repositories, and derives the targets of models from their contents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from backline.engine.engine import ambiguous_text
from backline.lifecycle.executor import Executor, composed_of
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.wanted import Source, Sources, Target, listed
from backline_client.values.control import unreadable
from backline_client.values.errors import InvalidArgument, NotFound

log = logging.getLogger("backline.lifecycle")


class Holdings:
    """Scans the repositories, and sets the targets of models. `labels` returns the labels of a model. Use it
    only on the event loop.
    """

    def __init__(
        self,
        shared: Shared,
        sources: Sources,
        executor: Executor,
        labels: Callable[[Source], Mapping[str, str]],
    ) -> None:
        self._engine = shared.engine
        self._options: LifecycleOptions = shared.options
        self._sources = sources
        self._executor = executor
        self._labels = labels
        self._known: dict[str, Source] = {}
        self._warned: dict[str, tuple[str, ...]] = {}
        self._scanning = asyncio.Lock()

    async def open(self) -> list[str]:
        """Scans the repositories for the first time; returns the names of the models to load at start.

        The other models are only registered with the engine, as not loaded. Raises BacklineError for a
        repository that does not exist or cannot be read, unless the options say to wait for such
        repositories.
        """
        self._known = await self._sources.scan(first=not self._options.await_repositories)
        chosen = self._chosen_at_start()
        for name, source in self._known.items():
            if name in chosen:
                self._aim(source)
            else:
                self._engine.declare(name)
        return chosen

    def _chosen_at_start(self) -> list[str]:
        options = self._options
        if options.mode != "explicit" or ALL_MODELS in options.load_models:
            return list(self._known)
        for name in options.load_models:
            if name not in self._known:
                self._known[name] = self._sources.missing(name, self.described)
        chosen = list(dict.fromkeys(options.load_models))
        for name in chosen:  # `chosen` grows during this loop: each ensemble appends the models that it calls
            chosen += [
                asked
                for asked in sorted(composed_of(self._known[name].config))
                if asked in self._known and asked not in chosen
            ]
        return chosen

    async def watch(self) -> None:
        """Scans the repositories again whenever one may have changed; never returns."""
        async for _ in self._sources.changes(self._options.poll_seconds):
            try:
                await self.look()
            except Exception:
                log.exception("looking for changes in the model repositories failed")

    async def look(self) -> None:
        """Scans the repositories, and sets the targets of changed models. In explicit mode, only records
        which models exist.
        """
        async with self._scanning:
            before, self._known = self._known, await self._sources.scan()
        # Only changed models are processed: with thousands of models, processing all of them would delay
        # requests.
        touched = {name for name in {**before, **self._known} if before.get(name) != self._known.get(name)}
        for name in touched:
            source = self._known.get(name)
            served = self._executor.models.find(name)
            if served is not None:
                served.known_versions = self.versions(name)
            if source is None:
                self._gone(name, served)
            elif self._options.mode == "explicit":
                self._engine.declare(name)
            else:
                self._aim(source)
        self._executor.advance(touched & set(self._executor.models.names))

    def _gone(self, name: str, served: ServedModel | None) -> None:
        """Handles a model that is no longer in any repository. Unloads the model, except in explicit mode."""
        if served is None:
            self._engine.forget(name)
            return
        served.failures.clear()
        if self._options.mode != "explicit":
            served.target = None

    def _aim(self, source: Source) -> None:
        """Sets a model's target to what its repository now contains. If the model's files can no longer be
        used, the target keeps the previous files instead, and says why.
        """
        served = self._executor.models[source.name]
        old = served.target
        if old is not None and source.found.problem and not old.source.found.problem:
            served.target = replace(old, trouble=source.found.problem)
            return
        self.warn(source)
        if old is not None:
            _warn_of_other_steps(old.source, source)
        gone_before = served.files_gone
        known = frozenset(source.versions)
        served.target = (
            Target(source, old.added & known, old.removed & known) if old is not None else Target(source)
        )
        served.known_versions = known
        served.labels.wanted = self._labels(source)
        for version, text in served.files_gone.items():
            if version not in gone_before:
                log.warning("model '%s' version %s: %s", source.name, version, text)

    def renamed(self) -> dict[str, str]:
        """Maps the name of each loaded model that shares its plain name with a model of another repository,
        but was loaded before that, to the name under which its repository's model is served now.
        """
        renamed: dict[str, str] = {}
        for served in self._executor.models:
            target = served.target
            if target is not None and served.name not in self._known:
                names = self._sources.local_names.get(target.source.repository.location, {})
                if names.get(served.name, served.name) in self._known:
                    renamed[served.name] = names[served.name]
        return renamed

    def aim_callers(self, model: str) -> list[str]:
        """Makes loaded ensembles call a model that was loaded, if their steps mean this model although they
        called another until now. Returns the names of these ensembles.
        """
        callers: list[str] = []
        for served in self._executor.models:
            source, target = self._known.get(served.name), served.target
            if source is None or target is None or target.source.found.config != source.found.config:
                continue
            if model in composed_of(source.config) - composed_of(target.source.config):
                _warn_of_other_steps(target.source, source)
                served.target = replace(target, source=source)
                callers.append(served.name)
        return callers

    def warn(self, source: Source) -> None:
        """Logs warnings about a model's files, each only once."""
        warnings = source.found.warnings
        for warning in warnings:
            if warning not in self._warned.get(source.name, ()):
                log.warning("%s", warning)
        self._warned[source.name] = warnings

    def __contains__(self, model: str) -> bool:
        return model in self._known

    def find(self, model: str) -> Source | None:
        return self._known.get(model)

    def source(self, model: str) -> Source:
        """Returns a model as found in its repository. Raises NotFound, with Triton's text, if no repository
        contains the model.
        """
        source = self._known.get(model)
        if source is None:
            shared = self._sources.ambiguous.get(model)
            if shared is not None:
                raise InvalidArgument(unreadable(model, ambiguous_text(model, shared)))
            raise NotFound(unreadable(model, self.described))
        return source

    def versions(self, model: str) -> frozenset[str]:
        """Returns the versions of a model in the repositories; empty for an unknown model."""
        source = self._known.get(model)
        return frozenset(source.versions) if source is not None else frozenset()

    @property
    def described(self) -> str:
        """The end of messages about a missing model, with a list of the available models."""
        return f"model not found in any model repository; available: {listed(sorted(self._known))}"


def _warn_of_other_steps(old: Source, new: Source) -> None:
    """Logs that the steps of an ensemble call models of another repository than before, because the
    ensemble's own repository has lost or gained models of these names.
    """
    if old.found.config.ensemble is None or old.found.config != new.found.config:
        return
    for step in sorted(composed_of(new.found.config)):
        own_before, own_now = step in old.siblings, step in new.siblings
        if own_before == own_now:
            continue
        change = "now has" if own_now else "no longer has"
        log.warning(
            "ensemble '%s': its repository '%s' %s a model '%s', so its step calls '%s' and no longer '%s'",
            new.name,
            new.repository.location,
            change,
            step,
            new.siblings.get(step, step),
            old.siblings.get(step, step),
        )
