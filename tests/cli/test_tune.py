"""`backline tune` finds settings as good as exhaustive search, in a fraction of its time, and writes them."""

from __future__ import annotations

import json
import math
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
import pytest

from backline.cli.numbers import DurationType
from backline.observe.prediction_log import encode_record
from backline.plugins.tools.tune.load_predictor import BatchTimes
from backline.plugins.tools.tune.search import (
    LEVELS,
    SHARE_SECONDS,
    Goal,
    LoadMeasurement,
    Outcome,
    Search,
    exhaustive,
    pareto,
)
from backline.plugins.tools.tune.settings import (
    RUNTIME_OPTIONS,
    Tunable,
    TunedSettings,
    bucket_choices,
    configured,
    space,
)
from backline.plugins.tools.tune.trials import recorded_inputs
from backline.plugins.tools.tune.tuning import write_configuration
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Tensor
from cli.conftest import Run
from support import models
from support.repositories import put

CORES = 4
#: Seconds that a change of settings takes, in the simulation.
LOAD = 0.1


@dataclass
class SimulatedModel:
    """A model whose throughput follows other rules than the prediction: limits blend into each other.

    `fixed` and `item` are the seconds of a run and of each item in it; `scaling` is how well a run uses
    further threads.
    """

    fixed: float
    item: float
    scaling: float = 0.7
    overhead: float = 0.00003
    extended: float = 1.0
    noise: random.Random = field(default_factory=lambda: random.Random(7))
    seconds: float = 0.0
    last: TunedSettings | None = None

    def truth(self, settings: TunedSettings, concurrency: int) -> tuple[float, float]:
        """The throughput and the 99th percentile without noise."""
        size = max(settings.batch, 1)
        batch = min(size, max(1.0, concurrency / settings.instances))
        speed = settings.threads**self.scaling
        option = self.extended if settings.optimization == "extended" else 1.0
        run = (self.fixed + self.item * batch) * option * (1.0 if settings.arena else 1.04) / speed
        waits = settings.delay_us / 1e6 if concurrency < size * settings.instances else 0.0
        busy = min(settings.instances, math.ceil(concurrency / batch))
        limits = [
            busy * batch / (run + waits + (0.0 if settings.lane == "inline" else 0.00005)),
            CORES * batch / (run * settings.threads + self.overhead * batch),
            1 / self.overhead,
        ]
        throughput = sum(limit**-4 for limit in limits) ** -0.25
        return throughput, 1.4 * concurrency / throughput

    async def measure(self, settings: TunedSettings, concurrency: int, seconds: float) -> LoadMeasurement:
        self.seconds += seconds + (LOAD if settings != self.last else 0.0)
        self.last = settings
        throughput, p99 = self.truth(settings, concurrency)
        throughput *= self.noise.gauss(1.0, 0.01)
        batch = int(min(max(settings.batch, 1), max(1, concurrency // settings.instances)))
        run = (self.fixed + self.item * batch) / settings.threads**self.scaling
        return LoadMeasurement(
            settings, concurrency, throughput, concurrency / throughput, p99, runs={batch: run}
        )


MODELS: dict[str, Callable[[], SimulatedModel]] = {
    "tiny": lambda: SimulatedModel(0.00002, 0.0000005),
    "heavy": lambda: SimulatedModel(0.0005, 0.004, scaling=0.9),
    "batches": lambda: SimulatedModel(0.005, 0.00005, scaling=0.3, extended=0.9),
}
TUNABLE = Tunable(TunedSettings("thread", 2, 64), 64, RUNTIME_OPTIONS["onnxruntime"], inline=False)


@pytest.mark.parametrize("goal", [Goal(), Goal(0.02)], ids=["throughput", "p99"])
@pytest.mark.parametrize("name", MODELS)
async def test_the_result_is_as_good_as_that_of_exhaustive_search(name: str, goal: Goal) -> None:
    searched, tried = MODELS[name](), MODELS[name]()

    outcome = await Search(TUNABLE, CORES, goal, searched.measure).run()
    await exhaustive(TUNABLE, CORES, goal, tried.measure, levels=LEVELS, seconds=0.25)

    best = max(
        goal.score(*tried.truth(settings, level)) for settings in space(TUNABLE, CORES) for level in LEVELS
    )
    found = goal.score(*searched.truth(outcome.best.settings, outcome.best.concurrency))
    assert found >= 0.95 * best
    assert searched.seconds <= tried.seconds / 10


def outcome_of(model: SimulatedModel) -> Search:
    return Search(TUNABLE, CORES, Goal(), model.measure)


async def test_a_change_that_brings_nothing_is_undone() -> None:
    model = MODELS["heavy"]()

    outcome: Outcome = await outcome_of(model).run()

    changed = {name for name, _, _ in outcome.best.settings.changes(outcome.base.settings)}
    assert changed <= {share.name for share in outcome.shares}
    assert "delay_us" not in changed


async def test_simplified_settings_are_compared_with_the_current_ones_at_the_same_time() -> None:
    model = MODELS["heavy"]()
    simplified: list[TunedSettings] = []

    async def measure(settings: TunedSettings, concurrency: int, seconds: float) -> LoadMeasurement:
        measured = await model.measure(settings, concurrency, seconds)
        if seconds != SHARE_SECONDS:
            return measured
        # The machine is busy while changes are undone, so that each of them seems to bring nothing.
        simplified.append(settings)
        return replace(measured, throughput=1.0)

    outcome = await Search(TUNABLE, CORES, Goal(), measure).run()

    assert simplified
    assert outcome.best.settings.changes(outcome.base.settings)
    assert outcome.best.throughput > outcome.base.throughput > 1.0


async def test_settings_that_do_not_load_are_left_out() -> None:
    model = MODELS["batches"]()

    async def measure(settings: TunedSettings, concurrency: int, seconds: float) -> LoadMeasurement:
        if settings.threads > 1:
            raise InvalidArgument("too many threads")
        return await model.measure(settings, concurrency, seconds)

    outcome = await Search(TUNABLE, CORES, Goal(), measure).run()

    assert outcome.best.settings.threads == 1
    assert "too many threads" in outcome.failed.values()


def test_no_combination_computes_with_more_threads_than_cores() -> None:
    assert all(one.instances * one.threads <= CORES for one in space(TUNABLE, CORES))


def test_buckets_divide_the_requests_into_equal_parts() -> None:
    lengths = {"audio": [*range(1, 101)], "always": [5] * 100}

    two, four, eight = bucket_choices(lengths, {"audio": (100,)})

    assert two == (("audio", (51, 100)),)
    assert [len(choice[0][1]) for choice in (four, eight)] == [4, 8]
    assert bucket_choices({"audio": [7, 7]}, {}) == ()


async def test_better_buckets_are_kept() -> None:
    model = MODELS["heavy"]()
    narrow, wide = ((("x", (8, 64)),), (("x", (64,)),))

    async def measure(settings: TunedSettings, concurrency: int, seconds: float) -> LoadMeasurement:
        measured = await model.measure(replace(settings, buckets=()), concurrency, seconds)
        gain = {narrow: 1.5, wide: 0.9}.get(settings.buckets, 1.0)
        return replace(measured, settings=settings, throughput=measured.throughput * gain)

    outcome = await Search(replace(TUNABLE, buckets=(wide, narrow)), CORES, Goal(), measure).run()

    assert outcome.best.settings.buckets == narrow
    assert "buckets" in {share.name for share in outcome.shares}
    config = configured(message("inference.ModelConfig")(), outcome.best.settings, TUNABLE)
    assert config.parameters["backline.padding.x.buckets"].string_value == "8,64"


def test_run_times_are_interpolated() -> None:
    times = BatchTimes.of({8: 0.008, 1: 0.001})

    assert times.seconds(1) == 0.001
    assert times.seconds(4.5) == pytest.approx(0.0045)
    assert times.seconds(16) == pytest.approx(0.016)


def test_the_pareto_front_has_what_nothing_beats() -> None:
    def one(throughput: float, p99: float, errors: int = 0) -> LoadMeasurement:
        return LoadMeasurement(TunedSettings(), 1, throughput, p99, p99, errors)

    fast, balanced, quick, beaten, wrong = one(9, 9), one(5, 3), one(2, 1), one(4, 4), one(99, 0, 1)

    assert pareto([beaten, quick, wrong, fast, balanced]) == [fast, balanced, quick]


def test_a_configuration_keeps_what_it_says_otherwise() -> None:
    declared = message("inference.ModelConfig")()
    declared.parameters["session.intra_op.allow_spinning"].string_value = "1"
    declared.instance_group.add(count=7, name="mine")

    config = configured(declared, TunedSettings("thread", 2, 8, 500, threads=4), TUNABLE)

    assert config.max_batch_size == 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.name, group.count) for group in config.instance_group] == [("mine", 2)]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "backline.lane": "thread",
        "intra_op_thread_count": "4",
        "session.intra_op.allow_spinning": "1",
    }
    assert declared.instance_group[0].count == 7


