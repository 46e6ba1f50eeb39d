"""Oldest: the sequences of one instance, whose requests are joined like any others."""

from __future__ import annotations

from backline.schedule.scheduler import Scheduler
from backline.workers.batch import Batch
from backline.workers.instance import Instance


class SequenceLane(Scheduler):
    """A Scheduler whose next batch waits for the answers of the one before: the next requests of its sequences come with them."""

    __slots__ = ()

    def _finished(self, instance: Instance, batch: Batch) -> None:
        self._scheduled = True
        super()._finished(instance, batch)
        self._loop.call_soon(self._dispatch)
