"""The order of turns, medians, ratios, the table and the JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import run
from harness.case import Case, Measurement, median_measurement, ratio
from harness.comparison import Row, measure, turns
from harness.environment import CannotRun
from harness.model import Model
from harness.picture import draw
from harness.table import as_json, cell, document, table

MODEL = Model("add1", Path("model.onnx"), "INPUT0", (1, 16), 0.01)
SLOW = Model("basic_pitch", Path("model.onnx"), "INPUT0", (1, 43844, 1), 20.0)


def rates(*values: float) -> list[Measurement]:
    return [Measurement(value, 100.0, 200.0, 1000) for value in values]


def case(model: Model = MODEL, encoding: str = "binary", concurrency: int = 16) -> Case:
    return Case(model, "http", encoding, "wrk", concurrency)


class Recorder:
    """A peer with given rates that records its turns."""

    def __init__(self, name: str, answers: list[float], log: list[str], failing: int = 99) -> None:
        self.name, self.answers, self.log, self.failing = name, answers, log, failing

    def measures(self, case: Case) -> bool:
        return True

    def measure(self, case: Case, seconds: float) -> Measurement:
        if sum(entry == self.name for entry in self.log) >= self.failing:
            raise CannotRun("it ended")
        self.log.append(self.name)
        return Measurement(self.answers[self.log.count(self.name) - 1], 1.0, 2.0, 3)

    def check(self, case: Case) -> None: ...
    def settle(self, case: Case) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


def test_median_of_each_number_and_sum_of_counts() -> None:
    runs = [
        Measurement(10, 5, 9, 100, 1, 7.0),
        Measurement(30, 1, 8, 300, 0, 9.0),
        Measurement(20, 3, 7, 200, 2, 8.0),
    ]

    assert median_measurement(runs) == Measurement(20, 3, 8, 600, 3, 8.0)


def test_median_ignores_unknown_numbers() -> None:
    middle = median_measurement([Measurement(10, math.nan, math.nan, 1), Measurement(20, 4.0, math.nan, 1)])

    assert middle.p50_us == 4.0
    assert math.isnan(middle.p99_us)


def test_ratios_are_computed_within_a_round() -> None:
    # The machine slows to a half and a third in later rounds, yet the ratio stays 2.
    assert ratio(rates(600, 300, 200), rates(300, 150, 100)) == 2.0


def test_the_ratio_to_a_peer_without_answers_is_unknown() -> None:
    assert math.isnan(ratio(rates(10), rates(0)))


def test_each_peer_takes_each_position_in_the_order() -> None:
    orders = [turns(["a", "b", "c"], number) for number in range(3)]

    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_peers_take_turns() -> None:
    log: list[str] = []
    peers = {"backline": Recorder("backline", [4, 6, 8], log), "other": Recorder("other", [2, 2, 2], log)}

    (row,) = measure([case()], peers, rounds=3, seconds=1, say=lambda line: None)  # type: ignore[arg-type]

    assert log == ["backline", "other", "other", "backline", "backline", "other"]
    assert row.ratio("backline", "other") == 3.0


def test_a_failed_peer_keeps_its_results_and_its_reason() -> None:
    log: list[str] = []
    peers = {
        "backline": Recorder("backline", [4, 4], log),
        "other": Recorder("other", [2, 2], log, failing=1),
    }

    (row,) = measure([case()], peers, rounds=2, seconds=1, say=lambda line: None)  # type: ignore[arg-type]

    assert row.reasons == {"other": "it ended"}
    assert [run.requests_per_second for run in row.runs["other"]] == [2]


def test_slow_models_are_measured_until_every_client_has_an_answer() -> None:
    assert case().seconds(2) == 2
    assert case(SLOW, concurrency=64).seconds(2) == pytest.approx(4 * 64 * 0.02)


def test_table_shows_rates_latencies_and_ratios() -> None:
    row = Row(case(), {"backline": rates(30000, 31000, 32000), "triton": rates(10000, 10000, 10000)})

    text = table([row], ["backline", "triton"])

    assert text.splitlines()[-1] == (
        "| add1 | HTTP binary, wrk | 16 | 31,000, 100 us / 200 us | 10,000, 100 us / 200 us, **3.10x** |"
    )


def test_table_states_why_a_peer_has_no_number() -> None:
    row = Row(case(), {"backline": rates(10)}, {"triton": "its answer is wrong | really"})

    assert "| none: its answer is wrong / really |" in table([row], ["backline", "triton"])


def test_cell_shows_errors() -> None:
    assert cell(Measurement(12.34, math.nan, math.nan, 5, 2), None, None) == "12.3, 2 errors"


def test_document_names_machine_versions_and_skipped_peers() -> None:
    text = document(
        [Row(case(), {"backline": rates(10)})],
        machine={"cores": "2"},
        versions={"backline": {"backline": "0.1.0"}},
        setups={"backline": "defaults", "triton": "Python backend"},
        skipped={"triton": "cannot be installed: no matching distribution"},
        remarks=["rounds: 3"],
    )

    assert "- cores: 2" in text
    assert "- **backline** (backline 0.1.0): defaults" in text
    assert "- **triton**: skipped: cannot be installed: no matching distribution" in text
    assert "| model | asked by | clients | backline |" in text


def test_json_contains_every_run_and_no_nan() -> None:
    row = Row(case(), {"backline": [Measurement(10, math.nan, math.nan, 5)], "triton": rates(5)})

    data = as_json([row], machine={}, versions={}, skipped={}, settings={"rounds": 1})

    again = json.loads(json.dumps(data, allow_nan=False))
    assert again["cases"][0]["peers"]["triton"]["backline_times"] == 2.0
    assert again["cases"][0]["peers"]["backline"]["runs"][0]["p50_us"] is None


def test_picture_is_a_png(tmp_path: Path) -> None:
    row = Row(case(), {"backline": rates(10, 12), "in-process": rates(1000, 1000)})

    draw([row], ["backline", "in-process"], tmp_path / "results.png")

    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_large_grpc_requests_are_sent_by_h2load_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.h2load, "available", lambda: True)
    ways = [("http", "binary", "wrk"), ("grpc", "binary", "perf_analyzer"), ("grpc", "binary", "h2load")]
    large = Model("ident", Path("model.onnx"), "INPUT0", (1, 3, 224, 224), 0.1)

    assert run.ways_of(MODEL, ways) == ways
    assert run.ways_of(large, ways) == [("http", "binary", "wrk"), ("grpc", "binary", "h2load")]
    assert run.ways_of(large, ways[:1]) == ways[:1]
