"""Counters of requests, responses, runs, calls and loads, in Triton's terms. Updated once per batch."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, monotonic_ns, time
from typing import TYPE_CHECKING, Literal, Protocol

from backline.engine.latency_summaries import LatencySummaries

if TYPE_CHECKING:
    from backline.engine.ticket import Ticket

#: The highest response index that is counted separately. It also counts all later responses, as streams may
#: be endless.
MAX_INDEX = 255
#: Triton's histogram of the time to the first response, and the default upper bounds of its buckets in
#: milliseconds; one more bucket counts longer times.
FIRST_RESPONSE_FAMILY = "nv_inference_first_response_histogram_ms"
FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)
#: One bucket for each power of two in microseconds: bucket i counts durations from 2**(i-1) to below 2**i.
HISTOGRAM_BUCKETS = 48
#: How many seconds early a timer for a deadline may fire.
_EARLY = 0.002


@dataclass(slots=True, eq=False)
class Duration:
    """A number of durations, and their sum in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


@dataclass(slots=True, eq=False)
class ResponseCounters:
    """Counts the responses that have one index in their streams.

    `empty` counts responses without outputs, `cancel` those that were not sent because of a cancellation.
    """

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


class ResponseStatistics:
    """Counters by the index of a response in its stream, from 0. Times are of time.monotonic_ns().

    `first` is a histogram of the times from a request's arrival to its first response, with upper bounds
    `bounds_ms`; `first_ns` is the sum of these times.
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


@dataclass(slots=True, eq=False)
class ComputeTimes:
    """The total times of all runs for one request that needs several, in nanoseconds."""

    input: int = 0
    infer: int = 0
    output: int = 0

    def add(self, input: int, infer: int, output: int) -> None:
        self.input += input
        self.infer += infer
        self.output += output


@dataclass(slots=True, eq=False)
class BatchStatistics:
    """Counts and times of the executions with one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True, eq=False)
