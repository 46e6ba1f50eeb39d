"""Counts how the targets of routes answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Final

from backline.engine.custom_metrics import CustomMetrics, Family, MetricKind, Sample
from backline.engine.ticket import Listener, Ticket
from backline.plugins.traffic.bandit import Arm
from backline.plugins.traffic.feedback import Sent
from backline.plugins.traffic.route import split_target
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse

#: The upper bounds of the latencies' buckets, in seconds: 100 us to 105 s, each twice the one before.
_LATENCIES: Final = tuple(1e-4 * 2**exponent for exponent in range(21))
#: The upper bounds of the distances' buckets: 1e-9 to 1.
_DISTANCES: Final = tuple(10.0**exponent for exponent in range(-9, 1))


class Counters:
    """The metrics of all routes of an engine."""

    def __init__(self, metrics: CustomMetrics) -> None:
        self._metrics = metrics
        self._families: list[Family] = []
        add = self._add
        self._requests = add("requests_total", "counter", "Number of requests that a route sent to a target")
        self._failures = add(
            "failures_total", "counter", "Number of these requests that failed in the server"
        )
        self._fallbacks = add(
            "fallbacks_total",
            "counter",
            "Number of requests that a route sent on because this target failed or took too long",
        )
        self._latency = add("latency_seconds", "histogram", "Time from a route's decision to the response")
        self._rewards = add(
            "rewards_total", "counter", "Number of rewards for requests that went to a target"
        )
        self._reward_sum = add("reward_sum_total", "counter", "Sum of these rewards, each from 0 to 1")
        self._copies = add("shadow_requests_total", "counter", "Number of copies of requests, by outcome")
        self._distances = add(
            "shadow_distance", "histogram", "Distance of the outputs of copies, from 0 to 1"
        )

    def _add(self, name: str, kind: MetricKind, description: str) -> Family:
        family = Family(f"backline_route_{name}", kind, description)
        self._families.append(family)
        self._metrics.add(family)
        return family

    def of(self, route: str, target: str) -> Counts:
        """Returns the counts of a target, which continue if the target was counted before."""
        labels = (("route", route), ("target", target))
        return Counts(
            self._requests.samples.setdefault(labels, Sample()),
            self._failures.samples.setdefault(labels, Sample()),
            self._fallbacks.samples.setdefault(labels, Sample()),
            self._latency.samples.setdefault(labels, _histogram(_LATENCIES)),
            self._rewards.samples.setdefault(labels, Sample()),
            self._reward_sum.samples.setdefault(labels, Sample()),
        )

    def of_shadow(self, route: str, target: str) -> ShadowCounts:
        """Returns the counts of the copies to a target, which continue as those of `of`."""
        labels = (("route", route), ("target", target))
        compared, failed, skipped = (
            self._copies.samples.setdefault((*labels, ("outcome", outcome)), Sample())
            for outcome in ("compared", "failed", "skipped")
        )
        distances = self._distances.samples.setdefault(labels, _histogram(_DISTANCES))
        return ShadowCounts(compared, failed, skipped, distances)

    def forget(self, route: str, kept: Sequence[str] = ()) -> None:
        """Removes the counts of a route, except those of the targets in `kept`."""
        for family in self._families:
            for labels in tuple(family.samples):
                if labels[0][1] == route and labels[1][1] not in kept:
                    del family.samples[labels]


def _histogram(bounds: tuple[float, ...]) -> Sample:
    return Sample(bounds=bounds, counts=[0] * (len(bounds) + 1))


class Counts:
    """How one target of a route has answered. A failure is an error that is not the client's fault."""

    __slots__ = ("_failures", "_fallbacks", "_requests", "_reward_sum", "_rewards", "_seconds")

    def __init__(
        self,
        requests: Sample,
        failures: Sample,
        fallbacks: Sample,
        seconds: Sample,
        rewards: Sample,
        reward_sum: Sample,
    ) -> None:
        self._requests = requests
        self._failures = failures
        self._fallbacks = fallbacks
        self._seconds = seconds
        self._rewards = rewards
        self._reward_sum = reward_sum

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
        count = sum(self._seconds.counts)
        return 1e3 * self._seconds.value / count if count else None

    @property
    def arm(self) -> Arm:
        """The number and the sum of the rewards."""
        return Arm(self._rewards.value, self._reward_sum.value)

    def reward(self, reward: float) -> None:
        self._rewards.value += 1
        self._reward_sum.value += reward

    def began(self) -> None:
        self._requests.value += 1

    def answered(self, seconds: float) -> None:
        self._seconds.value += seconds
        self._seconds.counts[bisect_left(_LATENCIES, seconds)] += 1

    def failed(self, error: BacklineError) -> None:
        if error.http_status >= 500:
            self._failures.value += 1

    def fell_back(self) -> None:
        self._fallbacks.value += 1


class ShadowCounts:
    """How the copies to one target ended."""

    def __init__(self, compared: Sample, failed: Sample, skipped: Sample, distances: Sample) -> None:
        self.compared = compared
        self.failed = failed
        #: Those for which the budget had no room, or that the target could not take.
        self.skipped = skipped
        self._distances = distances

    def compare(self, distance: float) -> None:
        self.compared.value += 1
        self._distances.value += distance
        self._distances.counts[bisect_left(_DISTANCES, distance)] += 1

    @property
    def mean_distance(self) -> float | None:
        return self._distances.value / self.compared.value if self.compared.value else None


class Outcome(Listener):
    """Counts how a request ends."""

    __slots__ = ("_began", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        target.counts.began()
        self._began = monotonic_ns()

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        seconds = (monotonic_ns() - self._began) / 1e9
        if error is None:
            self._target.counts.answered(seconds)
        else:
            self._target.counts.failed(error)
        if self._target.observe is not None:
            self._target.observe(ticket, seconds, error)

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self._target.counts.failed(error)
        if self._target.observe is not None:
            self._target.observe(ticket, 0.0, error)


class Target:
    """A target of a route: the model and version that it names, and its counts."""

    __slots__ = ("_sent", "counts", "model", "name", "observe", "version")

    def __init__(self, name: str, counts: Counts, sent: Sent) -> None:
        self.name = name
        self.model, self.version = split_target(name)
        self.counts = counts
        #: Called with each request that has ended, the seconds that it took, and its error.
        self.observe: Callable[[Ticket, float, BacklineError | None], None] | None = None
        self._sent = sent

    def follow(self, ticket: Ticket) -> None:
        """Counts a request that goes to this target now, and remembers it for feedback."""
        ticket.listen(Outcome(self))
        id = ticket.request.id
        if id:
            self._sent.keep(id, ticket.identity, self.name)
