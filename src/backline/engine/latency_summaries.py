"""Counts, sums and quantiles of the latencies of a model version, for Triton's summary metrics.

Quantiles cover a sliding window of about the last minute, as in prometheus-cpp, which Triton uses: five slots
of 12 seconds, of which the newest is still being filled. A slot counts each latency by its value in whole
microseconds. Once a slot has many distinct values, it rounds them to seven significant bits, so its size is
bounded and a quantile is off by at most 0.8 %.
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
#: A slot rounds its values each time it has gained this many distinct ones.
_DISTINCT: Final = 1024
#: The number of significant bits of a rounded value. A slot then has at most 64 values per power of two.
_BITS: Final = 7


class LatencySummary:
    """The summary of one kind of latency. All times are in nanoseconds of time.monotonic_ns()."""

    __slots__ = ("_limit", "_slots", "_turn", "count", "us")

    def __init__(self) -> None:
        #: The number of latencies since the start, and their sum in microseconds.
        self.count = 0
        self.us = 0
        #: The latencies of each slot in microseconds, with how often each occurred; the newest slot is last.
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
        """Returns the quantiles of the window in microseconds; NaN if no latency was recorded in it.

        The quantile q of n latencies is the one at rank floor(q * n) of the sorted latencies, counted from 1,
        as Triton reports it.
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
        if passed > 0:  # a latency recorded slightly late goes into the newest slot
            self._slots.extend({} for _ in range(min(passed, _SLOTS)))
            self._turn = turn
            self._limit = _DISTINCT


def _rounded(counts: dict[int, int]) -> dict[int, int]:
    """Rounds each value to the middle of those with the same first bits, and adds up their counts."""
    rounded: dict[int, int] = {}
    for value, count in counts.items():
        shift = max(value.bit_length() - _BITS, 0)
        middle = (value >> shift << shift) + (1 << shift) // 2
        rounded[middle] = rounded.get(middle, 0) + count
    return rounded


class LatencySummaries:
    """The latency summaries of one model version."""

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
        """Adds successful requests that arrived at these times, were taken from the queue and ended together.

        `compute` gives the nanoseconds that each of them spent on gathering inputs, in the model, and on
        splitting outputs.
        """
        count = 0
        for arrived in arrivals:
            self.request.add(ended - arrived, ended)
            self.queue.add(started - arrived, ended)
            count += 1
        summaries = (self.compute_input, self.compute_infer, self.compute_output)
        for summary, ns in zip(summaries, compute, strict=True):
            summary.add(ns, ended, count)