class CallStatistics:
    """Counts the calls of one model to another, by outcome, with the time to the last response."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


@dataclass(slots=True, eq=False)
class ModelStatistics:
    """Counters of one model version.

    `inference_count` counts items (a request of batch size 8 counts 8), `execution_count` counts runs.
    `success`, `fail`, `queue` and `compute_*` count requests. `latency` is a histogram of request durations,
    `queueing` of times in the queue (see HISTOGRAM_BUCKETS).

    Requests without a response that `fail` does not count are counted by reason. Refused on arrival:
    `rejected_invalid` did not fit the model, `rejected_full` found its queue full, `rejected_total` found the
    queues of all models full, and `rejected_late` could not meet the model's objective or their own deadline.
    Ended later: `expired` ran out of time, and `cancelled` were cancelled by their caller, in the queue or
    while running. `timed_out` counts runs that took longer than allowed; `stuck` is how many of these are
    still running because the runtime cannot end them.

    `calls` counts calls to other models, by name, made while serving requests.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    #: How long `expired` and `cancelled` requests had been in the server.
    given_up: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    #: Whether the version's responses are kept in the response cache.
    cached: bool = False
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    batches: defaultdict[int, BatchStatistics] = field(default_factory=lambda: defaultdict(BatchStatistics))
    latency: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)
    queueing: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)
    rejected_full: int = 0
    rejected_invalid: int = 0
    rejected_late: int = 0
    rejected_total: int = 0
    expired: int = 0
    cancelled: int = 0
    timed_out: int = 0
    stuck: int = 0
    load_seconds: float = 0.0
    calls: defaultdict[str, CallStatistics] = field(default_factory=lambda: defaultdict(CallStatistics))
    #: Counters of the responses of a decoupled model; None for other models.
    responses: ResponseStatistics | None = None
    #: Quantiles of the latencies; None unless the server has such metrics.
    summaries: LatencySummaries | None = None

    def record_batch(
        self, tickets: Sequence[Ticket], items: int, started: int, gathered: int, ran: int, ended: int
    ) -> None:
        """Counts one successful execution of `tickets`, `items` in total.

        The times, of time.monotonic_ns(), are when the batch was taken from the queue, its inputs were
        gathered, its run ended, and its outputs were split.
        """
        self.record_answers(tickets, items, started, gathered, ran, ended)
        self.record_execution(items, started, gathered, ran, ended)

    def record_answers(
        self, tickets: Sequence[Ticket], items: int, started: int, gathered: int, ran: int, ended: int
    ) -> None:
        """Counts the requests of a successful execution; `items` is the sum of their batch sizes."""
        count = len(tickets)
        self.last_inference_ms = int(time() * 1000)
        self.inference_count += items
        latency = self.latency
        queueing = self.queueing
        waited = 0
        compute_input = gathered - started
        compute_infer = ran - gathered
        compute_output = ended - ran
        for ticket in tickets:
            arrived = ticket.request.arrived_ns
            waited += started - arrived
            latency[((ended - arrived) // 1000).bit_length()] += 1
            queueing[((started - arrived) // 1000).bit_length()] += 1
            if ticket.compute is not None:
                ticket.compute.add(compute_input, compute_infer, compute_output)
        self.success.add(count, waited + (ended - started) * count)
        self.queue.add(count, waited)
        self.compute_input.add(count, compute_input * count)
        self.compute_infer.add(count, compute_infer * count)
        self.compute_output.add(count, compute_output * count)
        if self.summaries is not None:
            arrivals = [ticket.request.arrived_ns for ticket in tickets]
            self.summaries.record(arrivals, started, ended, (compute_input, compute_infer, compute_output))

    def record_execution(self, items: int, started: int, gathered: int, ran: int, ended: int) -> None:
        """Counts a run of the model, whatever its outcome. Times that a failed run did not reach are 0."""
        self.execution_count += 1
        batch = self.batches[items]
        gathered = gathered or started
        ran = ran or ended
        batch.compute_input.add(1, gathered - started)
        batch.compute_infer.add(1, ran - gathered)
        batch.compute_output.add(1, ended - ran)

    def record_call(self, called: str, outcome: Literal["success", "fail", "cancel"], ns: int) -> None:
        """Counts a finished call to another model."""
        getattr(self.calls[called], outcome).add(1, ns)

    def record_in_parts(self, ticket: Ticket, started: int, ended: int, compute: ComputeTimes) -> None:
        """Counts a request that ran in several parts, whose items and runs are counted already.

        `started` is when its first part was taken from the queue, `ended` when its last one ended
        (time.monotonic_ns()). `compute` sums the times of all parts, which may exceed that interval because
        parts run concurrently.
        """
        self.last_inference_ms = int(time() * 1000)
        arrived = ticket.request.arrived_ns
        self.success.add(1, ended - arrived)
        self.queue.add(1, started - arrived)
        self.compute_input.add(1, compute.input)
        self.compute_infer.add(1, compute.infer)
        self.compute_output.add(1, compute.output)
        self.latency[((ended - arrived) // 1000).bit_length()] += 1
        self.queueing[((started - arrived) // 1000).bit_length()] += 1
        if ticket.compute is not None:
            ticket.compute.add(compute.input, compute.infer, compute.output)
        if self.summaries is not None:
            self.summaries.record([arrived], started, ended, (compute.input, compute.infer, compute.output))

    def record_in_steps(self, ticket: Ticket, started: int, ended: int, compute: ComputeTimes) -> None:
        """Counts a request to an ensemble as Triton does: as one execution that took as long as its steps.

        The time that steps waited counts only towards the total duration. The arguments are as for
        `record_in_parts`.
        """
        self.inference_count += ticket.batch_size
        self.record_in_parts(ticket, started, ended, compute)
        self.execution_count += 1
        batch = self.batches[ticket.batch_size]
        batch.compute_input.add(1, compute.input)
        batch.compute_infer.add(1, compute.infer)
        batch.compute_output.add(1, compute.output)

    def record_cancelled(self, ticket: Ticket) -> None:
        """Counts a request cancelled by its caller: as expired if the caller's deadline has passed."""
        if ticket.waits_until is not None and ticket.waits_until <= monotonic() + _EARLY:
            self.record_expired(ticket)
        else:
            self.cancelled += 1
            self.given_up.add(1, monotonic_ns() - ticket.request.arrived_ns)

    def record_expired(self, ticket: Ticket) -> None:
        """Counts a request whose timeout or deadline has passed."""
        self.expired += 1
        self.given_up.add(1, monotonic_ns() - ticket.request.arrived_ns)

    def record_cache_hit(self, arrived: int, looked: int, lookup_ns: int, ended: int) -> None:
        """Counts a request completed without a run: a success, but neither an inference nor an execution.

        `arrived`, `looked` and `ended` are when the request arrived, the cache was searched, and the request
        completed (time.monotonic_ns()). The search took `lookup_ns`.
        """
        self.last_inference_ms = int(time() * 1000)
        self.success.add(1, ended - arrived)
        self.queue.add(1, looked - arrived)
        self.cache_hit.add(1, lookup_ns)
        self.latency[((ended - arrived) // 1000).bit_length()] += 1
        self.queueing[((looked - arrived) // 1000).bit_length()] += 1
        if self.summaries is not None:
            # The summary of requests leaves out cache hits; it is not shown for models with a cache.
            self.summaries.queue.add(looked - arrived, ended)
            self.summaries.cache_hit.add(lookup_ns, ended)

    def record_cache_miss(self, ns: int) -> None:
        """Counts a run whose outputs were added to the cache. Lookup and insertion took `ns` nanoseconds."""
        self.cache_miss.add(1, ns)
        self.success.ns += ns
        if self.summaries is not None:
            self.summaries.cache_miss.add(ns, monotonic_ns())


@dataclass(slots=True, eq=False)
class LoadStatistics:
    """All loads of a model: the numbers of successes and failures, and the total seconds of the successes."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0


class CacheCounters(Protocol):
    """The counters of a response cache in the server's memory, which all models share."""

    #: How many bytes the cache may hold, and how many it holds.
    size: int
    used: int
    evictions: int
    hits: int
    misses: int
    #: The total time of all lookups, and of all insertions, in nanoseconds.
    lookup_ns: int
    insertion_ns: int

    def __len__(self) -> int:
        """Returns the number of responses in the cache."""


#: The reasons why requests got no response, and how to read the count of each; see ModelStatistics.
FAILURES: Mapping[str, Callable[[ModelStatistics], int]] = {
    "queue_full": lambda s: s.rejected_full,
    "total_limit": lambda s: s.rejected_total,
    "too_late": lambda s: s.rejected_late,
    "expired": lambda s: s.expired,
    "cancelled": lambda s: s.cancelled,
    "failed": lambda s: s.fail.count,
    "invalid": lambda s: s.rejected_invalid,
}
