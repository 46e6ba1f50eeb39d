"""Reads the files that a command line names as inputs: arrays, JSON, text, images, audio, and folders."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backline.model.sound_files import read_sound
from backline_client.client.records import ModelMetadata
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
AUDIO = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aiff",
        ".aif",
        ".m4a",
        ".mp4",
        ".3gp",
        ".aac",
        ".webm",
    }
)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_inputs_from(metadata: ModelMetadata, path: Path) -> dict[str, Any]:
    """Reads inputs from a file or folder that was given without an input's name.

    In a folder, the name of each file, with or without its suffix, is the name of an input. A .npz file or a
    JSON object contains inputs by name. Any other file is the value of the only required input. Raises
    InvalidArgument if the file cannot be read or does not fit the model.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    if path.is_dir():
        return _folder(metadata, path, specs)
    if path.suffix == ".npz":
        arrays = _npz(path)
        _check_names(metadata, path, arrays)
        return dict(arrays)
    required = required_inputs(metadata)
    if path.suffix == ".json":
        found = _json(path)
        if isinstance(found, dict) and found and not _is_encoded(found):
            if found.keys() <= specs.keys():
                return {name: with_bytes(specs[name], value) for name, value in found.items()}
            if len(required) != 1 or not _is_json_itself(required[0]):
                _check_names(metadata, path, found)
    if len(required) != 1:
        names = ", ".join(specs)
        raise InvalidArgument(
            f"the model has several inputs, and '{path}' could be any of them: write NAME=@{path}, where NAME"
            f" is one of {names}"
        )
    return {required[0].name: read_file(required[0], path)}


def _folder(metadata: ModelMetadata, path: Path, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    files: dict[str, Path] = {}
    for file in sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")):
        name = file.name if file.name in specs else file.stem
        if name in files:
            raise InvalidArgument(f"'{files[name]}' and '{file}' are both for input '{name}'; remove one")
        files[name] = file
    _check_names(metadata, path, files)
    return {name: read_file(specs[name], file) for name, file in files.items()}


def _check_names(metadata: ModelMetadata, path: Path, found: Iterable[str]) -> None:
    names = [spec.name for spec in metadata.inputs]
    unknown = sorted(name for name in found if name not in names)
    if unknown:
        raise InvalidArgument(
            f"'{path}' has {', '.join(unknown)}, but the inputs of model '{metadata.name}' are"
            f" {', '.join(names)}"
        )


def required_inputs(metadata: ModelMetadata) -> Sequence[TensorSpec]:
    """Returns the inputs that a request must have; all inputs if none is required."""
    return [spec for spec in metadata.inputs if not spec.optional] or metadata.inputs


def filled(spec: TensorSpec, element: str | bytes) -> np.ndarray:
    """Returns a BYTES tensor in which every element is `element`. Variable dimensions have the size 1."""
    array = np.empty(tuple(1 if dim < 0 else dim for dim in spec.shape), object)
    array.fill(element)  # np.full would make a fixed-width string, which loses trailing zero bytes
    return array


def with_bytes(spec: TensorSpec, value: Any) -> Any:
    """Returns a JSON value. If the input is BYTES, each {"b64": "..."} in the value is replaced with the
    decoded bytes. Raises InvalidArgument for invalid base64.
    """
    if spec.datatype is not DataType.BYTES or spec.json:
        return value
    if isinstance(value, list):
        return [with_bytes(spec, element) for element in value]
    if not _is_encoded(value):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"the value of input '{spec.name}' is not base64: {error}") from None


