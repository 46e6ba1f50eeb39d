"""Whether the machine and the container's CPU quota leave a core for polling."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from backline.system import cores
from backline.system.cores import SpareCore
from support.repositories import put


def load(tmp_path: Path, running: int) -> str:
    file = tmp_path / "loadavg"
    file.write_text(f"0.20 0.18 0.12 {running}/80 11206\n")
    return str(file)


def quota(tmp_path: Path, throttled: int, group: str = "a", cores: str = "50000 100000") -> tuple[Path, Path]:
    """Puts the process into the group a/b, and gives `group` a quota. Returns the folder of the groups, and
    the file that names the process's own.
    """
    folder = tmp_path / "groups" / group
    put(folder / "cpu.max", f"{cores}\n")
    put(folder / "cpu.stat", f"usage_usec 5\nnr_periods 90\nnr_throttled {throttled}\nthrottled_usec 12\n")
    return tmp_path / "groups", put(tmp_path / "own", "0::/a/b\n")


@pytest.mark.parametrize(
    ("running", "cores", "spare"),
    [(2, 2, True), (3, 2, True), (4, 2, False), (17, 16, True), (18, 16, False)],
)
def test_one_more_thread_than_there_are_cores_belongs_to_the_same_exchange(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: int, cores: int, spare: bool
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)

    assert SpareCore(load(tmp_path, running), tmp_path, tmp_path / "missing")(1.0) is spare


@pytest.mark.parametrize("group", ["a/b", "a", ""], ids=["its own", "around it", "a container"])
def test_a_group_that_was_throttled_has_no_spare_core_for_ten_seconds(tmp_path: Path, group: str) -> None:
    spare_core = SpareCore(load(tmp_path, 1), *quota(tmp_path, 7, group))
    assert spare_core(100.0)

    quota(tmp_path, 8, group)

    assert [spare_core(now) for now in (101.0, 105.0, 110.9, 111.1)] == [False, False, False, True]


def test_groups_of_version_1_have_quotas_too(tmp_path: Path) -> None:
    own = put(tmp_path / "own", "4:cpu,cpuacct:/a\n2:memory:/\n0::/\n")
    for name, text in (("cfs_quota_us", "150000"), ("cfs_period_us", "100000"), ("stat", "nr_throttled 7")):
        put(tmp_path / "cpu" / "a" / f"cpu.{name}", f"{text}\n")
    put(tmp_path / "cpu" / "cpu.cfs_quota_us", "-1\n")
    spare_core = SpareCore(load(tmp_path, 1), tmp_path, own)
    assert spare_core(100.0)

    put(tmp_path / "cpu" / "a" / "cpu.stat", "nr_throttled 8\n")

    assert not spare_core(101.0)


def test_a_group_without_a_quota_is_not_read_again(tmp_path: Path) -> None:
    assert not SpareCore(load(tmp_path, 1), *quota(tmp_path, 7, cores="max 100000"))._statistics


def test_the_check_for_a_spare_core_opens_no_file_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spare_core = SpareCore(load(tmp_path, 1), *quota(tmp_path, 0))
    assert spare_core(0.0)
    monkeypatch.delattr(os, "open")
    monkeypatch.delattr(io, "open")

    assert spare_core(1.0)


def test_a_core_counts_as_spare_without_the_files_of_linux(tmp_path: Path) -> None:
    assert SpareCore(str(tmp_path / "no"), tmp_path, tmp_path / "nothing")(1.0)


def test_a_core_counts_as_spare_if_a_model_has_closed_the_files(tmp_path: Path) -> None:
    spare_core = SpareCore(load(tmp_path, 99), *quota(tmp_path, 0))
    assert spare_core._statistics
    for file in (spare_core._load, *spare_core._statistics):
        os.close(cores._opened(file))

    assert spare_core(1.0)
