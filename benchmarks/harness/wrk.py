"""Runs wrk, an HTTP/1.1 load generator, with one thread and one request in flight per connection."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from harness.case import Measurement
from harness.environment import CannotRun
from harness.folders import BENCH, HARNESS


def available() -> bool:
    return shutil.which("wrk") is not None


def parse(output: str) -> Measurement:
    """Parses the line that post.lua prints. Raises CannotRun if `output` has none."""
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise CannotRun(f"wrk has no result: {output.strip()[-200:] or 'no output'}")
    result = json.loads(line.removeprefix("RESULT "))
    failed = result["connect"] + result["read"] + result["write"] + result["status"] + result["timeout"]
    rate = result["requests"] / result["duration_us"] * 1e6 if result["duration_us"] else 0.0
    return Measurement(rate, result["p50_us"], result["p99_us"], result["requests"], failed)


def write_request(name: str, body: bytes, headers: dict[str, str]) -> tuple[Path, Path]:
    """Writes the files that post.lua reads: headers and body."""
    folder = BENCH / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    header_file, body_file = folder / f"{name}.headers", folder / f"{name}.body"
    header_file.write_text("".join(f"{key}: {value}\n" for key, value in headers.items()))
    body_file.write_bytes(body)
    return header_file, body_file


def run(
    url: str, name: str, body: bytes, headers: dict[str, str], *, concurrency: int, seconds: float
) -> Measurement:
    """Sends `body` to `url` by POST for `seconds`, rounded to whole seconds since wrk supports no others."""
    files = write_request(name, body, headers)
    duration = max(1, round(seconds))
    command = [
        "wrk",
        "-t1",
        f"-c{concurrency}",
        f"-d{duration}s",
        "--timeout",
        "60s",
        "-s",
        str(HARNESS / "post.lua"),
        url,
        "--",
    ]
    try:
        done = subprocess.run(
            [*command, *map(str, files)], capture_output=True, text=True, check=False, timeout=duration + 90
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"wrk did not finish within {duration + 90} s") from error
    return parse(done.stdout + done.stderr)