def _is_encoded(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def read_file(spec: TensorSpec, path: Path) -> Any:
    """Reads the value of one input from a file. Raises InvalidArgument if the file cannot be read or is not
    in a supported format. The error names the file and the input.
    """
    suffix = path.suffix.lower()
    where = f"'{path}' for input '{spec.name}'"
    try:
        path.stat()  # so that a missing file is reported as missing, whatever its suffix
        if suffix == ".npy":
            return _complete(np.load(path, allow_pickle=False), where)
        if suffix == ".npz":
            return _only(_npz(path), where)
        if suffix == ".json" and not _is_json_itself(spec):
            return with_bytes(spec, json.loads(path.read_text()))
        if spec.datatype is DataType.BYTES:
            return filled(spec, path.read_bytes())
        if suffix in IMAGES:
            return _image(spec, path)
        if suffix in AUDIO:
            return _audio(spec, path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {where}: {_why(error)}") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from None
    raise InvalidArgument(
        f"{where} is not a .npy, .npz, .json, image or audio file; for numbers, write JSON, random, zeros,"
        " or @FILE with such a file"
    )


def _why(error: Exception) -> str:
    """Returns the text of an error, without the number and file name of an OSError. If numpy refuses a
    pickled array, returns advice instead.
    """
    if "allow_pickle" in str(error):
        return (
            "it is an array of Python objects, which only pickle can read. Write strings as an array of"
            ' dtype str, as JSON, or as one file each; in JSON, {"b64": "..."} is an element in base64'
        )
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_json_itself(spec: TensorSpec) -> bool:
    """Returns whether the input is a single string, so that the text of a JSON file is itself the value."""
    return spec.datatype is DataType.BYTES and spec.shape in ((1,), (-1,), ())


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _complete(arrays[name], f"'{name}' in '{path}'") for name in arrays.files}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read '{path}': {_why(error)}") from None


def _complete(array: np.ndarray, what: str) -> np.ndarray:
    """Returns the array. Prints a warning if numpy may have dropped trailing zero bytes of its strings."""
    if array.dtype.kind == "S" and array.size and max(map(len, array.reshape(-1))) < array.dtype.itemsize:
        print(
            f"{what}: no element fills the {array.dtype.itemsize} bytes of its dtype {array.dtype.str[1:]},"
            " so trailing zero bytes are lost if the elements had any. Files of one element each, and JSON"
            ' with {"b64": "..."}, keep them',
            file=sys.stderr,
        )
    return array


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read '{path}': {_why(error)}") from None


def _only(arrays: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    if len(arrays) != 1:
        raise InvalidArgument(
            f"{where} has {len(arrays)} arrays ({', '.join(arrays)}), expected one; save each in its own file"
        )
    return next(iter(arrays.values()))


def _image(spec: TensorSpec, path: Path) -> np.ndarray:
    """Decodes an image to fit the shape of the input, with channels last or first, and values from 0 to 255.
    The image is resized if necessary.
    """
    try:
        from PIL import Image
    except ImportError:
        raise _missing(path, "Pillow", "image") from None
    dims = spec.shape[-3:]
    first = len(dims) == 3 and dims[0] in _MODES and dims[2] not in _MODES
    channels = dims[0] if first else dims[-1] if len(dims) == 3 else 1
    height, width = dims[1:] if first else dims[:2] if len(dims) == 3 else dims[-2:]
    if len(dims) < 2:
        raise InvalidArgument(
            f"input '{spec.name}' has shape {list(spec.shape)}, which cannot hold the image '{path}'; give a"
            " .npy file or JSON instead"
        )
    with Image.open(path) as opened:
        image = opened.convert(_MODES.get(channels, "RGB"))
    size = (image.width if width < 0 else width, image.height if height < 0 else height)
    note = f"{path.name}: {image.mode}, values from 0 to 255"
    if size != image.size:
        note += f", resized from {image.width}x{image.height} to {size[0]}x{size[1]}"
        image = image.resize(size)
    print(note, file=sys.stderr)
    data = np.asarray(image)
    if len(dims) == 3 and data.ndim == 2:
        data = data[..., None]
    if first:
        data = np.moveaxis(data, -1, 0)
    return _as_batch(data, spec)


def _audio(spec: TensorSpec, path: Path) -> np.ndarray:
    """Decodes audio, mixed into one channel. The samples are floats from -1 to 1, or 16-bit integers if the
    input is INT16.
    """
    samples, rate = read_sound(path.read_bytes(), sys.maxsize)
    note = f"{path.name}: {len(samples)} samples at {rate} Hz"
    if samples.shape[1] > 1:
        note += f", mixed from {samples.shape[1]} channels"
    print(note, file=sys.stderr)
    mixed = samples.mean(axis=1, dtype=np.float32)
    if spec.datatype is DataType.INT16:
        mixed = np.rint(mixed * 32768).clip(-32768, 32767)
    return _as_batch(mixed, spec)


def _as_batch(data: np.ndarray, spec: TensorSpec) -> np.ndarray:
    data = np.ascontiguousarray(data).astype(spec.datatype.dtype, copy=False)
    return data.reshape((1,) * (len(spec.shape) - data.ndim) + data.shape)


def _missing(path: Path, package: str, extra: str) -> InvalidArgument:
    return InvalidArgument(
        f"reading '{path}' needs {package}, which is not installed: pip install 'backline[{extra}]'"
    )
