"""Puts the example's folder on the import path, as running it does; it is an application, not a package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "music_transcription"

sys.path.insert(0, str(EXAMPLE))


@pytest.fixture(scope="session")
def example() -> Path:
    """The example's folder."""
    return EXAMPLE
