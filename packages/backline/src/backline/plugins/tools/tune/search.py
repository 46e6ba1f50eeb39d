"""Searches for the best settings: measures a few, predicts the others, and lets the most promising compete.

The competition is successive halving: all candidates are measured briefly, the better ones among them are
measured for longer, and so on. This module does not depend on a server. It calls a Measure, which is a
function that measures settings at a given concurrency.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TypeAlias

from backline.plugins.tools.tune.load_predictor import BatchTimes, LoadPredictor, levels_of
from backline.plugins.tools.tune.settings import Tunable, TunedSettings, space, without
from backline_client.values.errors import BacklineError

#: The concurrencies that are tried.
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
#: For each round, the seconds for which candidates are measured, and the maximum number of candidates.
ROUNDS = ((0.1, 16), (0.25, 6))
#: The duration, in seconds, of a measurement that is used only for predictions.
PROBE_SECONDS = 0.08
#: Candidates whose prediction is worse than this share of the best prediction are not measured.
_PROMISING = 0.6
#: The number of finalists that are compared with the current settings, how many times each is measured, and
#: the duration of each measurement in seconds.
_RIVALS = 3
_TURNS = 2
_TURN_SECONDS = 0.5
#: The duration, in seconds, of a measurement that shows the effect of a single change.
SHARE_SECONDS = 0.3
#: Differences in score (see Goal.score) below this share are treated as noise.
_NOISE = 0.02
#: The maximum duration, in seconds, of a run on the event loop. It is short, because all other requests wait
#: for such a run.
LONGEST_INLINE = 0.002
#: A runtime option other than the default is considered faster only if it saves at least this share of the
#: run time.
_NOTICEABLE = 0.03


@dataclass(frozen=True, slots=True)
class LoadMeasurement:
    """The result of one measurement. Latencies are in seconds, and throughput in requests per second.

    `runs` contains the mean duration of a run, in seconds, by batch size.
    """

    settings: TunedSettings
    concurrency: int
    throughput: float
    mean: float
    p99: float
    errors: int = 0
    runs: Mapping[int, float] = field(default_factory=dict)


#: A function that measures settings at a concurrency, for a number of seconds. Raises BacklineError if the
#: model cannot be loaded with the settings.
Measure: TypeAlias = Callable[[TunedSettings, int, float], Awaitable[LoadMeasurement]]


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal of a search: maximum throughput. If `p99` is given, the 99th percentile of latency, in
    seconds, must not exceed this limit.
    """

    p99: float | None = None

    def score(self, throughput: float, p99: float, errors: int = 0) -> float:
        """Returns a score. Higher scores are better. Results above the limit, or with errors, get negative
        scores.
        """
        if errors:
            return -1e9
        if self.p99 is not None and p99 > self.p99:
            return -p99 / self.p99
        return throughput

    def of(self, measured: LoadMeasurement) -> float:
        return self.score(measured.throughput, measured.p99, measured.errors)


@dataclass(frozen=True, slots=True)
class Share:
    """The effect of changing one setting. `without` is the throughput without this change, divided by the
    throughput of the best settings.
    """

    name: str
    before: object
    after: object
    without: float


@dataclass(slots=True)
class Outcome:
    """The result of a search.

    `candidates` is the number of combinations of settings that were considered. `measured` contains all
    measurements, in the order in which they were made.
    """

    base: LoadMeasurement
    best: LoadMeasurement
    candidates: int
    measured: list[LoadMeasurement]
    seconds: float
    failed: dict[TunedSettings, str] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)


