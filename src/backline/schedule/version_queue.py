"""What takes the requests of one version: the drivers, and what stands in front of them, which hands on what is not its own business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from backline.engine.model import RequestQueue

if TYPE_CHECKING:
    from backline.schedule.scheduler import Settings
    from backline.workers.instance import Instance


class VersionQueue(RequestQueue, Protocol):
    """The queue of a version, with instances or, of an ensemble, without."""

    @property
    def running(self) -> int:
        """Requests that run."""

    async def drain(self, limit: float) -> None:
        """Finishes what it has, for at most `limit` seconds, refuses the rest, and closes the instances. Nothing is submitted any more."""


class InstancesQueue(VersionQueue, Protocol):
    """The queue in front of instances, which may change."""

    def update(self, settings: Settings, *, instances: Sequence[Instance] | None = None) -> None:
        """Goes on with other settings, and on other instances if some are given; batches that run are finished where they are."""

    def replace_instances(self, instances: Sequence[Instance]) -> None:
        """Runs what comes next on other instances."""
