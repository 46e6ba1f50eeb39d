"""Checks that a model's configuration and the model's file agree about inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig
from backline.engine.config.reshape import narrower
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Shape


def agree(path: Path, file: Signature, config: ModelConfig) -> Signature:
    """Returns the signature to serve: that of the model file (`file`), restricted by the configuration.

    Shapes include the batch dimension. The configuration may fix variable dimensions, and may leave out
    outputs, which are then not served. Raises InvalidArgument if the configuration contradicts the file; the
    error quotes both.
    """
    where = f"model '{config.name}'"
    batch = config.max_batch_size or 0
    if batch:
        for spec in file.inputs:
            if not spec.shape or spec.shape[0] != -1:
                raise InvalidArgument(
                    f"{where} has max_batch_size {batch} in {config.source}, but input '{spec.name}' of"
                    f" '{path}' has shape {list(spec.shape)}, whose first dimension is not the batch"
                    f" dimension; set max_batch_size: 0 and give the full dims{_other_axis(spec)}"
                )
    inputs = _merge(where, path, "input", file.inputs, config.inputs, config)
    outputs = _merge(where, path, "output", file.outputs, config.outputs, config)
    named = {spec.name for spec in config.inputs}
    missing = [spec.name for spec in file.inputs if spec.name not in named]
    if named and missing:
        raise InvalidArgument(
            f"{where}: '{path}' needs input{_list(missing)}, which {config.source} does not name"
        )
    for spec in config.inputs:
        if spec.optional:
            raise InvalidArgument(
                f"{where}: {config.source} says that input '{spec.name}' is optional, but '{path}' needs it"
            )
    if config.outputs:
        kept = {spec.name for spec in config.outputs}
        outputs = tuple(spec for spec in outputs if spec.name in kept)
    return Signature(inputs, outputs)


def _other_axis(spec: TensorSpec) -> str:
    """Returns the end of an error text that says how to configure another dimension as the batch dimension,
    or "" if no dimension is variable.
    """
    axis = next((index for index, dim in enumerate(spec.shape) if dim == -1), None)
    return (
        "" if axis is None else f", or name the batch dimension, as backline.batch_axis.{spec.name} = {axis}"
    )


def _merge(
    where: str,
    path: Path,
    kind: str,
    file: tuple[TensorSpec, ...],
    given: tuple[TensorSpec, ...],
    config: ModelConfig,
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in file}
    flat = _flat(kind, config)
    hidden = config.joining.hidden_inputs if config.joining is not None and kind == "input" else frozenset()
    for spec in given:
        actual = by_name.get(spec.name)
        if spec.name in hidden:  # the server creates the values of hidden inputs, in the model's shape
            continue
        if actual is None:
            raise InvalidArgument(
                f"{where}: {config.source} names the {kind} '{spec.name}', which '{path}' does not have; it"
                f" has {_quoted(by_name)}"
            )
        if spec.datatype is not actual.datatype:
            raise InvalidArgument(
                f"{where}: {kind} '{spec.name}' is {spec.datatype.config_name} in {config.source}, but"
                f" {actual.datatype.config_name} in '{path}'"
            )
        shape = (-1, *spec.shape) if config.max_batch_size else spec.shape
        if spec.name in flat:
            _check_flat(where, path, kind, actual)
            continue
        if kind == "output" and not actual.shape:  # an empty shape may mean that the rank is unknown
            merged: Shape | None = shape
        else:
            merged = narrower(shape, actual.shape)
        if merged is None:
            note = (
                " (with the batch dimension, as max_batch_size is above 0)" if config.max_batch_size else ""
            )
            what = "shape" if spec.reshape is None else "the reshape"
            raise InvalidArgument(
                f"{where}: {kind} '{spec.name}' has {what} {list(shape)}{note} in {config.source}, but"
                f" {list(actual.shape)} in '{path}'"
            )
        by_name[spec.name] = replace(actual, shape=merged, labels=spec.labels)
    return tuple(by_name.values())


def _flat(kind: str, config: ModelConfig) -> frozenset[str]:
    """Returns the names of ragged inputs or scattered outputs. These tensors are one-dimensional in the
    model.
    """
    if config.joining is None:
        return frozenset()
    return frozenset(config.joining.ragged if kind == "input" else config.joining.scattered)


def _check_flat(where: str, path: Path, kind: str, actual: TensorSpec) -> None:
    """Raises InvalidArgument if a ragged input is not flat, with the text of Triton's onnxruntime_backend."""
    if kind == "input" and actual.shape != (-1,):
        raise InvalidArgument(
            f"{where}: configuration expects model provides input with shape [-1] for ragged input"
            f" '{actual.name}', model provides {list(actual.shape)} in '{path}'"
        )


def _list(names: list[str]) -> str:
    return ("s " if len(names) > 1 else " ") + _quoted(names)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
