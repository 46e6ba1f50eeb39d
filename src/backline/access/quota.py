"""How much an identity may use: requests per second, bytes per second, and requests in flight.

Pure state and decisions: callers pass the current time, in seconds of time.monotonic().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil

from backline.engine.errors import BacklineError, QuotaExceeded
from backline.engine.ticket import Listener, Ticket
from backline.engine.values.messages import InferResponse
from backline.memo import Memo

#: Levels are sums of floats: one that lacks less than this fraction of the amount wanted is enough.
_ROUNDING = 1e-9
#: Seconds after which to try again when too many requests are in flight: nobody knows when one will be done.
_IN_FLIGHT_RETRY = 0.1
#: How many models a meter remembers the limits of; clients choose the names.
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits on the requests to the models that match one of the patterns `models`; None means no limit.

    A `burst` of requests may arrive at once after a pause; None allows one second's worth. Bytes are those of
    request bodies and messages.
    """

    requests_per_second: float | None = None
    burst: int | None = None
    max_in_flight: int | None = None
    bytes_per_second: float | None = None
    models: tuple[str, ...] = ("*",)

    def covers(self, model: str | None) -> bool:
        """Whether it limits requests to `model`; None stands for a request that concerns no single model."""
        if "*" in self.models:
            return True
        return model is not None and any(fnmatchcase(model, pattern) for pattern in self.models)


