"""How models are measured, and how they are run as a result."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading import run_time, trial_runs
from backline.lifecycle.loading.run_time import (
    RunTimes,
    choose_batch_limit,
    format_seconds,
    measure,
    plan,
    time_spread,
)
from backline.lifecycle.loading.trial_inputs import NORMAL
from backline.lifecycle.loading.trial_runs import Trial, time_run
from backline.plugins.runtimes.onnx.runtime import OnnxModel, OnnxRuntime
from backline.system.cores import usable_cores
from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature, TensorSpec
from support.networks import FLOAT, INT64, build, floats, ints, node
from support.repositories import put

US, MS = 1e-6, 1e-3


def load(path: Path) -> OnnxModel:
    return OnnxRuntime().load(path, ModelConfig("m"))


def test_a_quick_model_runs_on_the_loop_in_large_batches() -> None:
    chosen = plan(
        RunTimes({1: 3 * US, 2: 5 * US, 4: 5 * US, 8: 5.5 * US, 16: 6 * US, 32: 8 * US, 64: 12 * US}), cores=2
    )

    assert (chosen.lane, chosen.batch_limit, chosen.instances) == ("inline", 64, 1)
    assert chosen.reason == "a run takes 3 us: on the event loop, in batches of up to 64 (0.188 us an item)"


def test_a_model_whose_gathering_costs_more_than_it_saves_runs_one_by_one() -> None:
    chosen = plan(RunTimes({1: 18 * US, 2: 59 * US, 4: 111 * US}), cores=2)

    assert (chosen.lane, chosen.batch_limit) == ("inline", 1)
    assert "larger batches save no time" in chosen.reason


def test_a_slow_model_that_fills_a_core_runs_one_by_one_on_every_core() -> None:
    chosen = plan(RunTimes({1: 30 * MS, 2: 61 * MS, 4: 119 * MS}), cores=4)

    assert (chosen.lane, chosen.batch_limit, chosen.instances) == ("thread", 1, 4)


def test_a_slow_model_that_gains_from_batches_is_batched() -> None:
    chosen = plan(RunTimes({1: 5 * MS, 2: 5.2 * MS, 4: 5.5 * MS, 8: 6 * MS, 16: 12 * MS}), cores=2)

    assert (chosen.lane, chosen.batch_limit) == ("thread", 8)


def test_no_batch_holds_the_loop_for_long() -> None:
    chosen = plan(RunTimes({1: 200 * US, 2: 240 * US, 4: 300 * US, 8: 450 * US, 16: 800 * US}), cores=2)

    assert (chosen.lane, chosen.batch_limit) == ("inline", 8)


def test_a_model_that_is_quick_only_for_small_dimensions_leaves_the_loop() -> None:
    chosen = plan(RunTimes({1: 50 * US}, grown=40 * MS), cores=2, max_batch=0)

    assert chosen.lane == "thread"


def test_threads_of_a_run_count_against_the_cores() -> None:
    slow = RunTimes({1: 30 * MS})

    assert plan(slow, cores=8, threads_per_run=4).instances == 2
    assert plan(slow, cores=2, threads_per_run=4).instances == 1
    assert plan(slow, cores=8, threads_per_run=0).instances == 1


def test_the_configuration_has_the_last_word() -> None:
    quick, slow = RunTimes({1: 3 * US, 2: 3 * US}), RunTimes({1: 30 * MS, 2: 31 * MS})

    assert plan(quick, cores=2, lane="thread").lane == "thread"
    assert plan(slow, cores=2, lane="inline").lane == "inline"
    assert (plan(quick, cores=2, instances=3).lane, plan(quick, cores=2, instances=3).instances) == (
        "thread",
        3,
    )
    assert plan(slow, cores=2, max_batch=1).batch_limit == 1


@pytest.mark.parametrize(
    ("spread", "threads"), [(12 * MS, 2), (15 * MS, 2), (16 * MS, 1), (25 * MS, 1), (0.0, 1)]
)
def test_a_lone_run_uses_several_cores_if_it_gains_enough(spread: float, threads: int) -> None:
    assert RunTimes({1: 20 * MS}, spread_threads=2, spread_seconds=spread).lone_threads == threads


class Scripted:
    """A model with fixed outputs."""

    signature = Signature((TensorSpec("x", DataType.FP32, (2,)),), (TensorSpec("y", DataType.FP32, (2,)),))

    def __init__(self, *outputs: float) -> None:
        self._outputs = np.array(outputs, np.float32)

    def run(self, inputs, outputs) -> list[np.ndarray]:
        return [self._outputs]


@pytest.fixture
def trial() -> Trial:
    inputs = {"x": np.zeros(2, np.float32)}
    return Trial({}, NORMAL, inputs, Scripted(1.0, 100.0).run(inputs, ["y"]))


def test_a_copy_that_gives_other_outputs_has_no_time(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_time, "seconds_of_threads_without_core", lambda: 0.0)

    assert time_spread(Scripted(1.0, 100.00001), trial, 1.0)
    assert time_spread(Scripted(1.0, 101.0), trial, 1.0) == 0
    assert time_spread(Scripted(1.0), trial, 1.0) == 0


def test_slow_runs_whose_threads_wait_for_cores_say_nothing(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = count()
    monkeypatch.setattr(run_time, "seconds_of_threads_without_core", lambda: float(next(waited)))
    monkeypatch.setattr(run_time, "_PATIENT_SPREAD_BUDGET", 0.01)

    assert time_spread(Scripted(1.0, 100.0), trial, 1e-9) is None
    assert time_spread(Scripted(1.0, 100.0), trial, 1.0)


def test_a_model_that_could_not_be_tried_runs_on_threads() -> None:
    chosen = plan(RunTimes({}), cores=2, max_batch=8)

    assert (chosen.lane, chosen.batch_limit, chosen.instances) == ("thread", 8, 2)
    assert "not known" in chosen.reason


def test_the_batch_limit_is_the_smallest_that_is_nearly_best() -> None:
    assert (
        choose_batch_limit({1: 10 * US, 2: 11 * US, 4: 20 * US, 8: 39.5 * US}, overhead=0, longest=1.0) == 4
    )
    assert choose_batch_limit({1: 10 * US}, overhead=0, longest=1.0) == 1
    assert choose_batch_limit({1: 10 * US, 2: 11 * US}, overhead=0, longest=10.5 * US) == 1


def test_a_model_is_batched_while_it_is_undecided_whether_that_saves_time() -> None:
    """Because batches were proved, and one request per run may cost most of the throughput."""
    slow = RunTimes({1: 8 * MS, 2: 16 * MS, 4: 32 * MS}, undecided=True)
    quick = RunTimes({1: 100 * US, 2: 200 * US, 4: 400 * US, 8: 800 * US}, undecided=True)

    assert (plan(slow, cores=2).batch_limit, plan(slow, cores=2, max_batch=8).batch_limit) == (64, 8)
    assert (
        "(undecided whether smaller ones would do, because the machine was busy)"
        in plan(slow, cores=2).reason
    )
    assert (plan(quick, cores=2).lane, plan(quick, cores=2).batch_limit) == ("inline", 4)
    assert plan(quick, cores=2, max_batch=0).batch_limit == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed, for code that measures: only models pass time."""
    now = [0.0]
    for module in (run_time, trial_runs):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trial_runs, "process_time", lambda: now[0])
    monkeypatch.setattr(trial_runs, "seconds_without_core", lambda: 0.0)
    monkeypatch.setattr(run_time, "seconds_of_threads_without_core", lambda: 0.0)
    return now


