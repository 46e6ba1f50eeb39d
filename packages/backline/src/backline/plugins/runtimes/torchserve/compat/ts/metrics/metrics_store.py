"""The metrics that a handler records with `context.metrics`. Each value is logged at level INFO, in
TorchServe's format.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence

from .dimension import Dimension
from .metric_type_enum import MetricTypes

_UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
}
_log = logging.getLogger("ts.metrics")
_HOST = socket.gethostname()


class Metric:
    """A metric with a name, a unit, a type and the names of its dimensions."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = _UNITS.get(unit, unit)
        self.dimension_names = list(dimension_names)
        self.metric_type = metric_type

    def add_or_update(
        self, value: float | str, dimension_values: Sequence[str] = (), request_id: str = ""
    ) -> None:
        """Logs a value. Raises ValueError if the number of dimension values differs from the number of
        dimension names.
        """
        if len(dimension_values) != len(self.dimension_names):
            raise ValueError(
                f"metric {self.metric_name} has the dimensions {self.dimension_names},"
                f" got {list(dimension_values)}"
            )
        if not _log.isEnabledFor(logging.INFO):
            return
        dimensions = ",".join(
            f"{name}:{value}" for name, value in zip(self.dimension_names, dimension_values, strict=True)
        )
        about = f"|#{dimensions}|#type:{self.metric_type.name}|#hostname:{_HOST},{int(time.time())}"
        _log.info(
            "[METRICS]%s.%s:%s%s%s",
            self.metric_name,
            self.unit,
            value,
            about,
            f",{request_id}" if request_id else "",
        )


class MetricsStore:
    """The metrics of one model. `request_ids` maps the index of a request in the batch to the id of the
    request.
    """

    def __init__(self, request_ids: dict[int, str] | None, model_name: str) -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self._metrics: dict[tuple[MetricTypes, str], Metric] = {}

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> Metric:
        """Adds a metric, and returns it. The method `add_or_update` of the metric records a value."""
        metric = self._metrics[metric_type, metric_name] = Metric(
            metric_name, unit, dimension_names, metric_type
        )
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> Metric:
        """Returns a metric that was added before. Raises KeyError if there is no such metric."""
        return self._metrics[metric_type, metric_name]

    def add_metric(
        self,
        name: str,
        value: float | str,
        unit: str = "count",
        idx: int | None = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        dims = [*(dimensions or ()), Dimension("ModelName", self.model_name), Dimension("Level", "Model")]
        ids = self.request_ids or {}
        request = ",".join(ids.values()) if idx is None else ids.get(idx, "")
        metric = Metric(name, unit, [one.name for one in dims], metric_type)
        metric.add_or_update(value, [one.value for one in dims], request)

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Dimension] | None = None
    ) -> None:
        self.add_metric(name, value, "count", idx, dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] | None = None,
    ) -> None:
        if unit not in ("ms", "s"):
            raise ValueError(f"the unit of a time must be 'ms' or 's', got '{unit}'")
        self.add_metric(name, value, unit, idx, dimensions, MetricTypes.GAUGE)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] | None = None,
    ) -> None:
        if unit not in ("MB", "kB", "GB", "B"):
            raise ValueError(f"the unit of a size must be 'B', 'kB', 'MB' or 'GB', got '{unit}'")
        self.add_metric(name, value, unit, idx, dimensions, MetricTypes.GAUGE)

    def add_percent(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Dimension] | None = None
    ) -> None:
        self.add_metric(name, value, "percent", idx, dimensions, MetricTypes.GAUGE)

    def add_error(self, name: str, value: str, dimensions: Sequence[Dimension] | None = None) -> None:
        self.add_metric(name, value, "", None, dimensions)
