"""The state of each server among which requests are distributed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class RequestAttempt:
    """A request in flight to a server, sent at `started`. A stream is not `timed`: it may last forever."""

    endpoint: Endpoint
    started: float
    timed: bool = True


@dataclass(slots=True, eq=False)
class Endpoint:
    """A server, its requests in flight, and how it has behaved. Times are seconds of a monotonic clock."""

    url: str
    in_flight: int = 0
    #: The timed attempts in flight, oldest first.
    attempts: dict[RequestAttempt, None] = field(default_factory=dict)
    #: The moving average of response times; 0 if unknown.
    latency: float = 0.0
    measured_at: float = 0.0
    #: Whether the server has responded since it was added or readmitted. The first response time is not
    #: measured, because it includes the time to connect.
    met: bool = False
    #: The numbers of failures and of ejections since the last response.
    failures: int = 0
    ejections: int = 0
    #: Whether the server gets no requests until a probe finds it alive.
    ejected: bool = False
    #: When the server may be probed next.
    probe_at: float = 0.0
    busy_until: float = 0.0
    #: The sequence number of the last request to this server, so that equally loaded servers take turns.
    turn: int = 0

    def waiting(self, now: float) -> float:
        """Returns the seconds for which the server's oldest request has waited."""
        oldest = next(iter(self.attempts), None)
        return 0.0 if oldest is None else now - oldest.started

    def measure(self, taken: float, now: float, forget_after: float) -> None:
        """Adds a response time to the average, or restarts an average that is `forget_after` seconds old.

        The weight of the past is chosen so that the average follows a change within about five responses.
        """
        known = self.latency and now - self.measured_at < forget_after
        self.latency = self.latency + 0.3 * (taken - self.latency) if known else taken
        self.measured_at = now
