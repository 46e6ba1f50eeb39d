"""The policy that chooses a server for each request, its parameters, and its record of each server.

The policy reads no clock and does no I/O; callers pass the current time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


@dataclass(slots=True, eq=False)
class RequestAttempt:
    """A call in flight to a server, sent at `started`, in seconds of a monotonic clock. It may carry several
    `requests` that arrived together. A stream is not `timed`, because it may last forever.
    """

    endpoint: Endpoint
    started: float
    timed: bool = True
    requests: int = 1


@dataclass(slots=True, eq=False)
class Endpoint:
    """A server, with its requests in flight and its history. Times are seconds of a monotonic clock."""

    url: str
    #: The number of requests in flight. Requests that share a call are counted one by one.
    in_flight: int = 0
    #: The attempts in flight whose response time is measured (streams are not), oldest first.
    attempts: dict[RequestAttempt, None] = field(default_factory=dict)
    #: The moving average of response times; 0 if unknown.
    latency: float = 0.0
    measured_at: float = 0.0
    #: Whether the server has responded since it was added or readmitted. The first response time is not
    #: measured, because it includes the time to connect.
    met: bool = False
    #: The number of failures since the server last responded to a request, or was readmitted.
    failures: int = 0
    #: The number of ejections since the last response to a request.
    ejections: int = 0
    #: Whether the server gets no requests until a probe finds it alive.
    ejected: bool = False
    #: When the server may be probed next.
    probe_at: float = 0.0
    busy_until: float = 0.0
    #: The sequence number of the last request to this server, so that equally loaded servers take turns.
    turn: int = 0

    def waiting(self, now: float) -> float:
        """Returns for how many seconds the server's oldest attempt has been in flight, not counting streams;
        0 if there is none.
        """
        oldest = next(iter(self.attempts), None)
        return 0.0 if oldest is None else now - oldest.started

    def measure(self, taken: float, now: float, forget_after: float) -> None:
        """Adds a response time to the average. If the last one was added more than `forget_after` seconds
        ago, the average starts again with this one.

        The weight of the past is chosen so that the average follows a change within about five responses.
        """
        known = self.latency and now - self.measured_at < forget_after
        self.latency = self.latency + 0.3 * (taken - self.latency) if known else taken
        self.measured_at = now


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """Parameters that say when to avoid a server, and when to send a request again. Times are in seconds."""

    #: A server that takes more than this many times as long as the fastest server gets fewer requests.
    slow_factor: float = 3.0
    #: After this many seconds without a response, a slow server is tried again.
    forget_after: float = 10.0
    #: The maximum number of consecutive requests that go to the same server while a lone caller sends one
    #: request at a time.
    row: int = 256
    #: A lone caller's requests go to the same server only while the server responds within this time, and the
    #: next request follows within this time.
    brief: float = 0.0005
    #: A server is ejected after this many failures in a row.
    failures: int = 3
    #: The duration of a server's first ejection. Each further ejection lasts twice as long as the previous
    #: one.
    ejection: float = 1.0
    #: The maximum duration of an ejection.
    longest_ejection: float = 30.0
    #: The time for which a busy server is avoided if the server itself names no time.
    busy: float = 0.1
    #: The maximum time for which a busy server is avoided.
    longest_busy: float = 5.0
    #: A server is probed if its oldest request has waited longer than this.
    stall: float = 0.5
    #: The share of requests that may be sent again because they were refused or their connection broke.
    retry_share: float = 0.2
    #: The maximum number of retries in a burst.
    retry_burst: float = 100.0
    #: The share of requests that may be sent to a second server because the first is slow to respond.
    hedge_share: float = 0.05
    #: The maximum number of requests in a burst that are sent to a second server.
    hedge_burst: float = 10.0
    #: A request counts as late once it has taken longer than this share of recent requests.
    hedge_quantile: float = 0.95
    #: A request never counts as late before it has taken this long.
    hedge_least: float = 0.002


DEFAULT_POLICY: Final = BalancePolicy()


#: The balancer computes when a request counts as late from this many of the latest response times.
_WINDOW = 128
#: With fewer response times than this, no request counts as late.
_NEEDED = 32
#: The balancer recomputes the time after which a request counts as late once per this many response times.
_STEP = 16


class Verdict(Enum):
    """The conclusion about a server from the outcome of an attempt."""

    #: The server responded, perhaps only with the error that the request is invalid.
    ANSWERED = "answered"
    #: The server refused the request because it already has too many requests, or does not have the model at
    #: the moment.
    BUSY = "busy"
    #: The connection could not be opened, or broke.
    LOST = "lost"
    #: The server failed, or did not respond in time.
    FAILED = "failed"
    #: The caller no longer needs a response.
    ABANDONED = "abandoned"


class Balancer:
    """A policy that chooses the server with the fewest requests in flight.

    - Each request in flight on a server that is much slower than the fastest counts as several requests.
    - A server that refuses a request because it is busy gets no requests for a short time, unless all other
      servers are busy or ejected.
    - A server that cannot be reached, or fails repeatedly, is ejected until a probe finds it alive. If all
      servers are ejected, all of them get requests, because some may have recovered.
    - A server whose oldest request has waited for a long time is probed too, because the server's machine may
      have stopped without closing the connection.

    All retries together are limited to a share of the requests. Otherwise, retries would multiply the load at
    the very moment when servers fail.
    """

    def __init__(self, urls: Iterable[str], policy: BalancePolicy = DEFAULT_POLICY) -> None:
        self.policy = policy
        self.endpoints = [Endpoint(url) for url in dict.fromkeys(urls)]
        self._turn = 0
        #: The server of the last request.
        self._last: Endpoint | None = None
        #: The number of consecutive requests that were sent to that server.
        self._in_row = 0
        self._retries = policy.retry_burst
        self._hedges = policy.hedge_burst
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._new_times = 0
        self._late_after: float | None = None

    def update(self, urls: Iterable[str]) -> tuple[list[Endpoint], list[Endpoint]]:
        """Replaces the servers. Known servers keep their state. Returns the added and the removed servers."""
        wanted = dict.fromkeys(urls)
        known = {endpoint.url for endpoint in self.endpoints}
        added = [Endpoint(url) for url in wanted if url not in known]
        removed = [endpoint for endpoint in self.endpoints if endpoint.url not in wanted]
        self.endpoints = [endpoint for endpoint in self.endpoints if endpoint.url in wanted] + added
        return added, removed

    # Choosing a server.

    def choose(self, now: float, tried: Collection[Endpoint] = (), requests: int = 1) -> Endpoint | None:
        """Returns the server for a call that carries this number of requests, other than the servers already
        `tried`; None if there is no other server.
        """
        if not tried:
            if len(self.endpoints) == 1:
                return self.endpoints[0]
            last = self._last
            if last is not None and self._stays(last, now):
                return last
        left = [endpoint for endpoint in self.endpoints if endpoint not in tried]
        sound = [endpoint for endpoint in left if not endpoint.ejected]
        free = [endpoint for endpoint in sound if endpoint.busy_until <= now]
        candidates = free or sound or left
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        fastest = min([endpoint.latency for endpoint in candidates if endpoint.latency], default=0.0)
        return min(candidates, key=lambda one: (self._cost(one, requests, fastest, now), one.turn))

    def _stays(self, last: Endpoint, now: float) -> bool:
        """Returns whether the server of the last request also gets this request, because a lone caller sends
        brief requests one after the other.

        Such a request takes less time on a server that has just responded: that server's processor caches
        still hold the code and the state of the connection, and the server may be polling for the request.
        """
        policy = self.policy
        return (
            self._in_row < policy.row
            and not last.ejected
            and 0 < last.latency <= policy.brief
            and now - last.measured_at <= policy.brief
            and last.busy_until <= now
            and not any(endpoint.in_flight for endpoint in self.endpoints)
            and last in self.endpoints
        )

    def _cost(self, endpoint: Endpoint, requests: int, fastest: float, now: float) -> float:
        recent = now - endpoint.measured_at < self.policy.forget_after
        latency = max(endpoint.latency if recent else 0.0, endpoint.waiting(now))
        slow = fastest and latency > self.policy.slow_factor * fastest
        return (endpoint.in_flight + requests) * (latency / fastest if slow else 1.0)

    # Counting requests and attempts.

    def arrived(self) -> None:
        """Counts a new request. Each new request raises the number of retries and hedges that are allowed."""
        policy = self.policy
        self._retries = min(self._retries + policy.retry_share, policy.retry_burst)
        self._hedges = min(self._hedges + policy.hedge_share, policy.hedge_burst)

    def take_retry(self) -> bool:
        """Returns whether a failed request may be sent again; if so, counts the retry."""
        if self._retries < 1:
            return False
        self._retries -= 1
        return True

    def take_hedge(self) -> bool:
        """Returns whether a late request may also be sent to a second server; if so, counts the second
        attempt.
        """
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    @property
    def late_after(self) -> float | None:
        """The number of seconds after which a request is late; None if unknown, or if there is only one
        server.
        """
        return self._late_after if len(self.endpoints) > 1 else None

    def started(
        self, endpoint: Endpoint, now: float, *, timed: bool = True, requests: int = 1
    ) -> RequestAttempt:
        """Counts a call that carries `requests` requests to a server; a stream is not `timed`. Returns the
        attempt, whose end must be passed to `finished`.
        """
        self._turn += 1
        self._in_row = self._in_row + 1 if endpoint is self._last else 1
        self._last = endpoint
        endpoint.turn = self._turn
        endpoint.in_flight += requests
        attempt = RequestAttempt(endpoint, now, timed, requests)
        if timed:
            endpoint.attempts[attempt] = None
        return attempt

    def finished(
        self, attempt: RequestAttempt, verdict: Verdict, now: float, *, busy_for: float | None = None
    ) -> None:
        """Counts the end of an attempt. `busy_for` is the number of seconds for which a busy server asks not
        to be sent requests; None if the server does not say.
        """
        endpoint, policy = attempt.endpoint, self.policy
        endpoint.in_flight -= attempt.requests
        endpoint.attempts.pop(attempt, None)
        taken = now - attempt.started
        if verdict is Verdict.ANSWERED:
            endpoint.failures = endpoint.ejections = 0
            if attempt.timed and endpoint.met:
                endpoint.measure(taken, now, policy.forget_after)
                if len(self.endpoints) > 1:  # nothing is late if there is no other server
                    self._add_time(taken)
            endpoint.met = True
        elif verdict is Verdict.BUSY:
            endpoint.busy_until = now + min(busy_for or policy.busy, policy.longest_busy)
        elif verdict is Verdict.LOST:
            self.eject(endpoint, now)
        elif verdict is Verdict.FAILED:
            endpoint.failures += 1
            if endpoint.failures >= policy.failures:
                self.eject(endpoint, now)
        elif attempt.timed and taken > endpoint.latency:
            # The caller gave up, usually because another server responded first. This server would have taken
            # at least this long, so its time is measured too.
            endpoint.measure(taken, now, policy.forget_after)

    def _add_time(self, taken: float) -> None:
        self._times.append(taken)
        self._new_times += 1
        if self._new_times >= _STEP and len(self._times) >= _NEEDED:
            self._new_times = 0
            ordered = sorted(self._times)
            limit = ordered[int(len(ordered) * self.policy.hedge_quantile)]
            self._late_after = max(limit, self.policy.hedge_least)

    # Ejecting and readmitting servers.

    def eject(self, endpoint: Endpoint, now: float) -> None:
        """Stops sending requests to a server until a probe finds it alive."""
        if endpoint.ejected and endpoint.probe_at > now:
            return  # several requests may report the same lost server
        policy = self.policy
        endpoint.ejected = True
        endpoint.probe_at = now + min(policy.ejection * 2**endpoint.ejections, policy.longest_ejection)
        endpoint.ejections = min(endpoint.ejections + 1, 16)

    def to_probe(self, now: float) -> list[Endpoint]:
        """Returns the servers to probe now. A server is not returned again until its probe has ended, or
        `longest_ejection` seconds have passed.
        """
        policy = self.policy
        due = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.probe_at <= now and (endpoint.ejected or endpoint.waiting(now) > policy.stall)
        ]
        for endpoint in due:
            endpoint.probe_at = now + policy.longest_ejection  # replaced when the probe ends
        return due

    def probed(self, endpoint: Endpoint, now: float, *, alive: bool) -> None:
        """Handles the result of a probe: readmits an ejected server that is alive, and ejects a server that
        is not.
        """
        endpoint.probe_at = now
        if not alive:
            self.eject(endpoint, now)
            return
        endpoint.probe_at = now + self.policy.stall
        if endpoint.ejected:
            endpoint.ejected = False
            endpoint.failures = 0
            endpoint.latency, endpoint.met = 0.0, False

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight and no server is ejected, so that no probe can be due."""
        return not any(endpoint.in_flight or endpoint.ejected for endpoint in self.endpoints)
