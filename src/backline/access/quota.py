"""Limits how much an identity may use: requests per second, bytes per second, and requests in flight.

This module reads no clock: callers pass the current time, in seconds of time.monotonic().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, inf

from backline.engine.errors import BacklineError, QuotaExceeded
from backline.engine.ticket import InFlight, Listener, Ticket
from backline.engine.values.messages import InferResponse
from backline.memo import Memo

#: The allowed rounding error, in seconds or as a share of a burst, because times are sums of floats.
_ROUNDING = 1e-9
#: Seconds after which to retry if too many requests are in flight. When one of them will end is unknown.
_IN_FLIGHT_RETRY = 0.1
#: The maximum number of models whose limits a meter remembers; clients choose the names.
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Quota:
    """A set of limits on requests to models that match one of the patterns `models`; None means no limit.

    A `burst` of requests may arrive at once after a pause; None means the number allowed in one second. Bytes
    are those of request bodies and messages.
    """

    requests_per_second: float | None = None
    burst: int | None = None
    max_in_flight: int | None = None
    bytes_per_second: float | None = None
    models: tuple[str, ...] = ("*",)

    def covers(self, model: str | None) -> bool:
        """Returns whether the quota limits requests to `model`, which is None if there are several models."""
        if "*" in self.models:
            return True
        return model is not None and any(fnmatchcase(model, pattern) for pattern in self.models)


class TokenBucket:
    """A token bucket that fills at `rate` tokens per second, up to `burst`.

    An amount above `burst` may be taken from a full bucket, whose level then becomes negative. So large
    requests pass too, and the average rate is still limited.
    """

    __slots__ = ("burst", "full_at", "rate", "room", "slack", "token")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        #: When the bucket will be full if nothing more is taken. This is the only state, as in the generic
        #: cell rate algorithm (ITU-T I.371). Taking tokens moves it into the future.
        self.full_at = now
        self._set(rate, burst)

    def _set(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        #: Seconds in which one token, and the whole burst, are refilled; `slack` allows for rounding.
        self.token = 1 / rate
        self.slack = _ROUNDING * (1 + burst / rate)
        self.room = burst / rate + self.slack

    def level(self, now: float) -> float:
        """Returns the number of tokens; negative if more than a full bucket was taken."""
        return self.burst - max(0.0, self.full_at - now) * self.rate

    def wait(self, amount: float, now: float) -> float:
        """Returns the seconds until `amount` may be taken; 0 if it may be taken now."""
        lacking = self.full_at - now + min(amount, self.burst) * self.token - self.room
        return lacking + self.slack if lacking > 0 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes an amount for which `wait` has returned 0."""
        self.full_at = max(self.full_at, now) + amount * self.token

    def change(self, rate: float, burst: float, now: float) -> None:
        """Switches to another rate and burst. Tokens already taken still count."""
        taken = self.burst - self.level(now)
        self._set(rate, burst)
        self.full_at = now + taken * self.token


class Limit(InFlight):
    """A quota, and how much of it has been used."""

    __slots__ = ("bytes", "most", "quota", "requests")

    def __init__(self, quota: Quota, now: float) -> None:
        super().__init__()
        self.requests: TokenBucket | None = None
        self.bytes: TokenBucket | None = None
        self.change(quota, now)

    def change(self, quota: Quota, now: float) -> None:
        """Switches to another quota, against which past use and requests in flight still count."""
        self.quota = quota
        self.most = inf if quota.max_in_flight is None else quota.max_in_flight
        rate = quota.requests_per_second
        burst = None if rate is None else quota.burst or max(1, ceil(rate))
        self.requests = _changed(self.requests, rate, burst, now)
        self.bytes = _changed(self.bytes, quota.bytes_per_second, quota.bytes_per_second, now)


class Further(Listener):
    """A listener that counts a ticket against additional limits, since `Ticket.counted` is only one limit."""

    __slots__ = ("_limits",)

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits

    def follow(self, ticket: Ticket) -> None:
        for limit in self._limits:
            limit.in_flight += 1
        ticket.listen(self)

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        self._over()

    def abandoned(self, ticket: Ticket) -> None:
        self._over()

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self._over()

    def _over(self) -> None:
        for limit in self._limits:
            limit.in_flight -= 1


def _changed(
    bucket: TokenBucket | None, rate: float | None, burst: float | None, now: float
) -> TokenBucket | None:
    if rate is None or burst is None:
        return None
    if bucket is None:
        return TokenBucket(rate, burst, now)
    bucket.change(rate, burst, now)
    return bucket


