"""Whether the machine and the container's CPU quota leave a core for polling."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from backline.system import cores
from backline.system.cores import SpareCore


def load(tmp_path: Path, running: int) -> str:
    file = tmp_path / "loadavg"
    file.write_text(f"0.20 0.18 0.12 {running}/80 11206\n")
    return str(file)


def quota(tmp_path: Path, throttled: int) -> str:
    file = tmp_path / "cpu.stat"
    file.write_text(f"usage_usec 5\nnr_periods 90\nnr_throttled {throttled}\nthrottled_usec 12\n")
    return str(file)


@pytest.mark.parametrize(
    ("running", "cores", "spare"),
    [(2, 2, True), (3, 2, True), (4, 2, False), (17, 16, True), (18, 16, False)],
)
def test_one_more_thread_than_there_are_cores_belongs_to_the_same_exchange(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: int, cores: int, spare: bool
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)

    assert SpareCore(load(tmp_path, running), str(tmp_path / "missing"))(1.0) is spare


def test_a_container_that_was_throttled_has_no_spare_core_for_ten_seconds(tmp_path: Path) -> None:
    spare_core = SpareCore(load(tmp_path, 1), quota(tmp_path, 7))
    assert spare_core(100.0)

    quota(tmp_path, 8)

    assert [spare_core(now) for now in (101.0, 105.0, 110.9, 111.1)] == [False, False, False, True]


def test_the_check_for_a_spare_core_opens_no_file_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spare_core = SpareCore(load(tmp_path, 1), quota(tmp_path, 0))
    assert spare_core(0.0)
    monkeypatch.delattr(os, "open")
    monkeypatch.delattr(io, "open")

    assert spare_core(1.0)


def test_a_core_counts_as_spare_without_the_files_of_linux(tmp_path: Path) -> None:
    assert SpareCore(str(tmp_path / "no"), str(tmp_path / "nothing"))(1.0)


def test_a_core_counts_as_spare_if_a_model_has_closed_the_files(tmp_path: Path) -> None:
    spare_core = SpareCore(load(tmp_path, 99), quota(tmp_path, 0))
    for file in list(spare_core._files.values()):
        os.close(cores._opened(file))

    assert spare_core(1.0)
