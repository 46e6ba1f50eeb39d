"""h2load, nghttp2's load generator: gRPC for peers that perf_analyzer cannot drive, and a second opinion beside it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from harness.case import Measurement
from harness.environment import CannotRun

FINISHED = re.compile(r"^finished in ([\d.]+)(s|ms|us), ([\d.]+) req/s", re.MULTILINE)
REQUESTS = re.compile(r"^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", re.MULTILINE)
STATUSES = re.compile(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", re.MULTILINE)


def available() -> bool:
    return shutil.which("h2load") is not None


def parse(output: str, durations_us: list[int]) -> Measurement:
    """Reads the report; `durations_us` are the answers' times from the log file. Raises CannotRun when there is no result."""
    finished, requests = FINISHED.search(output), REQUESTS.search(output)
    if finished is None or requests is None:
        raise CannotRun(f"h2load got no result: {output.strip()[-200:] or 'it printed nothing'}")
    succeeded = int(requests[4])
    p50, p99 = np.percentile(durations_us, [50, 99]) if durations_us else (np.nan, np.nan)
    return Measurement(float(finished[3]), float(p50), float(p99), succeeded, int(requests[5]))


def run(url: str, body: bytes, headers: dict[str, str], *, concurrency: int, seconds: float) -> Measurement:
    """POSTs `body` over HTTP/2 with prior knowledge: `concurrency` connections with one stream each."""
    if not available():
        raise CannotRun("h2load is not installed (apt install nghttp2-client)")
    with tempfile.TemporaryDirectory() as folder:
        body_file, log_file = Path(folder, "body"), Path(folder, "log")
        body_file.write_bytes(body)
        command = [
            "h2load",
            "-t1",
            f"-c{concurrency}",
            "-m1",
            f"-D{max(1, round(seconds))}",
            f"--log-file={log_file}",
            "-d",
            str(body_file),
        ]
        for name, value in headers.items():
            command += ["-H", f"{name}: {value}"]
        try:
            done = subprocess.run([*command, url], capture_output=True, text=True, check=False, timeout=seconds + 90)
        except subprocess.TimeoutExpired as error:
            raise CannotRun(f"h2load did not end within {seconds + 90:.0f} s") from error
        lines = log_file.read_text().splitlines() if log_file.exists() else []
    return parse(done.stdout + done.stderr, [int(line.split("\t")[2]) for line in lines if line.count("\t") >= 2])


def run_grpc(port: int, message: bytes, *, concurrency: int, seconds: float) -> Measurement:
    """ModelInfer with the serialised `message`. h2load does not read grpc-status: check one answer before."""
    url = f"http://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
    body = b"\0" + struct.pack(">I", len(message)) + message
    return run(url, body, {"content-type": "application/grpc", "te": "trailers"}, concurrency=concurrency, seconds=seconds)
