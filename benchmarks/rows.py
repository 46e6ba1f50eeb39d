"""Compares this checkout with an earlier one, row by row: `python benchmarks/rows.py --before ../earlier`.

The two servers take turns in every round, so that the state of the machine is the same for both. The ratios
are medians over the rounds. Each row is a way to load a server, or one measure of its start.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
from harness import h2load, wrk
from harness.environment import CannotRun
from harness.folders import BENCH, ROOT
from harness.machine import machine
from harness.model import Model, write_model
from harness.server_process import ServerProcess, answers_200, free_ports

REPOSITORY = BENCH / "rows"
MANY = BENCH / "rows-many"
MANY_MODELS = 1_000
#: The measured values. The p50 and p99 are in microseconds, `cpu` is in microseconds per request, and `mb` in
#: 10**6 bytes.
COLUMNS = ("rate", "p50", "p99", "cpu", "seconds", "mb")
PYTHON_MODEL = """\
from collections.abc import Iterator

from backline.model import FP32


class Model:
    {settings}

    def predict(self, x: FP32[-1]) -> {returns}:
        {body}
"""
ENSEMBLE = """\
max_batch_size: 64
platform: "ensemble"
input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] }} ]
ensemble_scheduling {{
{steps}}}
"""

Values = dict[str, float]


@dataclass(frozen=True)
class Side:
    """One of the two checkouts, with its server."""

    name: str
    root: Path
    http_port: int
    grpc_port: int
    process: ServerProcess


@dataclass(frozen=True)
class Row:
    """A measurement of a running server or, if `starts` is set, of a separate start."""

    name: str
    measure: Callable[[Side, float], Values]
    starts: bool = False


def start(name: str, root: Path, repository: Path, *, wait: bool = True) -> Side:
    """Starts the server of a checkout. Raises CannotRun."""
    executable = root / ".venv" / "bin" / "backline"
    if not executable.exists():
        raise CannotRun(f"{executable} is missing: install Backline into the environment of that checkout")
    http_port, grpc_port, metrics_port = free_ports(3)
    command = [str(executable), "serve", str(repository), "--http-port", str(http_port)]
    command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
    command += ["--state-dir", str(BENCH / f"rows-state-{name}")]
    side = Side(name, root, http_port, grpc_port, ServerProcess(f"rows-{name}", command))
    if wait:
        side.process.wait_until(lambda: answers_200(f"http://127.0.0.1:{http_port}/v2/health/ready"))
    return side


def model(name: str, shape: tuple[int, ...]) -> Model:
    return Model(name, REPOSITORY / name, "x" if name == "python" else "INPUT0", shape, 0.1)


def loaded(name: str, shape: tuple[int, ...], clients: int, protocol: str) -> Callable[[Side, float], Values]:
    """Returns a function that measures closed-loop clients, each of which waits for its response."""

    def measure(side: Side, seconds: float) -> Values:
        asked = model(name, shape)
        before = side.process.cpu_seconds()
        if protocol == "grpc":
            post = h2load.grpc_post(side.grpc_port, asked.grpc_request())
            result = h2load.run(post, concurrency=clients, seconds=seconds)
        else:
            body, headers = asked.request("json" if protocol == "json" else "binary")
            url = f"http://127.0.0.1:{side.http_port}/v2/models/{name}/infer"
            result = wrk.run(
                url, f"rows-{name}-{protocol}", body, headers, concurrency=clients, seconds=seconds
            )
        if result.errors:
            raise CannotRun(f"{result.errors} requests to {name} failed")
        cpu = (side.process.cpu_seconds() - before) / max(result.requests, 1) * 1e6
        return {"rate": result.requests_per_second, "p50": result.p50_us, "p99": result.p99_us, "cpu": cpu}

    return measure


def first_token(side: Side, seconds: float) -> Values:
    """Returns the time from sending a request to generate_stream to its first event, with one client."""
    body = b'{"x":[1.0]}'
    head = (
        f"POST /v2/models/stream/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", side.http_port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            connection.sendall(head.encode() + body)
            received = b""
            first = 0.0
            while not received.endswith(b"0\r\n\r\n"):
                piece = connection.recv(65536)
                if not piece:
                    raise CannotRun(f"generate_stream broke off: {received[-200:]!r}")
                received += piece
                if not first and b"data: " in received:
                    first = time.perf_counter() - began
            times.append(first * 1e6)
    return {"p50": statistics.median(times), "p99": float(np.percentile(times, 99))}


def startup(repository: Path) -> Callable[[Side, float], Values]:
    """Returns a function that measures a start: the seconds until the server is ready, their CPU time, and
    the resident memory then.
    """

    def measure(side: Side, seconds: float) -> Values:
        began = time.perf_counter()
        started = start(f"start-{side.name}", side.root, repository, wait=False)
        try:
            while not answers_200(f"http://127.0.0.1:{started.http_port}/v2/health/ready"):
                if not started.process.alive() or time.perf_counter() - began > 120:
                    raise CannotRun(f"the server did not start: {started.process.last_words()}")
                time.sleep(0.002)
            took = time.perf_counter() - began
            cpu = started.process.cpu_seconds() * 1e6
            return {"seconds": took, "cpu": cpu, "mb": started.process.resident_bytes() / 1e6}
        finally:
            started.process.end()

    return measure


ADD1 = ("add1", (1, 16))
LARGE = ("ident", (1, 3, 224, 224))
PYTHON = ("python", (1, 16))
CHAIN = ("chain", (1, 16))
ROWS = (
    *(Row(f"HTTP add1 c={count}", loaded(*ADD1, count, "http")) for count in (1, 16, 64, 256)),
    *(Row(f"gRPC add1 c={count}", loaded(*ADD1, count, "grpc")) for count in (1, 16, 64)),
    *(Row(f"Python model c={count}", loaded(*PYTHON, count, "http")) for count in (1, 16, 64)),
    Row("generate_stream, first token c=1", first_token),
    Row("JSON add1 c=64", loaded(*ADD1, 64, "json")),
    Row("JSON 1,000 floats c=16", loaded("floats", (1, 1000), 16, "json")),
    Row("JSON 150,528 floats c=4", loaded(*LARGE, 4, "json")),
    *(Row(f"gRPC 602 KB c={count}", loaded(*LARGE, count, "grpc")) for count in (1, 16)),
    Row("HTTP 602 KB c=16", loaded(*LARGE, 16, "http")),
    *(Row(f"ensemble c={count}", loaded(*CHAIN, count, "http")) for count in (16, 64)),
    Row("start, one model", startup(BENCH / "rows-one"), starts=True),
    Row(f"start, {MANY_MODELS:,} models", startup(MANY), starts=True),
)


def write_models() -> None:
    """Writes the repositories, unless they exist."""
    if (MANY / f"m{MANY_MODELS - 1}").exists():
        return
    for number in (1, 2, 3):
        save(REPOSITORY / f"add{number}", "Add", [16], float(number))
    save(REPOSITORY / "ident", "Identity", [3, 224, 224])
    save(REPOSITORY / "floats", "Identity", [1000])
    save(BENCH / "rows-one" / "add1", "Add", [16], 1.0)
    python = {"settings": "max_batch_size = 64", "returns": "FP32[-1]", "body": "return x"}
    stream = {"settings": '"""Yields its input."""', "returns": "Iterator[FP32[-1]]", "body": "yield x"}
    for name, parts in (("python", python), ("stream", stream)):
        folder = REPOSITORY / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text(PYTHON_MODEL.format(**parts))
    names = ("INPUT0", "t1", "t2", "OUTPUT0")
    steps = "".join(
        f'  step {{ model_name: "add{index + 1}" model_version: -1'
        f' input_map {{ key: "INPUT0" value: "{names[index]}" }}'
        f' output_map {{ key: "OUTPUT0" value: "{names[index + 1]}" }} }}\n'
        for index in range(3)
    )
    (REPOSITORY / "chain" / "1").mkdir(parents=True, exist_ok=True)
    (REPOSITORY / "chain" / "config.pbtxt").write_text(ENSEMBLE.format(steps=steps))
    for number in range(MANY_MODELS):
        save(MANY / f"m{number}", "Add", [16], float(number))


def save(folder: Path, operator: str, dims: list[int], constant: float | None = None) -> None:
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(path, operator, dims, constant)
    onnx.checker.check_model(str(path))


def compare(
    rows: list[Row], before: Path, rounds: int, seconds: float
) -> dict[str, list[tuple[Values, Values]]]:
    """Returns, for each row and round, the values of the earlier checkout and of this one."""
    sides = [start("before", before, REPOSITORY), start("now", ROOT, REPOSITORY)]
    found: dict[str, list[tuple[Values, Values]]] = {row.name: [] for row in rows}
    try:
        for number in range(rounds):
            for row in rows:
                click.echo(f"round {number + 1}: {row.name}", err=True)
                values: dict[str, Values] = {}
                for side in sides if number % 2 else sides[::-1]:
                    for other in sides:
                        if row.starts or other is not side:
                            other.process.pause()
                        else:
                            other.process.resume()
                    values[side.name] = row.measure(side, seconds)
                found[row.name].append((values["before"], values["now"]))
    finally:
        for side in sides:
            side.process.end()
    return found


def table(found: dict[str, list[tuple[Values, Values]]]) -> list[str]:
    """Returns a line for each value of each row: the earlier and the current median, and the median of the
    rounds' ratios.
    """
    lines = ["| row | value | before | now | ratio |", "| --- | --- | --- | --- | --- |"]
    for name, pairs in found.items():
        for column in COLUMNS:
            values = [(before[column], now[column]) for before, now in pairs if column in before]
            if values:
                before, now = (statistics.median(side) for side in zip(*values, strict=True))
                ratio = statistics.median(new / old if old else np.nan for old, new in values)
                lines.append(f"| {name} | {column} | {before:,.4g} | {now:,.4g} | {ratio:.3f} |")
    return lines


@click.command(context_settings={"show_default": True})
@click.option(
    "--before", type=click.Path(path_type=Path, exists=True), required=True, help="Earlier checkout."
)
@click.option("--rounds", type=click.IntRange(1), default=5, help="Number of rounds.")
@click.option("--seconds", type=click.FloatRange(1), default=2.0, help="Seconds per row, side and round.")
@click.option("--rows", "chosen", default="", help="Only rows whose name contains one of these, by commas.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), default=BENCH / "rows.json", help="Results."
)
def main(before: Path, rounds: int, seconds: float, chosen: str, json_file: Path) -> None:
    """Measures the rows, and prints medians and ratios: of this checkout to the earlier one."""
    parts = [part.strip() for part in chosen.split(",") if part.strip()]
    rows = [row for row in ROWS if not parts or any(part in row.name for part in parts)]
    if not rows:
        raise click.BadParameter(f"no row is called {chosen}", param_hint="--rows")
    about = machine()
    click.echo("\n".join(f"- {name}: {value}" for name, value in about.items()))
    write_models()
    try:
        found = compare(rows, before.resolve(), rounds, seconds)
    except CannotRun as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(table(found)))
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps({"machine": about, "rows": found}, indent=1))
    click.echo(f"Written: {os.path.relpath(json_file)}")


if __name__ == "__main__":
    main()
