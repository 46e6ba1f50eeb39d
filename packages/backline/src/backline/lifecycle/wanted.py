"""Determines which models and versions should be served, from the contents of the repositories."""

from __future__ import annotations

import asyncio
import logging
import posixpath
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from backline.engine.config.model_config import UNAVAILABLE_VERSIONS, ModelConfig, VersionPolicy
from backline.engine.model import NO_VERSION
from backline.lifecycle.plan import Wanted
from backline.repository.listing import place_below, some_of
from backline.repository.repository import FoundModel, FoundVersion, Repository
from backline_client.values.control import RepositoryState, unreadable
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.names import version_order

log = logging.getLogger("backline.lifecycle")


class Source(Struct, frozen=True):
    """A model in a repository, and the `name` under which it is served."""

    name: str
    found: FoundModel
    repository: Repository
    #: The caller that sent the files with a load request; empty if they are the repository's own.
    sender: str = ""
    #: For an ensemble in a server with namespaces: maps each model name that a step may use to the name under
    #: which that model is served.
    siblings: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        """The configuration, with the served names of the model and of its steps."""
        config, names = self.found.config, self.siblings
        ensemble = config.ensemble
        if ensemble is not None and any(names.get(name, name) != name for name in ensemble.models):
            steps = (replace(step, model=names.get(step.model, step.model)) for step in ensemble.steps)
            config = replace(config, ensemble=replace(ensemble, steps=tuple(steps)))
        return config if config.name == self.name else replace(config, name=self.name)

    @property
    def versions(self) -> tuple[str, ...]:
        """All versions in the repository, oldest first."""
        return tuple([version.version for version in self.found.versions])

    def with_version_of(self, newer: Source, version: str) -> Source:
        """Returns this source with one version taken from `newer`, the result of a later scan."""
        added = [one for one in newer.found.versions if one.version == version]
        kept = [one for one in self.found.versions if one.version != version]
        versions = sorted(kept + added, key=lambda one: version_order(one.version))
        return replace(self, found=replace(self.found, versions=tuple(versions), problem=""))


class Target(Struct, frozen=True):
    """The versions of one model that should be served.

    These are the versions that the version policy selects, plus those `added` by load requests, minus those
    `removed`. A version is in `removed` if a request unloaded it or loaded only another version, or if it is
    loaded only because a label points to it. `trouble` says why the model's current files cannot be used;
    `source` then describes the previous files.
    """

    source: Source
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    trouble: str = ""

    def versions(self, labelled: Iterable[str] = ()) -> list[FoundVersion]:
        """Returns the versions to serve, including the `labelled` ones, newest first. Some may have a
        `problem`.
        """
        found = self.source.found
        chosen: list[FoundVersion] = []
        if self.trouble or found.problem:
            refused = None if self.trouble else found.refused
            chosen.append(refused or FoundVersion(NO_VERSION, None, problem=self.trouble or found.problem))
        if not found.problem:
            selected, missing = select(self.source.versions, found.config.version_policy)
            names = ((self.added | set(selected)) - self.removed) | set(labelled)
            if found.config.version_policy.specific is not None and not names and not selected:
                place = posixpath.join(found.namespace, found.folder).rstrip("/")
                problem = none_selected(found.name, place, self.source.versions, missing)
                chosen.append(FoundVersion(NO_VERSION, None, problem=problem))
            chosen += [version for version in reversed(found.versions) if version.version in names]
        return chosen

    def loaded_again(self, version: str) -> Target:
        """Returns this target with another fingerprint for a version, so that the version is loaded again."""

        def renewed(one: FoundVersion) -> FoundVersion:
            fingerprint, _, count = one.fingerprint.partition("+")
            return replace(one, fingerprint=f"{fingerprint}+{int(count or 0) + 1}")

        found = self.source.found
        versions = tuple(renewed(one) if one.version == version else one for one in found.versions)
        return replace(self, source=replace(self.source, found=replace(found, versions=versions)))

    def wanted(
        self, labelled: Iterable[str] = (), *, asleep: frozenset[str] = frozenset(), serve: bool = True
    ) -> list[Wanted]:
        """Returns the `versions` as goals for the planner. The versions in `asleep` are registered but not
        loaded.
        """
        config = self.source.config

        def goal(version: FoundVersion) -> Wanted:
            loaded = version.version not in asleep or bool(version.problem)
            name, key = self.source.name, identity(version)
            return Wanted(name, version.version, key, config, loaded=loaded, serve=serve)

        return [goal(version) for version in self.versions(labelled)]


def select(versions: Iterable[str], policy: VersionPolicy) -> tuple[list[str], list[str]]:
    """Returns the versions that a policy selects, oldest first, and the versions that the policy names but
    that do not exist.
    """
    held = set(versions)
    present = sorted(held, key=version_order)
    if policy.specific is not None:
        wanted = frozenset(policy.specific)
        missing = [version for version in dict.fromkeys(policy.specific) if version not in held]
        return [version for version in present if version in wanted], missing
    if policy.latest is not None:
        return present[max(0, len(present) - policy.latest) :], []
    return present, []


