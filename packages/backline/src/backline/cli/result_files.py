"""Prints responses, and saves them to files."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from backline_client.client.result import InferResult
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.names import printable

SUFFIXES = (".npz", ".npy", ".json")


def check_destination(path: Path | None, *, folders: bool = False) -> None:
    """Raises BadParameter if the suffix of `path`, the value of -o, is not that of a supported file type."""
    if path is None or path.suffix in SUFFIXES or (folders and not path.suffix):
        return
    others = " or a folder" if folders else ""
    raise click.BadParameter(f"'{path}' is not a .npz, .npy or .json file{others}", param_hint="-o")


def present(results: Sequence[InferResult], destination: Path | None, *, as_json: bool) -> None:
    """Prints the outputs, after saving them to `destination` if one is given."""
    if destination is not None:
        save_all(destination, results)
    if as_json:
        print(json.dumps(documents(results)))
    else:
        show(results)


def summary(results: Sequence[InferResult], version: str) -> tuple[str, str]:
    """Returns the version that ran, and "responded" if there is one response, or else, for example, "gave 3
    responses".
    """
    responses = "responded" if len(results) == 1 else f"gave {len(results)} responses"
    return (results[0].model_version if results else version) or "?", responses


def save_all(path: Path, results: Sequence[InferResult]) -> None:
    """Saves each response in its own file or folder, for example outputs.npz, outputs-1.npz, and so on.

    Raises Internal if a file cannot be written, and the errors of `save`.
    """
    for index, result in enumerate(results):
        place = path.with_name(f"{path.stem}-{index}{path.suffix}") if index else path
        try:
            save(place, result)
        except OSError as error:
            raise Internal(f"'{place}' cannot be written: {error.strerror or error}") from None


def save(path: Path, result: InferResult) -> None:
    """Saves all outputs to a .npz file, a .json file or a folder, or a single output to a .npy file.

    In a folder, each output is saved as <name>.npy. Raises UsageError if `path` is a .npy file and there are
    several outputs.
    """
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:  # numpy.savez takes no array named "file"
            for name, array in result.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _storable(array), allow_pickle=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(document(result)))
    elif path.suffix == ".npy":
        if len(result) != 1:
            names = ", ".join(result)
            raise click.UsageError(
                f"the model has {len(result)} outputs ({names}): save them as .npz, or select one, with"
                " `backline infer --output NAME`"
            )
        np.save(path, _storable(next(iter(result.values()))), allow_pickle=False)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for name, array in result.items():
            np.save(path / f"{name.replace('/', '_')}.npy", _storable(array), allow_pickle=False)


def _storable(array: np.ndarray) -> np.ndarray:
    """Returns the array to save. Converts BYTES and JSON to fixed-width bytes, because saving them does not
    need pickle.
    """
    if array.dtype == object:
        texts = [
            element if isinstance(element, bytes) else json.dumps(element).encode()
            for element in array.reshape(-1).tolist()
        ]
        array = np.array(texts, object).reshape(array.shape)
    return (
        array.astype("S")
        if array.dtype == object and array.size
        else array.astype("S1")
        if array.dtype == object
        else array
    )


def documents(results: Sequence[InferResult]) -> dict[str, Any] | list[dict[str, Any]]:
    """Returns the responses in JSON form: a list, or a single object if there is exactly one response."""
    found = [document(result) for result in results]
    return found[0] if len(found) == 1 else found


def document(result: InferResult) -> dict[str, Any]:
    outputs = {
        name: {"shape": list(array.shape), "datatype": _datatype(array), "data": _plain(array.tolist())}
        for name, array in result.items()
    }
    found: dict[str, Any] = {"model": result.model_name, "version": result.model_version, "outputs": outputs}
    if result.parameters:
        found["parameters"] = result.parameters
    return found


def _datatype(array: np.ndarray) -> str:
    return "BYTES" if array.dtype == object else str(array.dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def show(results: Sequence[InferResult]) -> None:
    """Prints each output with its datatype, shape and range of values. Long outputs are shortened."""
    colour = sys.stdout.isatty()
    for result in results:
        for name, array in result.items():
            documents = array.dtype == object and not all(isinstance(one, bytes) for one in array.flat)
            kind = "JSON" if documents else "bytes" if array.dtype == object else array.dtype
            title = f"{printable(name)}: {kind} {list(array.shape)}"
            if array.size and array.dtype.kind in "iuf":
                title += (
                    f", from {array.min():.6g} to {array.max():.6g}, mean {array.mean(dtype=np.float64):.6g}"
                )
            print(click.style(title, bold=True) if colour else title)
            if documents:
                print(printable(json.dumps(array.tolist(), ensure_ascii=False)))
                continue
            print(
                np.array2string(
                    array, threshold=64, edgeitems=3, precision=6, suppress_small=True, max_line_width=120
                )
            )


def require_matplotlib() -> None:
    """Raises InvalidArgument if matplotlib is missing. The error names the extra that installs it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InvalidArgument(f"plots need matplotlib: pip install 'backline[plot]' ({error})") from None
