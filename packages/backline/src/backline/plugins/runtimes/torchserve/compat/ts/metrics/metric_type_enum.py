"""TorchServe's types of metrics."""

from __future__ import annotations

from enum import Enum


class MetricTypes(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
