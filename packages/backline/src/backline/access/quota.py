"""Limits how much an identity may use: requests per second, bytes per second, and requests in flight.

This module reads no clock: callers pass the current time, in seconds of time.monotonic().
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import ceil, inf

from msgspec import Struct

from backline.engine.ticket import InFlight, Listener, Ticket
from backline_client.values.errors import BacklineError, QuotaExceeded
from backline_client.values.memo import Memo
from backline_client.values.messages import InferResponse
from backline_client.values.names import LONGEST_NAME

#: The allowed rounding error, in seconds and as a share of a burst, because times are sums of floats.
_ROUNDING = 1e-9
#: Seconds after which to retry if too many requests are in flight. The server cannot know when one of these
#: requests will end.
_IN_FLIGHT_RETRY = 0.1
#: The share of the tokens of one second (or of the burst, if it has fewer tokens) that a limit takes from its
#: bucket in advance, so that most requests need not look at the bucket. Tokens taken in advance do not
#: expire, so a large quota may be exceeded by this share.
_IN_ADVANCE = 0.001
#: The maximum number of models whose limits a meter remembers; clients choose the names.
_MAX_REMEMBERED = 1024


class Quota(Struct, frozen=True):
    """A set of limits on requests to models that match one of the patterns `models`. A limit of None means no
    limit.

    After a pause, a `burst` of requests may arrive at once; if `burst` is None, as many as are allowed in one
    second. Bytes are those of request bodies and messages.
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

    __slots__ = ("burst", "full_at", "portion", "rate", "room", "slack", "token")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        #: When the bucket will be full if nothing more is taken. This is the only state, as in the generic
        #: cell rate algorithm (ITU-T I.371). Taking tokens moves it into the future.
        self.full_at = now
        self._set(rate, burst)

    def _set(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        #: `token` and `room` are the seconds in which one token and the whole burst refill. `room` includes
        #: `slack`, the allowance for rounding errors.
        self.token = 1 / rate
        self.slack = _ROUNDING * (1 + burst / rate)
        self.room = burst / rate + self.slack
        #: The number of tokens that are taken in advance; 0 if the rate or the burst is small.
        self.portion = int(_IN_ADVANCE * min(rate, burst))

    def level(self, now: float) -> float:
        """Returns the number of tokens; negative if more than a full bucket was taken."""
        return self.burst - max(0.0, self.full_at - now) * self.rate

    def wait(self, amount: float, now: float) -> float:
        """Returns the seconds until `amount` may be taken; 0 if `amount` may be taken now."""
        lacking = self.full_at - now + min(amount, self.burst) * self.token - self.room
        return lacking + self.slack if lacking > 0 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes an amount for which `wait` has returned 0."""
        self.full_at = max(self.full_at, now) + amount * self.token

    def take_in_advance(self, now: float) -> int:
        """Takes `portion` tokens in advance. Returns their number, or 0 if the bucket has fewer tokens."""
        if not self.portion or self.wait(self.portion, now):
            return 0
        self.take(self.portion, now)
        return self.portion

    def give_back(self, amount: float) -> None:
        """Puts back tokens that were taken. If the bucket has filled up since then, these tokens are lost."""
        self.full_at -= amount * self.token

    def change(self, rate: float, burst: float, now: float) -> None:
        """Switches to another rate and burst. Tokens already taken still count."""
        taken = self.burst - self.level(now)
        self._set(rate, burst)
        self.full_at = now + taken * self.token


class Limit(InFlight):
    """A quota, and how much of it has been used."""

    __slots__ = ("bytes", "most", "paid", "paid_bytes", "quota", "requests")

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
        #: The numbers of requests and of bytes that may pass before the buckets must be checked again;
        #: infinite if there is no bucket.
        self.paid = inf if self.requests is None else 0
        self.paid_bytes = inf if self.bytes is None else 0

    def take_in_advance(self, now: float) -> None:
        """Takes tokens in advance from each bucket that has enough."""
        if self.requests is not None:
            self.paid = self.requests.take_in_advance(now)
        if self.bytes is not None:
            self.paid_bytes = self.bytes.take_in_advance(now)

    def give_back(self) -> None:
        """Puts back the tokens that were taken in advance and not used."""
        if self.requests is not None:
            self.requests.give_back(self.paid)
            self.paid = 0
        if self.bytes is not None:
            self.bytes.give_back(self.paid_bytes)
            self.paid_bytes = 0


class Further(Listener):
    """A listener that counts a ticket against further limits, because `Ticket.counted` can name only one
    limit.
    """

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
    """Measures what one identity uses, and refuses requests that exceed a quota. Error texts begin with
    `whose`, which names the identity.
    """

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
        #: Whether `standing` may return a value. If `only` is not None, `charge` updates this flag; otherwise
        #: the flag says whether any quota limits the rate of requests.
        self.low = any(quota.requests_per_second is not None for quota in quotas)
        #: The only limit, if there is just one and it applies to every model; otherwise None.
        self.only = self._limits[0] if len(self._limits) == 1 and not self.by_model else None

    def rests(self, now: float) -> bool:
        """Returns whether nothing counts against the quotas, so that a new meter would behave the same."""
        return all(
            limit.in_flight == 0
            and all(bucket is None or bucket.full_at <= now for bucket in (limit.requests, limit.bytes))
            for limit in self._limits
        )

    def try_fast(self, size: int) -> bool:
        """Counts a request with a body of `size` bytes if the tokens taken in advance suffice. Otherwise
        counts nothing and returns False; then `charge` decides.
        """
        only = self.only
        if only is None or only.paid < 1 or only.paid_bytes < size or only.in_flight >= only.most:
            return False
        only.paid -= 1
        only.paid_bytes -= size
        return True

    def charge(self, model: str | None, size: int, now: float) -> None:
        """Counts a request with a body of `size` bytes.

        Raises QuotaExceeded, and counts nothing, if the request exceeds a quota.
        """
        if self.try_fast(size):
            return
        only = self.only
        if only is not None:  # avoids calls, which would take a notable share of a small request's time
            if only.in_flight >= only.most:
                raise self._too_many(only)
            only.give_back()
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
            only.take_in_advance(now)
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
        """Counts a ticket as in flight until it ends. Raises QuotaExceeded if the limit has been reached."""
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
        found = [limit for limit in self._limits if limit.quota.covers(model)]
        if model is None or len(model) <= LONGEST_NAME:  # see Identity.may
            self._of.keep(model, found)
        return found

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
        wait = 0.0 if requests is None else requests.wait(1, now)
        # `wait` may round differently than the caller did, so 0 does not mean that this bucket has a token.
        if requests is not None and (wait or received is None):
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
