"""Counts how the targets of routes answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from time import monotonic_ns
from typing import Final

from backline.engine.custom_metrics import CustomMetrics, Family, Sample
from backline.engine.ticket import Listener, Ticket
from backline.plugins.traffic.route import split_target
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse

#: The upper bounds of the latencies' buckets, in seconds: 100 us to 105 s, each twice the one before.
_BOUNDS: Final = tuple(1e-4 * 2**exponent for exponent in range(21))


class Counters:
    """The metrics of all routes of an engine."""

    def __init__(self, metrics: CustomMetrics) -> None:
        self.requests = Family(
            "backline_route_requests_total", "counter", "Number of requests that a route sent to a target"
        )
        self.failures = Family(
            "backline_route_failures_total", "counter", "Number of these requests that failed in the server"
        )
        self.fallbacks = Family(
            "backline_route_fallbacks_total",
            "counter",
            "Number of requests that a route sent on because this target failed or took too long",
        )
        self.latency = Family(
            "backline_route_latency_seconds", "histogram", "Time from a route's decision to the response"
        )
        for family in (self.requests, self.failures, self.fallbacks, self.latency):
            metrics.add(family)

    def of(self, route: str, target: str) -> Counts:
        """Returns the counts of a target, which continue if the target was counted before."""
        labels = (("route", route), ("target", target))
        return Counts(
            self.requests.samples.setdefault(labels, Sample()),
            self.failures.samples.setdefault(labels, Sample()),
            self.fallbacks.samples.setdefault(labels, Sample()),
            self.latency.samples.setdefault(labels, Sample(bounds=_BOUNDS, counts=[0] * (len(_BOUNDS) + 1))),
        )

    def forget(self, route: str, kept: Sequence[str] = ()) -> None:
        """Removes the counts of a route, except those of the targets in `kept`."""
        for family in (self.requests, self.failures, self.fallbacks, self.latency):
            for labels in tuple(family.samples):
                if labels[0][1] == route and labels[1][1] not in kept:
                    del family.samples[labels]


class Counts:
    """How one target of a route has answered. A failure is an error that is not the client's fault."""

    __slots__ = ("_buckets", "_failures", "_fallbacks", "_requests", "_seconds")

    def __init__(self, requests: Sample, failures: Sample, fallbacks: Sample, seconds: Sample) -> None:
        self._requests = requests
        self._failures = failures
        self._fallbacks = fallbacks
        self._seconds = seconds
        self._buckets = seconds.counts

    @property
    def requests(self) -> int:
        return int(self._requests.value)

    @property
    def failures(self) -> int:
        return int(self._failures.value)

    @property
    def fallbacks(self) -> int:
        return int(self._fallbacks.value)

    @property
    def mean_ms(self) -> float | None:
        """The mean time of the requests that were answered, in milliseconds; None if there are none."""
        count = sum(self._buckets)
        return 1e3 * self._seconds.value / count if count else None

    def began(self) -> None:
        self._requests.value += 1

    def answered(self, seconds: float) -> None:
        self._seconds.value += seconds
        self._buckets[bisect_left(_BOUNDS, seconds)] += 1

    def failed(self, error: BacklineError) -> None:
        if error.http_status >= 500:
            self._failures.value += 1

    def fell_back(self) -> None:
        self._fallbacks.value += 1


class Outcome(Listener):
    """Counts how a request ends."""

    __slots__ = ("_began", "_counts")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        counts.began()
        self._began = monotonic_ns()

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        if error is None:
            self._counts.answered((monotonic_ns() - self._began) / 1e9)
        else:
            self._counts.failed(error)

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self._counts.failed(error)


class Target:
    """A target of a route: the model and version that it names, and its counts."""

    __slots__ = ("counts", "model", "name", "version")

    def __init__(self, name: str, counts: Counts) -> None:
        self.name = name
        self.model, self.version = split_target(name)
        self.counts = counts
