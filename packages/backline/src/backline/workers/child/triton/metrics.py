"""Metrics that a model defines, with Triton's names and error texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import ClassVar

from backline.engine.custom_metrics import MetricKind as Kind
from backline.workers.child.caller import Measures
from backline.workers.child.triton import worker
from backline.workers.child.triton.errors import TritonModelException
from backline_client.values.errors import AlreadyExists, BacklineError


class MetricKind(IntEnum):
    """Kinds of metrics, with Triton's numbers."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


_KINDS: dict[MetricKind, Kind] = {
    MetricKind.COUNTER: "counter",
    MetricKind.GAUGE: "gauge",
    MetricKind.HISTOGRAM: "histogram",
}


class MetricFamily:
    """The metrics that share a name. The server's metrics page shows the name unchanged."""

    COUNTER: ClassVar = MetricKind.COUNTER
    GAUGE: ClassVar = MetricKind.GAUGE
    HISTOGRAM: ClassVar = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        """Declares the metrics. Raises TritonModelException if the name is invalid, or belongs to a metric of
        another kind.
        """
        self._name = name
        self._kind = MetricKind(kind)
        self._measures = Measures(worker.caller())
        step = "Error when creating MetricFamily"
        try:
            self._measures.declare(name, _KINDS[self._kind], description)
        except AlreadyExists:
            raise _refused(step, "Family name already exists with different type") from None
        except BacklineError as error:
            raise _refused(step, f"Invalid metric name: {error.message}") from None

    def Metric(
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        """Returns the metric with these labels. Metrics with equal labels share their value. `buckets` has
        the upper bounds of a histogram's buckets.
        """
        for key, value in (labels or {}).items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise _refused("Error when creating Metric", "attempt to access JSON non-string as string")
        if self._kind is MetricKind.HISTOGRAM:
            if not buckets:
                raise TritonModelException("Failed to create metric. Missing required buckets.")
            if any(later <= earlier for earlier, later in pairwise(buckets)):
                raise _refused("Error when creating Metric", "Bucket Boundaries must be strictly sorted")
        elif buckets is not None:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        return Metric(
            self._measures, self._name, self._kind, dict(labels or {}), tuple(map(float, buckets or ()))
        )


class Metric:
    """One metric, with a set of labels. Its value is the sum over all workers."""

    def __init__(
        self,
        measures: Measures,
        name: str,
        kind: MetricKind,
        labels: dict[str, str],
        buckets: tuple[float, ...],
    ) -> None:
        self._measures = measures
        self._name = name
        self._kind = kind
        self._labels = labels
        self._buckets = buckets
        measures.create(name, labels, buckets)

    def increment(self, value: float) -> None:
        """Adds a value to a counter or a gauge; negative values are for gauges only."""
        self._only(MetricKind.COUNTER, MetricKind.GAUGE, what="Increment")
        if self._kind is MetricKind.COUNTER and value < 0:
            said = (
                "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically"
                " by non-negative values."
            )
            raise _refused("Failed to increment metric value", said)
        self._measures.record("increment", self._name, self._labels, float(value))

    def set(self, value: float) -> None:
        """Sets a gauge."""
        self._only(MetricKind.GAUGE, what="Set")
        self._measures.record("set", self._name, self._labels, float(value))

    def observe(self, value: float) -> None:
        """Adds an observation to a histogram."""
        self._only(MetricKind.HISTOGRAM, what="Observe")
        self._measures.record("observe", self._name, self._labels, float(value), self._buckets)

    def value(self) -> float:
        """Returns the value of a counter or gauge, which the server stores."""
        self._only(MetricKind.COUNTER, MetricKind.GAUGE, what="Value")
        try:
            return self._measures.value(self._name, self._labels)
        except BacklineError as error:
            raise _refused("Failed to get metric value", error.message) from None

    def _only(self, *kinds: MetricKind, what: str) -> None:
        if self._kind not in kinds:
            step = f"Failed to {'get' if what == 'Value' else what.lower()} metric value"
            raise _refused(step, f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support {what}")


def _refused(step: str, why: str) -> TritonModelException:
    return TritonModelException(
        f"{step}: Failed to process the request for model '{worker.instance()}', message: {why}"
    )
