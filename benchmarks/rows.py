"""Compares this checkout with an earlier one, row by row: `python benchmarks/rows.py --before ../earlier`.

The two servers take turns in every round, so that the state of the machine is the same for both. The ratios
are medians over the rounds. Each row is a way to load a server, or one measure of its start.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import socket
import ssl
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import numpy as np
import onnx
from harness import h2load, wrk
from harness.environment import CannotRun
from harness.folders import BENCH, ROOT, sources
from harness.machine import machine
from harness.model import Model, write_model
from harness.model import model as harness_model
from harness.open_loop import Clients, poisson
from harness.prepared_streams import BadAnswer, StreamingCall
from harness.server_process import ServerProcess, answers_200, free_ports, make_certificate

REPOSITORY = BENCH / "rows"
MANY = BENCH / "rows-many"
MANY_MODELS = 1_000
LOOP_TIMER = Path(__file__).parent / "harness" / "loop_timer.py"
CERTIFICATE, KEY = BENCH / "rows.crt", BENCH / "rows.key"
IDLE_SECONDS = 2.0
#: The seconds at the start of an open loop that do not count, and the smallest number of requests that do.
LEAD_SECONDS = 0.5
LEAST_REQUESTS = 50
#: How often /metrics is scraped, once per second.
SCRAPES = 6
#: The measured values. The p50 and p99 are in microseconds, `cpu` is in microseconds per request, and `mb` in
#: 10**6 bytes of resident memory, or of a compressed page. `refused` is the share of requests that an open
#: loop sent and the server refused. `stall` is the longest time, in milliseconds, for which the process kept
#: a timer on its event loop waiting while it used the CPU. `late` is the longest delay of that timer, for
#: whatever reason, and `idle_late` is the same without scrapes.
COLUMNS = ("rate", "p50", "p99", "cpu", "refused", "seconds", "mb", "stall", "late", "idle_late")
PYTHON_MODEL = """\
from collections.abc import Iterator

from backline.model import FP32


class Model:
    {settings}

    def predict(self, x: FP32[-1]) -> {returns}:
        {body}
"""
#: A decoupled model in the form of Triton.
TOKENS = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            sender = request.get_response_sender()
            for number in range(100):
                token = pb_utils.Tensor("token", x + np.float32(number))
                sender.send(pb_utils.InferenceResponse([token]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
TOKENS_CONFIGURATION = """\
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "token" data_type: TYPE_FP32 dims: [ -1 ] } ]
model_transaction_policy { decoupled: true }
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
    """One of the two checkouts, with its server. `scheme` is "https" if the server uses TLS."""

    name: str
    root: Path
    scheme: str
    http_port: int
    grpc_port: int
    metrics_port: int
    process: ServerProcess

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.http_port}"

    def ready(self) -> bool:
        tls = ssl.create_default_context(cafile=CERTIFICATE) if self.scheme == "https" else None
        return answers_200(f"{self.url}/v2/health/ready", context=tls)


@dataclass(frozen=True)
class Row:
    """A measurement of a running server or, if `starts` is set, of a separate one. `scheme` is that of the
    server.
    """

    name: str
    measure: Callable[[Side, float], Values]
    starts: bool = False
    scheme: str = "http"


