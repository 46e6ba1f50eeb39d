"""Folders for environments and results, all inside `build/`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
#: One virtual environment per peer.
ENVIRONMENTS = BUILD / "bench-envs"
#: Models, request bodies, repositories, server logs and results.
BENCH = BUILD / "bench"
HARNESS = Path(__file__).resolve().parent
