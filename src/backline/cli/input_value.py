"""The values of inputs as they are written on a command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from backline.cli.input_file import read_file, read_files_inputs
from backline.client.records import ModelMetadata
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.signature import TensorSpec

FORMS = "JSON like [[1, 2]], @FILE (.npy, .json, text, an image, audio), random, zeros, or random:1,16 with a shape"


def read_inputs(metadata: ModelMetadata, given: Sequence[str]) -> dict[str, Any]:
    """The values of NAME=VALUE items by input name; for a model with one input NAME= may be left out. Items may be files, too."""
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
    """Whether an item is the path of a file rather than a value."""
    try:
        return Path(item.removeprefix("@")).is_file()
    except (OSError, ValueError):
        return False


def usage(metadata: ModelMetadata) -> str:
    """What to write for a model."""
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
    """The value of one input. Raises InvalidArgument that names the input and the forms there are."""
    kind, _, dims = text.partition(":")
    if kind in ("random", "zeros"):
        return generate(spec, kind, _shape(spec, dims))
    if text.startswith("@"):
        return read_file(spec, Path(text[1:]))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if spec.datatype is DataType.BYTES:
            return np.full(
                tuple(1 if dim < 0 else dim for dim in spec.shape), text, object
            )  # a bare word is a string
        raise InvalidArgument(
            f"the value of input '{spec.name}' is not JSON ({error}). Write {FORMS}"
        ) from None


def parse_shape(name: str, dims: str) -> tuple[int, ...]:
    """The shape in "1,16"; an "x" between the numbers is taken too."""
    try:
        shape = tuple(int(part) for part in dims.replace("x", ",").split(",") if part.strip())
    except ValueError:
        shape = (-1,)
    if any(dim < 0 for dim in shape):
        raise InvalidArgument(
            f"'{dims}' is not a shape for input '{name}': write numbers with commas between, like 1,16"
        )
    return shape


def _shape(spec: TensorSpec, dims: str) -> tuple[int, ...]:
    if dims:
        return parse_shape(spec.name, dims)
    if -1 in spec.shape[1:]:
        example = _example(spec)
        raise InvalidArgument(
            f"input '{spec.name}' has shape {list(spec.shape)}, of which more than the first dimension varies: write {example}"
        )
    return tuple(1 if dim < 0 else dim for dim in spec.shape)


def generate(spec: TensorSpec, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values (floats from 0 to 1, integers from 0 to 9, short strings; the same every time) or zeros of a shape."""
    try:
        return _generate(spec.datatype, kind, shape)
    except (MemoryError, ValueError) as error:
        raise InvalidArgument(
            f"input '{spec.name}' cannot be made with the shape {list(shape)}: {error}"
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
    """Adds --input to a command, which gets `inputs`, a tuple of NAME=VALUE."""
    return click.option(
        "--input",
        "-i",
        "inputs",
        multiple=True,
        metavar="NAME=VALUE",
        help=f"An input: {FORMS}; or a file for the only input, a .npz for all.",
    )(function)
