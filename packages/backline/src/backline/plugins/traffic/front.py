"""Applies the policy of a route to requests, and counts how the targets answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from random import random
from time import monotonic_ns
from typing import Final

from msgspec.structs import replace

from backline.engine.custom_metrics import CustomMetrics, Family, Sample
from backline.engine.engine import Engine
from backline.engine.ticket import Listener, Ticket
from backline.plugins.traffic.fallback import FallbackRun
from backline.plugins.traffic.policy import Policy
from backline.plugins.traffic.route import Route, Source, split_target, targets_of
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse

#: The upper bounds of the latencies' buckets, in seconds: 100 us to 105 s, each twice the one before.
_BOUNDS: Final = tuple(1e-4 * 2**exponent for exponent in range(21))
#: The maximum number of open sequences whose targets a route remembers; above it, the oldest are forgotten.
_MOST_SEQUENCES = 65_536


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
            self.latency.samples.setdefault(
                labels, Sample(bounds=_BOUNDS, counts=[0] * (len(_BOUNDS) + 1))
            ),
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


class RouteFront:
    """Serves the requests for a route. A change of the route applies to all requests that follow."""

    def __init__(self, name: str, route: Route, engine: Engine, counters: Counters) -> None:
        self._name = name
        self._engine = engine
        self._counters = counters
        #: The targets of open sequences, by caller and sequence.
        self._sequences: dict[tuple[str, int | str], str] = {}
        self.change(route)

    def change(self, route: Route) -> None:
        names = targets_of(route)
        self.policy = Policy(route)
        self.by_name = {name: Target(name, self._counters.of(self._name, name)) for name in names}
        self.targets: Sequence[tuple[str, str]] = [(one.model, one.version) for one in self.by_name.values()]
        #: The targets to use, in this order, instead of one that cannot respond.
        self._others = [self.by_name[name] for name in (*route.fallback, *names) if name not in _unused(route)]
        self._fallback = [self.by_name[name] for name in route.fallback]
        self._timeout = route.timeout_ms / 1e3
        self._counters.forget(self._name, names)

    def close(self) -> None:
        self._counters.forget(self._name)

    def take(self, ticket: Ticket) -> bool:
        """Chooses the target of a request; see Front.take."""
        request = ticket.request
        target = self._target(ticket, request)
        if self._fallback and request.sequence is None:
            further = [one for one in self._fallback if one is not target]
            FallbackRun(self._engine.submit, ticket, [target, *further], self._timeout).start()
            return True
        ticket.request = replace(request, model_name=target.model, model_version=target.version)
        ticket.listen(Outcome(target.counts))
        return False

    def _target(self, ticket: Ticket, request: InferRequest) -> Target:
        if request.sequence is not None:
            target = self._of_sequence(ticket, request)
        elif self.policy.plain:
            target = self.by_name[self.policy.by_weight(random())]
        else:
            target = self.by_name[self._chosen(ticket)]
        if not self._engine.serves(target.model, target.version):
            for other in self._others:
                if self._engine.serves(other.model, other.version):
                    return other
        return target

    def _chosen(self, ticket: Ticket) -> str:
        return self.policy.choose(lambda source: _value(ticket, source), random())

    def _of_sequence(self, ticket: Ticket, request: InferRequest) -> Target:
        """Returns the target of a sequence, which is that of its first request as long as the route has it."""
        step = request.sequence
        assert step is not None, "the caller has checked it"
        key = (ticket.identity, step.id)
        name = "" if step.start else self._sequences.get(key, "")
        target = self.by_name.get(name) or self.by_name[self._chosen(ticket)]
        if step.end:
            self._sequences.pop(key, None)
        elif step.start:
            if len(self._sequences) >= _MOST_SEQUENCES:
                del self._sequences[next(iter(self._sequences))]
            self._sequences[key] = target.name
        return target


def _unused(route: Route) -> set[str]:
    """Returns the targets that only rules or fallbacks name, or whose weight is 0."""
    return set(targets_of(route)) - {one for one, weight in route.targets.items() if weight > 0} - set(
        route.fallback
    )


def _value(ticket: Ticket, source: Source) -> str | None:
    """Returns what a request has at a source; None if it has nothing there."""
    match source.kind:
        case "header":
            found = None if ticket.fields is None else ticket.fields.get(source.name.encode())
            return None if found is None else found.decode("latin-1")
        case "parameter":
            value = (ticket.request.parameters or {}).get(source.name)
            return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        case _:
            return ticket.identity or None
