"""Decides from a stream of observations whether a new version breaks a guard, such as "errors<1%, p99<1.3x".

The tests are always valid: they may be looked at after every observation, and still the probability that a
version that keeps to the guard is ever rejected is at most ALPHA. Each bets on its hypothesis being false; if
the hypothesis is true, the wealth is a supermartingale, which ever reaches 1 / alpha with a probability of at
most alpha (Ville's inequality). The bets on a mean are those of Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting" (JRSS B, 2024), as a mixture over fixed bets. A guard needs no number of
observations in advance (Johari, Koomen, Pekelis and Walsh, "Peeking at A/B tests", KDD 2017).
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections import deque
from math import exp, log
from typing import Final

from msgspec import Struct

from backline_client.values.errors import InvalidArgument

#: The maximum probability that a version that keeps to all of a guard's clauses is ever rejected.
ALPHA: Final = 0.01
#: The bets, as shares of the largest possible one.
_BETS: Final = tuple(0.95 * 2.0**-exponent for exponent in range(14))
#: How many latencies of the base must be known before latencies are compared, and how many are kept.
_FEWEST: Final = 20
_WINDOW: Final = 1000
#: How many requests that show a violation are named.
_MOST_SHOWN: Final = 8
_CLAUSE = re.compile(r"(errors|distance|memory|p[1-9][0-9]?)<([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(%|x?)").fullmatch
_FORMS = "errors<1%, distance<0.02, p99<1.3x and memory<1.5x"


class Clause(Struct, frozen=True):
    """A clause of a guard: what must be below `bound`, which is a factor for memory and for latencies, for
    which `quantile` is not 0.
    """

    text: str
    metric: str
    bound: float
    quantile: float = 0.0


def parse_guard(text: str) -> list[Clause]:
    """Reads a guard: clauses separated by commas. Raises InvalidArgument, naming the clause that is wrong."""
    clauses = [_parse(part.replace(" ", "")) for part in text.split(",") if part.strip()]
    metrics = [clause.metric for clause in clauses]
    if not clauses or len(set(metrics)) != len(metrics):
        raise InvalidArgument(f"a guard has at least one clause, and one for each of its metrics: {_FORMS}")
    return clauses


def _parse(text: str) -> Clause:
    found = _CLAUSE(text)
    if found is None:
        raise InvalidArgument(f"'{text[:64]}' is not a clause of a guard; expected clauses such as {_FORMS}")
    metric, bound = found[1], float(found[2]) / (100 if found[3] == "%" else 1)
    if metric in ("errors", "distance"):
        if found[3] == "x" or not 1e-6 <= bound < 1:
            raise InvalidArgument(f"'{text}': expected a share from 0.000001 to 1, such as {metric}<1%")
        return Clause(text, metric, bound)
    if found[3] != "x" or not 1 <= bound <= 1000:
        raise InvalidArgument(f"'{text}': expected a factor from 1x to 1000x, such as {metric}<1.3x")
    return Clause(text, metric, bound, 0.0 if metric == "memory" else int(metric[1:]) / 100)


class MeanTest:
    """Bets that the mean of numbers from 0 to 1 is above `bound`. The numbers may depend on earlier ones; the
    hypothesis is that the mean of each, given those before it, is at most `bound`.
    """

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._bets = [share / bound for share in _BETS]
        self._logs = [0.0] * len(_BETS)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.count += 1
        self.total += value
        gain = value - self._bound
        self._logs = [sum_ + log(1 + bet * gain) for sum_, bet in zip(self._logs, self._bets, strict=True)]

    @property
    def log_wealth(self) -> float:
        """The logarithm of the mean wealth of all bets."""
        highest = max(self._logs)
        return highest + log(sum(exp(one - highest) for one in self._logs) / len(self._logs))


class LatencyTest:
    """Bets that a new version exceeds latencies more often than the base does, slowed down by `factor`. The
    latency that counts is the given `quantile` of the base's so far, times `factor`.

    Of each pair of latencies in which only one exceeds it, that is the new version's in at most half of the
    cases, if the hypothesis is true (McNemar's test, as a sequential test).
    """

    def __init__(self, factor: float, quantile: float) -> None:
        self._factor = factor
        self._quantile = quantile
        self._test = MeanTest(0.5)
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        self.exceeded = 0
        self.count = 0

    def observe(self, base: float, new: float) -> bool:
        """Observes a pair of latencies in seconds. Returns whether the new version's exceeds the limit."""
        exceeds = False
        self.count += 1
        if len(self._sorted) >= _FEWEST:
            limit = self._sorted[min(int(self._quantile * len(self._sorted)), len(self._sorted) - 1)]
            exceeds = new > self._factor * limit
            self.exceeded += exceeds
            if exceeds != (base > limit):
                self._test.observe(float(exceeds))
        insort(self._sorted, base)
        self._order.append(base)
        if len(self._order) > _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]
        return exceeds

    @property
    def log_wealth(self) -> float:
        return self._test.log_wealth


