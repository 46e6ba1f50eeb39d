"""A model's own metrics: each measure goes to the server, which adds up those of all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backline.engine.errors import Unavailable
from backline.workers.channel.protocol import Kind, Measure
from backline.workers.child.caller import Caller

if TYPE_CHECKING:
    from backline.engine.custom_metrics import MetricKind


class Measures:
    """May be used on any thread. A measure is recorded before any response that the model sends after it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def declare(self, name: str, kind: MetricKind, description: str) -> None:
        """Waits for the server. Raises InvalidArgument or AlreadyExists if it refuses."""
        self._caller.measure(Measure("declare", name, kind=kind, description=description))

    def create(self, name: str, labels: Mapping[str, str], bounds: Sequence[float] = ()) -> None:
        """Creates a combination of labels, which the metrics page shows from now on."""
        self._tell(Measure("create", name, dict(labels), list(bounds)))

    def record(
        self, action: str, name: str, labels: Mapping[str, str], value: float, bounds: Sequence[float] = ()
    ) -> None:
        """`action` is "increment", "set" or "observe"."""
        self._tell(Measure(action, name, dict(labels), list(bounds), value))

    def value(self, name: str, labels: Mapping[str, str]) -> float:
        """The value at the server, over all workers. Waits for it."""
        value: Any = self._caller.measure(Measure("value", name, dict(labels)))
        return float(value)

    def _tell(self, message: Measure) -> None:
        try:
            self._caller.tell(Kind.MEASURE, message)
        except Unavailable:  # the server has ended, or this process is a fork
            return
