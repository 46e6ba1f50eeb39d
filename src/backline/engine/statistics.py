"""Counters of requests, responses, runs, calls and loads, in Triton's terms. Updated once per batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, monotonic_ns, time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from backline.engine.ticket import Ticket

#: The highest response index counted separately. Later responses count there too, as streams may be endless.
MAX_INDEX = 255
#: Triton's histogram of the time to the first response, and the default upper bounds of its buckets in
#: milliseconds; one more bucket counts longer times.
FIRST_RESPONSE_FAMILY = "nv_inference_first_response_histogram_ms"
FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)


class ResponseCounters:
    """Counts responses at one index of their streams: `empty` had no outputs, `cancel` were not sent."""

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


#: One bucket for each power of two in microseconds: bucket i counts durations from 2**(i-1) to below 2**i.
HISTOGRAM_BUCKETS = 48


#: By how many seconds a timer for a deadline may fire early.
_EARLY = 0.002


class Duration:
    """A number of durations, and their sum in nanoseconds."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


class ComputeTimes:
    """The times of all runs for one request that needs several, in nanoseconds."""

    __slots__ = ("infer", "input", "output")

    def __init__(self) -> None:
        self.input = 0
        self.infer = 0
        self.output = 0

    def add(self, input: int, infer: int, output: int) -> None:
        self.input += input
        self.infer += infer
        self.output += output


class BatchStatistics:
    """Counts and times of the executions with one batch size."""

    __slots__ = ("compute_infer", "compute_input", "compute_output")

    def __init__(self) -> None:
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()


class CallStatistics:
    """Counts the calls of one model to another, by outcome, with the time to the last response."""

    __slots__ = ("cancel", "fail", "success")

    def __init__(self) -> None:
        self.success = Duration()
        self.fail = Duration()
        self.cancel = Duration()


class ModelStatistics:
    """Counters of one model version.

    `inference_count` counts items (a request of batch size 8 counts 8), `execution_count` counts runs.
    `success`, `fail`, `queue` and `compute_*` count requests. `latency` is a histogram of request durations,
    `queueing` of times in the queue (see HISTOGRAM_BUCKETS).

    Requests without a response that `fail` does not count are counted by reason. Refused on arrival:
    `rejected_invalid` did not fit the model, `rejected_full` found its queue full, `rejected_total` found the
    queues of all models full, and `rejected_late` could not meet the model's objective or their own deadline.
    Ended later: `expired` ran out of time, and `cancelled` were cancelled by their caller, in the queue or
    while running. `timed_out` counts runs that took longer than allowed; `stuck` is how many of these still
    continue because the runtime cannot end them.

    `calls` counts calls to other models, by name, made while serving requests.
    """

    __slots__ = (
        "batches",
        "cache_hit",
        "cache_miss",
        "calls",
        "cancelled",
        "compute_infer",
        "compute_input",
        "compute_output",
        "execution_count",
        "expired",
        "fail",
        "given_up",
        "inference_count",
        "last_inference_ms",
        "latency",
        "load_seconds",
        "queue",
        "queueing",
        "rejected_full",
        "rejected_invalid",
        "rejected_late",
        "rejected_total",
        "responses",
        "stuck",
        "success",
        "timed_out",
    )

    def __init__(self) -> None:
        self.last_inference_ms = 0
        self.inference_count = 0
        self.execution_count = 0
        self.success = Duration()
        self.fail = Duration()
        #: How long `expired` and `cancelled` requests had been in the server.
        self.given_up = Duration()
        self.queue = Duration()
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.cache_hit = Duration()
        self.cache_miss = Duration()
        self.batches: dict[int, BatchStatistics] = {}
        self.latency = [0] * HISTOGRAM_BUCKETS
        self.queueing = [0] * HISTOGRAM_BUCKETS
        self.rejected_full = 0
        self.rejected_invalid = 0
        self.rejected_late = 0
        self.rejected_total = 0
        self.expired = 0
        self.cancelled = 0
        self.timed_out = 0
        self.stuck = 0
        self.load_seconds = 0.0
        self.calls: dict[str, CallStatistics] = {}
        #: Counters of the responses of a decoupled model; None for other models.
        self.responses: ResponseStatistics | None = None

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

    def record_execution(self, items: int, started: int, gathered: int, ran: int, ended: int) -> None:
        """Counts a run of the model, whatever its outcome. Times that a failed run did not reach are 0."""
        self.execution_count += 1
        batch = self.batches.get(items)
        if batch is None:
            batch = self.batches[items] = BatchStatistics()
        gathered = gathered or started
        ran = ran or ended
        batch.compute_input.add(1, gathered - started)
        batch.compute_infer.add(1, ran - gathered)
        batch.compute_output.add(1, ended - ran)

    def calls_of(self, called: str) -> CallStatistics:
        """The statistics of calls to another model."""
        found = self.calls.get(called)
        if found is None:
            found = self.calls[called] = CallStatistics()
        return found

    def record_call(self, called: str, outcome: Literal["success", "fail", "cancel"], ns: int) -> None:
        """Counts a finished call to another model."""
        getattr(self.calls_of(called), outcome).add(1, ns)

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

    def record_in_steps(self, ticket: Ticket, started: int, ended: int, compute: ComputeTimes) -> None:
        """Counts a request to an ensemble as Triton does: as one execution that took as long as its steps.

        The time that steps waited counts only towards the total duration. Arguments as for `record_in_parts`.
        """
        self.inference_count += ticket.batch_size
        self.record_in_parts(ticket, started, ended, compute)
        self.execution_count += 1
        batch = self.batches.get(ticket.batch_size)
        if batch is None:
            batch = self.batches[ticket.batch_size] = BatchStatistics()
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

        It arrived, was looked up and completed at the given times of time.monotonic_ns(); the lookup took
        `lookup_ns`.
        """
        self.last_inference_ms = int(time() * 1000)
        self.success.add(1, ended - arrived)
        self.queue.add(1, looked - arrived)
        self.cache_hit.add(1, lookup_ns)
        self.latency[((ended - arrived) // 1000).bit_length()] += 1
        self.queueing[((looked - arrived) // 1000).bit_length()] += 1

    def record_cache_miss(self, ns: int) -> None:
        """Counts a run whose outputs were added to the cache. Lookup and insertion took `ns`."""
        self.cache_miss.add(1, ns)
        self.success.ns += ns


class LoadStatistics:
    """All loads of a model: the numbers of successes and failures, and the total seconds of the successes."""

    __slots__ = ("failed", "seconds", "succeeded")

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.seconds = 0.0


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
