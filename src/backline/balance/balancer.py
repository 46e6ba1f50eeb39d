"""The policy that chooses servers. It reads no clock and does no I/O: callers pass the current time."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from enum import Enum

from backline.balance.endpoint import Endpoint, RequestAttempt
from backline.balance.policy import DEFAULT_POLICY, BalancePolicy

#: To find when a request counts as late: the number of latest response times that are used, the minimum
#: number that is needed, and the number of new ones after which the limit is computed again.
_WINDOW = 128
_NEEDED = 32
_STEP = 16


class Verdict(Enum):
    """The outcome of an attempt, as far as it says something about the server."""

    #: The server responded, if only to say that the request is invalid.
    ANSWERED = "answered"
    #: The server refused the request because it has too many.
    BUSY = "busy"
    #: The connection could not be opened, or broke.
    LOST = "lost"
    #: The server failed, or did not respond in time.
    FAILED = "failed"
    #: The caller no longer needs a response.
    ABANDONED = "abandoned"


class Balancer:
    """A policy that chooses the server with the fewest requests in flight.

    - For a server that is much slower than the fastest, each request in flight counts several times.
    - A server that refuses a request because it is busy gets the next requests only if all servers are busy.
    - A server that cannot be reached, or fails repeatedly, is ejected until a probe finds it alive. If all
      servers are ejected, all of them get requests, as one may have recovered.
    - A server whose oldest request has waited long is probed too, because its machine may have stopped
      without closing a connection.

    Retries, for whatever reason, are limited to a share of all requests: otherwise they would multiply the
    load just when servers fail.
    """

    def __init__(self, urls: Iterable[str], policy: BalancePolicy = DEFAULT_POLICY) -> None:
        self.policy = policy
        self.endpoints = [Endpoint(url) for url in dict.fromkeys(urls)]
        self._turn = 0
        self._retries = policy.retry_burst
        self._hedges = policy.hedge_burst
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._new_times = 0
        self._late_after: float | None = None

    def update(self, urls: Iterable[str]) -> tuple[list[Endpoint], list[Endpoint]]:
        """Replaces the servers; known ones keep their state. Returns the added and the removed servers."""
        wanted = dict.fromkeys(urls)
        known = {endpoint.url for endpoint in self.endpoints}
        added = [Endpoint(url) for url in wanted if url not in known]
        removed = [endpoint for endpoint in self.endpoints if endpoint.url not in wanted]
        self.endpoints = [endpoint for endpoint in self.endpoints if endpoint.url in wanted] + added
        return added, removed

    # Choosing a server.

    def choose(self, now: float, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """Returns the server for a request, other than those `tried` already; None if there is no other."""
        if not tried and len(self.endpoints) == 1:
            return self.endpoints[0]
        left = [endpoint for endpoint in self.endpoints if endpoint not in tried]
        sound = [endpoint for endpoint in left if not endpoint.ejected]
        free = [endpoint for endpoint in sound if endpoint.busy_until <= now]
        candidates = free or sound or left
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        fastest = min([endpoint.latency for endpoint in candidates if endpoint.latency], default=0.0)
        return min(candidates, key=lambda endpoint: (self._cost(endpoint, fastest, now), endpoint.turn))

    def _cost(self, endpoint: Endpoint, fastest: float, now: float) -> float:
        recent = now - endpoint.measured_at < self.policy.forget_after
        latency = max(endpoint.latency if recent else 0.0, endpoint.waiting(now))
        slow = fastest and latency > self.policy.slow_factor * fastest
        return (endpoint.in_flight + 1) * (latency / fastest if slow else 1.0)

    # Counting requests and attempts.

    def arrived(self) -> None:
        """Counts a new request, which raises the number of retries that are allowed."""
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
        """Returns whether a late request may also be sent to a second server; if so, counts that."""
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    @property
    def late_after(self) -> float | None:
        """The seconds after which a request is late; None if unknown, or if there is only one server."""
        return self._late_after if len(self.endpoints) > 1 else None

    def started(self, endpoint: Endpoint, now: float, *, timed: bool = True) -> RequestAttempt:
        """Counts a request that is sent to a server."""
        self._turn += 1
        endpoint.turn = self._turn
        endpoint.in_flight += 1
        attempt = RequestAttempt(endpoint, now, timed)
        if timed:
            endpoint.attempts[attempt] = None
        return attempt

    def finished(
        self, attempt: RequestAttempt, verdict: Verdict, now: float, *, busy_for: float | None = None
    ) -> None:
        """Counts the end of an attempt. A busy server asks not to get requests for `busy_for` seconds."""
        endpoint, policy = attempt.endpoint, self.policy
        endpoint.in_flight -= 1
        endpoint.attempts.pop(attempt, None)
        taken = now - attempt.started
        if verdict is Verdict.ANSWERED:
            endpoint.failures = endpoint.ejections = 0
            if attempt.timed and endpoint.met:
                endpoint.measure(taken, now, policy.forget_after)
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
            # The caller got a response from another server first. This server would have taken at least this
            # long.
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
        """Returns the servers to probe now. Each is returned only once until its probe ends."""
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
        """Handles the result of a probe: readmits an ejected server that is alive, ejects one that is not."""
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
