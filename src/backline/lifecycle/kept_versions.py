"""Keeps versions loaded for a while after a label has moved away, so that a rollback needs no load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Kept:
    version: str
    end: asyncio.TimerHandle


class KeptVersions:
    """Keeps at most one version for each label of a model: the version to which a rollback would return.

    Lives on the event loop.
    """

    def __init__(self) -> None:
        self._by_label: dict[str, _Kept] = {}

    def keep(self, label: str, version: str, seconds: float, on_end: Callable[[], None]) -> None:
        """Keeps a version for a label, in place of the previous one, and calls `on_end` after `seconds`."""
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