def test_a_configuration_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    models.add1(tmp_path)
    file = put(tmp_path / "add1" / "model.toml", "max_batch_size = 4\n")
    config = message("inference.ModelConfig")()
    config.parameters["backline.lane"].string_value = "nowhere"

    with pytest.raises(InvalidArgument, match="was not written"):
        list(write_configuration(tmp_path / "add1", config, "# tuned\n"))

    assert file.read_text() == "max_batch_size = 4\n"
    assert [path.name for path in (tmp_path / "add1").iterdir() if path.is_file()] == ["model.toml"]


def test_recorded_requests_are_read(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32).reshape(1, 4)
    tensor = Tensor("x", DataType.FP32, (1, 4), data)
    file = tmp_path / "warmup" / "add1.tfrecord"
    file.parent.mkdir()
    file.write_bytes(encode_record("add1", {"x": tensor}) * 2)

    first, second = recorded_inputs(file)

    assert [one.name for one in (*first, *second)] == ["x", "x"]
    np.testing.assert_array_equal(first[0].data, data)


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1.5s", 1.5), ("500 us", 0.0005)])
def test_durations_have_units(text: str, seconds: float) -> None:
    assert DurationType().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "ms", "0ms", "-1s", "1h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 20ms"):
        DurationType().convert(text, None, None)


