"""`backline infer`: sends one request to a model on a server, and shows or saves the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from backline.cli.connection import connection_options, with_suggestion
from backline.cli.inputs import input_option, lone_parameters, read_inputs
from backline.cli.options import json_option, version_option
from backline.cli.result_files import SUFFIXES, check_destination, present, summary
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelMetadata
from backline_client.client.sync import Client, Model
from backline_client.values.errors import BacklineError, NotFound, Unsupported
from backline_client.values.names import printable

_EPILOG = """\b
Examples:
  backline infer add1 --input 'INPUT0=[[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]]'
  backline infer basic_pitch --input @window.npy -o notes.npz
  backline infer add1 --input INPUT0=random:8,16 --url grpc://localhost:8001 --json
  backline infer add1 --input INPUT0=zeros --url inproc:///path/to/repository"""


@click.command(epilog=_EPILOG)
@click.argument("model")
@input_option
@version_option()
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME",
    help="An output to request; repeatable; default: all.",
)
@json_option("Print the outputs as JSON.")
@click.option(
    "--save",
    "-o",
    "destination",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the outputs as .npz or .json, or a single output as .npy.",
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
    """Send one request to MODEL on a server and show its outputs.

    A decoupled model may send several responses; all of them are shown.
    """
    check_destination(destination)
    with Client(url, options) as client:
        handle = client.model(model, model_version)
        try:
            config = _config(handle)
            metadata = handle.metadata().completed(config)
            _check_outputs(outputs, metadata)
            values = read_inputs(metadata, inputs)
            parameters = lone_parameters(config)
            began = perf_counter()
            try:
                results = [handle(values, outputs=outputs or None, parameters=parameters)]
            except Unsupported:  # raised if the model is decoupled
                results = list(handle.stream(values, outputs=outputs or None, parameters=parameters))
        except NotFound as error:
            raise with_suggestion(client, model, error) from None
        seconds = perf_counter() - began
    present(results, destination, as_json=as_json)
    if not as_json:
        version, responses = summary(results, model_version)
        print(f"{model} version {printable(version)} {responses} in {seconds * 1000:.2f} ms")


def _check_outputs(names: Sequence[str], metadata: ModelMetadata) -> None:
    """Raises BadParameter if a name is not an output but looks like a file. The user then probably expects
    --output to mean the file to save to, as in `backline run`.
    """
    known = {spec.name for spec in metadata.outputs}
    for name in names:
        if name not in known and Path(name).suffix in SUFFIXES:
            raise click.BadParameter(
                f"'{name}' is the name of a file, and not of an output of the model. To save the outputs,"
                f" write --save {name}",
                param_hint="--output",
            )


def _config(model: Model) -> dict[str, Any]:
    """Returns the model's configuration; empty if the server does not provide the configuration."""
    try:
        return model.config()
    except BacklineError:
        return {}
