"""Counters of requests, responses, runs, calls and loads. Counters that Triton has too are defined as in
Triton. Most counters are updated once per batch.
"""

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

#: The highest index for which responses are counted separately. Responses with higher indices are counted
#: under this index too, because streams may be endless.
MAX_INDEX = 255
#: Triton's name for the histogram of the time to the first response.
FIRST_RESPONSE_FAMILY = "nv_inference_first_response_histogram_ms"
#: The default upper bounds, in milliseconds, of the buckets of the histogram of the time to the first
#: response. A further bucket counts longer times.
FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)
#: One bucket for each power of two in microseconds: bucket 0 counts durations below 1, bucket i from 2**(i-1)
#: to below 2**i.
HISTOGRAM_BUCKETS = 48
#: The time, in seconds, by which a deadline timer may fire early.
_EARLY = 0.002


@dataclass(slots=True, eq=False)
class Duration:
    """The number of durations that were added, and their sum in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


@dataclass(slots=True, eq=False)
class ResponseCounters:
    """Counts the responses with the same index in their streams.

    `empty` counts responses without outputs, and `cancel` responses that were not sent because the request
    was cancelled.
    """

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


class ResponseStatistics:
    """Counters for each index of a response in its stream, starting at 0. Times are from time.monotonic_ns().

    `first` is a histogram of the times from the arrival of a request to its first response, with the upper
    bounds `bounds_ms`; `first_ns` is the sum of these times.
    """

    __slots__ = ("_bounds_ns", "bounds_ms", "counters", "first", "first_ns")

    def __init__(self) -> None:
        self.counters: list[ResponseCounters] = []
        self.bounds_ms: tuple[float, ...] = ()
        self.measure_first(FIRST_RESPONSE_BOUNDS_MS)

    def measure_first(self, bounds_ms: tuple[float, ...]) -> None:
        """Sets the upper bounds of the histogram, in ascending order and in milliseconds. New bounds reset
        the histogram.
        """
        if bounds_ms != self.bounds_ms:
            self.bounds_ms = bounds_ms
            self._bounds_ns = [bound * 1e6 for bound in bounds_ms]
            self.first = [0] * (len(bounds_ms) + 1)
            self.first_ns = 0

    def succeeded(self, index: int, arrived: int, started: int, ran: int, ended: int, *, empty: bool) -> None:
        """Counts a response to a request that arrived at `arrived`.

        `started` is the time when the previous response was ready (for the first response, when the run
        started), `ran` the time when this response had been computed, and `ended` the time when its outputs
        were ready.
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
    """The total times of all runs for a request that needs several runs, in nanoseconds."""

    input: int = 0
    infer: int = 0
    output: int = 0

    def add(self, input: int, infer: int, output: int) -> None:
        self.input += input
        self.infer += infer
        self.output += output


@dataclass(slots=True, eq=False)
class BatchStatistics:
    """Counts and times of the executions with the same batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True, eq=False)
class CallStatistics:
    """Counts the calls from a model to another model by outcome, and adds up the times from each call to its
    last response.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


