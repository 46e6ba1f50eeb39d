"""All repositories of a server as one: scanned, watched, and without duplicate names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import PurePath

from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.lifecycle.wanted.target import Source
from backline.repository.repository import FoundModel, Repository

log = logging.getLogger("backline.lifecycle")


class Sources:
    """The models of all repositories, by the names under which they are served.

    With `namespacing` a model is named <repository>.<model>, after the last part of the repository's
    location, so that repositories may share model names; steps of an ensemble may omit their own repository.
    Without it such models get a problem, as in Triton.
    """

    def __init__(self, repositories: Sequence[Repository], *, namespacing: bool) -> None:
        """Raises InvalidArgument if two namespaces would be equal."""
        self._repositories = {repository.location: repository for repository in repositories}
        self._prefixes = dict.fromkeys(self._repositories, "")
        if namespacing:
            self._prefixes = {location: f"{_last_part(location)}." for location in self._repositories}
            _check_apart(self._prefixes)
        self._found: dict[str, list[FoundModel]] = {}
        self._troubles: dict[str, str] = {}

    @property
    def locations(self) -> list[str]:
        return list(self._repositories)

    def missing(self, name: str, problem: str) -> Source:
        """A wanted model that no repository holds."""
        return Source(
            name,
            FoundModel(name, "", "", ModelConfig(name), problem=problem),
            next(iter(self._repositories.values())),
        )

    async def scan(self, *, first: bool = False) -> dict[str, Source]:
        """What the repositories hold. One that cannot be read keeps its last content, logged once for each
        reason.

        The `first` scan raises the BacklineError of a repository that cannot be read.
        """
        await asyncio.gather(
            *(self._scan(location, repository, first) for location, repository in self._repositories.items())
        )
        sources: dict[str, list[Source]] = {}
        for location, repository in self._repositories.items():  # in their order, whichever scan ended first
            found, prefix = self._found.get(location, ()), self._prefixes[location]
            names = frozenset(model.name for model in found) if prefix else frozenset()
            for model in found:
                name = prefix + model.name
                siblings = names if model.config.ensemble is not None else frozenset()
                sources.setdefault(name, []).append(
                    Source(name, _as_composed(model, siblings), repository, siblings=siblings)
                )
        return {name: same[0] if len(same) == 1 else _refuse_same(same) for name, same in sources.items()}

    async def _scan(self, location: str, repository: Repository, first: bool) -> None:
        try:
            self._found[location] = await repository.scan()
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
            log.error("model repository '%s' cannot be read, its models keep serving: %s", location, reason)

    async def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields whenever a scan may find something new; changes that come together yield once."""
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
            await asyncio.sleep(interval)  # the watch ended: begin again, after a scan for what was missed
            changed.set()

    async def close(self) -> None:
        for repository in self._repositories.values():
            await repository.close()


def _as_composed(model: FoundModel, siblings: frozenset[str]) -> FoundModel:
    """Gives an ensemble another fingerprint when its repository gains or loses a model of its steps."""
    if model.config.ensemble is None or not siblings:
        return model
    own = " ".join(sorted(model.config.ensemble.models & siblings))
    versions = tuple(
        replace(version, fingerprint=f"{version.fingerprint} with {own}") for version in model.versions
    )
    return replace(model, versions=versions)


def _last_part(location: str) -> str:
    return PurePath(location.rstrip("/")).name or "root"


def _check_apart(prefixes: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for location, prefix in prefixes.items():
        if prefix in seen:
            raise InvalidArgument(
                "with namespaces, models are named after the last part of their repository, which is"
                f" '{prefix[:-1]}' for both"
                f" '{seen[prefix]}' and '{location}'; rename one"
            )
        seen[prefix] = location


def _refuse_same(same: list[Source]) -> Source:
    """Refuses models that share a name: any of them could be meant."""
    folders = ", ".join(f"'{source.found.namespace.rstrip('/')}/{source.found.folder}'" for source in same)
    problem = (
        f"model '{same[0].name}' is in more than one repository: {folders}; rename or remove all but one,"
        " or serve them as <repository>.<model> with --model-namespacing"
    )
    return replace(same[0], found=replace(same[0].found, problem=problem, versions=()))
