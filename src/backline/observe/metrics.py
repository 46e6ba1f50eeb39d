"""Prometheus metrics, under Triton's names, with real latency histograms beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backline.engine.engine import Engine, Model, ModelState
from backline.engine.statistics import ModelStatistics
from backline.observe.custom_metrics import exposed, without_total

#: Triton's counters have no `_total`, which the exposition library adds to the comment lines of every counter.
_COUNTER_COMMENT = re.compile(rb"^(# (?:HELP|TYPE) nv_\w+?)_total\b", re.MULTILINE)

_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered, all batch sizes", lambda s: s.success.count),
    ("nv_inference_count", "Inferences, a request of batch size n counts n", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Executions of the model", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Time from arrival to answer, in microseconds", lambda s: s.success.ns // 1000),
    ("nv_inference_queue_duration_us", "Time in the queue, in microseconds", lambda s: s.queue.ns // 1000),
    ("nv_inference_compute_input_duration_us", "Time to gather inputs, in microseconds", lambda s: s.compute_input.ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Time in the model, in microseconds", lambda s: s.compute_infer.ns // 1000),
    ("nv_inference_compute_output_duration_us", "Time to split outputs, in microseconds", lambda s: s.compute_output.ns // 1000),
    ("nv_cache_num_hits_per_model", "Requests answered from the response cache", lambda s: s.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Runs whose outputs were not in the response cache", lambda s: s.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Time to look up what was found, in microseconds", lambda s: s.cache_hit.ns // 1000),
    ("nv_cache_miss_duration_per_model", "Time to look up in vain and to keep outputs, in microseconds", lambda s: s.cache_miss.ns // 1000),
)

_FAILURES: tuple[tuple[str, Callable[[ModelStatistics], int]], ...] = (
    ("REJECTED", lambda s: s.rejected_full + s.rejected_total + s.rejected_late + s.expired),
    ("CANCELED", lambda s: s.cancelled),
    ("BACKEND", lambda s: s.fail.count),
    ("OTHER", lambda s: s.rejected_invalid),
)

#: The same, finer.
_REASONS: tuple[tuple[str, Callable[[ModelStatistics], int]], ...] = (
    ("queue_full", lambda s: s.rejected_full),
    ("total_limit", lambda s: s.rejected_total),
    ("too_late", lambda s: s.rejected_late),
    ("expired", lambda s: s.expired),
    ("cancelled", lambda s: s.cancelled),
    ("failed", lambda s: s.fail.count),
    ("invalid", lambda s: s.rejected_invalid),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelStatistics], list[int]], Callable[[ModelStatistics], int]], ...] = (
    ("backline_request_duration_seconds", "Time from arrival to answer", lambda s: s.latency, lambda s: s.success.ns),
    ("backline_queue_duration_seconds", "Time in the queue", lambda s: s.queueing, lambda s: s.queue.ns),
)

#: The powers of two of microseconds shown as buckets: 32 us to 67 s.
_BUCKETS = range(5, 27)


class EngineCollector:
    """Reads the counters of an engine when Prometheus asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        """The metric families, in the exposition library's classes."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

        models = [model for model in self._engine.models() if model.state is not ModelState.UNKNOWN]
        for name, text, read in _COUNTERS:
            family = Metric(name, text, "counter")
            for model in models:
                family.add_sample(name, _labels(model), read(model.statistics))
            yield family
        failures = Metric("nv_inference_request_failure", "Requests that failed, by reason", "counter")
        for model in models:
            for reason, count in _FAILURES:
                failures.add_sample("nv_inference_request_failure", {**_labels(model), "reason": reason}, count(model.statistics))
        yield failures
        reasons = CounterMetricFamily("backline_request_failures", "Requests that failed", labels=("model", "version", "reason"))
        for model in models:
            for reason, count in _REASONS:
                reasons.add_metric((model.name, model.version, reason), count(model.statistics))
        yield reasons
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests waiting in the queue", labels=("model", "version"))
        loading = GaugeMetricFamily("nv_model_load_duration_secs", "Time the model took to load, in seconds", labels=("model", "version"))
        ready = GaugeMetricFamily("backline_model_ready", "Whether the model version can answer", labels=("model", "version"))
        batches = CounterMetricFamily("backline_executions", "Executions by batch size", labels=("model", "version", "batch_size"))
        late = CounterMetricFamily("backline_execution_timeouts", "Runs that took longer than they may", labels=("model", "version"))
        stuck = GaugeMetricFamily("backline_stuck_runs", "Such runs that cannot be ended and go on", labels=("model", "version"))
        for model in models:
            key = (model.name, model.version)
            late.add_metric(key, model.statistics.timed_out)
            stuck.add_metric(key, model.statistics.stuck)
            pending.add_metric(key, model.queue.pending if model.queue else 0)
            loading.add_metric(key, model.statistics.load_seconds)
            ready.add_metric(key, model.ready)
            for size, batch in sorted(model.statistics.batches.items()):
                batches.add_metric((*key, str(size)), batch.compute_infer.count)
        yield from (pending, loading, ready, batches, late, stuck)
        yield from _calls(models)
        yield from self._lifecycle()
        yield from map(exposed, self._engine.custom_metrics)
        for name, text, buckets, total in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=("model", "version"))
            for model in models:
                counts = buckets(model.statistics)
                shown = [(f"{2**i / 1e6:g}", float(sum(counts[: i + 1]))) for i in _BUCKETS]
                histogram.add_metric(
                    (model.name, model.version), [*shown, ("+Inf", float(sum(counts)))], sum_value=total(model.statistics) / 1e9
                )
            yield histogram

    def _lifecycle(self) -> Iterator[Any]:
        """What is loaded, from when, and where the labels point."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        states = GaugeMetricFamily(
            "backline_model_state", "1 for the state that the model version is in", labels=("model", "version", "state")
        )
        memory = GaugeMetricFamily("backline_model_memory_bytes", "Resident memory of the model version", labels=("model", "version"))
        labels = GaugeMetricFamily(
            "backline_model_label", "1 for the version that the label points to", labels=("model", "label", "version")
        )
        loads = CounterMetricFamily("backline_model_loads", "Loads that ended, by outcome", labels=("model", "outcome"))
        seconds = CounterMetricFamily("backline_model_load_seconds", "Time of the loads that succeeded", labels=("model",))
        for model in self._engine.models():
            for state in ModelState:
                states.add_metric((model.name, model.version, state.value), model.state is state)
            memory.add_metric((model.name, model.version), model.memory_bytes)
        for name in self._engine.names():
            for label, version in self._engine.labels(name).items():
                labels.add_metric((name, label, version), 1)
        for name, counts in sorted(self._engine.loads.items()):
            loads.add_metric((name, "success"), counts.succeeded)
            loads.add_metric((name, "failure"), counts.failed)
            seconds.add_metric((name,), counts.seconds)
        yield from (states, memory, labels, loads, seconds)


