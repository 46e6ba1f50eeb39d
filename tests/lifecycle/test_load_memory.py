"""The estimated memory of a load."""

from __future__ import annotations

import numpy as np
import pytest

from backline.lifecycle.memory import LoadMeter
from backline.system.memory import resident_bytes, trim

MIB = 1 << 20


class Residents:
    """Stands for the process' resident memory; the test sets it."""

    def __init__(self) -> None:
        self.bytes = 100 * MIB

    def __call__(self) -> int:
        return self.bytes


def test_a_lone_load_is_measured_by_the_growth_of_the_process() -> None:
    resident = Residents()
    with LoadMeter(resident).measure(10 * MIB) as measured:
        resident.bytes += 25 * MIB
    assert measured.memory == 25 * MIB


def test_a_load_into_reused_memory_counts_at_least_its_files_size() -> None:
    with LoadMeter(Residents()).measure(10 * MIB) as measured:
        pass
    assert measured.memory == 10 * MIB


def test_overlapping_loads_are_estimated_by_their_files() -> None:
    resident = Residents()
    meter = LoadMeter(resident)
    with meter.measure(10 * MIB) as one, meter.measure(30 * MIB) as other:
        resident.bytes += 400 * MIB
    assert (one.memory, other.memory) == (12 * MIB, 36 * MIB)


def test_a_load_overlapped_at_its_start_is_estimated() -> None:
    resident = Residents()
    meter = LoadMeter(resident)
    first = meter.measure(10 * MIB)
    first.__enter__()
    with meter.measure(10 * MIB) as second:
        first.__exit__(None, None, None)
        resident.bytes += 99 * MIB
    assert second.memory == 12 * MIB


def test_the_estimate_follows_what_was_measured() -> None:
    resident = Residents()
    meter = LoadMeter(resident)
    for _ in range(40):
        with meter.measure(10 * MIB):
            resident.bytes += 20 * MIB
    assert meter.estimate(10 * MIB) == pytest.approx(20 * MIB, rel=0.01)


def test_a_failed_load_does_not_count_as_running() -> None:
    resident = Residents()
    meter = LoadMeter(resident)
    with pytest.raises(ValueError, match="broken"), meter.measure(MIB):
        raise ValueError("broken")
    with meter.measure(MIB) as measured:
        resident.bytes += 7 * MIB
    assert measured.memory == 7 * MIB


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
