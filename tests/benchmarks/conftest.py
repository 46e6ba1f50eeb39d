"""The benchmarks are scripts, not a package: their folder is put on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture
def recorded() -> Callable[[str], str]:
    """What a load generator once printed."""
    return lambda name: (Path(__file__).parent / "recorded" / name).read_text()
