"""Folders for environments and results, all inside `build/`."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
#: One virtual environment per peer.
ENVIRONMENTS = BUILD / "bench-envs"
#: Models, request bodies, repositories, server logs and results.
BENCH = BUILD / "bench"
HARNESS = Path(__file__).resolve().parent


def sources(root: Path) -> list[Path]:
    """Returns the folders with the packages of a checkout, which may be older than the folder `packages`."""
    return sorted(root.glob("packages/*/src")) or [root / "src"]


def python_path(root: Path) -> str:
    """Returns the value of PYTHONPATH with which programs use the code of a checkout."""
    return os.pathsep.join(map(str, sources(root)))
