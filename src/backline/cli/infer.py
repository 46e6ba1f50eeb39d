"""`backline infer`: one request, its outputs shown or written to a file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import click

from backline.cli.connection import connection_options, with_suggestion
from backline.cli.inputs import input_option, lone_parameters, read_inputs
from backline.cli.result_files import check_destination, present, summary
from backline.client.options import ClientOptions
from backline.client.sync import Client, Model
from backline.engine.errors import BacklineError, NotFound, Unsupported

_EPILOG = """\b
Examples:
  backline infer add1 --input 'INPUT0=[[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]]'
  backline infer basic_pitch --input @window.npy -o notes.npz
  backline infer add1 --input INPUT0=random:8,16 --url grpc://localhost:8001 --json
  backline infer add1 --input INPUT0=zeros --url inproc:///path/of/repository"""


@click.command(epilog=_EPILOG)
@click.argument("model")
@input_option
@click.option("--model-version", default="", help="A version; the server chooses without it.")
@click.option(
    "--output", "outputs", multiple=True, metavar="NAME", help="An output that is wanted; all without it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the outputs as JSON.")
@click.option(
    "--save",
    "-o",
    "destination",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write .npz or .json, or .npy for a single output.",
)
@connection_options
def command(
    url: str,
    options: ClientOptions,
    model: str,
    inputs: tuple[str, ...],
    model_version: str,
    outputs: tuple[str, ...],
    as_json: bool,
    destination: Path | None,
) -> None:
    """Run MODEL of a server once and show its outputs. A model with many responses shows all of them."""
    check_destination(destination, "-o")
    with Client(url, options) as client:
        handle = client.model(model, model_version)
        try:
            values = read_inputs(handle.metadata(), inputs)
            parameters = lone_parameters(_config(handle))
            began = perf_counter()
            try:
                results = [handle(values, outputs=outputs or None, parameters=parameters)]
            except Unsupported:  # it gives any number of responses
                results = list(handle.stream(values, outputs=outputs or None, parameters=parameters))
        except NotFound as error:
            raise with_suggestion(client, model, error) from None
        seconds = perf_counter() - began
    present(results, destination, as_json=as_json)
    if not as_json:
        version, responses = summary(results, model_version)
        print(f"{model} version {version} answered{responses} in {seconds * 1000:.2f} ms")


def _config(model: Model) -> dict[str, Any]:
    """The configuration, an extension that not every server has."""
    try:
        return model.config()
    except BacklineError:
        return {}
