"""Which answers a request may get: the constants that its target stood for while it was in flight."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Span:
    """A constant that may answer from the moment its change was begun until the moment its end was seen."""

    constant: float
    begun: float
    ended: float = float("inf")


@dataclass
class Timeline:
    """For every target of requests (a version, a label, "" for the model) the constants that may answer, and when."""

    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, target: str, constant: float, now: float) -> None:
        """From now on `target` may answer with `constant`; what it answered with before it may still."""
        self.spans[target].append(Span(constant, now))

    def settle(self, target: str, constant: float, now: float) -> None:
        """From now on `target` answers with `constant` only."""
        for span in self.spans[target]:
            if span.constant != constant and span.ended > now:
                span.ended = now

    def end(self, target: str, now: float) -> None:
        """From now on `target` does not answer."""
        for span in self.spans[target]:
            span.ended = min(span.ended, now)

    def allowed(self, target: str, sent: float, answered: float) -> set[float]:
        """The constants that may answer a request to `target` that was in flight from `sent` to `answered`."""
        return {span.constant for span in self.spans[target] if span.begun <= answered and span.ended >= sent}
