"""The labels of one model: where they point, and which versions stay loaded so that a label can move back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from backline_client.values.control import STABLE


class _Kept(Struct, frozen=True):
    version: str
    end: asyncio.TimerHandle


class KeptVersions:
    """The versions of a model that are kept loaded for rollbacks: for each label, at most one version, to
    which a rollback would move the label.

    Use this class only on the event loop.
    """

    def __init__(self) -> None:
        self._by_label: dict[str, _Kept] = {}

    def keep(self, label: str, version: str, seconds: float, on_end: Callable[[], None]) -> None:
        """Keeps a version for a label, in place of the version that was kept for that label so far. After
        `seconds`, stops keeping the version, and calls `on_end`.
        """
        self.forget(label)

        def end() -> None:
            self.forget(label)
            on_end()

        timer = asyncio.get_running_loop().call_later(seconds, end)
        self._by_label[label] = _Kept(version, timer)

    def forget(self, label: str) -> None:
        """Stops keeping a version for a label."""
        kept = self._by_label.pop(label, None)
        if kept is not None:
            kept.end.cancel()

    def drop(self, version: str) -> None:
        """Stops keeping a version, whichever labels it was kept for."""
        for label in self.labels_of(version):
            self.forget(label)

    @property
    def versions(self) -> set[str]:
        return {kept.version for kept in self._by_label.values()}

    def labels_of(self, version: str) -> list[str]:
        """Returns the labels for which a version is kept, sorted."""
        return sorted(label for label, kept in self._by_label.items() if kept.version == version)


class ModelLabels:
    """The labels of a model. Use this class only on the event loop."""

    def __init__(self) -> None:
        #: Maps each label to the version to which it should point. A version to which a label should point
        #: stays wanted.
        self.wanted: Mapping[str, str] = {}
        #: Maps each label to the version to which it points now. A label moves once the version in `wanted`
        #: is ready.
        self.pointing: Mapping[str, str] = {}
        #: Labels that other servers have set and that this server does not have yet. Such a label points to
        #: no version until its new version is ready.
        self.arriving: set[str] = set()
        #: The versions that are kept loaded for rollbacks.
        self.kept = KeptVersions()

    @property
    def versions(self) -> set[str]:
        """The versions to which labels point now or should point."""
        return {*self.wanted.values(), *self.pointing.values()}

    def of(self, version: str) -> list[str]:
        """Returns the labels that should point to a version, sorted."""
        return sorted(label for label, labelled in self.wanted.items() if labelled == version)

    def move(self, answers: Callable[[str], bool]) -> None:
        """Points each label to the version in `wanted`. A label is not moved while its old version takes
        requests and its new version does not. `answers` says whether a version takes requests.
        """
        pointing: dict[str, str] = {}
        for label, version in self.wanted.items():
            if label in self.arriving and not answers(version):
                continue
            self.arriving.discard(label)
            before = self.pointing.get(label, version)
            pointing[label] = before if answers(before) and not answers(version) else version
        self.pointing = pointing


def missing_text(model: str, version: str, labels: Sequence[str]) -> str:
    """Returns a text that says why a version to which `labels` point cannot be loaded, what the consequence
    is, and what to do.
    """
    refused = "requests without a version" if STABLE in labels else "requests for it"
    return (
        f"{_point(labels)} to version {version}, which no repository holds, so {refused} are refused."
        f" Restore the version, or choose another one: backline models label {model} {labels[0]} VERSION"
    )


def files_gone_text(version: str, labels: Sequence[str]) -> str:
    """Returns a text that says what will happen to a version that serves because of `labels` although its
    files are gone.
    """
    return (
        f"{_point(labels)} to version {version}, whose files are gone from the repository. It is served"
        " until the label moves or the server stops, and cannot be loaded again"
    )


def _point(labels: Sequence[str]) -> str:
    named = ", ".join(f"'{label}'" for label in labels)
    return f"label {named} points" if len(labels) == 1 else f"labels {named} point"
