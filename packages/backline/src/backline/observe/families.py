"""Defines the metrics of model versions, with Triton's names where Triton has the same metric.

Each metric is a template for the samples of a version. The labels of a version never change, so a scrape only
has to fill in numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from time import monotonic_ns
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from backline.engine.latency_summaries import LatencySummaries, LatencySummary
from backline.engine.model import Model
from backline.engine.statistics import (
    FAILURES,
    FIRST_RESPONSE_FAMILY,
    CallStatistics,
    Duration,
    ModelStatistics,
    ResponseCounters,
)
from backline.observe.exposition import comment, label_text, number
from backline.observe.metrics_config import MetricsConfig

#: A function that formats the samples of a version; its second argument is the text of the version's labels.
Write: TypeAlias = Callable[[Model, str], str]
Read: TypeAlias = Callable[[ModelStatistics], float]

#: The buckets of the histograms, as exponents of two, in microseconds: 32 us to 67 s.
_BUCKETS = range(5, 27)
_LABELS, _VERSION = "\0", "\1"


class FamilyTemplate(Struct, frozen=True):
    """The comment lines of a metric, and the function that formats the samples of a version.

    With `if_any`, the comment lines are left out if no version has samples. With `from_first_use`, versions
    that have counted nothing yet have no samples.
    """

    comment: str
    write: Write
    if_any: bool = False
    from_first_use: bool = False


def _single(name: str, kind: str, text: str, read: Callable[[Model], float]) -> FamilyTemplate:
    line = f"{name}{{%s}} %r\n"
    return FamilyTemplate(comment(name, kind, text), lambda model, labels: line % (labels, read(model)))


def _counter(name: str, text: str, read: Read) -> FamilyTemplate:
    line = f"{name}{{%s}} %d\n"
    return FamilyTemplate(
        comment(name, "counter", text), lambda model, labels: line % (labels, read(model.statistics))
    )


def _by_reason(name: str, text: str, values: tuple[tuple[str, Read], ...]) -> FamilyTemplate:
    """Returns a counter with one sample per reason; `values` pairs each reason with the function that reads
    its count.

    The labels are in alphabetical order, as in Triton, because scripts compare lines as text. The version
    must be the last label of the version's samples.
    """
    lines = "".join(f'{name}{{{_LABELS},reason="{reason}",{_VERSION}}} %d\n' for reason, _ in values)
    reads = tuple(read for _, read in values)

    def write(model: Model, labels: str) -> str:
        statistics = model.statistics
        others, start, version = labels.rpartition(',version="')
        numbers = lines % tuple([read(statistics) for read in reads])
        return numbers.replace(_LABELS, others).replace(_VERSION, start[1:] + version)

    return FamilyTemplate(comment(name, "counter", text), write)


def _of_cache(name: str, text: str, read: Read) -> FamilyTemplate:
    """Returns a counter for models whose responses are cached. As in Triton, other models have no such
    metric.
    """
    counter = _counter(name, text, read)

    def write(model: Model, labels: str) -> str:
        return counter.write(model, labels) if model.statistics.cached else ""

    return FamilyTemplate(counter.comment, write, if_any=True)


def _histogram(
    name: str, text: str, counts: Callable[[ModelStatistics], list[int]], total_ns: Read
) -> FamilyTemplate:
    bounds = [*(f"{2**i / 1e6:g}" for i in _BUCKETS), "+Inf"]
    lines = "".join(f'{name}_bucket{{{_LABELS},le="{bound}"}} %d\n' for bound in bounds)
    lines += f"{name}_count{{{_LABELS}}} %d\n{name}_sum{{{_LABELS}}} %r\n"

    def write(model: Model, labels: str) -> str:
        sums = list(accumulate(counts(model.statistics)))
        numbers = (
            *sums[_BUCKETS.start : _BUCKETS.stop],
            sums[-1],
            sums[-1],
            total_ns(model.statistics) / 1e9,
        )
        return (lines % numbers).replace(_LABELS, labels)

    return FamilyTemplate(comment(name, "histogram", text), write)


def _first_responses() -> FamilyTemplate:
    """Returns the histogram of the time to the first response. Only decoupled models have this histogram,
    because other models send exactly one response.
    """
    name = FIRST_RESPONSE_FAMILY

    def write(model: Model, labels: str) -> str:
        responses = model.statistics.responses
        if responses is None:
            return ""
        sums = list(accumulate(responses.first))
        bounds = [*(f"{bound:g}" for bound in responses.bounds_ms), "+Inf"]
        buckets = "".join(
            f'{name}_bucket{{{labels},le="{bound}"}} {count}\n'
            for bound, count in zip(bounds, sums, strict=True)
        )
        total_ms = responses.first_ns / 1e6
        return f"{buckets}{name}_count{{{labels}}} {sums[-1]}\n{name}_sum{{{labels}}} {total_ms!r}\n"

    return FamilyTemplate(
        comment(name, "histogram", "Time from arrival to the first response, in milliseconds"), write
    )


_OUTCOMES: tuple[tuple[str, Callable[[ResponseCounters], Duration]], ...] = (
    ("success", lambda r: r.success),
    ("failure", lambda r: r.fail),
    ("empty", lambda r: r.empty),
    ("cancelled", lambda r: r.cancel),
)


def _responses() -> FamilyTemplate:
    name = "backline_responses_total"
    lines = "".join(f'{name}{{{_LABELS},outcome="{outcome}"}} %d\n' for outcome, _ in _OUTCOMES)

    def write(model: Model, labels: str) -> str:
        responses = model.statistics.responses
        if responses is None:
            return ""
        counts = tuple(sum(read(r).count for r in responses.counters) for _, read in _OUTCOMES)
        return (lines % counts).replace(_LABELS, labels)

    return FamilyTemplate(comment(name, "counter", "Responses of decoupled models, by outcome"), write)


def _executions() -> FamilyTemplate:
    name = "backline_executions_total"
    line = f'{name}{{%s,batch_size="%d"}} %d\n'

    def write(model: Model, labels: str) -> str:
        batches = sorted(model.statistics.batches.items())
        return "".join([line % (labels, size, batch.compute_infer.count) for size, batch in batches])

    return FamilyTemplate(comment(name, "counter", "Executions by batch size"), write)


_CALLS: tuple[tuple[str, Callable[[CallStatistics], Duration]], ...] = (
    ("success", lambda c: c.success),
    ("failure", lambda c: c.fail),
    ("cancelled", lambda c: c.cancel),
)


def _calls(name: str, text: str, read: Callable[[Duration], float]) -> FamilyTemplate:
    """Returns a metric for the calls that a model makes to other models: the steps of an ensemble, or the
    calls of a Python model.
    """
    line = f"{name}{{%s,%s}} %r\n"

    def write(model: Model, labels: str) -> str:
        return "".join(
            line % (labels, label_text((("called", called), ("outcome", outcome))), read(duration(calls)))
            for called, calls in sorted(model.statistics.calls.items())
            for outcome, duration in _CALLS
        )

    return FamilyTemplate(comment(name, "counter", text), write)


def _state() -> FamilyTemplate:
    name = "backline_model_state"
    line = f'{name}{{%s,state="%s"}} 1\n'
    return FamilyTemplate(
        comment(name, "gauge", "1 for the current state of the model version"),
        lambda model, labels: line % (labels, model.state.value),
    )


_COUNTS: tuple[FamilyTemplate, ...] = (
    _counter(
        "nv_inference_request_success", "Successful requests, all batch sizes", lambda s: s.success.count
    ),
    _by_reason(
        "nv_inference_request_failure",
        "Failed requests, by reason",
        (
            ("REJECTED", lambda s: s.rejected_full + s.rejected_total + s.rejected_late + s.expired),
            ("CANCELED", lambda s: s.cancelled),
            ("BACKEND", lambda s: s.fail.count),
            ("OTHER", lambda s: s.rejected_invalid),
        ),
    ),
    _counter(
        "nv_inference_count", "Inferences; a request of batch size n counts n", lambda s: s.inference_count
    ),
    _counter("nv_inference_exec_count", "Executions of the model", lambda s: s.execution_count),
)
#: The sums of latencies. As in Triton, the counts of the response cache are switched on and off together with
#: these sums.
_LATENCIES: tuple[FamilyTemplate, ...] = (
    _counter(
        "nv_inference_request_duration_us",
        "Time from arrival to response, in microseconds",
        lambda s: s.success.ns // 1000,
    ),
    _counter(
        "nv_inference_queue_duration_us", "Time in the queue, in microseconds", lambda s: s.queue.ns // 1000
    ),
    _counter(
        "nv_inference_compute_input_duration_us",
        "Time to gather inputs, in microseconds",
        lambda s: s.compute_input.ns // 1000,
    ),
    _counter(
        "nv_inference_compute_infer_duration_us",
        "Time in the model, in microseconds",
        lambda s: s.compute_infer.ns // 1000,
    ),
    _counter(
        "nv_inference_compute_output_duration_us",
        "Time to split outputs, in microseconds",
        lambda s: s.compute_output.ns // 1000,
    ),
    _of_cache(
        "nv_cache_num_hits_per_model", "Requests served from the response cache", lambda s: s.cache_hit.count
    ),
    _of_cache(
        "nv_cache_num_misses_per_model",
        "Runs whose outputs were not in the response cache",
        lambda s: s.cache_miss.count,
    ),
    _of_cache(
        "nv_cache_hit_duration_per_model",
        "Time of cache lookups that hit, in microseconds",
        lambda s: s.cache_hit.ns // 1000,
    ),
    _of_cache(
        "nv_cache_miss_duration_per_model",
        "Time of cache lookups that missed and of insertions, in microseconds",
        lambda s: s.cache_miss.ns // 1000,
    ),
)
_GAUGES: tuple[FamilyTemplate, ...] = (
    _single(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests waiting in the queue",
        lambda m: m.serving.queue.pending,
    ),
    _single(
        "nv_model_load_duration_secs",
        "gauge",
        "Time the model took to load, in seconds",
        lambda m: m.statistics.load_seconds,
    ),
)
_DETAILS: tuple[FamilyTemplate, ...] = (
    _single("backline_model_ready", "gauge", "Whether the model version can serve", lambda m: int(m.ready)),
    _state(),
    _single(
        "backline_model_memory_bytes",
        "gauge",
        "Resident memory of the model version",
        lambda m: m.memory_bytes,
    ),
)
#: These have most of the samples of a version, and most versions on a server of thousands are seldom used.
#: Triton's counters, which alerts need from the start, are not among them.
_DETAILS_OF_USE: tuple[FamilyTemplate, ...] = tuple(
    replace(family, from_first_use=True)
    for family in (
        _by_reason(
            "backline_request_failures_total", "Failed requests, by detailed reason", tuple(FAILURES.items())
        ),
        _responses(),
        _executions(),
        _counter(
            "backline_execution_timeouts_total",
            "Runs that exceeded execution_timeout_seconds",
            lambda s: s.timed_out,
        ),
        _single(
            "backline_stuck_runs",
            "gauge",
            "Runs past their timeout that cannot be interrupted and still continue",
            lambda m: m.statistics.stuck,
        ),
        _calls(
            "backline_model_calls_total", "Calls from this model to another, by outcome", lambda d: d.count
        ),
        _calls(
            "backline_model_call_seconds_total",
            "Time of calls from this model to another, until the last response",
            lambda d: d.ns / 1e9,
        ),
        _histogram(
            "backline_request_duration_seconds",
            "Time from arrival to response",
            lambda s: s.latency,
            lambda s: s.success.ns,
        ),
        _histogram(
            "backline_queue_duration_seconds",
            "Time in the queue",
            lambda s: s.queueing,
            lambda s: s.queue.ns,
        ),
    )
)


def _summaries(quantiles: tuple[float, ...]) -> tuple[FamilyTemplate, ...]:
    """Returns the summaries of latencies for each version. The quantiles are NaN if there were no requests in
    the window.
    """

    def summary(
        name: str,
        text: str,
        read: Callable[[LatencySummaries], LatencySummary],
        shown: Callable[[ModelStatistics], bool] = lambda statistics: True,
    ) -> FamilyTemplate:
        lines = f"{name}_count{{{_LABELS}}} %d\n{name}_sum{{{_LABELS}}} %d\n"
        lines += "".join(f'{name}{{{_LABELS},quantile="{quantile:.15g}"}} %s\n' for quantile in quantiles)

        def write(model: Model, labels: str) -> str:
            summaries = model.statistics.summaries
            if summaries is None or not shown(model.statistics):
                return ""
            one = read(summaries)
            values = map(number, one.quantiles(quantiles, monotonic_ns()))
            return (lines % (one.count, one.us, *values)).replace(_LABELS, labels)

        return FamilyTemplate(comment(name, "summary", text), write, if_any=True)

    return (
        summary(
            "nv_inference_request_summary_us",
            "Time from arrival to response, in microseconds",
            lambda s: s.request,
            # As in Triton, a cached model has no such summary: cache hits take far less time than runs, so
            # quantiles over both would be misleading.
            lambda statistics: not statistics.cached,
        ),
        summary("nv_inference_queue_summary_us", "Time in the queue, in microseconds", lambda s: s.queue),
        summary(
            "nv_inference_compute_input_summary_us",
            "Time to gather inputs, in microseconds",
            lambda s: s.compute_input,
        ),
        summary(
            "nv_inference_compute_infer_summary_us",
            "Time in the model, in microseconds",
            lambda s: s.compute_infer,
        ),
        summary(
            "nv_inference_compute_output_summary_us",
            "Time to split outputs, in microseconds",
            lambda s: s.compute_output,
        ),
        summary(
            "nv_cache_hit_summary_per_model",
            "Time of cache lookups that hit, in microseconds",
            lambda s: s.cache_hit,
            lambda statistics: statistics.cached,
        ),
        summary(
            "nv_cache_miss_summary_per_model",
            "Time of cache lookups that missed and of insertions, in microseconds",
            lambda s: s.cache_miss,
            lambda statistics: statistics.cached,
        ),
    )


def families(config: MetricsConfig) -> tuple[FamilyTemplate, ...]:
    """Returns the metrics of model versions that this server exposes, in the order of the page."""
    return (
        *_COUNTS,
        *(_LATENCIES if config.counters else ()),
        *_GAUGES,
        *((_first_responses(),) if config.histograms else ()),
        *_DETAILS,
        *_DETAILS_OF_USE,
        *(_summaries(config.quantiles) if config.summaries else ()),
    )
