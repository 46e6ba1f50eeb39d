"""Inputs in files: arrays, JSON, text, images, audio."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from backline.client.records import ModelMetadata
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.signature import TensorSpec

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
AUDIO = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_files_inputs(metadata: ModelMetadata, path: Path) -> dict[str, Any]:
    """The inputs in a file that names no input: a .npz or the object of a .json by their names, anything else for the only input.

    Raises InvalidArgument that says what the model expects.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    if path.suffix == ".npz":
        found: Any = _npz(path)
        unknown = sorted(found.keys() - specs.keys())
        if unknown:
            raise InvalidArgument(
                f"'{path}' holds {', '.join(unknown)}, but model '{metadata.name}' has inputs {', '.join(specs)}"
            )
        return dict(found)
    if path.suffix == ".json":
        found = _json(path, path.name)
        if isinstance(found, dict) and found and found.keys() <= specs.keys():
            return found
    required = [spec for spec in specs.values() if not spec.optional] or list(specs.values())
    if len(required) != 1:
        names = ", ".join(specs)
        raise InvalidArgument(
            f"'{path}' does not say which input it is for; write NAME=@{path} with NAME of {names}"
        )
    return {required[0].name: read_file(required[0], path)}


def read_file(spec: TensorSpec, path: Path) -> Any:
    """The value of one input. Raises InvalidArgument that names input and file."""
    suffix = path.suffix.lower()
    where = f"'{path}' for input '{spec.name}'"
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            return _only(_npz(path), where)
        if suffix == ".json" and not _is_json_itself(spec):
            return json.loads(path.read_text())
        if spec.datatype is DataType.BYTES:
            return np.full(tuple(1 if dim < 0 else dim for dim in spec.shape), path.read_bytes(), object)
        if suffix in IMAGES:
            return _image(spec, path)
        if suffix in AUDIO:
            return _audio(spec, path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {where}: {_why(error)}") from None
    kinds = ".npy, .npz, .json, an image nor audio"
    raise InvalidArgument(
        f"{where} is neither {kinds}; write JSON, random or zeros for numbers, or @FILE with one of these"
    )


def _why(error: Exception) -> str:
    """Without the number and the name that the system's errors repeat."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_json_itself(spec: TensorSpec) -> bool:
    """Whether the model takes the text of the file: a single string."""
    return spec.datatype is DataType.BYTES and spec.shape in ((1,), (-1,), ())


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read '{path}': {_why(error)}") from None


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read '{what}': {_why(error)}") from None


def _only(arrays: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    if len(arrays) != 1:
        raise InvalidArgument(f"{where} holds {len(arrays)} arrays ({', '.join(arrays)}), not one")
    return next(iter(arrays.values()))


def _image(spec: TensorSpec, path: Path) -> np.ndarray:
    """An image as the shape wants it: channels last or first, resized to a fixed size; values from 0 to 255."""
    image_of = _library("PIL.Image", path, "image")
    dims = spec.shape[-3:]
    first = len(dims) == 3 and dims[0] in _MODES and dims[2] not in _MODES
    channels = dims[0] if first else dims[-1] if len(dims) == 3 else 1
    height, width = dims[1:] if first else dims[:2] if len(dims) == 3 else dims[-2:]
    if len(dims) < 2:
        raise InvalidArgument(
            f"input '{spec.name}' has shape {list(spec.shape)}, which is none of an image ('{path}')"
        )
    with image_of.open(path) as opened:
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
    """Samples as the shape wants them: one dimension, mixed to one channel; floats from -1 to 1, or 16-bit numbers for INT16."""
    soundfile = _library("soundfile", path, "audio")
    integers = spec.datatype is DataType.INT16
    samples, rate = soundfile.read(str(path), dtype="int16" if integers else "float32", always_2d=True)
    note = f"{path.name}: {len(samples)} samples at {rate} Hz"
    if samples.shape[1] > 1:
        note += f", mixed from {samples.shape[1]} channels"
    print(note, file=sys.stderr)
    mixed = samples.mean(axis=1, dtype=np.float32)
    return _as_batch(mixed.astype(np.int16) if integers else mixed, spec)


def _as_batch(data: np.ndarray, spec: TensorSpec) -> np.ndarray:
    data = np.ascontiguousarray(data).astype(spec.datatype.dtype, copy=False)
    return data.reshape((1,) * (len(spec.shape) - data.ndim) + data.shape)


def _library(module: str, path: Path, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        package = {"PIL.Image": "Pillow"}.get(module, module)
        raise InvalidArgument(
            f"'{path}' is decoded by {package}, which is not installed: pip install 'backline[{extra}]'"
        ) from None