class Disturbed:
    """A model that gains from batches: a run takes 2 ms of `clock`, whatever its batch. Each run takes
    `extra(sizes)` seconds longer, as when other work interrupts it; `sizes` has the batch sizes of all runs
    so far.
    """

    signature = Signature(
        (TensorSpec("x", DataType.FP32, (-1, 2)),), (TensorSpec("y", DataType.FP32, (-1, 2)),)
    )

    def __init__(self, clock: list[float], extra: Callable[[list[int]], float]) -> None:
        self._clock = clock
        self._extra = extra
        self._sizes: list[int] = []

    def run(self, inputs, outputs) -> list[np.ndarray]:
        self._sizes.append(len(inputs["x"]))
        self._clock[0] += 2 * MS + self._extra(self._sizes)
        return [inputs["x"]]


def test_a_disturbance_while_larger_batches_are_timed_does_not_end_batching(clock: list[float]) -> None:
    # It begins after the runs of one item, and ends while the first pass still times small batches.
    times = measure(Disturbed(clock, lambda sizes: 10 * MS if 9 < len(sizes) <= 17 else 0.0), 64)

    assert plan(times, cores=2).batch_limit >= 32


def test_a_machine_that_is_always_busy_does_not_end_batching_early(clock: list[float]) -> None:
    times = measure(Disturbed(clock, lambda sizes: 28 * MS), 64)

    assert plan(times, cores=2).batch_limit == 64


def test_a_disturbance_without_an_end_leaves_the_limit_undecided(clock: list[float]) -> None:
    def extra(sizes: list[int]) -> float:
        later_pass = (4, 1) in pairwise(sizes)
        return 20 * MS * sizes[-1] if later_pass and sizes[-1] > 1 else 0.0

    times = measure(Disturbed(clock, extra), 4)

    assert times.undecided
    assert plan(times, cores=2, max_batch=4).batch_limit == 4


def test_time_without_a_core_is_not_time_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = count()
    monkeypatch.setattr(
        "backline.lifecycle.loading.trial_runs.seconds_without_core", lambda: next(waited) * MS
    )

    begin = perf_counter()
    measured = time_run()
    while perf_counter() < begin + 3 * MS:
        pass
    seconds = measured().seconds
    whole = perf_counter() - begin

    assert seconds <= whole - 1 * MS


