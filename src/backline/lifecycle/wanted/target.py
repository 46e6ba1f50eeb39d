"""What should be served of a model: what its repository holds, its policy selects, requests changed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from backline.engine.model_config import ModelConfig, VersionPolicy
from backline.engine.version_order import version_order
from backline.lifecycle.plan import Wanted
from backline.repository.names import some_of
from backline.repository.repository import FoundModel, FoundVersion, Repository

#: The version shown for a model of which nothing can be served.
NO_VERSION = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """A model in its repository, and the `name` that it is served under."""

    name: str
    found: FoundModel
    repository: Repository
    #: Whether its files belong to this machine's owner: neither remote nor brought by a load.
    own_files: bool = True
    #: The models of an ensemble's repository, which its steps name without the namespace.
    siblings: frozenset[str] = frozenset()

    @property
    def config(self) -> ModelConfig:
        """The configuration, with the served names of the model and of its steps."""
        config = self.found.config
        if config.name == self.name:
            return config
        ensemble = config.ensemble
        if ensemble is not None and self.siblings:
            prefix = self.name.removesuffix(self.found.name)
            renamed = {name: prefix + name for name in ensemble.models & self.siblings}
            ensemble = replace(
                ensemble,
                steps=tuple(
                    replace(step, model=renamed.get(step.model, step.model)) for step in ensemble.steps
                ),
            )
        return replace(config, name=self.name, ensemble=ensemble)

    @property
    def versions(self) -> tuple[str, ...]:
        """All versions in the repository, oldest first."""
        return tuple(version.version for version in self.found.versions)

    def with_version_of(self, newer: Source, version: str) -> Source:
        """The same, with one version as a later scan found it."""
        added = [one for one in newer.found.versions if one.version == version]
        kept = [one for one in self.found.versions if one.version != version]
        versions = sorted(kept + added, key=lambda one: version_order(one.version))
        return replace(self, found=replace(self.found, versions=tuple(versions), problem=""))


@dataclass(frozen=True, slots=True)
class Target:
    """What should be served of one model.

    Requests loaded the versions in `beside` and unloaded those in `without`; the policy selects the others.
    `trouble` says why the current files cannot be used; `source` is then what they were before.
    """

    source: Source
    beside: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    trouble: str = ""

    def versions(self, labelled: Iterable[str] = ()) -> list[FoundVersion]:
        """The versions to serve, newest first, with those in `labelled`. A version may have a `problem`."""
        found = self.source.found
        chosen: list[FoundVersion] = []
        if self.trouble or found.problem:
            chosen.append(FoundVersion(NO_VERSION, None, problem=self.trouble or found.problem))
        if not found.problem:
            selected, missing = select(self.source.versions, found.config.version_policy)
            names = (self.beside | set(selected) | set(labelled)) - self.without
            if missing and not names and not selected:
                place = posixpath.join(found.namespace, found.folder).rstrip("/")
                chosen.append(
                    FoundVersion(
                        NO_VERSION, None, problem=none_selected(place, self.source.versions, missing)
                    )
                )
            chosen += [version for version in reversed(found.versions) if version.version in names]
        return chosen

    def wanted(
        self, labelled: Iterable[str] = (), *, asleep: frozenset[str] = frozenset(), serve: bool = True
    ) -> list[Wanted]:
        """The same as goals for the planner; versions in `asleep` are registered without loading."""
        config = self.source.config

        def goal(version: FoundVersion) -> Wanted:
            loaded = version.version not in asleep or bool(version.problem)
            name, key = self.source.name, identity(version)
            return Wanted(name, version.version, key, config, loaded=loaded, serve=serve)

        return [goal(version) for version in self.versions(labelled)]


def select(versions: Iterable[str], policy: VersionPolicy) -> tuple[list[str], list[str]]:
    """The versions that a policy selects, oldest first, and those that it names but that are missing."""
    held = set(versions)
    present = sorted(held, key=version_order)
    if policy.specific is not None:
        wanted = frozenset(policy.specific)
        missing = [version for version in dict.fromkeys(policy.specific) if version not in held]
        return [version for version in present if version in wanted], missing
    if policy.latest is not None:
        return present[max(0, len(present) - policy.latest) :], []
    return present, []


def none_selected(place: str, held: Sequence[str], missing: Sequence[str]) -> str:
    """Why nothing is served if the policy only names missing versions; `place` is the model's folder."""
    return (
        f"'{place}' holds none of the versions that version_policy names: {some_of(missing)}"
        f" (it holds {some_of(held) or 'none'})"
    )


def identity(version: FoundVersion) -> str:
    """What identifies a load: the version's files, or its problem."""
    return f"{version.fingerprint} {version.problem}"


def listed(names: Sequence[str]) -> str:
    """A list for messages: "1, 2, 3", "none"; only the last 20 of many."""
    return f"{'..., ' if len(names) > 20 else ''}{', '.join(names[-20:]) or 'none'}"
