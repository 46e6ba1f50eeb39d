"""How requests of different shapes are joined: Triton's fields and the native settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from backline.engine.joining import BatchInput, Cut, Joining, Padding
from backline.repository.configuration.document import Document, data_type, suggest
from backline.repository.configuration.native import parameter


def read_joining(document: Document, name: str, settings: Mapping[str, Any]) -> Joining | None:
    """How to join requests to the model `name`; None if its configuration asks for nothing special.

    `settings` are the native settings for joining. Raises InvalidArgument for contradictions.
    """
    message = document.message
    joining = Joining(
        ragged=tuple(tensor.name for tensor in message.input if tensor.allow_ragged_batch),
        batch_inputs=tuple(map(_batch_input, message.batch_input)),
        scattered=MappingProxyType(
            {
                target: output.source_input[0]
                for output in message.batch_output
                for target in output.target_name
            }
        ),
        allowed_batch_sizes=settings.get("allowed_batch_sizes", ()),
        pad_all=settings.get("pad_variable_length_inputs", False),
        padding=MappingProxyType(
            {key: _padding(given) for key, given in sorted(settings.get("padding", {}).items())}
        ),
        cuts=MappingProxyType(
            {key: _cut(document, key, given) for key, given in sorted(settings.get("cut", {}).items())}
        ),
    )
    _check(document, name, joining, settings)
    return joining if joining != Joining() else None


def _batch_input(given: Any) -> BatchInput:
    kind = given.Kind.Name(given.kind)
    return BatchInput(kind, tuple(given.target_name), data_type(given), given.source_input[0])


def _padding(given: Mapping[str, Any]) -> Padding:
    return Padding(
        given.get("axis", ()),
        given.get("value", ""),
        given.get("buckets", ()),
        given.get("lengths", ""),
        given.get("mask", ""),
    )


def _cut(document: Document, output: str, given: Mapping[str, Any]) -> Cut:
    if "to" not in given:
        raise document.error(
            f'cut.{output} does not say which input the output is cut to: add to = "NAME"',
            _first(output, given),
        )
    return Cut(given["to"], given.get("axis", 1), given.get("hop", 1), given.get("window", 1))


def _first(output: str, given: Mapping[str, Any]) -> str:
    return f"parameters[{parameter(f'cut.{output}.{next(iter(given))}')}]"


def _check(document: Document, name: str, joining: Joining, settings: Mapping[str, Any]) -> None:
    message = document.message
    for setting in (setting for setting, value in settings.items() if value is not False):
        if message.max_batch_size < 1:
            reason = f"{setting} is for models that take batches: set max_batch_size for {name}"
            raise document.error(reason, _path(document, setting))
        for section in ("sequence_batching", "ensemble_scheduling"):
            if message.HasField(section):
                raise document.error(
                    f"{setting} cannot be combined with {section} for {name}", _path(document, setting)
                )
    if message.HasField("sequence_batching") and (
        joining.ragged or joining.batch_inputs or joining.scattered
    ):
        raise document.error(
            f"ragged inputs cannot be combined with sequence_batching for {name}", "sequence_batching"
        )
    sizes = joining.allowed_batch_sizes
    if sizes and sizes[-1] != message.max_batch_size:
        reason = (
            f"the last of allowed_batch_sizes must be max_batch_size, which is {message.max_batch_size} for"
            f" {name}"
        )
        raise document.error(reason, _path(document, "allowed_batch_sizes"))
    inputs = [tensor.name for tensor in message.input]
    for where, key in (
        *((f"padding.{key}", key) for key in joining.padding),
        *((f"cut.{output}.to", cut.to) for output, cut in joining.cuts.items()),
    ):
        if inputs and key not in inputs:
            raise document.error(
                f"{where} names '{key}', which is not an input{suggest(key, inputs)}", _path(document, where)
            )
        if key in joining.ragged:
            raise document.error(f"{where} names '{key}', which is ragged for {name}", _path(document, where))


def _path(document: Document, setting: str) -> str:
    """The path of a setting, or of the first of its parameters."""
    return next((path for path in document.places if path.startswith(f"parameters[{parameter(setting)}")), "")