class TokenBucket:
    """Fills by `rate` tokens per second up to `burst`.

    An amount above `burst` may be taken from a full bucket. The level is negative afterwards, so that even
    large requests pass and the average still holds.
    """

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def level(self, now: float) -> float:
        return min(self.burst, self._level + max(0.0, now - self._at) * self.rate)

    def wait(self, amount: float, now: float) -> float:
        """The seconds until `amount` may be taken; 0 if it may be taken now."""
        wanted = min(amount, self.burst)
        lacking = wanted - self.level(now)
        return lacking / self.rate if lacking > _ROUNDING * wanted else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes an amount that need not wait."""
        self._level = self.level(now) - amount
        self._at = max(self._at, now)

    def change(self, rate: float, burst: float, now: float) -> None:
        """Switches to another rate and burst. What was taken stays taken."""
        taken = self.burst - self.level(now)
        self.rate, self.burst = rate, burst
        self._level, self._at = burst - taken, now


class Limit:
    """A quota, and how much of it is used."""

    __slots__ = ("bytes", "in_flight", "quota", "requests")

    def __init__(self, quota: Quota, now: float) -> None:
        self.requests: TokenBucket | None = None
        self.bytes: TokenBucket | None = None
        self.in_flight = 0
        self.change(quota, now)

    def change(self, quota: Quota, now: float) -> None:
        """Switches to another quota. What was used counts against it, and requests in flight stay counted."""
        self.quota = quota
        rate = quota.requests_per_second
        burst = None if rate is None else quota.burst or max(1, ceil(rate))
        self.requests = _changed(self.requests, rate, burst, now)
        self.bytes = _changed(self.bytes, quota.bytes_per_second, quota.bytes_per_second, now)

    @property
    def full(self) -> bool:
        """Whether as many requests as allowed are in flight."""
        most = self.quota.max_in_flight
        return most is not None and self.in_flight >= most


def _changed(
    bucket: TokenBucket | None, rate: float | None, burst: float | None, now: float
) -> TokenBucket | None:
    if rate is None or burst is None:
        return None
    if bucket is None:
        return TokenBucket(rate, burst, now)
    bucket.change(rate, burst, now)
    return bucket


class InFlight(Listener):
    """Counts tickets against limits until they end.

    Invariant: a ticket that has been counted ends in exactly one of the calls below, whether it completes, is
    refused, expires, or its caller leaves. Nothing else may count it down.
    """

    __slots__ = ("limits",)

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits

    def follow(self, ticket: Ticket) -> None:
        for limit in self.limits:
            limit.in_flight += 1
        ticket.listen(self)

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        for limit in self.limits:
            limit.in_flight -= 1

    def abandoned(self, ticket: Ticket) -> None:
        for limit in self.limits:
            limit.in_flight -= 1

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        for limit in self.limits:
            limit.in_flight -= 1


class Meter:
    """Measures what one identity uses, and refuses what exceeds its quotas. `whose` begins error texts."""

    __slots__ = ("_limits", "_of", "by_model", "whose")

    def __init__(self, quotas: Sequence[Quota], whose: str, now: float) -> None:
        self.whose = whose
        self._limits = [Limit(quota, now) for quota in quotas]
        self._of: Memo[str | None, InFlight] = Memo(_MAX_REMEMBERED)
        #: Whether the model of a request matters.
        self.by_model = any("*" not in quota.models for quota in quotas)

    @property
    def quotas(self) -> list[Quota]:
        return [limit.quota for limit in self._limits]

    def change(self, quotas: Sequence[Quota], whose: str, now: float) -> None:
        """Switches to other quotas. What was used of a quota counts against the one for the same models."""
        before = {limit.quota.models: limit for limit in self._limits}
        self._limits = []
        for quota in quotas:
            limit = before.pop(quota.models, None)
            if limit is None:
                limit = Limit(quota, now)
            elif limit.quota != quota:
                limit.change(quota, now)
            self._limits.append(limit)
        self.whose = whose
        self._of.clear()
        self.by_model = any("*" not in quota.models for quota in quotas)

    def charge(self, model: str | None, size: int, now: float) -> None:
        """Counts a request with a body of `size` bytes. Raises QuotaExceeded, and counts nothing, if it
        exceeds a quota.
        """
        limits = (self._of.get(model) or self._find(model)).limits
        for limit in limits:
            requests, received = limit.requests, limit.bytes
            if requests is not None and (wait := requests.wait(1, now)):
                raise self._too_fast(limit, f"{requests.rate:g} requests per second", requests, wait)
            if received is not None and (wait := received.wait(size, now)):
                raise self._too_fast(limit, f"{received.rate:g} bytes per second", None, wait)
            if limit.full:
                raise self._too_many(limit)
        for limit in limits:
            if limit.requests is not None:
                limit.requests.take(1, now)
            if limit.bytes is not None:
                limit.bytes.take(size, now)

    def follow(self, ticket: Ticket) -> None:
        """Counts a ticket as in flight until it ends. Raises QuotaExceeded if too many are in flight."""
        model = ticket.request.model_name
        counted = self._of.get(model) or self._find(model)
        for limit in counted.limits:
            if limit.full:
                raise self._too_many(limit)
        counted.follow(ticket)

    def _find(self, model: str | None) -> InFlight:
        return self._of.keep(model, InFlight([limit for limit in self._limits if limit.quota.covers(model)]))

    def standing(self, now: float) -> tuple[int, int, int, int] | None:
        """The state of the request rate for all models, for header fields; None if it is not limited.

        Returns the burst, the seconds in which it refills, how many requests are left, and the seconds until
        the whole burst is available again.
        """
        for limit in self._limits:
            bucket = limit.requests
            if bucket is not None and "*" in limit.quota.models:
                level = bucket.level(now)
                return (
                    int(bucket.burst),
                    ceil(bucket.burst / bucket.rate),
                    max(0, int(level + _ROUNDING)),
                    ceil((bucket.burst - level) / bucket.rate),
                )
        return None

    def _too_fast(self, limit: Limit, rate: str, bucket: TokenBucket | None, wait: float) -> QuotaExceeded:
        burst = f" with bursts of {bucket.burst:g}" if bucket is not None else ""
        return QuotaExceeded(
            f"{self.whose} may send {rate}{burst}{_of_models(limit)}; try again in {wait:.2g} s", wait
        )

    def _too_many(self, limit: Limit) -> QuotaExceeded:
        return QuotaExceeded(
            f"{self.whose} may have {limit.quota.max_in_flight} requests in flight{_of_models(limit)};"
            " try again when one of them is done",
            _IN_FLIGHT_RETRY,
        )


def _of_models(limit: Limit) -> str:
    models = limit.quota.models
    return "" if "*" in models else " to models " + ", ".join(models)