class Search:
    """One search for the best settings of a model."""

    def __init__(
        self,
        tunable: Tunable,
        cores: int,
        goal: Goal,
        measure: Measure,
        *,
        pace: float = 1.0,
        progress: Callable[[str, float], None] = lambda what, share: None,
    ) -> None:
        """Creates a search. `pace` multiplies the duration of every measurement. `progress` is called with a
        text and the fraction of the search that is done.
        """
        self._tunable = tunable
        self._cores = cores
        self._goal = goal
        self._measure = measure
        self._pace = pace
        self._progress = progress
        self._measured: list[LoadMeasurement] = []
        self._failed: dict[TunedSettings, str] = {}

    async def run(self) -> Outcome:
        """Runs the search. Raises BacklineError if the model does not run with the server's own settings."""
        began = perf_counter()
        base = await self._best_level_of_base()
        model = await self._probe(base)
        candidates = space(self._tunable, self._cores)
        ranked = self._ranked(candidates, model)
        finalists = await self._compete(ranked)
        base, best = await self._decide(base, finalists)
        best = await self._choose_buckets(best)
        simplest, shares = await self._simplify(best, base)
        if simplest.settings != best.settings:
            # The two were measured at different times, and the machine may have been slower at one of them.
            base, best = await self._decide(base, [simplest, best])
        changed = {name for name, _, _ in best.settings.changes(base.settings)}
        shares = [share for share in shares if share.name in changed]
        return Outcome(
            base, best, len(candidates), self._measured, perf_counter() - began, self._failed, shares
        )

    async def _try(self, settings: TunedSettings, level: int, seconds: float) -> LoadMeasurement | None:
        """Measures settings. Returns None if the model does not run with these settings."""
        try:
            measured = await self._measure(settings, level, seconds * self._pace)
        except BacklineError as error:
            self._failed[settings] = error.message
            return None
        self._measured.append(measured)
        return measured

    async def _best_level_of_base(self) -> LoadMeasurement:
        base = self._tunable.base
        self._progress("measuring the current settings", 0.0)
        found = []
        for level in levels_of(base, LEVELS)[-1:] if self._goal.p99 is None else LEVELS:
            measured = await self._measure(base, level, PROBE_SECONDS * self._pace)
            self._measured.append(measured)
            found.append(measured)
            if self._goal.p99 is not None and measured.p99 > 2 * self._goal.p99:
                break
        return max(found, key=self._goal.of)

    async def _probe(self, base: LoadMeasurement) -> LoadPredictor:
        """Measures run times with some batch sizes and all numbers of threads, and the effect of other
        options. Returns a predictor based on these measurements.
        """
        tunable = self._tunable
        largest = min(tunable.largest_batch or 1, 64)
        lane = "thread" if tunable.base.lane == "inline" else tunable.base.lane
        plain = replace(
            tunable.base,
            lane=lane,
            instances=tunable.base.instances if tunable.placed else 1,
            batch=largest if tunable.largest_batch else 0,
            delay_us=0,
        )
        threads = sorted({one.threads for one in space(tunable, self._cores)})
        times: dict[int, BatchTimes] = {}
        mean_to_p99, alone, together = [1.2], 0.0001, 0.00002
        for index, count in enumerate(threads):
            self._progress(f"measuring run times with {count} threads", 0.05 + 0.1 * index / len(threads))
            runs: dict[int, float] = {}
            for level in sorted({1, max(largest // 8, 1), largest + 1}):
                measured = await self._try(replace(plain, threads=count), level, PROBE_SECONDS)
                if measured is None or not measured.throughput:
                    continue
                runs.update(measured.runs)
                mean_to_p99.append(measured.p99 / measured.mean)
                batch = min(level, largest)
                run = min(measured.runs.items(), key=lambda one: abs(one[0] - batch), default=(1, 0.0))
                spent = min(max(1 / measured.throughput - run[1] / run[0], 0.000005), 0.001)
                if level == 1:
                    alone = spent
                else:
                    together = spent
            if runs:
                times[count] = BatchTimes.of(runs)
        if not times:
            times[1] = BatchTimes(((1, base.mean),))
        factors = await self._factors(plain, largest)
        tail = sorted(mean_to_p99)[len(mean_to_p99) // 2]
        return LoadPredictor(self._cores, times, factors, alone, min(alone, together), max(tail, 1.0))

    async def _factors(self, plain: TunedSettings, largest: int) -> dict[tuple[str, bool], float]:
        """Returns the factor by which each of the runtime's other options, changed alone, lengthens a run."""
        factors = {("all", True): 1.0}
        others = {
            (one.optimization, one.arena)
            for one in space(self._tunable, self._cores)
            if (one.optimization == "all") != one.arena
        } - {("all", True)}
        if not others:
            return factors
        self._progress("measuring the options of the runtime", 0.2)
        level = largest + 1
        usual = await self._try(replace(plain, optimization="all", arena=True), level, PROBE_SECONDS)
        for option in sorted({("extended", True), ("all", False)} & {*others, *self._options()}):
            other = replace(plain, optimization=option[0], arena=option[1])
            measured = await self._try(other, level, PROBE_SECONDS)
            if measured is None or usual is None or not measured.throughput:
                factors[option] = 10.0
                continue
            factor = usual.throughput / measured.throughput
            # An option that is not noticeably faster counts as noticeably slower, so that the default is
            # preferred.
            factors[option] = factor if factor < 1 - _NOTICEABLE else max(factor, 1.0 + _NOTICEABLE)
        return factors

    def _options(self) -> set[tuple[str, bool]]:
        return {(one.optimization, one.arena) for one in space(self._tunable, self._cores)}

    def _ranked(
        self, candidates: Sequence[TunedSettings], model: LoadPredictor
    ) -> list[tuple[TunedSettings, int]]:
        """Returns the promising candidates, best first, each with the concurrency for its measurement."""
        predicted: list[tuple[float, TunedSettings, int]] = []
        for settings in candidates:
            best: tuple[float, int] | None = None
            if settings.lane == "inline" and model.run_seconds(settings, settings.batch) > LONGEST_INLINE:
                continue
            useful = levels_of(settings, LEVELS)
            # Without a limit on latency, only the highest level counts: throughput grows with the requests in
            # flight.
            for level in useful if self._goal.p99 is not None else useful[-1:]:
                expected = model.predict(settings, level)
                score = self._goal.score(expected.throughput, expected.p99)
                if best is None or score > best[0]:
                    best = score, level
            if best is not None:
                predicted.append((best[0], settings, best[1]))
        predicted.sort(key=lambda one: one[0], reverse=True)
        top = predicted[0][0]
        kept = [one for one in predicted if one[0] >= (top * _PROMISING if top > 0 else top / _PROMISING)]
        return [(settings, level) for _, settings, level in _diverse(kept, ROUNDS[0][1])]

    async def _compete(self, ranked: Sequence[tuple[TunedSettings, int]]) -> list[LoadMeasurement]:
        """Runs the rounds of successive halving. Returns the measurements of the last round, best first."""
        field = list(ranked)
        scored: list[LoadMeasurement] = []
        total = sum(min(most, len(ranked)) * seconds for seconds, most in ROUNDS)
        done = 0.0
        for seconds, most in ROUNDS:
            scored = []
            for settings, level in field[:most]:
                self._progress(f"measuring {settings}", 0.25 + 0.55 * done / total)
                measured = await self._try(settings, level, seconds)
                done += seconds
                if measured is not None:
                    scored.append(measured)
            scored.sort(key=self._goal.of, reverse=True)
            field = [(one.settings, self._next_level(one)) for one in scored]
        return scored

    def _next_level(self, measured: LoadMeasurement) -> int:
        """Returns the concurrency for the next round. If the goal limits the latency, this is a concurrency
        at which the latency should be just below the limit; otherwise it stays the same.
        """
        limit = self._goal.p99
        if limit is None or not measured.p99:
            return measured.concurrency
        wanted = measured.concurrency * limit / measured.p99
        fitting = [level for level in LEVELS if level <= max(wanted * 0.95, 1)]
        most = levels_of(measured.settings, LEVELS)[-1]
        return min(fitting[-1] if fitting else LEVELS[0], most)

    async def _decide(
        self, base: LoadMeasurement, finalists: Sequence[LoadMeasurement]
    ) -> tuple[LoadMeasurement, LoadMeasurement]:
        """Measures the current settings and the best finalists in turn. Returns the measurements of the
        current settings and of the winner.

        The current settings win unless another combination is noticeably better.
        """
        rivals = [base, *(one for one in finalists if one.settings != base.settings)][: 1 + _RIVALS]
        results: list[list[LoadMeasurement]] = [[] for _ in rivals]
        for turn in range(_TURNS):
            self._progress("comparing with the current settings", 0.8 + 0.1 * turn / _TURNS)
            for rival, result in zip(rivals, results, strict=True):
                measured = await self._try(rival.settings, rival.concurrency, _TURN_SECONDS)
                if measured is not None:
                    result.append(measured)
        now, *others = [
            _mean(result) if result else rival for rival, result in zip(rivals, results, strict=True)
        ]
        best = max(others, key=self._goal.of, default=now)
        return now, best if self._is_better(best, now) else now

    def _is_better(self, one: LoadMeasurement, other: LoadMeasurement) -> bool:
        """Returns whether `one` is better than `other` by more than the noise of measurements. Scores may be
        negative.
        """
        score = self._goal.of(other)
        return self._goal.of(one) > score + _NOISE * abs(score)

    async def _choose_buckets(self, best: LoadMeasurement) -> LoadMeasurement:
        """Returns the measurement of the best settings with the best padding buckets. All choices of buckets
        are measured, because their effect is not predicted.
        """
        for buckets in self._tunable.buckets:
            self._progress("measuring padding buckets", 0.9)
            other = replace(best.settings, buckets=buckets)
            measured = await self._try(other, best.concurrency, _TURN_SECONDS)
            if measured is not None and self._is_better(measured, best):
                best = measured
        return best

    async def _simplify(
        self, best: LoadMeasurement, base: LoadMeasurement
    ) -> tuple[LoadMeasurement, list[Share]]:
        """Reverts each change that has no benefit, and measures the benefit of the other changes.

        For each change, the settings with and without it are measured one right after the other, because the
        speed of the machine may vary over time.
        """
        changes = best.settings.changes(base.settings)
        shares = []
        for index, (name, before, after) in enumerate(changes):
            self._progress(f"measuring the effect of {name}", 0.9 + 0.1 * index / len(changes))
            undone = without(best.settings, base.settings, name)
            if undone.lane == "inline" and (undone.instances, undone.threads) != (1, 1):
                continue
            with_it = await self._try(best.settings, best.concurrency, SHARE_SECONDS)
            without_it = await self._try(undone, best.concurrency, SHARE_SECONDS)
            if with_it is None or without_it is None:
                continue
            shares.append(Share(name, before, after, without_it.throughput / with_it.throughput))
            if self._goal.of(without_it) >= self._goal.of(with_it) > 0 and undone != base.settings:
                best = without_it
        return best, shares


def _mean(results: Sequence[LoadMeasurement]) -> LoadMeasurement:
    """Returns the mean of several measurements of the same settings at the same concurrency."""
    count = len(results)
    return replace(
        results[0],
        throughput=sum(one.throughput for one in results) / count,
        mean=sum(one.mean for one in results) / count,
        p99=sum(one.p99 for one in results) / count,
        errors=sum(one.errors for one in results),
    )


def _diverse(
    ranked: Sequence[tuple[float, TunedSettings, int]], most: int
) -> list[tuple[float, TunedSettings, int]]:
    """Returns the first `most` settings after reordering them: two of each kind, then the next two of each
    kind, and so on.

    Settings are of the same kind if they have the same lane, instances and threads, and either all or none
    have a delay. Predictions are more reliable within a kind than between kinds, because it is hard to
    predict how full batches will be.
    """
    rounds: dict[tuple[str, int, int, bool], int] = {}
    keyed = []
    for position, one in enumerate(ranked):
        kind = one[1].lane, one[1].instances, one[1].threads, one[1].delay_us > 0
        turn = rounds[kind] = rounds.get(kind, -1) + 1
        keyed.append((turn // 2, position, one))
    return [one for _, _, one in sorted(keyed, key=lambda item: item[:2])][:most]


def pareto(measured: Sequence[LoadMeasurement]) -> list[LoadMeasurement]:
    """Returns the measurements without errors that no other measurement beats in both throughput and 99th
    percentile of latency.

    The measurement with the highest throughput comes first.
    """
    front: list[LoadMeasurement] = []
    for one in sorted(measured, key=lambda each: (-each.throughput, each.p99)):
        if not one.errors and (not front or one.p99 < front[-1].p99):
            front.append(one)
    return front


async def exhaustive(
    tunable: Tunable, cores: int, goal: Goal, measure: Measure, *, levels: Sequence[int], seconds: float
) -> list[LoadMeasurement]:
    """Measures every combination at every useful concurrency. Returns all measurements, best first."""
    found = []
    for settings in space(tunable, cores):
        for level in levels_of(settings, levels):
            try:
                found.append(await measure(settings, level, seconds))
            except BacklineError:
                break
    return sorted(found, key=goal.of, reverse=True)
