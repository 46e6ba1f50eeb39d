"""Measures how scraping a server with many models affects its clients: `python benchmarks/scrapes.py`.

One client calls one of the models, and pauses for a millisecond after each answer. Periods without scrapes
alternate with periods of back-to-back scrapes, far more than Prometheus makes. The script prints the client's
latency in milliseconds.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
from harness.folders import BENCH
from harness.machine import machine
from harness.server_process import ServerProcess, answers_200, free_ports

CONFIG = """backend: "identity" max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }] output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
SCRAPE = """
import sys, time, urllib.request
while True:
    began = time.perf_counter()
    with urllib.request.urlopen(sys.argv[1]) as answer:
        size = len(answer.read())
    print(size, time.perf_counter() - began, flush=True)
"""
PAUSE = 0.001


def put_models(repository: Path, count: int) -> None:
    shutil.rmtree(repository, ignore_errors=True)
    for number in range(count):
        (repository / f"model_{number}" / "1").mkdir(parents=True)
        (repository / f"model_{number}" / "config.pbtxt").write_text(CONFIG)


def ask(port: int, seconds: float) -> list[float]:
    """Returns the latency of each request in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    took = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.request("POST", "/v2/models/model_0/infer", BODY)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE)
    connection.close()
    return took


def show(count: int, way: str, took: list[float], scrapes: str) -> None:
    p50, p99, p999 = np.percentile(took, (50, 99, 99.9))
    click.echo(
        f"{count:>6} {way:>8} {len(took):>8} {p50:>8.2f} {p99:>8.2f}"
        f" {p999:>8.2f} {max(took):>8.2f}  {scrapes}"
    )


@click.command()
@click.option("--models", default="50,200,500", help="Numbers of models.")
@click.option("--seconds", default=3.0, help="Seconds per stretch.")
@click.option("--rounds", default=3)
def main(models: str, seconds: float, rounds: int) -> None:
    """Measures a client's latency with and without concurrent scrapes."""
    for name, value in machine().items():
        click.echo(f"{name}: {value}")
    click.echo(
        f"{'models':>6} {'scrapes':>8} {'requests':>8} {'p50 ms':>8} {'p99 ms':>8}"
        f" {'p99.9':>8} {'longest':>8}"
    )
    for count in map(int, models.split(",")):
        repository = BENCH / "scrapes" / "models"
        put_models(repository, count)
        port, metrics = free_ports(2)
        options = ["--no-grpc", "--http-port", str(port), "--metrics-port", str(metrics)]
        server = ServerProcess(
            "scrapes", [sys.executable, "-m", "backline", "serve", str(repository), *options]
        )
        try:
            server.wait_until(lambda port=port: answers_200(f"http://127.0.0.1:{port}/v2/health/ready"), 120)
            measure(count, port, f"http://127.0.0.1:{metrics}/metrics", seconds, rounds)
        finally:
            server.end()


def measure(count: int, port: int, page: str, seconds: float, rounds: int) -> None:
    ask(port, 0.5)
    alone: list[float] = []
    scraped: list[float] = []
    scrapes: list[list[str]] = []
    for _ in range(rounds):
        alone += ask(port, seconds)
        scraper = subprocess.Popen([sys.executable, "-c", SCRAPE, page], stdout=subprocess.PIPE, text=True)
        try:
            assert scraper.stdout is not None
            scraper.stdout.readline()  # the scraper has started
            scraped += ask(port, seconds)
        finally:
            scraper.kill()
            scrapes += [line.split() for line in scraper.communicate()[0].splitlines()]
    whole = [line for line in scrapes if len(line) == 2]
    show(count, "none", alone, "")
    took = np.median([float(line[1]) for line in whole]) * 1000
    show(
        count,
        "all time",
        scraped,
        f"{len(whole)} scrapes of {int(whole[0][0]) // 1024} KiB, {took:.0f} ms each",
    )


if __name__ == "__main__":
    main()
