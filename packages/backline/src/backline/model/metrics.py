"""A model's own metrics, shown on the server's metrics page with the labels `model` and `version`.

>>> words = Counter("words_read", "Words of all texts")
>>> words.increment(3, language="en")
>>> words.value(language="en")
3.0

For counters and histograms, the page shows the sums over all worker processes of the model, including
processes that have ended. If no server runs the model, its metrics exist only in this process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, Protocol, TypeAlias

_Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
_Action: TypeAlias = Literal["increment", "set", "observe"]
#: The default buckets of a histogram: from 5 ms to 10 s, if the observations are in seconds.
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Page(Protocol):
    """A metrics page to which models send their metrics."""

    def declare(self, name: str, kind: _Kind, description: str) -> None:
        """Adds a metric to the page.

        Raises InvalidArgument for an invalid name, and AlreadyExists if the page has a metric of another kind
        with this name.
        """

    def record(
        self,
        action: _Action,
        name: str,
        labels: Mapping[str, str],
        value: float,
        bounds: Sequence[float] = (),
    ) -> None:
        """Records a value of a metric; `action` is "increment", "set" or "observe", and `bounds` are the
        buckets of a histogram.
        """


class _Server:
    page: Page | None = None
    labels: Mapping[str, str] = {}


def connect(page: Page, **labels: str) -> None:
    """Makes all metrics send the values recorded from now on to the server's page, with these labels. Worker
    processes call this.
    """
    _Server.page, _Server.labels = page, labels


def disconnect() -> None:
    """Makes all metrics keep the values recorded from now on in this process only."""
    _Server.page, _Server.labels = None, {}


class _Metric:
    kind: ClassVar[_Kind]

    def __init__(self, name: str, description: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        if _Server.page is not None:
            _Server.page.declare(name, self.kind, description)

    def value(self, **labels: str) -> float:
        """Returns the value that this process has recorded; for a histogram, the number of observations."""
        return self._values.get(tuple(sorted(labels.items())), 0.0)

    def _keep(self, labels: Mapping[str, str], value: float, *, add: bool) -> None:
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = value + (self._values.get(key, 0.0) if add else 0.0)

    def _show(
        self, action: _Action, labels: Mapping[str, str], value: float, bounds: Sequence[float] = ()
    ) -> None:
        if _Server.page is not None:
            _Server.page.record(
                action,
                self.name,
                {**_Server.labels, **{key: str(text) for key, text in labels.items()}},
                value,
                bounds,
            )


class Counter(_Metric):
    """A metric whose value can only increase."""

    kind = "counter"

    def increment(self, value: float = 1.0, **labels: str) -> None:
        """Adds `value` to the counter. Raises ValueError if `value` is negative."""
        if value < 0:
            raise ValueError(f"counter '{self.name}' cannot grow by {value}; use a Gauge")
        self._keep(labels, value, add=True)
        self._show("increment", labels, value)


class Gauge(_Metric):
    """A metric whose value can increase and decrease. If several worker processes set it, the server's page
    shows the value that was set last.
    """

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        self._keep(labels, value, add=False)
        self._show("set", labels, value)

    def increment(self, value: float = 1.0, **labels: str) -> None:
        self._keep(labels, value, add=True)
        self._show("increment", labels, value)


class Histogram(_Metric):
    """The distribution of observations over `buckets`, given as upper bounds in ascending order."""

    kind = "histogram"

    def __init__(self, name: str, description: str, buckets: Sequence[float] = DEFAULT_BUCKETS) -> None:
        """Raises ValueError if there are no buckets, or if they are not in ascending order."""
        if not buckets or any(later <= earlier for earlier, later in pairwise(buckets)):
            raise ValueError(f"histogram '{name}': buckets are {list(buckets)}, expected ascending numbers")
        self.buckets = tuple(map(float, buckets))
        super().__init__(name, description)

    def observe(self, value: float, **labels: str) -> None:
        self._keep(labels, 1.0, add=True)
        self._show("observe", labels, value, self.buckets)
