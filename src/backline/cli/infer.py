"""`backline infer`: one request, its outputs shown or written to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

from backline.cli.connection import connection_options, with_suggestion
from backline.cli.input_value import input_option, read_inputs
from backline.client.options import ClientOptions
from backline.client.result import InferResult
from backline.client.sync import Client
from backline.engine.errors import NotFound

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
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="An output that is wanted; all without it.")
@click.option("--json", "as_json", is_flag=True, help="Print the outputs as JSON.")
@click.option("--save", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write .npz, or .npy for a single output.")
@connection_options
def command(
    url: str,
    options: ClientOptions,
    model: str,
    inputs: tuple[str, ...],
    model_version: str,
    outputs: tuple[str, ...],
    as_json: bool,
    save: Path | None,
) -> None:
    """Run MODEL of a server once and show its outputs."""
    if save is not None and save.suffix not in (".npy", ".npz"):
        raise click.BadParameter(f"'{save}' ends neither with .npz nor with .npy", param_hint="-o")
    with Client(url, options) as client:
        handle = client.model(model, model_version)
        try:
            values = read_inputs(handle.metadata(), inputs)
            began = perf_counter()
            result = handle(values, outputs=outputs or None)
        except NotFound as error:
            raise with_suggestion(client, model, error) from None
        seconds = perf_counter() - began
    if save is not None:
        _save(save, result)
    if as_json:
        print(json.dumps(_document(result)))
    else:
        _show(result, seconds)


def _save(path: Path, result: InferResult) -> None:
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{name: _storable(array) for name, array in result.items()})
        return
    if len(result) != 1:
        raise click.UsageError(f"the model has {len(result)} outputs ({', '.join(result)}): save them as .npz, or choose one with --output")
    np.save(path, _storable(next(iter(result.values()))), allow_pickle=False)


def _storable(array: np.ndarray) -> np.ndarray:
    """BYTES as numpy's fixed-width bytes, which need no pickle."""
    return array.astype("S") if array.dtype == object and array.size else array.astype("S1") if array.dtype == object else array


def _document(result: InferResult) -> dict[str, Any]:
    outputs = {
        name: {"shape": list(array.shape), "datatype": str(array.dtype), "data": _plain(array.tolist())} for name, array in result.items()
    }
    document: dict[str, Any] = {"model": result.model_name, "version": result.model_version, "outputs": outputs}
    if result.parameters:
        document["parameters"] = result.parameters
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _show(result: InferResult, seconds: float) -> None:
    colour = sys.stdout.isatty()
    for name, array in result.items():
        title = f"{name}: {'bytes' if array.dtype == object else array.dtype} {list(array.shape)}"
        if array.size and array.dtype.kind in "iuf":
            title += f", from {array.min():.6g} to {array.max():.6g}, mean {array.mean(dtype=np.float64):.6g}"
        print(click.style(title, bold=True) if colour else title)
        print(np.array2string(array, threshold=64, edgeitems=3, precision=6, suppress_small=True, max_line_width=120))
    print(f"{result.model_name} version {result.model_version or '?'} answered in {seconds * 1000:.2f} ms")
