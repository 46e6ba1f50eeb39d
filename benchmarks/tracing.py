"""Measures the overhead of tracing: `python benchmarks/tracing.py`.

The script calls `add1` through the server's application, without sockets, one request after another. It
prints microseconds of CPU time per request, for the whole process (including the thread that sends or writes
traces) and for the event loop's thread. Each number is the minimum of many measurements, because other
programs can only make a measurement longer. Settings alternate, in separate processes.
"""

from __future__ import annotations

import asyncio
import gc
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import click
import uvloop
from harness.folders import BENCH
from harness.machine import machine
from harness.model import model

from backline.dialects.application import build_application
from backline.embedded.embedded import Embedded
from backline.observe.tracing.settings import parse_trace_config
from backline.observe.tracing.tracing import Tracing
from backline.wire.application import Fields, HttpRequest, ResponseStream

REPOSITORY = BENCH / "traced"
WARM_UP, STRETCHES, STRETCH = 2000, 40, 500
FILE = ("level=TIMESTAMPS", f"triton,file={BENCH / 'trace.json'}")
SPANS = ("level=TIMESTAMPS", "mode=opentelemetry")


class Request(HttpRequest):
    """A request whose response is discarded."""

    __slots__ = ("answered",)
    answered: asyncio.Future[int]

    def respond(self, status: int, fields: Fields, body: Sequence[object] = ()) -> None:
        self.answered.set_result(status)

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        raise NotImplementedError


async def measure(settings: Sequence[str]) -> tuple[float, float]:
    """Returns the microseconds of CPU time per request, for the process and for the event loop's thread."""
    loop = asyncio.get_running_loop()
    asked = model("add1", REPOSITORY)
    body, headers = asked.binary_request()
    fields = {name.lower().encode(): value.encode() for name, value in headers.items()}
    server = Embedded([REPOSITORY])
    await server.start()
    tracing = Tracing(server.engine, parse_trace_config(settings))
    answer = build_application(server.engine).http

    async def ask(count: int) -> None:
        for _ in range(count):
            request = Request(b"POST", b"/v2/models/add1/infer", b"", fields, body)
            request.answered = loop.create_future()
            answer(request)
            assert await request.answered == 200

    await ask(WARM_UP)
    process, thread = [], []
    for _ in range(STRETCHES):
        began = time.process_time(), time.thread_time()
        await ask(STRETCH)
        process.append(time.process_time() - began[0])
        thread.append(time.thread_time() - began[1])
    await tracing.close()
    await server.stop()
    return min(process) / STRETCH * 1e6, min(thread) / STRETCH * 1e6


class _Receiver(http.server.BaseHTTPRequestHandler):
    """A receiver that discards spans."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@click.command()
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of turns per setting; the minimum counts.",
)
@click.option(
    "--measure", "settings", hidden=True, help="Measures one setting, given as JSON, and prints the result."
)
def main(rounds: int, settings: str | None) -> None:
    """Measures the overhead of tracing and prints a table."""
    if settings is not None:
        gc.disable()
        click.echo(json.dumps(uvloop.run(measure(json.loads(settings)))))
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        there = f"opentelemetry,url=http://127.0.0.1:{receiver.server_port}/v1/traces"
        ways = {
            "off": (),
            "trace file, every 1000th request": (*FILE, "rate=1000"),
            "trace file, every request": (*FILE, "rate=1"),
            "spans, every 1000th request": (*SPANS, there, "rate=1000"),
            "spans, every request": (*SPANS, there, "rate=1"),
            "spans, every request, no receiver": (
                *SPANS,
                "opentelemetry,url=http://127.0.0.1:9/v1/traces",
                "rate=1",
            ),
        }
        found: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, options in ways.items():
                command = [sys.executable, __file__, "--measure", json.dumps(options)]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                found[way].append(json.loads(done.stdout))
        receiver.shutdown()
    click.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    click.echo("| tracing | processor time of a request | of which on the event loop |\n| --- | --- | --- |")
    for way, times in found.items():
        process, thread = (min(column) for column in zip(*times, strict=True))
        click.echo(f"| {way} | {process:.1f} us | {thread:.1f} us |")


if __name__ == "__main__":
    main()
