"""How fast jobs are accepted and run, with few and with many jobs queued: `python benchmarks/queued_jobs.py`.

64 callers submit jobs for add1 as fast as they are accepted, while the server runs what it can. Each row is a
new server, in whose store some number of jobs for a version that is not loaded are queued already. An
accepted job is on disk (fsync) before its response is sent. The exit status is 1 if a row accepts fewer than
3,000 jobs a second or its p99 is above 20 ms.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import click
import httpx
from harness import wrk
from harness.folders import BENCH
from harness.machine import machine
from harness.model import Model, model
from harness.server_process import ServerProcess, answers_200, free_ports

from backline.plugins.dialects.jobs.job import NewJob
from backline.plugins.dialects.jobs.store import Store

FOLDER = BENCH / "jobs"
LEAST_PER_SECOND = 3000
MOST_P99_US = 20_000


def fill(state: Path, queued: int, body: bytes) -> None:
    """Writes a store with `queued` jobs that cannot run, because their version is not loaded."""
    store = Store(state / "resumed" / "jobs")
    with store.connection:
        store.connection.execute("BEGIN")
        for _ in range(queued):
            store.accept(
                NewJob(
                    token=os.urandom(16),
                    owner="",
                    model="add1",
                    version="9",
                    path="/v2/models/add1/versions/9/infer",
                    fields=b"[]",
                    body=body,
                    size=len(body),
                )
            )
    store.close()


def measure(asked: Model, queued: int, seconds: float, callers: int) -> bool:
    """Prints the row for a server with `queued` jobs. Returns whether it meets the limits."""
    state = FOLDER / f"state-{queued}"
    body = asked.json_request()[0]
    fill(state, queued, body)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "backline", "serve", str(FOLDER / "models"), "--http-port", str(port)]
    server = ServerProcess(
        "jobs", [*command, "--no-grpc", "--no-metrics", "--state-dir", str(state)], folder=FOLDER
    )
    try:
        began = time.monotonic()
        server.wait_until(lambda: answers_200(f"{url}/v2/health/ready"), 120)
        with httpx.Client(base_url=url, timeout=120) as client:
            job = client.post("/v2/models/add1/jobs", content=body).json()
            job = client.get(f"/v2/jobs/{job['id']}", params={"wait": 60}).json()
            assert job["state"] == "done", job
            first = time.monotonic() - began
            found = wrk.run(
                f"{url}/v2/models/add1/jobs", "jobs", body, {}, concurrency=callers, seconds=seconds
            )
            assert not found.errors, found
            began = time.monotonic()
            client.get("/v2/jobs", params={"limit": 100}).raise_for_status()
            listed = time.monotonic() - began
        memory = server.resident_bytes() >> 20
    finally:
        server.end()
    store = Store(state / "resumed" / "jobs")
    ran, left = (
        store.connection.execute(
            f"SELECT total(jobs) FROM counts WHERE version = '1' AND state {which}"
        ).fetchone()[0]
        for which in ("= 3", "< 3")
    )
    store.close()
    click.echo(
        f"{queued:>9} {found.requests_per_second:>10.0f} {found.p50_us / 1e3:>7.1f}"
        f" {found.p99_us / 1e3:>7.1f} {ran / seconds:>8.0f} {left:>8.0f}"
        f" {first:>8.2f} {listed * 1e3:>8.1f} {memory:>6}"
    )
    return found.requests_per_second >= LEAST_PER_SECOND and found.p99_us <= MOST_P99_US


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Seconds per row.")
@click.option("--callers", default=64, show_default=True)
@click.option("--queued", multiple=True, default=(1_000, 1_000_000), show_default=True)
def main(seconds: float, callers: int, queued: tuple[int, ...]) -> None:
    """Measures how fast jobs are accepted and run."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    asked = model("add1", FOLDER / "models")
    for name, value in machine().items():
        click.echo(f"{name}: {value}")
    click.echo(
        f"\n{'queued':>9} {'accepted/s':>10} {'p50 ms':>7} {'p99 ms':>7} {'ran/s':>8} {'left':>8}"
        f" {'start s':>8} {'list ms':>8} {'RSS MB':>6}"
    )
    met = [measure(asked, number, seconds, callers) for number in queued]
    shutil.rmtree(FOLDER, ignore_errors=True)
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
