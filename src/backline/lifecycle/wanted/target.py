"""What should be served of a model: what its repository holds, what its policy selects, and what was asked for besides."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from backline.engine.model_config import ModelConfig, VersionPolicy
from backline.engine.version_order import version_order
from backline.lifecycle.plan import Wanted
from backline.repository.repository import FoundModel, FoundVersion, Repository

#: The version under which a model is listed of which nothing can be served.
NO_VERSION = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """A model in its repository, and the `name` under which it is served."""

    name: str
    found: FoundModel
    repository: Repository
    #: Whether its files are those of this machine's owner: not from elsewhere, and not brought along by a load.
    own_files: bool = True
    #: Of an ensemble in a namespace: the models of its repository, which its steps name without the namespace.
    siblings: frozenset[str] = frozenset()

    @property
    def config(self) -> ModelConfig:
        """The configuration, under the name that is served; steps of an ensemble, too, have the names that are served."""
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
        """All versions that the repository holds, oldest first."""
        return tuple(version.version for version in self.found.versions)

    def with_version_of(self, newer: Source, version: str) -> Source:
        """The same, with one version as a later scan has found it."""
        added = [one for one in newer.found.versions if one.version == version]
        kept = [one for one in self.found.versions if one.version != version]
        versions = sorted(kept + added, key=lambda one: version_order(one.version))
        return replace(self, found=replace(self.found, versions=tuple(versions), problem=""))


@dataclass(frozen=True, slots=True)
class Target:
    """What should be served of one model.

    Versions in `beside` were loaded by request, those in `without` unloaded by request; the policy selects the others. `trouble` says why
    the files as they are now cannot be used: then `source` is what they were before.
    """

    source: Source
    beside: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    trouble: str = ""

    def versions(self, labelled: Iterable[str] = ()) -> list[FoundVersion]:
        """The versions to be served, newest first; `labelled` are those that labels hold. What cannot be served has its `problem`."""
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
        """The same for the planner; versions in `asleep` are registered and not loaded."""
        config = self.source.config
        return [
            Wanted(
                self.source.name, version.version, identity(version), config, loaded=version.version not in asleep or bool(version.problem),
                serve=serve,
            )
            for version in self.versions(labelled)
        ]  # fmt: skip


def select(versions: Iterable[str], policy: VersionPolicy) -> tuple[list[str], list[str]]:
    """The versions that a policy selects, oldest first, and those it names that are not there, in the order in which it names them."""
    present = sorted(set(versions), key=version_order)
    if policy.specific is not None:
        wanted = frozenset(policy.specific)
        missing = [version for version in dict.fromkeys(policy.specific) if version not in present]
        return [version for version in present if version in wanted], missing
    if policy.latest is not None:
        return present[max(0, len(present) - policy.latest) :], []
    return present, []


def none_selected(place: str, held: Sequence[str], missing: Sequence[str]) -> str:
    """Why nothing of a model is served whose policy names only versions that are not there; `place` is the model's folder."""
    return f"'{place}' holds none of the versions that version_policy names: {', '.join(missing)} (it holds {', '.join(held) or 'none'})"


def identity(version: FoundVersion) -> str:
    """What makes a version another load: its files, or why it has none."""
    return f"{version.fingerprint} {version.problem}"


def listed(names: Sequence[str]) -> str:
    """For sentences that begin with "there": "is 1", "are 1, 2, 3", "is none"; of many the last ones."""
    if not names:
        return "is none"
    shown = list(names[-20:])
    text = ", ".join(shown)
    return f"{'is' if len(shown) == 1 else 'are'} {'..., ' if len(names) > 20 else ''}{text}"
