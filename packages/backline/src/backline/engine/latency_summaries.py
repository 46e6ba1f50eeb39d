"""Counts, sums and quantiles of the latencies of a model version, for Triton's summary metrics.

Quantiles cover a sliding window of about the last minute, as in prometheus-cpp, which Triton uses. The window
has five slots of 12 seconds, of which the newest is still being filled. A slot maps each latency, in whole
microseconds, to the number of times that it occurred. When a slot has many distinct values, they are rounded
to seven significant bits. This bounds the size of a slot, and limits the error of a quantile to 0.8 %.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import nan
from typing import Final

_SLOTS: Final = 5
_SLOT_NS: Final = 12_000_000_000
#: The values of a slot are rounded each time this many distinct values have been added.
_DISTINCT: Final = 1024
#: The number of significant bits of a rounded value. A slot then has at most 64 values per power of two.
_BITS: Final = 7


class LatencySummary:
    """The summary of one kind of latency. Points in time are from time.monotonic_ns(), and latencies in
    nanoseconds, unless their name says otherwise.
    """

    __slots__ = ("_limit", "_slots", "_turn", "count", "us")

    def __init__(self) -> None:
        #: The number of latencies since the server started.
        self.count = 0
        #: The sum of the latencies since the server started, in microseconds.
        self.us = 0
        #: For each slot, a map from a latency in microseconds to the number of times that it occurred; the
        #: newest slot is last.
        self._slots: deque[dict[int, int]] = deque([{}], maxlen=_SLOTS)
        self._turn = 0
        self._limit = _DISTINCT

    def add(self, ns: int, now: int, times: int = 1) -> None:
        """Adds a latency that occurred `times` times, at the time `now`."""
        us = ns // 1000
        self.count += times
        self.us += us * times
        self._turn_to(now)
        newest = self._slots[-1]
        newest[us] = newest.get(us, 0) + times
        if len(newest) > self._limit:
            newest = self._slots[-1] = _rounded(newest)
            self._limit = len(newest) + _DISTINCT

    def quantiles(self, wanted: Sequence[float], now: int) -> list[float]:
        """Returns the quantiles of the latencies in the window, in microseconds; NaN if the window has no
        latencies.

        As in Triton, the quantile q of n latencies is the latency at rank floor(q * n) of the sorted
        latencies, counted from 1.
        """
        self._turn_to(now)
        counts: Counter[int] = Counter()
        for slot in self._slots:
            counts.update(slot)
        total = counts.total()
        if not total:
            return [nan] * len(wanted)
        values = sorted(counts)
        ranks = list(accumulate(counts[value] for value in values))
        return [values[bisect_left(ranks, max(int(quantile * total), 1))] for quantile in wanted]

    def _turn_to(self, now: int) -> None:
        turn = now // _SLOT_NS
        passed = turn - self._turn
        if passed > 0:  # not for a latency that is recorded late, which counts in the newest slot
            self._slots.extend({} for _ in range(min(passed, _SLOTS)))
            self._turn = turn
            self._limit = _DISTINCT


def _rounded(counts: dict[int, int]) -> dict[int, int]:
    """Rounds each value to the middle of all values with the same first _BITS bits, and adds up the counts of
    values that become equal.
    """
    rounded: dict[int, int] = {}
    for value, count in counts.items():
        shift = max(value.bit_length() - _BITS, 0)
        middle = (value >> shift << shift) + (1 << shift) // 2
        rounded[middle] = rounded.get(middle, 0) + count
    return rounded


class LatencySummaries:
    """The latency summaries of a model version."""

    __slots__ = (
        "cache_hit",
        "cache_miss",
        "compute_infer",
        "compute_input",
        "compute_output",
        "queue",
        "request",
    )

    def __init__(self) -> None:
        self.request = LatencySummary()
        self.queue = LatencySummary()
        self.compute_input = LatencySummary()
        self.compute_infer = LatencySummary()
        self.compute_output = LatencySummary()
        self.cache_hit = LatencySummary()
        self.cache_miss = LatencySummary()

    def record(
        self, arrivals: Iterable[int], started: int, ended: int, compute: tuple[int, int, int]
    ) -> None:
        """Adds successful requests that arrived at the times `arrivals`, were taken from the queue together
        and ended together.

        `compute` has the times, in nanoseconds, for gathering inputs, running the model and splitting
        outputs, which were the same for all these requests.
        """
        count = 0
        for arrived in arrivals:
            self.request.add(ended - arrived, ended)
            self.queue.add(started - arrived, ended)
            count += 1
        summaries = (self.compute_input, self.compute_infer, self.compute_output)
        for summary, ns in zip(summaries, compute, strict=True):
            summary.add(ns, ended, count)
