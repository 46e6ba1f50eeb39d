"""Puts the examples' folders on the import path: they are applications, not packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "music_transcription"
SERVICE = Path(__file__).parents[2] / "examples" / "music_service"

sys.path[:0] = [str(EXAMPLE), str(SERVICE)]


@pytest.fixture(scope="session")
def example() -> Path:
    """The folder of the example music_transcription."""
    return EXAMPLE


@pytest.fixture(scope="session")
def service() -> Path:
    """The folder of the example music_service."""
    return SERVICE
