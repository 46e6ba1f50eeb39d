"""Queues that start no batch until enough requests have arrived, so that tests can decide which requests form
a batch.

They implement Triton's debugging hooks, which only `backline tritonserver` has.
"""

from __future__ import annotations

from typing import Any

from backline.schedule.scheduler import Scheduler
from backline.schedule.sequences.batcher import SequenceBatcher
from backline.schedule.sequences.table import LiveSequence


class HoldingScheduler(Scheduler):
    """A scheduler that starts its first batch when `hold` requests are queued. From then on, it behaves like
    any Scheduler.
    """

    __slots__ = ("_hold",)

    def __init__(self, *arguments: Any, hold: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._hold = hold

    @property
    def most_at_once(self) -> int:
        return 0 if self._hold else super().most_at_once

    async def drain(self, limit: float) -> None:
        self._hold = 0
        await super().drain(limit)

    def _dispatch(self) -> None:
        if self._queue.size < self._hold:
            self._scheduled = False
            return
        self._hold = 0
        super()._dispatch()


class HoldingSequenceBatcher(SequenceBatcher):
    """A batcher of sequences that starts once at least `hold` requests are waiting in sequences that have a
    place on an instance, and at least `backlog` requests in sequences that have none. From then on, it
    behaves like any SequenceBatcher.
    """

    def __init__(self, *arguments: Any, hold: int, backlog: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._hold = hold
        self._backlog = backlog

    async def drain(self, limit: float) -> None:
        self._begin()
        await super().drain(limit)

    def _run_next(self, sequence: LiveSequence) -> None:
        if self._hold:
            placed = sum(len(one.waiting) for one in self._table.backlogged if one.place is not None)
            if placed < self._hold or self._table.waiting - placed < self._backlog:
                return
            self._begin(sequence)
        super()._run_next(sequence)

    def _begin(self, except_for: LiveSequence | None = None) -> None:
        """Ends the hold, and runs the waiting requests, except those of the sequence `except_for`, which the
        caller must run.
        """
        held, self._hold = self._hold, 0
        if held:
            self._run_all([one for one in self._table.backlogged if one is not except_for])