def _calls(models: Sequence[Model]) -> Iterator[Any]:
    """The calls that Python models have made of others: the steps of pipelines."""
    from prometheus_client.core import CounterMetricFamily

    labels = ("model", "version", "called", "outcome")
    calls = CounterMetricFamily("backline_model_calls", "Calls that the model made of another one, by outcome", labels=labels)
    seconds = CounterMetricFamily("backline_model_call_seconds", "Time of these calls, to their last response", labels=labels)
    for model in models:
        for called, counts in sorted(model.statistics.calls.items()):
            for outcome, duration in (("success", counts.success), ("failure", counts.fail), ("cancelled", counts.cancel)):
                key = (model.name, model.version, called, outcome)
                calls.add_metric(key, duration.count)
                seconds.add_metric(key, duration.ns / 1e9)
    yield from (calls, seconds)


class Metrics:
    """The text of all metrics: the engine's, and those of the process (memory, CPU time, open files)."""

    def __init__(self, engine: Engine) -> None:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

        self._engine = engine
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(engine))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self) -> tuple[bytes, bytes]:
        """The content type, and the text in Prometheus' format."""
        from prometheus_client import generate_latest

        return b"text/plain; version=0.0.4; charset=utf-8", without_total(
            _COUNTER_COMMENT.sub(rb"\1", generate_latest(self._registry)), self._engine.custom_metrics
        )


def _labels(model: Model) -> dict[str, str]:
    return {"model": model.name, "version": model.version}
