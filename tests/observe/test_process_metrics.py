"""Tests the metrics of the process and of the machine."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backline.observe.process_metrics import PROC, ProcessMetrics, Readings, read_system

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def values(text: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def assert_close(read: Readings, other: Readings) -> None:
    assert read.memory == other.memory
    assert read.available == pytest.approx(other.available, rel=0.2)
    assert read.resident == pytest.approx(other.resident, rel=0.2)
    assert read.virtual == pytest.approx(other.virtual, rel=0.2)
    assert read.started == pytest.approx(other.started, abs=1.0)
    assert read.total == pytest.approx(other.total, rel=0.05)
    assert 0 < read.busy < read.total
    assert read.files == pytest.approx(other.files, abs=1)  # the folder itself may be open


@linux
def test_files_and_psutil_report_the_same(tmp_path: Path) -> None:
    assert_close(read_system(), read_system(tmp_path / "no such folder"))


@linux
def test_name_of_the_program_may_contain_spaces_and_parentheses(tmp_path: Path) -> None:
    (tmp_path / "self/fd").mkdir(parents=True)
    for name in ("stat", "meminfo", "self/statm", "self/stat"):
        shutil.copyfile(PROC / name, tmp_path / name)
    own = (tmp_path / "self/stat").read_text()
    end = own.rindex(")")
    (tmp_path / "self/stat").write_text(f"{own[:end]}) S 7 (odd name{own[end:]}")
    assert read_system(tmp_path).started == read_system().started


def test_values_are_those_of_this_process() -> None:
    process = psutil.Process()
    metrics = ProcessMetrics()
    with open(os.devnull) as _:
        read = values(metrics.text())
    assert read["process_resident_memory_bytes"] == pytest.approx(process.memory_info().rss, rel=0.2)
    assert read["process_virtual_memory_bytes"] > read["process_resident_memory_bytes"]
    assert read["process_start_time_seconds"] == pytest.approx(process.create_time(), abs=1.0)
    assert 0 < read["process_cpu_seconds_total"] <= time.process_time()
    assert read["process_open_fds"] >= process.num_fds()
    assert read["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert read["python_info"] == 1


def test_utilization_is_the_share_since_the_last_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_system()
    readings = iter(
        [
            first,
            first._replace(busy=first.busy + 1.5, total=first.total + 2.0),
            first._replace(busy=first.busy + 1.5, total=first.total + 4.0),
            first._replace(busy=first.busy + 1.5, total=first.total + 4.0),  # no time has passed
        ]
    )
    monkeypatch.setattr("backline.observe.process_metrics.read_system", lambda: next(readings))
    metrics = ProcessMetrics()
    shares = [values(metrics.text())["nv_cpu_utilization"] for _ in range(4)]
    assert shares == [0.0, 0.75, 0.0, 0.0]


def test_unlimited_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert values(ProcessMetrics().text())["process_max_fds"] == float("inf")
