"""`make bench` on a small scale: only Backline, and one second per case."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import perf_analyzer

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False, timeout=110
    )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_backline_alone_is_measured(protocol: str, tmp_path: Path) -> None:
    if protocol == "http" and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    if perf_analyzer.executable() is None:
        pytest.skip("perf_analyzer is not installed")
    file = tmp_path / "results.json"

    done = run(
        "--quick",
        "--peers",
        "backline",
        "--models",
        "add1",
        "--protocols",
        protocol,
        "--concurrency",
        "2",
        "--json",
        str(file),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (only,) = json.loads(file.read_text())["cases"]
    median = only["peers"]["backline"]["median"]
    assert median["requests_per_second"] > 100
    assert median["errors"] == 0
    assert "| add1 |" in file.with_suffix(".md").read_text()
    assert file.with_suffix(".png").exists()


def test_an_unknown_peer_is_refused_with_the_known_names() -> None:
    done = run("--peers", "backline,tritn")

    assert done.returncode == 2
    assert "'tritn' is not one of backline, in-process, triton, mlserver, litserve" in done.stderr
