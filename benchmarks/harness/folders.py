"""Where the benchmarks build, and where they leave their results. Nothing is written outside `build/`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
#: One virtual environment for each peer.
ENVIRONMENTS = BUILD / "bench-envs"
#: Models, request bodies, repositories, server logs and results.
BENCH = BUILD / "bench"
HARNESS = Path(__file__).resolve().parent