def start(
    name: str,
    root: Path,
    repository: Path,
    *,
    scheme: str = "http",
    wait: bool = True,
    timer: Path | None = None,
) -> Side:
    """Starts the server of a checkout, with a timer on its event loop if `timer` names a file for what the
    timer measures. Raises CannotRun.
    """
    script = root / ".venv" / "bin" / "backline"
    if not script.exists():
        raise CannotRun(f"{script} is missing: install Backline into the environment of that checkout")
    http_port, grpc_port, metrics_port = free_ports(3)
    command = [str(environment(root) / "bin" / "python")]
    command += [str(script)] if timer is None else [str(LOOP_TIMER), str(timer)]
    command += ["serve", str(repository), "--http-port", str(http_port)]
    command += ["--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
    command += ["--state-dir", str(BENCH / f"rows-state-{name}-{scheme}")]
    if scheme == "https":
        command += ["--ssl-certificate", str(CERTIFICATE), "--ssl-key", str(KEY)]
    process = ServerProcess(f"rows-{name}-{scheme}", command)
    side = Side(name, root, scheme, http_port, grpc_port, metrics_port, process)
    if wait:
        process.wait_until(side.ready)
    return side


@cache
def environment(root: Path) -> Path:
    """Creates an environment that has only the path to the packages of a checkout's environment. Python needs
    less time to start there: packages that only development needs have it import modules whenever it starts,
    but only in the environment in which they are installed.
    """
    python = str(root / ".venv" / "bin" / "python")
    made = BENCH / f"rows-environment-{hashlib.sha256(bytes(root)).hexdigest()[:8]}"
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", str(made)], check=True)
    about = "import sys, sysconfig; print(sysconfig.get_path('purelib'), *sys.path, sep='\\n')"
    found = subprocess.run([python, "-I", "-c", about], check=True, capture_output=True, text=True)
    packages, *paths = found.stdout.splitlines()
    (folder,) = made.glob("lib/python*/site-packages")
    own = paths[paths.index(packages) :]
    (folder / "checkout.pth").write_text("\n".join(own))
    return made


def model(name: str, shape: tuple[int, ...]) -> Model:
    if name == "basic_pitch":
        return harness_model(name, REPOSITORY)
    return Model(name, REPOSITORY / name, "x" if name == "python" else "INPUT0", shape, 0.1)


def loaded(name: str, shape: tuple[int, ...], clients: int, protocol: str) -> Callable[[Side, float], Values]:
    """Returns a function that measures closed-loop clients, each of which waits for its response."""

    def measure(side: Side, seconds: float) -> Values:
        asked = model(name, shape)
        before = side.process.cpu_seconds()
        if protocol == "grpc":
            post = h2load.grpc_post(side.grpc_port, asked.grpc_request(), scheme=side.scheme)
            result = h2load.run(post, concurrency=clients, seconds=seconds)
        else:
            body, headers = asked.request("json" if protocol == "json" else "binary")
            url = f"{side.url}/v2/models/{name}/infer"
            result = wrk.run(
                url, f"rows-{name}-{protocol}", body, headers, concurrency=clients, seconds=seconds
            )
        if result.errors:
            raise CannotRun(f"{result.errors} requests to {name} failed")
        cpu = (side.process.cpu_seconds() - before) / max(result.requests, 1) * 1e6
        return {"rate": result.requests_per_second, "p50": result.p50_us, "p99": result.p99_us, "cpu": cpu}

    return measure


def open_loop(rate: int) -> Callable[[Side, float], Values]:
    """Returns a function that sends `rate` requests per second to add1 over HTTP, at the times of a Poisson
    process. Latency counts from the time at which a request was due. On a machine that cannot keep up, the
    server may refuse requests because its queue is full.
    """

    async def offer(side: Side, seconds: float) -> Values:
        clients = Clients(side.http_port, model(*ADD1).http_request())
        lead, *moments = LEAD_SECONDS, *poisson(rate, LEAD_SECONDS + seconds, seed=rate)
        began = time.monotonic() + 0.05
        await clients.send_at(began + moment for moment in moments if moment < lead)
        await asyncio.sleep(max(0.0, began + lead - time.monotonic()))
        before = side.process.cpu_seconds()
        await clients.send_at(began + moment for moment in moments if moment >= lead)
        lost = await clients.settle(20)
        cpu = side.process.cpu_seconds() - before
        clients.close()
        fates = [fate for fate in clients.fates.all if fate.due >= began + lead]
        took = [(fate.ended - fate.due) * 1e6 for fate in fates if fate.what == "200"]
        refused = sum(fate.what == "503" for fate in fates)
        if lost or not took or len(took) + refused < len(fates):
            raise CannotRun(
                f"requests to add1 failed: {dict(clients.fates.count())}, {lost} without an answer"
            )
        p50, p99 = np.percentile(took, [50, 99])
        return {
            "p50": float(p50),
            "p99": float(p99),
            "cpu": cpu / len(fates) * 1e6,
            "refused": refused / len(fates),
        }

    def measure(side: Side, seconds: float) -> Values:
        gc.disable()  # garbage collection would interrupt the load
        try:
            return asyncio.run(offer(side, max(seconds, LEAST_REQUESTS / rate)))
        finally:
            gc.enable()

    return measure


def connecting(count: int) -> Callable[[Side, float], Values]:
    """Returns a function that opens `count` connections at the same time, each with one call of add1 over
    gRPC. The latency is that of the calls; `seconds` is the time until the last response.
    """

    def measure(side: Side, seconds: float) -> Values:
        post = h2load.grpc_post(side.grpc_port, model(*ADD1).grpc_request())
        before = side.process.cpu_seconds()
        load = h2load.Load(post, [f"-c{count}", f"-n{count}", "-m1"])
        try:
            result = h2load.parse(load.finish(60), [request.took * 1e6 for request in load.requests()])
        finally:
            load.end()
        if result.errors:
            raise CannotRun(f"{result.errors} of {count} calls failed")
        cpu = (side.process.cpu_seconds() - before) / count * 1e6
        took = count / result.requests_per_second
        return {"p50": result.p50_us, "p99": result.p99_us, "cpu": cpu, "seconds": took}

    return measure


def first_token(name: str) -> Callable[[Side, float], Values]:
    """Returns a function that measures, with one client, the time from sending a request to generate_stream
    to its first event.
    """
    body = b'{"x":[1.0]}'
    head = (
        f"POST /v2/models/{name}/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    def measure(side: Side, seconds: float) -> Values:
        times: list[float] = []
        before = side.process.cpu_seconds()
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
        cpu = (side.process.cpu_seconds() - before) / len(times) * 1e6
        return {"p50": statistics.median(times), "p99": float(np.percentile(times, 99)), "cpu": cpu}

    return measure


def grpc_stream(side: Side, seconds: float) -> Values:
    """Returns the time from sending a message to add1 on an open ModelStreamInfer call to its response, with
    one client.
    """
    from tritonclient.grpc import service_pb2

    message = model(*ADD1).grpc_request()
    times: list[float] = []
    call = StreamingCall(side.grpc_port, "/inference.GRPCInferenceService/ModelStreamInfer")
    try:
        response = service_pb2.ModelStreamInferResponse.FromString(call.exchange(message))
        if response.error_message:
            raise CannotRun(f"a message to add1 failed: {response.error_message}")
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            call.exchange(message)
            times.append((time.perf_counter() - began) * 1e6)
    except BadAnswer as error:
        raise CannotRun(f"ModelStreamInfer broke off: {error}") from error
    finally:
        call.close()
    return {"p50": statistics.median(times), "p99": float(np.percentile(times, 99))}


def scraped(side: Side, seconds: float) -> Values:
    """Returns how long scrapes of /metrics, one per second, occupy the event loop of a server of MANY. The
    server is a new one, because its first scrape counts, too.
    """
    file = BENCH / f"rows-timer-{side.name}.npy"
    file.unlink(missing_ok=True)
    started = start(f"start-{side.name}", side.root, MANY, wait=False, timer=file)
    page = urllib.request.Request(
        f"http://127.0.0.1:{started.metrics_port}/metrics", headers={"accept-encoding": "gzip"}
    )
    try:
        started.process.wait_until(started.ready, 120)
        time.sleep(IDLE_SECONDS)
        idle = time.monotonic()
        time.sleep(SCRAPES)
        began = time.monotonic()
        for number in range(SCRAPES):
            time.sleep(max(0.0, began + number - time.monotonic()))
            with urllib.request.urlopen(page) as answer:
                size = len(answer.read())
        ended = time.monotonic()
    finally:
        started.process.end()
    when, late, cpu = np.load(file).T * 1000
    quiet, busy = (
        (when > since * 1000) & (when < until * 1000) for since, until in ((idle, began), (began, ended))
    )
    return {
        "mb": size / 1e6,
        "stall": float(np.minimum(late, cpu)[busy].max()),
        "late": float(late[busy].max()),
        "idle_late": float(late[quiet].max()),
    }


def startup(repository: Path) -> Callable[[Side, float], Values]:
    """Returns a function that measures a start: the seconds until the server is ready, their CPU time, and
    the resident memory after IDLE_SECONDS without requests.

    A start that does not count comes first and reads the files, because some systems page out files that were
    not used for a minute.
    """

    def ready(side: Side) -> tuple[Side, float]:
        began = time.perf_counter()
        started = start(f"start-{side.name}", side.root, repository, wait=False)
        while not started.ready():
            if not started.process.alive() or time.perf_counter() - began > 120:
                started.process.end()
                raise CannotRun(f"the server did not start: {started.process.last_words()}")
            time.sleep(0.002)
        return started, time.perf_counter() - began

    def measure(side: Side, seconds: float) -> Values:
        ready(side)[0].process.end()
        started, took = ready(side)
        try:
            cpu = started.process.cpu_seconds() * 1e6
            time.sleep(IDLE_SECONDS)
            return {"seconds": took, "cpu": cpu, "mb": started.process.resident_bytes() / 1e6}
        finally:
            started.process.end()

    return measure


ADD1 = ("add1", (1, 16))
LARGE = ("ident", (1, 3, 224, 224))
PYTHON = ("python", (1, 16))
CHAIN = ("chain", (1, 16))
PITCH = ("basic_pitch", (1, 43844, 1))
ROWS = (
    *(Row(f"HTTP add1 c={count}", loaded(*ADD1, count, "http")) for count in (1, 2, 3, 4, 16, 64, 256)),
    *(Row(f"gRPC add1 c={count}", loaded(*ADD1, count, "grpc")) for count in (1, 16, 64)),
    Row("gRPC add1, 512 connections opened at once", connecting(512)),
    Row("gRPC stream add1 c=1", grpc_stream),
    Row("gRPC over TLS add1 c=1", loaded(*ADD1, 1, "grpc"), scheme="https"),
    Row("HTTPS add1 c=64", loaded(*ADD1, 64, "http"), scheme="https"),
    *(Row(f"Python model c={count}", loaded(*PYTHON, count, "http")) for count in (1, 16, 64)),
    *(Row(f"basic_pitch c={count}", loaded(*PITCH, count, "http")) for count in (1, 2, 4, 8)),
    *(Row(f"HTTP add1 open loop {rate:,}/s", open_loop(rate)) for rate in (10, 100, 1_000, 10_000)),
    Row("generate_stream, only token c=1", first_token("stream")),
    Row("generate_stream, first of 100 tokens c=1", first_token("tokens")),
    *(Row(f"JSON add1 c={count}", loaded(*ADD1, count, "json")) for count in (1, 64)),
    Row("JSON 1,000 floats c=16", loaded("floats", (1, 1000), 16, "json")),
    Row("JSON 150,528 floats c=4", loaded(*LARGE, 4, "json")),
    *(Row(f"gRPC 602 KB c={count}", loaded(*LARGE, count, "grpc")) for count in (1, 16)),
    Row("HTTP 602 KB c=16", loaded(*LARGE, 16, "http")),
    *(Row(f"ensemble c={count}", loaded(*CHAIN, count, "http")) for count in (1, 16, 64)),
    Row("start, one model", startup(BENCH / "rows-one"), starts=True),
    Row(f"start, {MANY_MODELS:,} models", startup(MANY), starts=True),
    Row(f"/metrics, {MANY_MODELS:,} models", scraped, starts=True),
)


def write_models() -> None:
    """Writes the repositories and a new certificate."""
    BENCH.mkdir(parents=True, exist_ok=True)
    make_certificate(CERTIFICATE, KEY)
    harness_model("basic_pitch", REPOSITORY)
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
    (REPOSITORY / "tokens" / "1").mkdir(parents=True, exist_ok=True)
    (REPOSITORY / "tokens" / "1" / "model.py").write_text(TOKENS)
    (REPOSITORY / "tokens" / "config.pbtxt").write_text(TOKENS_CONFIGURATION)
    names = ("INPUT0", "t1", "t2", "OUTPUT0")
    steps = "".join(
        f'  step {{ model_name: "add{index + 1}" model_version: -1'
        f' input_map {{ key: "INPUT0" value: "{names[index]}" }}'
        f' output_map {{ key: "OUTPUT0" value: "{names[index + 1]}" }} }}\n'
        for index in range(3)
    )
    (REPOSITORY / "chain" / "1").mkdir(parents=True, exist_ok=True)
    (REPOSITORY / "chain" / "config.pbtxt").write_text(ENSEMBLE.format(steps=steps))
    if (MANY / f"m{MANY_MODELS - 1}").exists():
        return
    for number in range(MANY_MODELS):
        save(MANY / f"m{number}", "Add", [16], float(number))


def save(folder: Path, operator: str, dims: list[int], constant: float | None = None) -> None:
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(path, operator, dims, constant)
    onnx.checker.check_model(str(path))


def compile_modules(root: Path) -> None:
    """Compiles the modules of a checkout. A start would compile those that are not, each time if the
    environment forbids to write compiled files, and that takes longer than the start.
    """
    python = root / ".venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "compileall", "-q", *map(str, sources(root))], check=True)


def compare(
    rows: list[Row], before: Path, rounds: int, seconds: float
) -> dict[str, list[tuple[Values, Values]]]:
    """Returns, for each row and round, the values of the earlier checkout and of this one."""
    sides: list[Side] = []
    found: dict[str, list[tuple[Values, Values]]] = {row.name: [] for row in rows}
    try:
        for scheme in sorted({row.scheme for row in rows}):
            for name, root in (("before", before), ("now", ROOT)):
                sides.append(start(name, root, REPOSITORY, scheme=scheme))
        for number in range(rounds):
            for row in rows:
                click.echo(f"round {number + 1}: {row.name}", err=True)
                values: dict[str, Values] = {}
                measured = [side for side in sides if side.scheme == row.scheme]
                for side in measured if number % 2 else measured[::-1]:
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
    for root in (before.resolve(), ROOT):
        compile_modules(root)
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
