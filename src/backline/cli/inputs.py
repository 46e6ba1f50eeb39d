"""Reads inputs from the command line: values, generated data and files (arrays, JSON, images, audio)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from backline.client.records import ModelMetadata
from backline.engine.errors import InvalidArgument
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import TensorSpec

FORMS = (
    "JSON such as [[1, 2]], @FILE (.npy, .json, text, image, audio), random, zeros, or random:1,16 with a"
    " shape"
)


def read_inputs(metadata: ModelMetadata, given: Sequence[str]) -> dict[str, Any]:
    """Parses items of the form NAME=VALUE; returns values by input name.

    If the model has a single input, NAME= may be omitted. An item may also be a file, see
    `read_files_inputs`. Raises InvalidArgument.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    values: dict[str, Any] = {}
    for item in given:
        if item.partition("=")[0] not in specs and is_file(item):
            values.update(read_files_inputs(metadata, Path(item.removeprefix("@"))))
            continue
        name, equals, text = item.partition("=")
        if name not in specs:
            if len(specs) != 1 or (equals and name.isidentifier()):
                raise InvalidArgument(f"model '{metadata.name}' has no input '{name}'. {usage(metadata)}")
            name, text = next(iter(specs)), item
        if name in values:
            raise InvalidArgument(f"input '{name}' was given twice")
        values[name] = read_value(specs[name], text)
    missing = [name for name, spec in specs.items() if name not in values and not spec.optional]
    if missing:
        raise InvalidArgument(f"no value for {', '.join(missing)}. {usage(metadata)}")
    return values


def is_file(item: str) -> bool:
    """Whether an item is a file rather than a value."""
    try:
        return Path(item.removeprefix("@")).is_file()
    except (OSError, ValueError):
        return False


def usage(metadata: ModelMetadata) -> str:
    """A sentence with the inputs that a model expects, and an example of how to write them."""
    inputs = ", ".join(f"{spec.name} {spec.datatype.name}{list(spec.shape)}" for spec in metadata.inputs)
    example = " ".join(f"--input {spec.name}={_example(spec)}" for spec in metadata.inputs)
    return f"It expects {inputs}. For example {example}"


def _example(spec: TensorSpec) -> str:
    return (
        "random"
        if -1 not in spec.shape[1:]
        else "random:" + ",".join(str(1 if dim < 0 else dim) for dim in spec.shape)
    )


def read_value(spec: TensorSpec, text: str) -> Any:
    """The value of one input. Raises InvalidArgument, which names the input and the accepted forms."""
    kind, _, dims = text.partition(":")
    if kind in ("random", "zeros"):
        return generate(spec, kind, _shape(spec, dims))
    if text.startswith("@"):
        return read_file(spec, Path(text[1:]))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if spec.datatype is DataType.BYTES:
            # A bare word is taken as a string.
            return np.full(tuple(1 if dim < 0 else dim for dim in spec.shape), text, object)
        raise InvalidArgument(
            f"the value of input '{spec.name}' is not JSON ({error}). Write {FORMS}"
        ) from None


def parse_shape(name: str, dims: str) -> tuple[int, ...]:
    """Parses a shape such as "1,16" or "1x16" for the input `name`. Raises InvalidArgument."""
    try:
        shape = tuple(int(part) for part in dims.replace("x", ",").split(",") if part.strip())
    except ValueError:
        shape = (-1,)
    if any(dim < 0 for dim in shape):
        raise InvalidArgument(
            f"'{dims}' is not a shape for input '{name}': separate numbers with commas, like 1,16"
        )
    return shape


def _shape(spec: TensorSpec, dims: str) -> tuple[int, ...]:
    if dims:
        return parse_shape(spec.name, dims)
    if -1 in spec.shape[1:]:
        example = _example(spec)
        raise InvalidArgument(
            f"input '{spec.name}' has shape {list(spec.shape)}, with a variable dimension after the first:"
            f" write {example}"
        )
    return tuple(1 if dim < 0 else dim for dim in spec.shape)


