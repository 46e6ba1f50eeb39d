"""`backline bench`: measures a model under load, at one or more concurrencies or request rates."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from backline.cli.command import run
from backline.cli.connection import connection_options, nearest_model
from backline.cli.inputs import input_option, request_inputs, shape_option
from backline.cli.numbers import Number, Numbers
from backline.plugins.tools.bench.load_generator import (
    Arrivals,
    BenchStep,
    LoadResult,
    ServerShare,
    closed_loop,
    open_loop,
)
from backline.plugins.tools.bench.report import (
    BenchReport,
    print_bench,
    require_matplotlib,
    write_html,
    write_json,
    write_png,
)
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall, Transport
from backline_client.values.errors import BacklineError, NotFound
from backline_client.values.names import printable

Reported = TypeVar("Reported")

_EPILOG = """\b
Examples:
  backline bench add1
  backline bench add1 -c 1,8,64 --duration 10 --url grpc://localhost:8001
  backline bench basic_pitch --rate 20,40 --arrivals constant
  backline bench silero_vad --input-shape input:1,576 --html report.html
  backline bench spectrogram --input audio=@song.mp3
  backline bench add1 --url inproc:///path/to/repository --json numbers.json

Each step of --concurrency has that many callers, which wait for each response (closed loop). With --rate,
requests are sent at that rate regardless of responses (open loop), and latency counts from when each request
was due."""


@click.command(epilog=_EPILOG)
@click.argument("model")
@click.option(
    "--concurrency",
    "-c",
    type=Numbers(int),
    default="1,2,4,8,16,32",
    show_default=True,
    help="Numbers of requests in flight; each number is one step.",
)
@click.option(
    "--rate",
    type=Numbers(float),
    help="Requests per second, instead of --concurrency; each number is one step.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="How the requests of --rate are spaced.",
)
@click.option(
    "--duration",
    type=Number(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds per step.",
)
@click.option(
    "--warm-up",
    type=Number(0),
    default=0.5,
    show_default=True,
    help="Seconds of load before each step that are not measured.",
)
@shape_option
@input_option
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="The inputs, as --input @PATH: a .npz or .json with inputs by name, a folder with a file for each"
    " input, or the file of the only required input.",
)
@click.option("--model-version", default="", help="The version; default: the server's choice.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all results as JSON."
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an HTML page with the plot and the table.",
)
@click.option(
    "--png", "png_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the plot as an image."
)
@connection_options
def command(
    url: str,
    options: ClientOptions,
    model: str,
    concurrency: tuple[int, ...],
    rate: tuple[float, ...] | None,
    arrivals: Arrivals,
    duration: float,
    warm_up: float,
    input_shape: tuple[str, ...],
    inputs: tuple[str, ...],
    data: Path | None,
    model_version: str,
    json_path: Path | None,
    html_path: Path | None,
    png_path: Path | None,
) -> None:
    """Measure throughput and latency percentiles of MODEL on a server, by concurrency or by request rate.

    Required inputs without a value get random ones.
    """
    if html_path is not None or png_path is not None:
        require_matplotlib()
    for path in (json_path, html_path, png_path):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.BadParameter(f"'{path}' cannot be written: create its folder first")
    steps: list[tuple[int | None, float | None]] = (
        [(None, each) for each in rate] if rate else [(int(each), None) for each in concurrency]
    )
    plan = _Plan(model, model_version, steps, arrivals, duration, warm_up)
    given = (*inputs, *(() if data is None else (f"@{data}",)))
    report = run(_measure(url, options, plan, input_shape, given))
    print_bench(report)
    if json_path is not None:
        write_json(report, json_path)
    if html_path is not None:
        write_html(report, html_path)
    if png_path is not None:
        write_png(report, png_path)
    if any(step.errors for step in report.steps):
        raise click.exceptions.Exit(1)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The plan of a benchmark. Each step is a pair: the number of requests in flight, or None, and the number
    of requests per second, or None. `duration` and `warm_up` are in seconds per step.
    """

    model: str
    version: str
    steps: list[tuple[int | None, float | None]]
    arrivals: Arrivals
    duration: float
    warm_up: float


async def _measure(
    url: str, options: ClientOptions, plan: _Plan, shapes: Sequence[str], given: Sequence[str]
) -> BenchReport:
    async with AsyncClient(url, options) as client:
        transport = await client.transport()
        try:
            metadata = await transport.model_metadata(plan.model, plan.version, options.timeout)
        except NotFound as error:
            raise nearest_model(plan.model, await client.models(), error) from None
        config = await _reported(transport.model_config(plan.model, plan.version, options.timeout), {})
        tensors = request_inputs(metadata.completed(config), shapes, given)
        call = InferCall(plan.model, tensors, plan.version, timeout=options.timeout)
        await transport.infer(call)  # so that an error occurs once here, and not in every request of the load
        inputs = ", ".join(f"{tensor.name} {tensor.datatype.name}{list(tensor.shape)}" for tensor in tensors)
        server = await transport.server_metadata(options.timeout)
        about = f"{plan.model} at {client.address.url} ({server.name} {server.version}): {inputs}"
        print(printable(about), flush=True)
        steps = [await _step(transport, call, plan, *step) for step in plan.steps]
        return BenchReport(plan.model, client.address.url, f"{server.name} {server.version}", inputs, steps)


async def _step(
    transport: Transport, call: InferCall, plan: _Plan, concurrency: int | None, rate: float | None
) -> BenchStep:
    send = transport.prepare(call)

    async def load(seconds: float) -> LoadResult:
        if concurrency is not None:
            return await closed_loop(send, concurrency, seconds)
        return await open_loop(send, rate or 1.0, seconds, plan.arrivals)

    if plan.warm_up:
        await load(plan.warm_up)
    before = await _reported(transport.statistics(plan.model, plan.version, call.timeout), [])
    measured = await load(plan.duration)
    after = await _reported(transport.statistics(plan.model, plan.version, call.timeout), [])
    if not measured.latencies and measured.last_error is not None:
        raise measured.last_error
    return BenchStep.of(measured, ServerShare.between(before, after), concurrency=concurrency, rate=rate)


async def _reported(asked: Awaitable[Reported], otherwise: Reported) -> Reported:
    """Returns the result of `asked`, a request to the server, or `otherwise` if the request fails."""
    try:
        return await asked
    except BacklineError:
        return otherwise
