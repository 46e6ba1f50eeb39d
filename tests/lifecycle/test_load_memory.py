"""The memory of loads: measured, shared out, estimated, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.memory.meter import HeldMemory, LoadMeter
from backline.lifecycle.memory.needs import LoadKind, Need, Needs, load_kind
from backline.system.memory import resident_bytes, trim

MIB = 1 << 20


class Bench:
    """A meter in a process whose resident memory the test sets."""

    def __init__(self) -> None:
        self.bytes = self.peak = 100 * MIB
        self.imported = self.trims = 0
        self.needs = Needs()
        self.meter = LoadMeter(
            self.needs,
            HeldMemory(),
            lambda: self.bytes,
            lambda: self.peak,
            lambda: True,
            lambda: self.imported,
            self.trim,
        )

    def trim(self) -> None:
        self.trims += 1

    def grow(self, mib: int, peak: int = 0) -> None:
        self.bytes += mib * MIB
        self.peak = max(self.bytes, self.peak + peak * MIB)


def onnx(mib: int, key: str = "key") -> LoadKind:
    return LoadKind(key, "onnxruntime", mib * MIB)


def test_a_lone_load_is_measured_by_the_growth_of_the_process() -> None:
    bench = Bench()
    with bench.meter.measure(onnx(10)) as load:
        bench.grow(25, peak=40)
    assert load.shown == 25 * MIB
    assert load.need == Need(25 * MIB, 40 * MIB, measured=True)


def test_a_load_into_reused_memory_counts_at_least_its_files_size() -> None:
    with Bench().meter.measure(onnx(10)) as load:
        pass
    assert load.shown == 10 * MIB


def test_overlapping_loads_share_the_growth_and_are_shown_once_the_last_has_ended() -> None:
    bench = Bench()
    changed: list[int] = []
    with bench.meter.measure(onnx(10)) as one:
        one.on_change = lambda: changed.append(one.shown)
        with bench.meter.measure(onnx(30)) as other:
            bench.grow(400)
    assert (one.shown, other.shown) == (100 * MIB, 300 * MIB)
    assert changed == [100 * MIB]
    assert not one.need.measured


def test_a_load_overlapped_at_its_start_is_not_measured() -> None:
    bench = Bench()
    first = bench.meter.measure(onnx(10))
    first.__enter__()
    with bench.meter.measure(onnx(10)) as second:
        first.__exit__(None, None, None)
        bench.grow(99)
    assert second.need == Need(12 * MIB, 12 * MIB)


@pytest.mark.parametrize("ends", ["before the load", "during the load"])
def test_a_load_during_which_another_model_was_freed_is_not_measured(ends: str) -> None:
    bench = Bench()
    freeing = bench.meter.freeing()
    freeing.__enter__()
    with bench.meter.measure(onnx(10)) as load:
        bench.grow(-20)
        if ends == "during the load":
            freeing.__exit__(None, None, None)
        bench.grow(11)
    assert not load.need.measured
    assert load.shown == 12 * MIB, "the estimate"


def test_a_load_after_another_model_was_freed_is_measured() -> None:
    bench = Bench()
    with bench.meter.freeing():
        bench.grow(-20)
    with bench.meter.measure(onnx(10)) as load:
        bench.grow(11)
    assert load.need.measured


def test_memory_is_trimmed_once_after_models_that_are_freed_together() -> None:
    bench = Bench()
    with bench.meter.freeing():
        with bench.meter.freeing(), bench.meter.freeing():
            pass
        assert bench.trims == 0
    assert bench.trims == 1
    with bench.meter.freeing():
        pass
    assert bench.trims == 2


def test_memory_freed_during_a_trim_is_trimmed_too() -> None:
    bench = Bench()

    def trim() -> None:
        bench.trims += 1
        if bench.trims == 1:
            with bench.meter.freeing():
                pass

    bench.meter._trim = trim
    with bench.meter.freeing():
        pass
    assert bench.trims == 2


def test_a_peak_that_was_measured_too_low_is_outweighed_by_later_ones() -> None:
    needs = Needs()
    for peak in (200, 100, 200, 200, 200):
        needs.learn(onnx(10), Need(100 * MIB, peak * MIB, measured=True))
    assert needs.of(onnx(10)).peak - needs.of(onnx(10)).runtime > 190 * MIB


def test_a_load_that_imports_its_runtime_does_not_count_the_import() -> None:
    bench = Bench()
    with bench.meter.measure(onnx(10)) as load:
        bench.imported = 65 * MIB
        bench.grow(80)
    assert load.shown == 15 * MIB
    assert not load.need.measured
    # The next load of the runtime needs only the model.
    assert bench.needs.of(onnx(10, "other")).own == 12 * MIB
    assert bench.needs.of(onnx(10, "other")).peak < 30 * MIB


def test_the_first_load_of_a_runtime_needs_room_for_its_import() -> None:
    needs = Needs()
    before = needs.of(onnx(10)).peak
    assert needs.of(onnx(10)).runtime > 40 * MIB
    tried = needs.of(onnx(10), starts_fork_server=True)
    assert tried.peak - needs.of(onnx(10)).peak > 60 * MIB
    needs.imported("onnxruntime", 70 * MIB)
    assert before > needs.of(onnx(10)).peak + 40 * MIB
    assert needs.of(onnx(10)).runtime == 0


def test_the_estimate_follows_what_was_measured() -> None:
    bench = Bench()
    for number in range(40):
        with bench.meter.measure(onnx(10)) as load:
            bench.grow(20)
        bench.needs.learn(onnx(10, str(number)), load.need)
    assert bench.needs.of(onnx(10, "another")).own == pytest.approx(20 * MIB, rel=0.01)


def test_a_failed_load_does_not_count_as_running() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="broken"), bench.meter.measure(onnx(1)):
        raise ValueError("broken")
    with bench.meter.measure(onnx(1)) as load:
        bench.grow(7)
    assert load.shown == 7 * MIB


def test_a_python_model_without_weights_needs_its_interpreters() -> None:
    files = {"m/1/model.py": 256, "m/config.pbtxt": 90}
    config = ModelConfig("m", instance_groups=(InstanceGroup(2),))
    kind = load_kind(config, "print", "m/1/model.py", files)
    assert (kind.backend, kind.workers) == ("python", 2)
    assert 50 * MIB < Needs().of(kind).own < 130 * MIB


def test_what_was_learned_outlives_the_server_and_a_changed_model_is_measured_afresh(tmp_path: Path) -> None:
    file = tmp_path / "state" / "memory.json"
    needs = Needs(file)
    learned = Need(300 * MIB, 310 * MIB, {"/lib/libtorch.so": 50 * MIB}, {1: 5}, measured=True)
    kind = LoadKind("before", "python", 256, 1)
    needs.learn(kind, learned)
    needs.save()
    again = Needs(file)
    assert again.of(kind) == learned
    assert not again.of(LoadKind("after", "python", 256, 1)).measured


def test_a_load_that_was_stopped_needs_at_least_what_it_had() -> None:
    needs, kind = Needs(), LoadKind("key", "python", 256, 1)
    needs.learn(kind, Need(500 * MIB, 500 * MIB))
    assert needs.of(kind).peak == 500 * MIB
    assert not needs.of(kind).measured


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"models": {"a": 1}})])
def test_a_damaged_file_costs_only_the_measurements(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    needs = Needs(tmp_path / "memory.json")
    assert not needs.of(onnx(10)).measured
    needs.learn(onnx(10), Need(MIB, MIB, measured=True))
    needs.save()
    assert Needs(tmp_path / "memory.json").of(onnx(10)).measured


def test_memory_of_a_load_is_measured_and_returned() -> None:
    trim()
    before = resident_bytes()
    data = np.ones(64 * MIB, np.uint8)
    taken = resident_bytes()
    assert data[-1] == 1
    assert taken - before > 60 * MIB
    del data
    trim()
    assert resident_bytes() < taken - 60 * MIB


def test_the_kind_of_a_load_does_not_depend_on_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").mkdir()
    monkeypatch.chdir(tmp_path)

    kind = load_kind(ModelConfig("m"), "print", "m/1/model.onnx", {"m/1/model.onnx": 100})

    assert kind.backend == "onnxruntime"