@dataclass(slots=True, eq=False)
class ModelStatistics:
    """The counters of a model version.

    `inference_count` counts items (a request of batch size 8 counts 8), `execution_count` counts runs.
    `success`, `fail`, `queue` and `compute_*` count requests. `latency` is a histogram of the durations of
    requests, and `queueing` a histogram of their times in the queue (see HISTOGRAM_BUCKETS).

    Requests that got no response, other than those that `fail` counts, are counted by reason. Some were
    refused on arrival: `rejected_invalid` counts requests that did not fit the model, `rejected_full`
    requests that found the model's queue full (or that left it later to make room for another caller's),
    `rejected_total` requests that exceeded the limit for the queues of all models together, and
    `rejected_late` requests that could not meet the model's objective or their own deadline. Others ended
    later: `expired` counts requests whose time ran out, and `cancelled` requests that their caller cancelled
    while they waited or ran. `timed_out` counts runs that took longer than the time limit; `stuck` is the
    number of such runs that still continue, because the runtime cannot end them.

    `calls` counts the calls that this version made to other models while serving requests, by the name of the
    called model.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    #: The time that `expired` and `cancelled` requests spent in the server until they ended.
    given_up: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    #: Whether the version's responses are stored in the response cache.
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
    #: The summaries of the latencies; None unless the server has such metrics.
    summaries: LatencySummaries | None = None

    @property
    def used(self) -> bool:
        """Whether anything has been counted for a request to this version: a response, a run or a failure."""
        return bool(
            self.last_inference_ms
            or self.batches
            or self.timed_out
            or (self.responses is not None and self.responses.counters)
            or any(read(self) for read in FAILURES.values())
        )

    def record_batch(
        self, tickets: Sequence[Ticket], items: int, started: int, gathered: int, ran: int, ended: int
    ) -> None:
        """Counts a successful execution of a batch of `tickets` with `items` items in total.

        The other arguments are times of time.monotonic_ns(): when the batch was taken from the queue, when
        its inputs had been gathered, when its run ended, and when its outputs had been split.
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
            compute = ticket.compute
            if compute is not None:
                compute.input += compute_input
                compute.infer += compute_infer
                compute.output += compute_output
        # Duration.add is inlined, for speed.
        success, queue = self.success, self.queue
        success.count += count
        success.ns += waited + (ended - started) * count
        queue.count += count
        queue.ns += waited
        times = self.compute_input
        times.count += count
        times.ns += compute_input * count
        times = self.compute_infer
        times.count += count
        times.ns += compute_infer * count
        times = self.compute_output
        times.count += count
        times.ns += compute_output * count
        if self.summaries is not None:
            arrivals = [ticket.request.arrived_ns for ticket in tickets]
            self.summaries.record(arrivals, started, ended, (compute_input, compute_infer, compute_output))

    def record_execution(self, items: int, started: int, gathered: int, ran: int, ended: int) -> None:
        """Counts a run of the model, whatever its outcome. The arguments are as for `record_batch`, but
        `gathered` and `ran` are 0 if a failed run did not get that far.
        """
        self.execution_count += 1
        batch = self.batches[items]
        gathered = gathered or started
        ran = ran or ended
        # Duration.add is inlined, for speed.
        times = batch.compute_input
        times.count += 1
        times.ns += gathered - started
        times = batch.compute_infer
        times.count += 1
        times.ns += ran - gathered
        times = batch.compute_output
        times.count += 1
        times.ns += ended - ran

    def record_call(self, called: str, outcome: Literal["success", "fail", "cancel"], ns: int) -> None:
        """Counts a call to another model. The call took `ns` nanoseconds."""
        getattr(self.calls[called], outcome).add(1, ns)

    def record_in_parts(self, ticket: Ticket, started: int, ended: int, compute: ComputeTimes) -> None:
        """Counts a request that was run in several parts. The items and runs of the parts have been counted
        already.

        `started` is the time when the first part was taken from the queue, and `ended` the time when the last
        part ended (time.monotonic_ns()). `compute` has the sums of the times of all parts. These sums may
        exceed the time from `started` to `ended`, because parts can run concurrently.
        """
        self.last_inference_ms = int(time() * 1000)
        arrived = ticket.request.arrived_ns
        for times, ns in (
            (self.success, ended - arrived),
            (self.queue, started - arrived),
            (self.compute_input, compute.input),
            (self.compute_infer, compute.infer),
            (self.compute_output, compute.output),
        ):  # Duration.add is inlined, for speed.
            times.count += 1
            times.ns += ns
        self.latency[((ended - arrived) // 1000).bit_length()] += 1
        self.queueing[((started - arrived) // 1000).bit_length()] += 1
        if ticket.compute is not None:
            ticket.compute.add(compute.input, compute.infer, compute.output)
        if self.summaries is not None:
            self.summaries.record([arrived], started, ended, (compute.input, compute.infer, compute.output))

    def record_in_steps(self, ticket: Ticket, started: int, ended: int, compute: ComputeTimes) -> None:
        """Counts a request to an ensemble as Triton does: as one execution whose times are the sums of the
        times of its steps.

        The time that steps spent in queues counts only in the total duration of the request. The arguments
        are as for `record_in_parts`.
        """
        self.inference_count += ticket.batch_size
        self.record_in_parts(ticket, started, ended, compute)
        self.execution_count += 1
        batch = self.batches[ticket.batch_size]
        for times, ns in (
            (batch.compute_input, compute.input),
            (batch.compute_infer, compute.infer),
            (batch.compute_output, compute.output),
        ):
            times.count += 1
            times.ns += ns

    def record_cancelled(self, ticket: Ticket) -> None:
        """Counts a request that its caller cancelled. It is counted as expired if the caller's deadline has
        passed.
        """
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
        """Counts a request that was completed from the cache, as a success, but neither as an inference nor
        as an execution.

        `arrived`, `looked` and `ended` are the times when the request arrived, when the cache was searched,
        and when the request was completed (time.monotonic_ns()). The search took `lookup_ns` nanoseconds.
        """
        self.last_inference_ms = int(time() * 1000)
        self.success.add(1, ended - arrived)
        self.queue.add(1, looked - arrived)
        self.cache_hit.add(1, lookup_ns)
        self.latency[((ended - arrived) // 1000).bit_length()] += 1
        self.queueing[((looked - arrived) // 1000).bit_length()] += 1
        if self.summaries is not None:
            # Cache hits are not added to the summary of request durations, which is not shown for models
            # whose responses are cached.
            self.summaries.queue.add(looked - arrived, ended)
            self.summaries.cache_hit.add(lookup_ns, ended)

    def record_cache_miss(self, ns: int) -> None:
        """Counts a request that was run because its response was not in the cache. Lookup and insertion took
        `ns` nanoseconds.
        """
        self.cache_miss.add(1, ns)
        self.success.ns += ns
        if self.summaries is not None:
            self.summaries.cache_miss.add(ns, monotonic_ns())


@dataclass(slots=True, eq=False)
class LoadStatistics:
    """Counts the loads of a model: the numbers of successful and failed loads, and the total duration of the
    successful loads in seconds.
    """

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0


class CacheCounters(Protocol):
    """The counters of a response cache in the server's memory. All models share the cache."""

    #: The maximum size of the cache in bytes.
    size: int
    #: The current size of the cache in bytes.
    used: int
    evictions: int
    hits: int
    misses: int
    #: The total time of all lookups in nanoseconds.
    lookup_ns: int
    #: The total time of all insertions in nanoseconds.
    insertion_ns: int

    def __len__(self) -> int:
        """Returns the number of responses in the cache."""


#: The reasons why requests got no response, each with the function that reads the number of such requests;
#: see ModelStatistics.
FAILURES: Mapping[str, Callable[[ModelStatistics], int]] = {
    "queue_full": lambda s: s.rejected_full,
    "total_limit": lambda s: s.rejected_total,
    "too_late": lambda s: s.rejected_late,
    "expired": lambda s: s.expired,
    "cancelled": lambda s: s.cancelled,
    "failed": lambda s: s.fail.count,
    "invalid": lambda s: s.rejected_invalid,
}
