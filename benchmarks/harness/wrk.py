"""wrk, the load generator for HTTP/1.1: one thread, a fixed number of connections, each with one request under way."""

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
    """Reads the line that post.lua prints. Raises CannotRun when it is not there."""
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise CannotRun(f"wrk printed no result: {output.strip()[-200:] or 'nothing at all'}")
    result = json.loads(line.removeprefix("RESULT "))
    failed = result["connect"] + result["read"] + result["write"] + result["status"] + result["timeout"]
    rate = result["requests"] / result["duration_us"] * 1e6 if result["duration_us"] else 0.0
    return Measurement(rate, result["p50_us"], result["p99_us"], result["requests"], failed)


def write_request(name: str, body: bytes, headers: dict[str, str]) -> tuple[Path, Path]:
    """The files that post.lua reads: headers and body."""
    folder = BENCH / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    header_file, body_file = folder / f"{name}.headers", folder / f"{name}.body"
    header_file.write_text("".join(f"{key}: {value}\n" for key, value in headers.items()))
    body_file.write_bytes(body)
    return header_file, body_file


def run(
    url: str, name: str, body: bytes, headers: dict[str, str], *, concurrency: int, seconds: float
) -> Measurement:
    """POSTs `body` to `url` for `seconds` (whole seconds, at least 1: wrk knows no others)."""
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
        raise CannotRun(f"wrk did not end within {duration + 90} s") from error
    return parse(done.stdout + done.stderr)