def test_every_batch_size_of_a_small_model_is_measured(tmp_path: Path) -> None:
    model = load(
        build(
            tmp_path / "m.onnx",
            [node("Neg", ["X"], ["Y"])],
            [("X", FLOAT, ["N", 16])],
            [("Y", FLOAT, ["N", 16])],
        )
    )

    times = measure(model, 64)

    assert list(times.seconds) == [1, 2, 4, 8, 16, 32, 64]
    assert all(0 < seconds < 0.1 for seconds in times.seconds.values())
    assert times.grown == 0


def test_no_batch_above_the_limit_is_measured(tmp_path: Path) -> None:
    model = load(
        build(
            tmp_path / "m.onnx",
            [node("Neg", ["X"], ["Y"])],
            [("X", FLOAT, ["N", 16])],
            [("Y", FLOAT, ["N", 16])],
        )
    )

    assert max(measure(model, 4).seconds) == 4
    assert list(measure(model, 0).seconds) == [1]


def test_a_model_is_also_measured_with_larger_dimensions(tmp_path: Path) -> None:
    """Attention: quick for a few steps, quadratic in their number."""
    nodes = [
        node("Transpose", ["X"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["X", "t"], ["scores"]),
        node("Softmax", ["scores"], ["weights"]),
        node("MatMul", ["weights", "X"], ["Y"]),
    ]
    model = load(
        build(tmp_path / "m.onnx", nodes, [("X", FLOAT, ["N", "T", 256])], [("Y", FLOAT, ["N", "T", 256])])
    )

    times = measure(model, 64)

    assert times.grown > times.seconds[1]


def test_a_model_that_wants_a_sampling_rate_and_enough_samples_is_measured(tmp_path: Path) -> None:
    """A scalar that must be 16,000, and audio of at least 400 samples with the batch in another dimension of
    the state.
    """
    nodes = [
        node("Equal", ["sr", "rate"], ["right"]),
        node("Cast", ["right"], ["index"], to=INT64),
        node("Sub", ["index", "one"], ["shift"]),
        node("Gather", ["table", "shift"], ["gain"]),  # index -1 is in the table of one row, -2 is not
        node("Unsqueeze", ["audio", "axis"], ["u"]),
        node("Conv", ["u", "W"], ["c"], strides=[160]),
        node("ReduceMean", ["c"], ["m"], axes=[1, 2], keepdims=0),
        node("Add", ["state", "m"], ["next"]),
        node("Mul", ["next", "gain"], ["Y"]),
    ]
    constants = {
        "rate": np.array(16000, np.int64),
        "one": np.array(1, np.int64),
        "table": np.array([1], np.float32),
        "axis": ints(1),
        "W": floats(2, 1, 400),
    }
    inputs = [("audio", FLOAT, ["N", "T"]), ("state", FLOAT, [2, "N"]), ("sr", INT64, [])]
    model = load(build(tmp_path / "m.onnx", nodes, inputs, [("Y", FLOAT, [2, "N"])], constants))

    assert list(measure(model, 0).seconds) == [1]


def test_a_model_that_rejects_all_trials_has_no_run_times(tmp_path: Path) -> None:
    weights = {"shape": ints(-1, 7919)}
    model = load(
        build(
            tmp_path / "m.onnx",
            [node("Reshape", ["X", "shape"], ["Y"])],
            [("X", FLOAT, ["N", 4])],
            [("Y", FLOAT, ["N", 7919])],
            weights,
        )
    )

    assert measure(model, 0) == RunTimes({})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.35e-6, "3.35 us"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (2e-7, "0.2 us"), (0.0009996, "1 ms")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a.slice/b.service", {"a.slice/cpu.max": "100000 100000"}, 1),
        ("0::/a.slice", {"cpu.max": "max 100000", "a.slice/cpu.max": "20000 100000"}, 1),
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "1", "cpu/a/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:memory:/", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_lowest_quota_limits_the_cores(
    tmp_path: Path, own: str, files: dict[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        put(tmp_path / "groups" / name, f"{text}\n")
    unlimited = usable_cores(tmp_path, tmp_path / "missing")

    found = usable_cores(tmp_path / "groups", put(tmp_path / "own", own + "\n"))

    assert found == (unlimited if expected is None else expected)


def test_a_quota_that_changes_takes_effect_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, now = put(tmp_path / "own", "0::/\n"), 7.0
    monkeypatch.setattr("backline.system.cores.monotonic", lambda: now)
    unlimited = usable_cores(tmp_path, own)

    put(tmp_path / "cpu.max", "100000 100000\n")
    assert usable_cores(tmp_path, own) == unlimited
    now += 1
    assert usable_cores(tmp_path, own) == 1


class _Untried:
    """A model whose configuration fixes inputs of any size."""

    signature = Signature(
        (TensorSpec("INPUT0", DataType.FP32, (1 << 20, 1 << 20)),),
        (TensorSpec("OUTPUT0", DataType.FP32, (1,)),),
    )

    def run(self, inputs: object, outputs: object) -> list[np.ndarray]:
        raise AssertionError("no such input can be made")


def test_inputs_too_large_for_memory_are_not_made() -> None:
    assert measure(_Untried(), 0).seconds == {}
