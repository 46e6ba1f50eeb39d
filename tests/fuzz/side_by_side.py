"""Compares the latency of an honest client during a campaign with its latency while the server is idle.

The campaign runs for a few seconds, pauses for a few seconds, and so on until it ends, while the client
keeps calling. Whatever else runs on the machine therefore delays both kinds of calls alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from attacks.arena import collect, honest_client
from attacks.honest import Call, Log
from attacks.target import Target

#: Seconds of each turn.
ALONE, DURING = 2.0, 6.0
#: How many milliseconds the p99 during the campaign may exceed the p99 of the client alone.
SLACK = 50.0


@dataclass(frozen=True)
class Comparison:
    """The calls of an honest client, alone and during a campaign."""

    alone: Log
    during: Log

    @classmethod
    def of(cls, log: Log, turns: Sequence[tuple[float, float]]) -> Comparison:
        """Divides calls by the turns in which the client was alone: their begins and ends, in order.

        A call belongs to a turn alone only if the call began and ended there.
        """
        alone, during = Log(), Log()
        for call in log.calls:
            (alone if _is_within(turns, call) else during).calls.append(call)
        return cls(alone, during)

    def complaints(self) -> list[str]:
        """What the honest client can complain about: errors at any time, and waits during the campaign."""
        failed = [*self.alone.errors, *self.during.errors]
        found = [f"the honest client got {call.protocol} {call.error}" for call in failed[:3]]
        if not self.during.calls:
            found.append("the honest client made no calls during the campaign")
        if self.during.quantile(0.99) > self.alone.quantile(0.99) + SLACK:
            found.append(f"the honest client waited more than {SLACK:.0f} ms longer: {self}")
        return found

    def __str__(self) -> str:
        errors = len(self.alone.errors) + len(self.during.errors)
        return f"{errors} errors; during the campaign {_summary(self.during)}; alone {_summary(self.alone)}"


def _is_within(turns: Sequence[tuple[float, float]], call: Call) -> bool:
    after = bisect_right(turns, call.began, key=lambda turn: turn[0])
    return after > 0 and call.began + call.seconds <= turns[after - 1][1]


def _summary(log: Log) -> str:
    return f"{len(log.calls)} calls, p50 {log.quantile(0.5):.1f} ms, p99 {log.quantile(0.99):.1f} ms"


class Turns:
    """Whose turn it is: the honest client's alone, or the campaign's, while the client goes on calling."""

    def __init__(self) -> None:
        self._alone: list[tuple[float, float]] = []
        self._since = monotonic()
        #: Set when the last turn has ended.
        self.comparison = Comparison(Log(), Log())

    @property
    def over(self) -> bool:
        """Whether the campaign should stop for a while, and call `alone`."""
        return monotonic() - self._since >= DURING

    async def alone(self) -> None:
        """Lets the client call while nothing of the campaign runs. Begins the campaign's next turn."""
        began = monotonic()
        await asyncio.sleep(ALONE)
        self._since = monotonic()
        self._alone.append((began, self._since))

    def compare(self, log: Log) -> None:
        self.comparison = Comparison.of(log, self._alone)


@contextlib.asynccontextmanager
async def side_by_side(target: Target) -> AsyncIterator[Turns]:
    """Lets an honest client in another process call a server; the block is the campaign's first turn."""
    turns = Turns()
    # The server may run on this event loop, so everything that waits for the client runs on another thread.
    client = honest_client(target)
    control = await asyncio.to_thread(client.__enter__)
    try:
        await turns.alone()
        try:
            yield turns
        finally:
            await turns.alone()
            turns.compare(await asyncio.to_thread(collect, control))
    finally:
        await asyncio.to_thread(client.__exit__, None, None, None)
