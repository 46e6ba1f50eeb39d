"""The metrics that models keep themselves: counters, gauges and histograms, one for all workers of all versions that name it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from backline.engine.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

MetricKind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[tuple[str, str], ...]

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
#: What the server's own metrics begin with.
_OWN: Final = ("nv_", "backline_", "process_", "python_")
#: Combinations of labels of one metric: a label with the user's name in it must not use up the memory.
_MOST_SAMPLES: Final = 10_000


@dataclass(slots=True)
class Sample:
    """The value of one combination of labels: of a histogram the sum, with the observations by bucket, the last one without an end."""

    value: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Family:
    """All samples of one name. `owners` are the loads that have declared it."""

    name: str
    kind: MetricKind
    description: str
    owners: set[object] = field(default_factory=set)
    samples: dict[Labels, Sample] = field(default_factory=dict)


class CustomMetrics:
    """Lives on the event loop. What a model has counted outlives its workers, and goes when no load that has declared it is left."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families.values())

    def declare(self, owner: object, name: str, kind: MetricKind, description: str) -> None:
        """Raises InvalidArgument for a name that cannot be, AlreadyExists for one that is a metric of another kind."""
        if not _NAME.fullmatch(name) or name.startswith(_OWN):
            raise InvalidArgument(
                f"'{name}' cannot be the name of a model's metric: it has letters, digits, _ and :, and begins with none of"
                f" {', '.join(_OWN)}"
            )
        family = self._families.setdefault(name, Family(name, kind, description))
        if family.kind != kind:
            raise AlreadyExists(f"metric '{name}' is a {family.kind} already, and cannot be a {kind}")
        family.owners.add(owner)

    def forget(self, owner: object) -> None:
        """A load has ended."""
        for family in tuple(self._families.values()):
            family.owners.discard(owner)
            if not family.owners:
                del self._families[family.name]

    def sample(self, name: str, labels: Mapping[str, str], bounds: Sequence[float] = ()) -> Sample:
        """The sample of these labels, a new one where there is none. Raises NotFound, or Unavailable when there are too many."""
        family = self._families.get(name)
        if family is None:
            raise NotFound(f"no metric '{name}' was declared")
        key = tuple(sorted(labels.items()))
        found = family.samples.get(key)
        if found is None:
            if len(family.samples) >= _MOST_SAMPLES:
                raise Unavailable(
                    f"metric '{name}' has {_MOST_SAMPLES} combinations of labels; no further one is kept"
                )
            found = family.samples[key] = Sample(
                bounds=tuple(bounds), counts=[0] * (len(bounds) + 1) if bounds else []
            )
        return found

    def increment(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Adds to a counter or gauge."""
        self.sample(name, labels).value += value

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Sets a gauge."""
        self.sample(name, labels).value = value

    def observe(self, name: str, labels: Mapping[str, str], bounds: Sequence[float], value: float) -> None:
        """Adds an observation to a histogram."""
        sample = self.sample(name, labels, bounds)
        sample.value += value
        if sample.counts:
            sample.counts[bisect_left(sample.bounds, value)] += 1
