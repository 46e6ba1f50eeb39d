"""Puts the benchmark scripts on the import path, as they are not a package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture
def recorded() -> Callable[[str], str]:
    """Reads the recorded output of a load generator."""
    return lambda name: (Path(__file__).parent / "recorded" / name).read_text()