class Meter:
    """A meter of what one identity uses. It refuses requests that exceed a quota; `whose` begins errors."""

    __slots__ = ("__weakref__", "_limits", "_limits_flight", "_of", "by_model", "low", "only", "whose")

    def __init__(self, quotas: Sequence[Quota], whose: str, now: float) -> None:
        self._limits: list[Limit] = []
        self._of: Memo[str | None, Sequence[Limit]] = Memo(_MAX_REMEMBERED)
        self.change(quotas, whose, now)

    @property
    def quotas(self) -> list[Quota]:
        return [limit.quota for limit in self._limits]

    def change(self, quotas: Sequence[Quota], whose: str, now: float) -> None:
        """Switches to other quotas. Past use of a quota counts against the new quota for the same models."""
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
        #: Whether any quota is limited to some models.
        self.by_model = any("*" not in quota.models for quota in quotas)
        self._limits_flight = any(quota.max_in_flight is not None for quota in quotas)
        #: Whether some quota limits the rate of requests; otherwise `standing` always returns None.
        self.low = any(quota.requests_per_second is not None for quota in quotas)
        #: The limit, if there is only one and it applies to every model; otherwise None.
        self.only = self._limits[0] if len(self._limits) == 1 and not self.by_model else None

    def rests(self, now: float) -> bool:
        """Whether nothing of the quotas is in use, so that a new meter would measure the same."""
        return all(
            limit.in_flight == 0
            and all(bucket is None or bucket.full_at <= now for bucket in (limit.requests, limit.bytes))
            for limit in self._limits
        )

    def charge(self, model: str | None, size: int, now: float) -> None:
        """Counts a request with a body of `size` bytes.

        Raises QuotaExceeded, and counts nothing, if the request exceeds a quota.
        """
        only = self.only
        if only is not None:  # calls no functions, because this is a notable share of a small request's time
            if only.in_flight >= only.most:
                raise self._too_many(only)
            requests, received = only.requests, only.bytes
            requests_full = received_full = now
            if requests is not None:
                if requests.full_at > now:
                    requests_full = requests.full_at
                requests_full += requests.token
                if requests_full - now > requests.room:
                    raise self._too_fast(only, size, now)
            if received is not None:
                if received.full_at > now:
                    received_full = received.full_at
                amount = size if size < received.burst else received.burst
                if received_full - now + amount * received.token > received.room:
                    raise self._too_fast(only, size, now)
                received.full_at = received_full + size * received.token
            if requests is not None:
                requests.full_at = requests_full
                self.low = 2 * (requests_full - now) > requests.room
            return
        limits = self._of.get(model) or self._find(model)
        for limit in limits:
            requests, received = limit.requests, limit.bytes
            if (requests is not None and requests.wait(1, now)) or (
                received is not None and received.wait(size, now)
            ):
                raise self._too_fast(limit, size, now)
            if limit.in_flight >= limit.most:
                raise self._too_many(limit)
        for limit in limits:
            if limit.requests is not None:
                limit.requests.take(1, now)
            if limit.bytes is not None:
                limit.bytes.take(size, now)

    def follow(self, ticket: Ticket) -> None:
        """Counts a ticket as in flight until it ends. Raises QuotaExceeded if too many are in flight."""
        only = self.only
        if only is not None:
            if only.in_flight >= only.most:
                raise self._too_many(only)
            only.in_flight += 1
            ticket.counted = only
            return
        if not self._limits_flight:
            return
        model = ticket.request.model_name
        limits = self._of.get(model) or self._find(model)
        for limit in limits:
            if limit.in_flight >= limit.most:
                raise self._too_many(limit)
        if limits:
            first, *others = limits
            first.count(ticket)
            if others:
                Further(others).follow(ticket)

    def _find(self, model: str | None) -> Sequence[Limit]:
        return self._of.keep(model, [limit for limit in self._limits if limit.quota.covers(model)])

    def standing(self, now: float) -> tuple[int, int, int, int] | None:
        """Returns the state of the rate limit on requests to all models, for header fields.

        The values are the burst, the seconds in which it refills, the requests that are left, and the seconds
        until the whole burst is available again. Returns None without such a limit, or if more than half of
        the burst is left.
        """
        for limit in self._limits:
            bucket = limit.requests
            if bucket is not None and "*" in limit.quota.models:
                spent = bucket.full_at - now
                if spent + spent < bucket.room:
                    return None
                level = bucket.level(now)
                return (
                    int(bucket.burst),
                    ceil(bucket.burst / bucket.rate),
                    max(0, int(level + 1e-6)),
                    ceil((bucket.burst - level) / bucket.rate),
                )
        return None

    def _too_fast(self, limit: Limit, size: int, now: float) -> QuotaExceeded:
        requests, received = limit.requests, limit.bytes
        if requests is not None and (wait := requests.wait(1, now)):
            rate = f"{requests.rate:g} requests per second with bursts of {requests.burst:g}"
        else:
            assert received is not None
            rate, wait = f"{received.rate:g} bytes per second", received.wait(size, now)
        return QuotaExceeded(
            f"{self.whose} may send {rate}{_of_models(limit)}; try again in {wait:.2g} s", wait
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
