"""Metrics that models define: counters, gauges and histograms. Worker processes share metrics that have the
same name.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from backline_client.values.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

MetricKind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[tuple[str, str], ...]

_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
#: The prefixes of the server's own metrics.
_OWN: Final = ("nv_", "backline_", "process_", "python_")
#: The maximum number of label combinations per metric. There is a limit so that a label whose values are, for
#: example, user names cannot exhaust the memory.
_MOST_SAMPLES: Final = 10_000


@dataclass(slots=True)
class Sample:
    """The value of a metric for one combination of labels; for a histogram, the sum of the observations.

    `bounds` are the upper bounds of a histogram's buckets, in ascending order. `counts` has the number of
    observations in each bucket; the last element is the number of observations above all bounds.
    """

    value: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Family:
    """A metric, which consists of all samples with the same name. `owners` are the loads that have declared
    the metric.
    """

    name: str
    kind: MetricKind
    description: str
    owners: set[object] = field(default_factory=set)
    samples: dict[Labels, Sample] = field(default_factory=dict)


class CustomMetrics:
    """The metrics that models have defined. Use it only on the event loop.

    A metric outlives the worker processes that recorded its values. It is removed when the last load that
    declared it ends.
    """

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families.values())

    def add(self, family: Family) -> None:
        """Adds a metric of a plug-in of the server, which keeps its samples itself."""
        self._families[family.name] = family

    def declare(self, owner: object, name: str, kind: MetricKind, description: str) -> None:
        """Declares a metric.

        Raises InvalidArgument for an invalid name, and AlreadyExists if a metric of another kind has this
        name.
        """
        if not re.fullmatch(_NAME, name) or name.startswith(_OWN):
            raise InvalidArgument(
                f"'{name}' cannot name a model's metric: use letters, digits, _ and :,"
                f" and none of the prefixes {', '.join(_OWN)}"
            )
        family = self._families.setdefault(name, Family(name, kind, description))
        if family.kind != kind:
            raise AlreadyExists(
                f"metric '{name}' is a {family.kind} already: choose another name for this {kind}"
            )
        family.owners.add(owner)

    def forget(self, owner: object) -> None:
        """Removes a load that has ended, together with the metrics that only this load has declared."""
        for family in tuple(self._families.values()):
            family.owners.discard(owner)
            if not family.owners:
                del self._families[family.name]

    def sample(self, name: str, labels: Mapping[str, str], bounds: Sequence[float] = ()) -> Sample:
        """Returns the sample with these labels; creates it if necessary.

        Raises NotFound if the metric was not declared, and Unavailable if it has too many samples.
        """
        family = self._families.get(name)
        if family is None:
            raise NotFound(f"metric '{name}' was not declared: declare it before its first value")
        key = tuple(sorted(labels.items()))
        found = family.samples.get(key)
        if found is None:
            if len(family.samples) >= _MOST_SAMPLES:
                raise Unavailable(
                    f"metric '{name}' has {_MOST_SAMPLES} combinations of labels, the maximum: use labels"
                    " with fewer values"
                )
            found = family.samples[key] = Sample(
                bounds=tuple(bounds), counts=[0] * (len(bounds) + 1) if bounds else []
            )
        return found

    def increment(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Adds `value` to a counter or gauge."""
        self.sample(name, labels).value += value

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Sets a gauge to `value`."""
        self.sample(name, labels).value = value

    def observe(self, name: str, labels: Mapping[str, str], bounds: Sequence[float], value: float) -> None:
        """Adds an observation to a histogram."""
        sample = self.sample(name, labels, bounds)
        sample.value += value
        if sample.counts:
            sample.counts[bisect_left(sample.bounds, value)] += 1
