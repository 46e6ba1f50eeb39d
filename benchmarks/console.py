"""Measures how open consoles slow down the clients of a server: `python benchmarks/console.py`.

Periods of load on add1 alternate: without any reader of the server's activity, and with ten readers. Each of
them receives one event per second, like a browser tab with the console. The script prints the ratios of
requests per second, and of requests per CPU second of the server, which other programs on the machine disturb
less.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import threading
from collections.abc import Iterator

import click
import numpy as np
from harness import wrk
from harness.folders import BENCH
from harness.machine import machine
from harness.model import model
from harness.server_process import ServerProcess, answers_200, free_ports

FOLDER = BENCH / "console"
REQUEST = b"GET /v2/activity HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n"


class Tab(threading.Thread):
    """A tab with the console, which receives events about the server's activity until it is closed."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(REQUEST)
        self.events = 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while received := self._socket.recv(1 << 16):
                self.events += received.count(b"data: ")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._socket.close()


@contextlib.contextmanager
def tabs(port: int, count: int) -> Iterator[list[Tab]]:
    opened = [Tab(port) for _ in range(count)]
    try:
        yield opened
    finally:
        for tab in opened:
            tab.close()


@click.command()
@click.option("--tabs", "count", default=10)
@click.option("--rounds", default=10)
@click.option("--seconds", default=2.0, help="Seconds per stretch.")
@click.option("--concurrency", default=64)
def main(count: int, rounds: int, seconds: float, concurrency: int) -> None:
    """Compares the throughput of add1 with and without open consoles."""
    for name, value in machine().items():
        click.echo(f"{name}: {value}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    body, headers = model("add1", FOLDER / "models").binary_request()
    (port,) = free_ports(1)
    options = ["--http-port", str(port), "--no-grpc", "--no-metrics"]
    command = [sys.executable, "-m", "backline", "serve", str(FOLDER / "models"), *options]
    server = ServerProcess("console", command)
    url = f"http://127.0.0.1:{port}/v2/models/add1/infer"
    rates, times, events = [], [], 0
    try:
        server.wait_until(lambda: answers_200(f"http://127.0.0.1:{port}/v2/health/ready"), 120)
        for number in range(rounds + 1):
            found = {}
            for open_tabs in (0, count) if number % 2 else (count, 0):
                with tabs(port, open_tabs) as opened:
                    before = server.cpu_seconds()
                    result = wrk.run(url, "console", body, headers, concurrency=concurrency, seconds=seconds)
                    assert not result.errors, result
                    spent = server.cpu_seconds() - before
                    found[open_tabs] = (result.requests_per_second, result.requests / spent)
                    events += sum(tab.events for tab in opened)
            if number:  # the first round is the warm-up
                rates.append(found[count][0] / found[0][0])
                times.append(found[count][1] / found[0][1])
    finally:
        server.end()
    assert events >= count * rounds * seconds / 2, f"the tabs received only {events} events"
    for what, ratios in (("requests per second", rates), ("requests per CPU second", times)):
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        click.echo(f"{what} with {count} tabs: {middle:.3f} of without (quartiles {low:.3f}, {high:.3f})")


if __name__ == "__main__":
    main()