class Violation(Struct, frozen=True):
    """A clause that the new version has broken, why, and the ids of requests that show it."""

    clause: str
    reason: str
    requests: list[str]


class Guard:
    """Tests all clauses of a guard."""

    def __init__(self, clauses: list[Clause]) -> None:
        self._limit = log(len(clauses) / ALPHA)  # each clause gets an equal part of ALPHA
        self._clauses = {clause.metric: clause for clause in clauses}
        self._means = {
            metric: MeanTest(clause.bound)
            for metric, clause in self._clauses.items()
            if metric in ("errors", "distance")
        }
        self._latencies = {
            metric: LatencyTest(clause.bound, clause.quantile)
            for metric, clause in self._clauses.items()
            if clause.quantile
        }
        self._shown: dict[str, deque[str]] = {metric: deque(maxlen=_MOST_SHOWN) for metric in self._clauses}
        self._first_memory = 0
        self.violation: Violation | None = None

    @property
    def evidence(self) -> dict[str, float]:
        """The evidence against each clause that is tested: 0 for none, 1 if the clause is broken."""
        tests: dict[str, MeanTest | LatencyTest] = {**self._means, **self._latencies}
        return {
            self._clauses[metric].text: min(1.0, max(0.0, test.log_wealth / self._limit))
            for metric, test in tests.items()
        }

    def error(self, failed: bool, id: str, what: str = "") -> None:
        """Observes whether a request failed in the new version, and with which error (`what`)."""
        test = self._means.get("errors")
        if test is not None:
            test.observe(float(failed))
            if failed:
                self._shown["errors"].append(id)
            if test.log_wealth >= self._limit:
                last = f"; the last: {what}" if what else ""
                self._break("errors", f"{test.total:.0f} of {test.count} requests failed{last}")

    def distance(self, distance: float, id: str) -> None:
        """Observes the distance of the new version's outputs from the base's."""
        test = self._means.get("distance")
        if test is not None:
            test.observe(min(distance, 1.0))
            if distance > self._clauses["distance"].bound:
                self._shown["distance"].append(id)
            if test.log_wealth >= self._limit:
                mean = test.total / test.count
                self._break("distance", f"the mean distance of {test.count} responses is {mean:.3g}")

    def latency(self, base: float, new: float, id: str) -> None:
        """Observes a latency of the base and one of the new version, in seconds."""
        for metric, test in self._latencies.items():
            if test.observe(base, new):
                self._shown[metric].append(id)
            if test.log_wealth >= self._limit:
                clause = self._clauses[metric]
                self._break(
                    metric,
                    f"{test.exceeded} of {test.count} requests took more than {clause.bound:g} times the"
                    f" {metric} of the base",
                )

    def memory(self, resident: int) -> None:
        """Observes the resident memory of the new version's largest process, in bytes. The first is the
        base.
        """
        clause = self._clauses.get("memory")
        if clause is None or not resident:
            return
        self._first_memory = self._first_memory or resident
        if resident > clause.bound * self._first_memory:
            grown = f"from {self._first_memory >> 20} to {resident >> 20} MiB"
            self._break("memory", f"the memory of a worker process has grown {grown}")

    def _break(self, metric: str, reason: str) -> None:
        if self.violation is None:
            shown = [id for id in self._shown[metric] if id]
            self.violation = Violation(self._clauses[metric].text, reason, shown)
