"""Decides which target a request goes to: a pure function of the request's values and of a random number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from hashlib import blake2b
from itertools import accumulate
from math import log

from msgspec import Struct

from backline.plugins.traffic.route import Route, Source, parse_source, values_of
from backline_client.values.memo import Memo

#: The maximum number of sticky keys whose targets are cached. Clients choose the keys.
_MAX_REMEMBERED = 16_384
_MASK = 2**64 - 1

#: Returns the value of a source in a request; None if the request has none.
Read = Callable[[Source], "str | None"]


class _Rule(Struct, frozen=True):
    conditions: tuple[tuple[Source, frozenset[str]], ...]
    target: str


class Policy:
    """Chooses a target of a route. Makes no use of a clock, and knows no models."""

    def __init__(self, route: Route) -> None:
        self._rules = [
            _Rule(
                tuple((parse_source(one), frozenset(values_of(given))) for one, given in rule.when.items()),
                rule.to,
            )
            for rule in route.rules
        ]
        self.sticky = parse_source(route.sticky) if route.sticky else None
        #: Whether a decision depends only on the random number.
        self.plain = not self._rules and self.sticky is None
        self._targets, self._bounds = _cumulative(route.targets)
        self._total = self._bounds[-1]
        self._weights = {target: weight for target, weight in route.targets.items() if weight > 0}
        self._salts = {target: _digest(target) for target in self._weights}
        self._known: Memo[str, str] = Memo(_MAX_REMEMBERED)

    def choose(self, read: Read, point: float) -> str:
        """Returns a target. `point` is a random number from 0 (included) to 1 (excluded)."""
        ruled = self.by_rule(read)
        return self.without_rules(read, point) if ruled is None else ruled

    def without_rules(self, read: Read, point: float) -> str:
        """Returns the target of a request to which no rule applies; see `choose`."""
        if self.sticky is not None:
            key = read(self.sticky)
            if key is not None:
                return self.by_key(key)
        return self.by_weight(point)

    def by_rule(self, read: Read) -> str | None:
        """Returns the target of the first rule that applies; None if none does."""
        for rule in self._rules:
            for source, values in rule.conditions:
                if read(source) not in values:
                    break
            else:
                return rule.target
        return None

    def by_weight(self, point: float) -> str:
        """Returns the target at `point`, a random number from 0 (included) to 1 (excluded)."""
        return self._targets[bisect_right(self._bounds, point * self._total, 0, len(self._targets) - 1)]

    def in_share(self, read: Read, share: float, point: float) -> bool:
        """Returns whether a request is in a share (from 0 to 1) of the requests or, if the route is sticky,
        of the keys. A key that is in a share is in all larger ones.
        """
        key = None if self.sticky is None else read(self.sticky)
        if key is not None:
            point = (_mixed(_digest(key)) >> 12) / 2**52
        return point < share

    def by_key(self, key: str) -> str:
        """Returns the target of all requests with this key. When weights change, only as many keys move as
        the change requires.

        This is weighted rendezvous hashing: each target gets -weight / log(hash(key, target)) and the largest
        wins (Schindelhauer and Schomaker, Weighted Distributed Hash Tables, SPAA 2005).
        """
        known = self._known.get(key)
        if known is not None:
            return known
        hashed = _digest(key)
        scores = {
            target: -weight / log(((_mixed(hashed ^ self._salts[target]) >> 12) + 0.5) / 2**52)
            for target, weight in self._weights.items()
        }
        return self._known.keep(key, max(scores, key=lambda target: scores[target]))


def _cumulative(weights: Mapping[str, float]) -> tuple[list[str], list[float]]:
    targets = [target for target, weight in weights.items() if weight > 0]
    return targets, list(accumulate(weights[target] for target in targets))


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _mixed(number: int) -> int:
    """The finaliser of SplitMix64, which makes each bit of the result depend on each bit of `number`."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
