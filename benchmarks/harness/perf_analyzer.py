"""Runs perf_analyzer, Triton's load generator, for gRPC, and for HTTP if wrk is missing."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.case import Case, Measurement
from harness.environment import CannotRun

FINAL = re.compile(r"^Concurrency: \d+, throughput: ([\d.]+) infer/sec, latency (\d+) usec", re.MULTILINE)
COUNT = re.compile(r"^\s*Request count: (\d+)", re.MULTILINE)
PERCENTILE = re.compile(r"^\s*p(50|99) latency: (\d+) usec", re.MULTILINE)
FAILED = re.compile(r"Failed Request Count: (\d+)", re.IGNORECASE)


def executable() -> str | None:
    """Returns the path of perf_analyzer in the running environment or, failing that, on PATH."""
    installed = Path(sys.executable).parent / "perf_analyzer"
    return str(installed) if installed.exists() else shutil.which("perf_analyzer")


def installed_version() -> str:
    """Returns the version of the package, since the program reports 0.0.0."""
    try:
        return version("perf-analyzer")
    except PackageNotFoundError:
        return "unknown version" if executable() else "missing"


def parse(output: str) -> Measurement:
    """Parses perf_analyzer's report. Raises CannotRun with its message if there is no result."""
    final = FINAL.search(output)
    if final is None:
        words = [line.strip() for line in output.splitlines() if line.strip()]
        said = next(
            (line for line in reversed(words) if "rror" in line or "ailed" in line),
            words[-1] if words else "nothing",
        )
        raise CannotRun(f"perf_analyzer has no result: {said[:300]}")
    percentiles = {name: float(value) for name, value in PERCENTILE.findall(output)}
    return Measurement(
        float(final[1]),
        percentiles.get("50", math.nan),
        percentiles.get("99", math.nan),
        sum(int(count) for count in COUNT.findall(output)),
        sum(int(count) for count in FAILED.findall(output)),
    )


def run(case: Case, port: int, *, seconds: float, batched: bool = True) -> Measurement:
    """Sends the case's request to 127.0.0.1:`port` for `seconds`.

    If the server adds a batch dimension (`batched`), perf_analyzer expects the shape without it.
    """
    binary = executable()
    if binary is None:
        raise CannotRun("perf_analyzer is not installed (pip install perf-analyzer)")
    command = [binary, "-m", case.model.name, "-i", case.protocol, "-u", f"127.0.0.1:{port}"]
    command += ["--concurrency-range", str(case.concurrency)]
    # Three windows fill the time. With fewer, perf_analyzer reports nothing; with --request-count, it rounds
    # the time to seconds. The stability criterion is off because the harness repeats and takes medians.
    command += [
        "--measurement-interval",
        str(max(200, round(seconds * 1000 / 3))),
        "--max-trials",
        "3",
        "--stability-percentage",
        "999",
    ]
    if case.model.name != "basic_pitch":  # fixed shape; --shape would split its input's name at the colon
        command += [
            "--shape",
            f"{case.model.input_name}:{','.join(map(str, case.model.shape[1 if batched else 0 :]))}",
        ]
    if case.protocol == "http" and case.encoding == "json":
        command += ["--input-tensor-format", "json", "--output-tensor-format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds * 4 + 120)
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"perf_analyzer did not finish within {seconds * 4 + 120:.0f} s") from error
    return parse(done.stdout + done.stderr)
