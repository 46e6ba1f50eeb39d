"""Counters for the individual responses of decoupled models, in Triton's terms."""

from __future__ import annotations

from bisect import bisect_left

from backline.engine.statistics import Duration

#: The highest response index counted separately. Later responses count there too, as streams may be endless.
MAX_INDEX = 255
#: Triton's histogram of the time to the first response, and its default buckets: each counts times up to a
#: number of milliseconds, and one more the rest.
FIRST_RESPONSE_FAMILY = "nv_inference_first_response_histogram_ms"
FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)


class ResponseCounters:
    """Responses at one index of their streams. `empty` ones had no outputs; `cancel` counts lost streams."""

    __slots__ = ("cancel", "compute_infer", "compute_output", "empty", "fail", "success")

    def __init__(self) -> None:
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.success = Duration()
        self.fail = Duration()
        self.empty = Duration()
        self.cancel = Duration()


class ResponseStatistics:
    """Counters by the index of a response in its stream, from 0. Times are of time.monotonic_ns().

    `first` is a histogram of the time from a request's arrival to its first response, with upper bounds
    `bounds_ms`; `first_ns` is their sum.
    """

    __slots__ = ("_bounds_ns", "bounds_ms", "counters", "first", "first_ns")

    def __init__(self) -> None:
        self.counters: list[ResponseCounters] = []
        self.bounds_ms: tuple[float, ...] = ()
        self.measure_first(FIRST_RESPONSE_BOUNDS_MS)

    def measure_first(self, bounds_ms: tuple[float, ...]) -> None:
        """Sets the bounds of the histogram, ascending, in milliseconds. New bounds reset it."""
        if bounds_ms != self.bounds_ms:
            self.bounds_ms = bounds_ms
            self._bounds_ns = [bound * 1e6 for bound in bounds_ms]
            self.first = [0] * (len(bounds_ms) + 1)
            self.first_ns = 0

    def succeeded(self, index: int, arrived: int, started: int, ran: int, ended: int, *, empty: bool) -> None:
        """Counts a response to a request that arrived at `arrived`.

        `started` is when the previous response was ready, `ran` when this one was computed, and `ended` when
        its outputs were ready.
        """
        counters = self._at(index)
        if not index:
            took = ended - arrived
            self.first[bisect_left(self._bounds_ns, took)] += 1
            self.first_ns += took
        if empty:
            counters.empty.add(1, ended - started)
            return
        counters.compute_infer.add(1, ran - started)
        counters.compute_output.add(1, ended - ran)
        counters.success.add(1, ended - started)

    def failed(self, index: int, started: int, ended: int) -> None:
        self._at(index).fail.add(1, ended - started)

    def cancelled(self, index: int, started: int, ended: int) -> None:
        self._at(index).cancel.add(1, ended - started)

    def _at(self, index: int) -> ResponseCounters:
        index = min(index, MAX_INDEX)
        while len(self.counters) <= index:
            self.counters.append(ResponseCounters())
        return self.counters[index]
