"""Reads the inputs on a command line: NAME=VALUE items, whose values are JSON, generated data or files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np

from backline.cli.input_files import filled, read_file, read_inputs_from, required_inputs, with_bytes
from backline_client.client.arrays import to_tensor
from backline_client.client.records import ModelMetadata
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor

#: The inputs of a request: arrays by input name, or items of a command line (see `given_inputs`).
Inputs: TypeAlias = Mapping[str, Any] | Sequence[str]
FORMS = (
    "JSON such as [[1, 2]], @FILE (.npy, .json, text, image, audio), random, zeros, or random:1,16 with a"
    " shape"
)


def read_inputs(metadata: ModelMetadata, given: Sequence[str]) -> dict[str, Any]:
    """Parses items as `given_inputs` does. Also raises InvalidArgument if a required input is missing."""
    values = given_inputs(metadata, given)
    missing = [spec.name for spec in metadata.inputs if spec.name not in values and not spec.optional]
    if missing:
        raise InvalidArgument(f"no value for {', '.join(missing)}. {usage(metadata)}")
    return values


def given_inputs(metadata: ModelMetadata, given: Sequence[str]) -> dict[str, Any]:
    """Parses NAME=VALUE items, and returns the values by input name. NAME= may be omitted if the model has
    only one required input.

    An item may also be a file or a folder: see `read_inputs_from`. Raises InvalidArgument if an item is
    invalid.
    """
    specs = {spec.name: spec for spec in metadata.inputs}
    required = required_inputs(metadata)
    values: dict[str, Any] = {}
    for item in given:
        if item.partition("=")[0] not in specs and _is_path(item):
            values.update(read_inputs_from(metadata, Path(item.removeprefix("@"))))
            continue
        name, equals, text = item.partition("=")
        if name not in specs:
            if len(required) != 1 or (equals and name.isidentifier()):
                raise InvalidArgument(f"model '{metadata.name}' has no input '{name}'. {usage(metadata)}")
            name, text = required[0].name, item
        if name in values:
            raise InvalidArgument(f"input '{name}' was given twice; leave one value out")
        values[name] = read_value(specs[name], text)
    return values


def _is_path(item: str) -> bool:
    """Returns whether an item is a file or a folder rather than a value."""
    path = Path(item.removeprefix("@"))
    try:
        return path.is_file() or (item.startswith("@") and path.is_dir())
    except (OSError, ValueError):
        return False


def usage(metadata: ModelMetadata) -> str:
    """Returns a sentence for errors that says how to write the inputs of a model."""
    inputs = ", ".join(map(str, metadata.inputs))
    example = " ".join(f"--input {spec.name}={_example(spec)}" for spec in required_inputs(metadata))
    return f"It expects {inputs}. For example {example}"


def _example(spec: TensorSpec) -> str:
    return (
        "random"
        if -1 not in spec.shape[1:]
        else "random:" + ",".join(str(1 if dim < 0 else dim) for dim in spec.shape)
    )


def read_value(spec: TensorSpec, text: str) -> Any:
    """Parses the value of one input. Raises InvalidArgument, which names the input, for an invalid value."""
    kind, _, dims = text.partition(":")
    if kind in ("random", "zeros"):
        return generate(spec, kind, _shape(spec, dims))
    if text.startswith("@"):
        return read_file(spec, Path(text[1:]))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if spec.datatype is DataType.BYTES:
            return filled(spec, text)  # text that is not JSON is taken as a string
        raise InvalidArgument(
            f"the value of input '{spec.name}' is not JSON ({error}). Write {FORMS}"
        ) from None
    return with_bytes(spec, value)


def parse_shape(name: str, dims: str) -> tuple[int, ...]:
    """Parses a shape such as "1,16" or "1x16". Raises InvalidArgument, naming the input, for other text."""
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
    """Returns zeros, or random values that are the same in every run: floats from 0 to 1, integers from 0 to
    9, booleans or strings. Raises InvalidArgument if no array can have this shape.
    """
    if spec.json:
        return np.full(shape, "[]" if spec.json == "list" else "{}", object)
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
        help=f"An input: {FORMS}. For the only required input, NAME= may be omitted. @FILE alone"
        " may be a .npz or JSON with inputs by name, or a folder with a file for each input.",
    )(function)


def shape_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --input-shape; the command receives `input_shape`, a tuple of NAME:DIMS items."""
    return click.option(
        "--input-shape",
        multiple=True,
        metavar="NAME:DIMS",
        help="The shape of an input, such as audio:1,16000, for random values; repeatable.",
    )(function)


def lone_parameters(config: Mapping[str, Any]) -> dict[str, int | bool]:
    """Returns the parameters for a single request. For a sequence model, they declare the request to be a
    complete sequence.
    """
    batching = config.get("sequence_batching")
    if not batching or batching.get("iterative_sequence"):
        return {}
    return {"sequence_id": 1, "sequence_start": True, "sequence_end": True}


def request_inputs(metadata: ModelMetadata, shapes: Sequence[str], given: Inputs) -> tuple[Tensor, ...]:
    """Returns the given inputs, and random values for the other inputs that are required or have an item in
    `shapes`. Raises InvalidArgument if an item is invalid, or if an input needs a shape and has none.
    """
    values = given if isinstance(given, Mapping) else given_inputs(metadata, given)
    chosen: dict[str, tuple[int, ...]] = {}
    for item in shapes:
        name, _, dims = item.rpartition(":")
        chosen[name] = parse_shape(name or item, dims)
    names = [spec.name for spec in metadata.inputs]
    for name in (*chosen, *values):
        if name not in names:
            raise InvalidArgument(f"model '{metadata.name}' has no input '{name}'; it has {', '.join(names)}")
    tensors = []
    for spec in metadata.inputs:
        if spec.name in values:
            tensors.append(to_tensor(metadata.name, spec, values[spec.name]))
            continue
        if spec.optional and spec.name not in chosen:
            continue
        if spec.name not in chosen and -1 in spec.shape[1:]:
            dims = ",".join(str(1 if dim < 0 else dim) for dim in spec.shape)
            raise InvalidArgument(
                f"input '{spec.name}' of model '{metadata.name}' has shape {list(spec.shape)}, with a"
                " variable dimension after the first: pass --input-shape"
                f" {spec.name}:{dims}, --input or --data"
            )
        shape = chosen.get(spec.name, tuple(1 if dim < 0 else dim for dim in spec.shape))
        tensors.append(to_tensor(metadata.name, spec, generate(spec, "random", shape)))
    return tuple(tensors)
