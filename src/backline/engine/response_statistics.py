"""Counters of single responses, of models that give any number of them to a request; in Triton's words."""

from __future__ import annotations

from backline.engine.statistics import Duration

#: Responses of one request are counted by their place up to this one; all later ones count there too, so that endless streams are bounded.
MAX_INDEX = 255


class ResponseCounters:
    """The responses of one place in their streams. `empty` ones had no outputs; `cancel` counts streams that were given up there."""

    __slots__ = ("cancel", "compute_infer", "compute_output", "empty", "fail", "success")

    def __init__(self) -> None:
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.success = Duration()
        self.fail = Duration()
        self.empty = Duration()
        self.cancel = Duration()


class ResponseStatistics:
    """Counters by the index of a response in its stream: the first to every request is 0. Moments are of time.monotonic_ns()."""

    __slots__ = ("counters",)

    def __init__(self) -> None:
        self.counters: list[ResponseCounters] = []

    def succeeded(self, index: int, started: int, ran: int, ended: int, *, empty: bool) -> None:
        """Counts a response: begun when the one before was ended, computed, and made ready to be sent."""
        counters = self._at(index)
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