def generate(spec: TensorSpec, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, or reproducible random values: floats from 0 to 1, integers from 0 to 9, or short strings."""
    try:
        return _generate(spec.datatype, kind, shape)
    except (MemoryError, ValueError) as error:
        raise InvalidArgument(
            f"cannot generate input '{spec.name}' with shape {list(shape)}: {error}"
        ) from None


def _generate(datatype: DataType, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "zeros":
        return np.full(shape, "", object) if datatype is DataType.BYTES else np.zeros(shape, datatype.dtype)
    generator = np.random.default_rng(0)
    if datatype is DataType.BYTES:
        return generator.integers(0, 10_000, shape).astype(str).astype(object)
    if datatype is DataType.BF16:
        return (
            np.asarray(generator.random(shape), np.float32).view(np.uint32).__rshift__(16).astype(np.uint16)
        )
    if datatype is DataType.BOOL:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if datatype.dtype.kind == "f":
        return np.asarray(generator.random(shape)).astype(datatype.dtype)
    return np.asarray(generator.integers(0, 10, shape)).astype(datatype.dtype)


def input_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --input; the command receives `inputs`, a tuple of items for `read_inputs`."""
    return click.option(
        "--input",
        "-i",
        "inputs",
        multiple=True,
        metavar="NAME=VALUE",
        help=f"An input: {FORMS}. For a single input, NAME= may be omitted; a .npz may hold all inputs.",
    )(function)


IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
AUDIO = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_files_inputs(metadata: ModelMetadata, path: Path) -> dict[str, Any]:
    """Reads inputs, by name, from a file that was given without the name of an input.

    A .npz or a JSON object holds inputs by name; any other file is the value of the only input. Raises
    InvalidArgument, which says what the model expects.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    if path.suffix == ".npz":
        found: Any = _npz(path)
        unknown = sorted(found.keys() - specs.keys())
        if unknown:
            raise InvalidArgument(
                f"'{path}' has {', '.join(unknown)}, but the inputs of model '{metadata.name}' are"
                f" {', '.join(specs)}"
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
            f"'{path}' does not say which input it is for; write NAME=@{path}, where NAME is one of {names}"
        )
    return {required[0].name: read_file(required[0], path)}


def read_file(spec: TensorSpec, path: Path) -> Any:
    """The value of one input, read from a file. Raises InvalidArgument, which names both."""
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
    raise InvalidArgument(
        f"{where} is not a .npy, .npz, .json, image or audio file; for numbers, write JSON, random, zeros,"
        " or @FILE with such a file"
    )


def _why(error: Exception) -> str:
    """The reason of an error, without the number and the file name that an OSError has."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_json_itself(spec: TensorSpec) -> bool:
    """Whether the input takes the JSON text itself, because it is a single string."""
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
        raise InvalidArgument(f"{where} has {len(arrays)} arrays ({', '.join(arrays)}), expected one")
    return next(iter(arrays.values()))


def _image(spec: TensorSpec, path: Path) -> np.ndarray:
    """Decodes an image to values from 0 to 255, in the input's size and with its channels first or last."""
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
            f"input '{spec.name}' has shape {list(spec.shape)}, which cannot hold an image ('{path}')"
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
    """Decodes audio to one channel: floats from -1 to 1, or 16-bit integers for INT16."""
    try:
        import soundfile
    except ImportError:
        raise _missing(path, "soundfile", "audio") from None
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


def _missing(path: Path, package: str, extra: str) -> InvalidArgument:
    return InvalidArgument(
        f"'{path}' is decoded by {package}, which is not installed: pip install 'backline[{extra}]'"
    )


def lone_parameters(config: Mapping[str, Any]) -> dict[str, int | bool]:
    """The parameters of a single request. For a sequence model, they make it a complete sequence."""
    batching = config.get("sequence_batching")
    if not batching or batching.get("iterative_sequence"):
        return {}
    return {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
