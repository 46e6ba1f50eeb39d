"""The metrics that models keep themselves, as Prometheus reads them: under the names and labels that the models give."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from backline.engine.custom_metrics import CustomMetrics, Family


def exposed(family: Family) -> Any:
    """A family in the exposition library's classes."""
    from prometheus_client.core import HistogramMetricFamily, Metric

    if family.kind != "histogram":
        shown = Metric(family.name, family.description, family.kind)
        for labels, sample in family.samples.items():
            shown.add_sample(family.name, dict(labels), sample.value)
        return shown
    names = sorted({name for labels in family.samples for name, _ in labels})
    histogram = HistogramMetricFamily(family.name, family.description, labels=names)
    for labels, sample in family.samples.items():
        given = dict(labels)
        bounds = [*(f"{bound:g}" for bound in sample.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(sample.counts)), strict=True))
        histogram.add_metric([given.get(name, "") for name in names], buckets, sum_value=sample.value)
    return histogram


def without_total(text: bytes, metrics: CustomMetrics) -> bytes:
    """The page without the `_total` that the library adds to the comment lines of counters."""
    for family in metrics:
        if family.kind == "counter":
            name = family.name.encode()
            for comment in (b"# HELP ", b"# TYPE "):
                text = text.replace(b"%b%b_total " % (comment, name), b"%b%b " % (comment, name))
    return text
