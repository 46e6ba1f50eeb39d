"""The valid answers to a request: the constants its target may have stood for while it was in flight."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Span:
    """A constant, valid from the start of its change until the end of the next one was observed."""

    constant: float
    begun: float
    ended: float = float("inf")


@dataclass
class Timeline:
    """For every target (a version, a label, or "" for the model), which constants are valid when."""

    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, target: str, constant: float, now: float) -> None:
        """From now on `target` may answer with `constant`; previous constants stay valid."""
        self.spans[target].append(Span(constant, now))

    def settle(self, target: str, constant: float, now: float) -> None:
        """From now on `target` answers only with `constant`."""
        for span in self.spans[target]:
            if span.constant != constant and span.ended > now:
                span.ended = now

    def end(self, target: str, now: float) -> None:
        """From now on `target` does not answer."""
        for span in self.spans[target]:
            span.ended = min(span.ended, now)

    def allowed(self, target: str, sent: float, answered: float) -> set[float]:
        """The valid answers to a request to `target` that was in flight from `sent` to `answered`."""
        return {span.constant for span in self.spans[target] if span.begun <= answered and span.ended >= sent}
