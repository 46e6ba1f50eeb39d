"""`backline bench`: measures a model under load, at one or more concurrencies or request rates."""

from __future__ import annotations

from pathlib import Path

import click

from backline.cli.connection import connection_options
from backline.cli.inputs import input_option, shape_option
from backline.cli.load_generator import Arrivals
from backline.cli.numbers import Number, Numbers
from backline.cli.options import result_option, version_option
from backline.cli.result_files import require_matplotlib
from backline.plugins.tools.bench.benchmark import CONCURRENCIES, bench
from backline.plugins.tools.bench.report import print_bench, write_html, write_json, write_png
from backline_client.client.options import ClientOptions
from backline_client.values.names import printable

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
    default=",".join(map(str, CONCURRENCIES)),
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
@version_option()
@result_option("--json", "json_path", "Write all results as JSON.")
@result_option("--html", "html_path", "Write an HTML page with the plot and the table.")
@result_option("--png", "png_path", "Write the plot as an image.")
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
    report = bench(
        model,
        url,
        concurrency=concurrency,
        rate=rate or (),
        arrivals=arrivals,
        duration=duration,
        warm_up=warm_up,
        inputs=(*inputs, *(() if data is None else (f"@{data}",))),
        input_shapes=input_shape,
        version=model_version,
        options=options,
        started=lambda about: print(printable(about), flush=True),
    )
    print_bench(report)
    if json_path is not None:
        write_json(report, json_path)
    if html_path is not None:
        write_html(report, html_path)
    if png_path is not None:
        write_png(report, png_path)
    if any(step.errors for step in report.steps):
        raise click.exceptions.Exit(1)