def none_selected(name: str, place: str, held: Sequence[str], missing: Sequence[str]) -> str:
    """Returns the error for a policy that names only missing versions, so that no version is served. The text
    begins with Triton's.

    `place` is the model's folder, and `held` are the versions in it.
    """
    return (
        f"{UNAVAILABLE_VERSIONS} '{name}': '{place}' holds none of the versions that version_policy names:"
        f" {some_of(missing) or 'it names none'} (it holds {some_of(held) or 'none'})"
    )


def step_failed(ensemble: str, step: str, reason: str) -> str:
    """Returns Triton's error for an ensemble that cannot be served because a step's model failed to load."""
    if reason.startswith(unreadable(step, "")):
        text = f"ensemble {ensemble} contains models that are not available or ambiguous"
        return f"{text}: {step}; {reason}"
    why = reason.removeprefix(f"load failed for model '{step}': ")
    if why.startswith("ensemble "):
        return (
            f"ensemble '{ensemble}' depends on '{step}' which is not valid."
            f" Model '{step}' failed with error: {why}"
        )
    return (
        f"ensemble '{ensemble}' depends on '{step}' which has no loaded version."
        f" Model '{step}' loading failed with error: {why}"
    )


def identity(version: FoundVersion) -> str:
    """Returns the text that identifies a load: the fingerprint of the version's files, and the version's
    problem, if any.
    """
    return f"{version.fingerprint} {version.problem}"


def listed(names: Sequence[str]) -> str:
    """Returns the last 20 names as text for a message, such as "1, 2, 3"; "none" if there are no names."""
    return f"{'..., ' if len(names) > 20 else ''}{', '.join(names[-20:]) or 'none'}"


