"""Times a model by batch size, and chooses its lane, batch limit and number of instances from the times."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from time import perf_counter

import numpy as np
from msgspec import Struct

from backline.engine.config.model_config import Lane
from backline.lifecycle.loading.batch_probe import equal_rows
from backline.lifecycle.loading.trial_inputs import MAX_TRIAL_ELEMENTS, Arrays, Sizes, make_inputs
from backline.lifecycle.loading.trial_runs import RunTime, Trial, TrialRuns, Tried, find_trial, time_run
from backline.system.cores import seconds_of_threads_without_core
from backline_client.values.errors import BacklineError

#: The maximum batch size that is measured. A larger batch size is never chosen automatically.
LARGEST_BATCH = 64
#: A model may run on the event loop if one item takes at most this many seconds.
INLINE_RUN = 0.0003
#: The maximum time that a batch may take on the event loop, in seconds.
INLINE_BATCH = 0.0005
#: The maximum time that one item with enlarged variable dimensions may take on the event loop, in seconds.
INLINE_GROWN = 0.002
#: The overhead of a run on a thread in seconds, whatever its batch size.
_THREAD_HOP = 0.00004
#: The overhead of a run on the event loop in seconds, whatever its batch size.
_INLINE_DISPATCH = 0.000004
#: The share of the time per item that a larger batch must save to be chosen.
_GAIN = 0.05
#: The share of the time per item that a larger batch must save to be chosen if runs of one item take more
#: than _SLOW_RUN seconds. It is above _GAIN because few slow runs are timed, and because a slow batch delays
#: its first items longer.
_SLOW_GAIN = 0.15
_SLOW_RUN = 0.005
#: No larger batch size is measured after this many seconds or, as long as larger batches save time, after
#: three times as many. While each doubling saves a quarter of the time per item, twenty times as many are
#: allowed: on a busy machine, a limit at which measuring merely ended would cost most of the throughput.
_BUDGET = 0.05
_LARGE_GAIN = 0.25
#: A model whose runs take longer than this, in seconds, is run as few times as possible; see `measure`.
LONG_RUN = 0.1
#: The maximum number of timed runs at each batch size in a pass, not counting the first run.
_RUNS = 3
#: The batch sizes are timed in at most this many passes. After the second, measuring ends as soon as the two
#: fastest passes agree.
_PASSES = 5
#: Runs shorter than this, in seconds, are rarely interrupted, so the fastest of a few is undisturbed.
_SHORT = 0.001
#: No further run is timed at a batch size once the runs at this size have taken this many seconds.
_SECONDS_PER_SIZE = 0.005
#: A first run slower than this, in seconds, counts as a measurement; a faster one is only a warm-up.
_NO_WARM_UP = 0.01
#: If the first run of a model in the inline lane takes this many seconds longer than a later run, the model
#: is run at each load, so that the slow run does not block the event loop.
SLOW_FIRST_RUN = 0.005
#: A lone run is spread over several cores only if it takes at least this many seconds on one core. Shorter
#: runs gain less, and there may be thousands of models with shorter runs.
SPREAD_RUN = 0.003
#: A lone run is spread only if this makes it faster by at least this factor, because a spread run uses more
#: CPU time.
SPREAD_GAIN = 1.3
#: The maximum number of cores for a spread run, unless `lone_run_threads` is configured. Few models gain from
#: more cores.
MOST_SPREAD = 8
#: No further spread run is timed after this many seconds if a run was undisturbed or fast enough.
_SPREAD_BUDGET = 0.3
#: No further spread run is timed after this many seconds in any case.
_PATIENT_SPREAD_BUDGET = 1.0
#: The threads of a spread run may wait for cores for at most this share of the run's duration. If they wait
#: longer, other work uses the cores, and a long duration says nothing about the model.
_DISTURBED = 0.3
#: The factors by which variable dimensions are enlarged.
_GROWTH = (4, 16)
#: A run whose processor time is below this share of its duration is taken to wait most of the time.
_WAITING = 0.1


class RunTimes(Struct, frozen=True):
    """The measured duration of a run, in `seconds` by batch size, including the copy that joins the batch.

    All durations are in seconds. The batch sizes are powers of two. No larger size is timed once larger
    batches save no more time, the maximum batch size is reached, or measuring has taken too long. A slow
    model is timed only with size 1 and at most one other size, without the copy. `seconds` is empty if the
    model accepted no trial input or a run failed. `grown` is the duration of the longest run with enlarged
    variable dimensions, 0 if none was timed. `elements` is the number of input elements of one item. `first`
    is how much longer the first runs of an item take, because the runtime prepares the model in them.
    `spread_threads` is the number of threads with which a run of one item was also timed, 0 if it was not,
    and `spread_seconds` is the duration of that run.
    """

    seconds: dict[int, float]
    grown: float = 0.0
    elements: int = 0
    #: Whether a run mostly waits for something outside this process.
    waits: bool = False
    first: float = 0.0
    spread_threads: int = 0
    spread_seconds: float = 0.0
    #: Whether passes of the measurement disagreed until the end, because the machine was busy.
    undecided: bool = False

    @property
    def lone_threads(self) -> int:
        """The number of threads that a lone run should use."""
        fast = 0.0 < self.spread_seconds * SPREAD_GAIN <= self.seconds.get(1, 0.0)
        return self.spread_threads if fast else 1


class RunPlan(Struct, frozen=True):
    """The lane, maximum batch size and number of instances of a model, and the reason for this choice."""

    lane: Lane
    batch_limit: int
    instances: int
    reason: str


def measure(model: Tried, max_batch: int, trial: Trial | None = None) -> RunTimes:
    """Times a model with batches of up to `max_batch` items (0: the model has no batch dimension).

    `trial` has inputs that the model accepts; if `trial` is None, such inputs are searched for. Measuring
    takes about 50 ms, or longer for a slow model. A model whose runs take more than 100 ms is run at most
    twice more: once because its first run includes work that is only done once, and once with two items, if
    there are batches. Runs that a TrialRuns has already made count as measurements, so that a slow model
    whose batches were proved is not run again.
    """
    runs = model if isinstance(model, TrialRuns) else TrialRuns(model)
    trial = trial or find_trial(runs, batched=max_batch > 0)
    if trial is None:
        return RunTimes({})
    try:
        alone = _time_alone(runs, trial.inputs)
        undecided = False
        if alone.seconds > LONG_RUN:
            seconds = {1: alone.seconds, **_time_long_batch(runs, trial.inputs, max_batch)}
        else:
            seconds, undecided = _time_batches(runs, trial.inputs, max_batch)
        grown = _time_grown(runs.model, trial, batched=max_batch > 0) if seconds[1] <= INLINE_RUN else 0.0
    except BacklineError:
        return RunTimes({})
    elements = sum(array.size for array in trial.inputs.values())
    first = first_run(runs, trial, alone.seconds)
    return RunTimes(seconds, grown, elements, alone.computing < _WAITING, first=first, undecided=undecided)


def first_run(runs: TrialRuns, trial: Trial, alone: float) -> float:
    """Returns by how many seconds the slowest run of an item, usually the first, exceeded `alone`."""
    # Only the time in which the process computed counts, because waiting may be the fault of a busy machine.
    slowest = max(time.seconds * min(1.0, time.computing) for time in runs.times_of(trial.inputs))
    return max(0.0, slowest - alone)


def time_spread(model: Tried, trial: Trial, alone: float) -> float | None:
    """Returns the duration in seconds of a run of one item by a copy of a model whose runs are spread over
    several cores. A run on one core takes `alone` seconds.

    Returns 0 if the copy fails, or if its outputs differ from those of the trial by more than rounding.
    Returns None if no run was fast enough and other work disturbed all of them.
    """
    names = [spec.name for spec in model.signature.outputs]
    started, fastest, undisturbed = perf_counter(), float("inf"), 0
    for number in count(1):
        begin, waited = perf_counter(), seconds_of_threads_without_core()
        try:
            outputs = model.run(trial.inputs, names)
        except BacklineError:
            return 0.0
        took = perf_counter() - begin
        fastest = min(fastest, took)
        undisturbed += seconds_of_threads_without_core() - waited <= _DISTURBED * took
        known = undisturbed > 0 or fastest * SPREAD_GAIN <= alone
        spent = perf_counter() - started
        if (known and (number > _RUNS or spent > _SPREAD_BUDGET)) or spent > _PATIENT_SPREAD_BUDGET:
            break
    if not known:
        return None
    same = all(
        array.shape == expected.shape and equal_rows(spec, expected, array)
        for spec, expected, array in zip(model.signature.outputs, trial.outputs, outputs, strict=True)
    )
    return fastest if same else 0.0


def repeat(runs: TrialRuns, trial: Trial, batch: int) -> None:
    """Runs the item of a trial once more, because TorchScript optimises a model in its second run, and then
    runs a full batch.

    A batch that the model does not accept is not an error.
    """
    names = [spec.name for spec in runs.signature.outputs]
    with suppress(BacklineError):
        runs.run(trial.inputs, names)
        if batch > 1:
            runs.run(_repeated(trial.inputs, batch), names)


def plan(
    times: RunTimes,
    *,
    cores: int,
    threads_per_run: int = 1,
    lane: Lane | None = None,
    instances: int | None = None,
    max_batch: int = LARGEST_BATCH,
) -> RunPlan:
    """Decides how to run a model.

    `lane` and `instances` are None where the configuration leaves the choice. `max_batch` is 0 for a model
    without batches, `threads_per_run` 0 for a run on all cores. Only threads can run several instances.
    """
    spare = spare_instances(cores, threads_per_run)
    if not times.seconds:
        where: Lane = lane or "thread"
        count = 1 if where == "inline" else instances or spare
        limit = max(1, min(max_batch, LARGEST_BATCH))
        return RunPlan(where, limit, count, "no trial input could be run, so the run time is not known")
    single = times.seconds[1]
    quick = single <= INLINE_RUN and times.grown <= INLINE_GROWN
    if lane is None:
        lane = "inline" if quick and (instances or 1) == 1 else "thread"
    longest = INLINE_BATCH if lane == "inline" else float("inf")
    limit = choose_batch_limit(
        times.seconds, overhead=_INLINE_DISPATCH if lane == "inline" else _THREAD_HOP, longest=longest
    )
    if times.undecided:
        # Batching is proved. Without batches a model may serve a fraction of its requests, whereas a batch
        # that saves no time only makes its first items wait for the others.
        limit = LARGEST_BATCH if lane == "thread" else max(limit, *_allowed(times.seconds, longest))
    limit = max(1, min(limit, max_batch))
    count = 1 if lane == "inline" else instances or spare
    return RunPlan(lane, limit, count, _explain(times, lane, limit, count, batched=max_batch > 0))


def spare_instances(cores: int, threads_per_run: int) -> int:
    """Returns how many instances can run without competing for cores; `threads_per_run` 0 means all cores."""
    return max(1, cores // (threads_per_run or cores))


def choose_batch_limit(seconds: dict[int, float], *, overhead: float, longest: float) -> int:
    """Returns the smallest batch size at which the time per item is close to the shortest time per item of
    all sizes.

    `overhead` seconds are added to the time of each run. Batches of several items that take more than
    `longest` seconds are not considered.
    """
    allowed = {size: (seconds[size] + overhead) / size for size in _allowed(seconds, longest)}
    best = min(allowed.values())
    gain = _SLOW_GAIN if seconds[1] > _SLOW_RUN else _GAIN
    return min(size for size, cost in allowed.items() if cost * (1 - gain) <= best)


def _allowed(seconds: dict[int, float], longest: float) -> list[int]:
    return [size for size, time in seconds.items() if size == 1 or time <= longest]


def _time_alone(runs: TrialRuns, item: Arrays) -> RunTime:
    """Returns the time of a run with one item, without work that a model does only in its first run."""
    names = [spec.name for spec in runs.signature.outputs]
    if len(runs.times_of(item)) < 2:
        runs.run(item, names)
    fastest = min(runs.times_of(item), key=lambda time: time.seconds)
    if fastest.seconds > LONG_RUN:
        return fastest
    measured = time_run()
    seconds, _ = _time(lambda: runs.model.run(item, names))
    return RunTime(seconds, measured().computing)


def _time_long_batch(runs: TrialRuns, item: Arrays, max_batch: int) -> dict[int, float]:
    """Returns the time of one batch of a slow model, by its size. Runs a batch only if none has been run
    yet.
    """
    sizes = [size for size in (4, 2) if size <= max_batch]
    for size in sizes:
        times = runs.times_of(_repeated(item, size))
        if times:
            return {size: times[0].seconds}
    if not sizes:
        return {}
    pair = _repeated(item, 2)
    runs.run(pair, [spec.name for spec in runs.signature.outputs])
    return {2: runs.times_of(pair)[0].seconds}


def _time_batches(runs: TrialRuns, item: Arrays, max_batch: int) -> tuple[dict[int, float], bool]:
    """Returns how many seconds a run takes, by batch size, and whether other work made this uncertain.

    Other work can only slow a run down, so the fastest passes count. The passes take turns over the sizes, so
    that a disturbance of some length does not hit all runs of one size. If the two fastest times at each size
    lead to different batch limits, those that lead to the larger limit are returned: a limit that is too
    large costs less than one that is too small.
    """
    names = [spec.name for spec in runs.signature.outputs]
    passes: dict[int, list[float]] = {}

    def run(size: int) -> None:  # with the copy that joins the batch
        runs.model.run(item if size == 1 else _repeated(item, size), names)

    for _ in range(_PASSES):
        size, idle, spent, large = 1, 0, 0.0, False
        while size <= max(1, min(max_batch, LARGEST_BATCH)):
            seconds, took = _time(partial(run, size))
            passes[size] = sorted([*passes.get(size, ()), seconds])
            spent += took
            if size > 1:
                here, before = passes[size][0] + _INLINE_DISPATCH, passes[size // 2][0] + _INLINE_DISPATCH
                idle = 0 if here < 2 * before * (1 - _GAIN) else idle + 1
                large = here < 2 * before * (1 - _LARGE_GAIN)
            patience = _BUDGET * (1 if idle else 20 if large else 3)
            size *= 2
            if size not in passes and (idle == 2 or spent > patience):
                break
        if min(map(len, passes.values())) < 2:
            continue
        fastest, second = ({size: times[place] for size, times in passes.items()} for place in (0, 1))
        limits = [
            choose_batch_limit(times, overhead=_THREAD_HOP, longest=float("inf"))
            for times in (fastest, second)
        ]
        if max(limits) <= 2 * min(limits):
            return fastest if limits[0] >= limits[1] else second, False
    return {size: times[0] for size, times in passes.items()}, True


def _time_grown(model: Tried, trial: Trial, *, batched: bool) -> float:
    """Returns the duration of the slowest run with enlarged variable dimensions. Dimensions of equal size are
    enlarged together, because they may have to be equal.
    """
    names = [spec.name for spec in model.signature.outputs]
    longest = 0.0
    for group in sorted(set(trial.sizes.values())):
        for factor in _GROWTH:
            sizes: Sizes = {
                dimension: size * factor if size == group else size for dimension, size in trial.sizes.items()
            }
            if longest > INLINE_GROWN or _elements(model, sizes) > MAX_TRIAL_ELEMENTS:
                break
            inputs = make_inputs(model.signature, sizes, 1 if batched else None, trial.family, 1)
            try:
                longest = max(longest, _time(partial(model.run, inputs, names))[0])
            except BacklineError:
                break  # the model rejects such sizes
    return longest


def _repeated(item: Arrays, size: int) -> Arrays:
    return {name: np.concatenate([array] * size) for name, array in item.items()}


def _elements(model: Tried, sizes: Sizes) -> int:
    largest = 0
    for spec in model.signature.inputs:
        count = 1
        for axis, dim in enumerate(spec.shape):
            count *= max(1, sizes.get((spec.name, axis), dim))
        largest = max(largest, count)
    return largest


def _time(run: Callable[[], object]) -> tuple[float, float]:
    """Returns the time of the fastest of a few runs, and that of all of them."""
    first = _time_once(run, long=True)
    fastest = first if first > _NO_WARM_UP else float("inf")
    total = 0.0
    for _ in range(_RUNS):
        took = _time_once(run, long=first > _SHORT)
        fastest = min(fastest, took)
        total += took
        if total > _SECONDS_PER_SIZE:
            break
    return fastest, first + total


def _time_once(run: Callable[[], object], *, long: bool) -> float:
    """Returns the time of a run, for a `long` one without the time for which the thread waited for a core."""
    if long:
        measured = time_run()
        run()
        return measured().seconds
    begin = perf_counter()
    run()
    return perf_counter() - begin


def _explain(times: RunTimes, lane: Lane, limit: int, instances: int, *, batched: bool) -> str:
    single = times.seconds[1]
    threads = f"{instances} thread{'s' if instances > 1 else ''}"
    text = f"a run takes {format_seconds(single)}: on {'the event loop' if lane == 'inline' else threads}"
    if not batched:
        return text
    if times.undecided:
        unsure = "undecided whether smaller ones would do, because the machine was busy"
        return f"{text}, in batches of up to {limit} ({unsure})"
    if limit == 1:
        return f"{text}, one request at a time, because larger batches save no time"
    measured = times.seconds.get(limit)
    if measured is None:
        return f"{text}, in batches of up to {limit}"
    return f"{text}, in batches of up to {limit} ({format_seconds(measured / limit)} an item)"


def format_seconds(seconds: float) -> str:
    """Formats a duration with up to three significant digits, such as "12.3 us", "4.56 ms" or "1.2 s"."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