def test_a_measurement_lasts_until_a_request_completes(backline: Run, tmp_path: Path) -> None:
    models.add1(tmp_path)
    # Each request waits for the whole delay, which is many times the length of a measurement at this pace.
    put(
        tmp_path / "add1" / "model.toml",
        "max_batch_size = 256\n[dynamic_batching]\nmax_queue_delay_microseconds = 50000\n",
    )

    done = backline("tune", tmp_path / "add1", "--pace", 0.01)

    assert done.returncode == 0, done.stderr


def test_the_configuration_is_written_and_the_old_one_kept(backline: Run, tmp_path: Path) -> None:
    models.add1(tmp_path)
    folder = tmp_path / "add1"
    # Each batch waits for its whole delay, because 128 callers never fill it: nearly everything is faster.
    old = 'max_batch_size = 256\nlane = "thread"\n[dynamic_batching]\nmax_queue_delay_microseconds = 20000\n'
    put(folder / "model.toml", old)

    done = backline("tune", folder, "--pace", 0.2, "--write", "--json", tmp_path / "result.json")

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["best"]["throughput"] > result["now"]["throughput"]
    written = (folder / "model.toml").read_text()
    assert written.startswith("# Written by `backline tune`")
    assert tomllib.loads(written)["max_batch_size"] == result["best"]["settings"]["batch"]
    assert (folder / "model.toml.before-tune-1").read_text() == old
    assert backline("config", "validate", tmp_path, "--load").returncode == 0


DECOUPLED = "from collections.abc import Iterator\n\ndef f(x: int) -> Iterator[int]:\n    yield x\n"


@pytest.mark.parametrize(
    ("files", "arguments", "reason"),
    [
        ({"1/model.py": DECOUPLED}, (), "is decoupled"),
        (
            {"1/model.py": "def f(x: int) -> int:\n    return x\n"},
            ("--data", "recorded"),
            "To record requests",
        ),
    ],
    ids=["decoupled", "not-recorded"],
)
def test_what_cannot_be_tuned_is_refused(
    backline: Run, tmp_path: Path, files: dict[str, str], arguments: tuple[str, ...], reason: str
) -> None:
    for path, text in files.items():
        put(tmp_path / "one" / path, text)

    done = backline("tune", tmp_path / "one", *arguments, "--state-dir", tmp_path / "state")

    assert done.returncode == 1
    assert reason in done.stderr


async def test_slightly_slower_buckets_are_not_kept_if_no_setting_is_fast_enough() -> None:
    model = MODELS["heavy"]()
    buckets = (("x", (8, 64)),)

    async def measure(settings: TunedSettings, concurrency: int, seconds: float) -> LoadMeasurement:
        measured = await model.measure(replace(settings, buckets=()), concurrency, seconds)
        slower = 1.01 if settings.buckets else 1.0
        return replace(measured, settings=settings, p99=measured.p99 * slower)

    goal = Goal(p99=1e-9)
    outcome = await Search(replace(TUNABLE, buckets=(buckets,)), CORES, goal, measure).run()

    assert outcome.best.settings.buckets == ()