class Sources:
    """The models of all repositories, by the names under which they are served.

    With `namespacing`, models that share a name are named <repository>.<model>, where <repository> is the
    name that the user gave to the repository, or else one derived from its location. The steps of an ensemble
    may omit the name of the ensemble's own repository. Without `namespacing`, models that share a name cannot
    be served, as in Triton.
    """

    def __init__(self, repositories: Sequence[Repository], *, namespacing: bool) -> None:
        """Raises InvalidArgument if two namespaces would be equal."""
        self._repositories = {repository.location: repository for repository in repositories}
        self._prefixes = dict.fromkeys(self._repositories, "")
        if namespacing:
            self._prefixes = {
                location: f"{repository.name}." for location, repository in self._repositories.items()
            }
            _check_apart(self._prefixes)
        self._found: dict[str, list[FoundModel]] = {}
        self._troubles: dict[str, str] = {}
        #: By location, the time when the last successful scan ended (time.time()), and the duration of that
        #: scan in seconds.
        self._scans: dict[str, tuple[float, float]] = {}
        #: The location of each model's repository, by the name under which the model is served. Empty without
        #: `namespacing`. Each scan updates this mapping.
        self.namespaces: dict[str, str] = {}
        #: By the location of a repository, the names that its models may use for models, each with the name
        #: under which that model is served. Empty without `namespacing`. Each scan updates this mapping.
        self.local_names: dict[str, Mapping[str, str]] = {}
        #: The plain names that several repositories have, each with the names under which these models are
        #: served. Empty without `namespacing`. Each scan updates this mapping.
        self.ambiguous: dict[str, Sequence[str]] = {}
        #: The name under which each model is served, by the location of its repository and its name there.
        self._served: dict[tuple[str, str], str] = {}

    @property
    def locations(self) -> list[str]:
        return list(self._repositories)

    @property
    def complete(self) -> bool:
        """Whether each repository has been read at least once."""
        return self._found.keys() == self._repositories.keys()

    def missing_repositories(self) -> str:
        """Returns why no model can be found; "" if each of at least one repository has been read."""
        if not self._repositories:
            return "no model repository is given"
        problems = (f"model repository '{one}' cannot be read: {why}" for one, why in self._troubles.items())
        return "" if self.complete else "; ".join(problems)

    def missing(self, name: str, problem: str) -> Source:
        """Returns a source for a wanted model that is in no repository; clients see the `problem`."""
        found = FoundModel(name, "", "", ModelConfig(name), problem=problem)
        return Source(name, found, next(iter(self._repositories.values())))

    async def scan(self, *, first: bool = False) -> dict[str, Source]:
        """Returns the models of the repositories, by name.

        If a repository is unreadable, its models are kept, and the reason is logged once; the `first` scan
        raises BacklineError instead.
        """
        await asyncio.gather(
            *(self._scan(location, repository, first) for location, repository in self._repositories.items())
        )
        holders = Counter(model.name for found in self._found.values() for model in found)
        served = self._served = {
            (
                location,
                model.name,
            ): f"{self._prefixes[location] if holders[model.name] > 1 else ''}{model.name}"
            for location in self._repositories  # in the configured order: scans end in any order
            for model in self._found.get(location, ())
        }
        if any(self._prefixes.values()):
            self.namespaces.clear()
            self.namespaces.update((name, location) for (location, _), name in served.items())
            self.ambiguous.clear()
            for (_, plain), name in served.items():
                if holders[plain] > 1:
                    self.ambiguous[plain] = (*self.ambiguous.get(plain, ()), name)
        full = {self._prefixes[location] + name: shown for (location, name), shown in served.items()}
        sources: dict[str, list[Source]] = {}
        for location, repository in self._repositories.items():
            found, prefix = self._found.get(location, ()), self._prefixes[location]
            names = (
                {**full, **{model.name: served[location, model.name] for model in found}} if prefix else {}
            )
            if prefix:
                self.local_names[location] = names
            for model in found:
                name = served[location, model.name]
                siblings = names if model.config.ensemble is not None else {}
                sources.setdefault(name, []).append(
                    Source(name, _as_composed(model, siblings), repository, siblings=siblings)
                )
        return {name: same[0] if len(same) == 1 else _refuse_same(same) for name, same in sources.items()}

    def states(self, mode: str, poll_seconds: float) -> list[RepositoryState]:
        """Returns the state of each repository at its last scan; `mode` and `poll_seconds` are the server's
        options.
        """
        return [self._state(location, mode, poll_seconds) for location in self._repositories]

    def _state(self, location: str, mode: str, poll_seconds: float) -> RepositoryState:
        found = self._found.get(location, [])
        names = {model.name: self._served.get((location, model.name), model.name) for model in found}
        problems = (
            (model, model.problem or next((one.problem for one in model.versions if one.problem), ""))
            for model in found
        )
        ended, seconds = self._scans.get(location, (0.0, 0.0))
        return RepositoryState(
            location,
            mode,
            poll_seconds,
            models=sorted(names.values()),
            versions=sum(len(model.versions) for model in found),
            failures={names[model.name]: problem for model, problem in problems if problem},
            scanned=ended,
            scan_seconds=seconds,
            problem=self._troubles.get(location, ""),
        )

    async def _scan(self, location: str, repository: Repository, first: bool) -> None:
        began = time.monotonic()
        try:
            self._found[location] = await repository.scan()
            self._scans[location] = time.time(), time.monotonic() - began
        except BacklineError as error:
            if first:
                raise
            self._note_trouble(location, error.message)
        else:
            if self._troubles.pop(location, ""):
                log.info("model repository '%s' can be read again", location)

    def _note_trouble(self, location: str, reason: str) -> None:
        if self._troubles.get(location) != reason:
            self._troubles[location] = reason
            meanwhile = (
                "but its models keep serving" if location in self._found else "so the server is not ready"
            )
            log.error("model repository '%s' cannot be read, %s: %s", location, meanwhile, reason)

    async def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields whenever a scan may find something new. Simultaneous changes cause only one yield."""
        changed = asyncio.Event()
        watching = [
            asyncio.create_task(self._watch(repository, interval, changed))
            for repository in self._repositories.values()
        ]
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield
        finally:
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)

    async def _watch(self, repository: Repository, interval: float, changed: asyncio.Event) -> None:
        while True:
            try:
                async for _ in repository.changes(interval):
                    changed.set()
            except Exception as error:
                self._note_trouble(repository.location, str(error))
            await asyncio.sleep(interval)  # the watch ended: start another, and scan for missed changes
            changed.set()

    async def close(self) -> None:
        for repository in self._repositories.values():
            await repository.close()


def _as_composed(model: FoundModel, siblings: Mapping[str, str]) -> FoundModel:
    """Returns the model. If it is an ensemble in a server with namespaces, its fingerprint is extended to
    cover the names of the models that its steps call.

    The fingerprint therefore changes when a step's model is added to the repository, is removed from it, or
    is served under another name.
    """
    if model.config.ensemble is None or not siblings:
        return model
    own = " ".join(sorted(siblings[name] for name in model.config.ensemble.models & siblings.keys()))
    versions = tuple(
        replace(version, fingerprint=f"{version.fingerprint} with {own}") for version in model.versions
    )
    return replace(model, versions=versions)


def _check_apart(prefixes: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for location, prefix in prefixes.items():
        if prefix in seen:
            raise InvalidArgument(
                "with namespaces, the name of a model may begin with the name of its repository, which is"
                f" '{prefix[:-1]}' for both '{seen[prefix]}' and '{location}'; rename one of them, or write"
                " NAME=URL to name a model at a URL"
            )
        seen[prefix] = location


def _refuse_same(same: list[Source]) -> Source:
    """Returns a source with a problem, for models that share a name: a request could mean any of these
    models.
    """
    folders = ", ".join(f"'{_place(source.found)}'" for source in same)
    problem = (
        f"model appears in two or more repositories: {folders}; rename or remove all but"
        " one, or serve them as <repository>.<model> with --model-namespacing"
    )
    if any("://" in source.found.namespace for source in same):
        problem += "; NAME=URL renames a model at a URL"
    return replace(same[0], found=replace(same[0].found, problem=problem, versions=()))


def _place(found: FoundModel) -> str:
    return place_below(found.namespace, found.folder) if found.folder else found.namespace
