"""Reads the body of a request by its media type: JSON with the inputs by name or by rows, a form with a part
per input, a table, or a raw body that is one input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Struct

from backline.dialects.bodies import json_rows
from backline.dialects.bodies.batch import fitted
from backline.dialects.bodies.bodies import BODIES
from backline.dialects.bodies.columns import Inputs, unknown_input
from backline.dialects.bodies.json_text import check_json, check_size, decoded, parsed
from backline.dialects.bodies.media import BINARY, NPY
from backline.dialects.bodies.multipart import FormPart, media_type, read_multipart
from backline.dialects.bodies.raw import is_text, of_body, only_input, takes_files
from backline.dialects.bodies.values import tensor_of
from backline.dialects.input_plan import check_tensors
from backline.dialects.off_loop import LARGE, LargeRequest
from backline.engine.model import Model
from backline.engine.parameters import SEQUENCE
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import Parameter
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Buffer, Tensor

PARAMETERS: Final = "parameters"
#: The parameters that the server interprets in bodies with inputs by name.
KNOWN: Final = ("priority", "timeout", *SEQUENCE)
_NONE: Mapping[str, Parameter] = MappingProxyType({})
#: The media types that are read as JSON: its own, none, and what curl sends unless told otherwise.
_JSON: Final = frozenset(("", "application/json", "application/x-www-form-urlencoded"))


class Given(Struct, frozen=True):
    """What a body holds: the inputs in the model's ranks, and the parameters beside them.

    With `unbatched`, the body left out the batch dimension, and with `rows`, it was a list of rows. The
    response then does the same.
    """

    inputs: dict[str, Tensor]
    parameters: dict[str, Parameter]
    unbatched: bool
    rows: bool


def read_body(
    model: Model,
    content_type: bytes,
    body: Buffer,
    further: Mapping[str, Parameter] = _NONE,
    *,
    on_loop: bool,
    stand_ins: Collection[str] = (),
) -> Given:
    """Returns what is in a body of the type in a Content-Type field. Adds `further` parameters to its own.
    `stand_ins` are further names for the only input of a model in forms and JSON.

    Raises LargeRequest if `on_loop` is true and reading would block the event loop for too long,
    InvalidArgument for a body that does not fit the model, PayloadTooLarge for one that is too costly to
    read, and UnsupportedMediaType for one that the model's inputs cannot be read from.
    """
    if on_loop and len(body) > LARGE:
        raise LargeRequest
    kind, attributes = media_type(content_type)
    table = BODIES.get(kind)
    parameters = dict(further)
    rows = False
    if table is not None and not takes_files(model):
        if on_loop and not table.quick:
            raise LargeRequest
        given = table.read(_inputs(model), body)
    elif kind == "multipart/form-data":
        parts = read_multipart(body, attributes.get("boundary", ""))
        given = _of_form(model, parts, parameters, stand_ins)
    elif kind in _JSON:
        rows = json_rows.is_rows(body)
        given = _of_rows(model, body) if rows else _of_json(model, body, parameters, stand_ins)
    else:
        spec = only_input(model, kind)
        given = {spec.name: of_body(spec, kind, bytes(body), model)}
    return _fitted(model, given, parameters, rows)


def read_parts(model: Model, parts: list[FormPart], *, stand_ins: Collection[str] = ()) -> Given:
    """Returns what is in the parts of a form; see `read_body`."""
    parameters: dict[str, Parameter] = {}
    return _fitted(model, _of_form(model, parts, parameters, stand_ins), parameters)


def _fitted(
    model: Model, given: dict[str, Tensor], parameters: dict[str, Parameter], rows: bool = False
) -> Given:
    check_tensors(given)
    inputs, unbatched = fitted(model, given)
    return Given(inputs, parameters, unbatched, rows)


def _specs(model: Model, stand_ins: Collection[str]) -> dict[str, TensorSpec]:
    """Returns the inputs by name, and under further names if there is only one."""
    inputs = model.signature.inputs
    if len(inputs) == 1:
        return {**dict.fromkeys(stand_ins, inputs[0]), inputs[0].name: inputs[0]}
    return {spec.name: spec for spec in inputs}


def _of_json(
    model: Model, body: Buffer, parameters: dict[str, Parameter], stand_ins: Collection[str]
) -> dict[str, Tensor]:
    check_json("the JSON", body)
    specs = _specs(model, stand_ins)
    document = parsed(body or b"{}", msgspec.json.decode)
    if not isinstance(document, dict):
        raise InvalidArgument(
            f"the request JSON is not an object; send the inputs by name, such as {_example(model)}"
        )
    given = {}
    for name, value in document.items():
        if name in specs:
            spec = specs[name]
            if spec.name in given:
                raise _repeated("JSON", spec.name)
            given[spec.name] = tensor_of(spec, value)
        elif name == PARAMETERS:
            add_parameters(parameters, parameters_of(value))
        else:
            raise _unknown(model, name)
    return given


def _of_rows(model: Model, body: Buffer) -> dict[str, Tensor]:
    check_size("the JSON", body)
    return parsed(body, partial(json_rows.read, _inputs(model)))


def _of_form(
    model: Model, parts: list[FormPart], parameters: dict[str, Parameter], stand_ins: Collection[str]
) -> dict[str, Tensor]:
    specs = _specs(model, stand_ins)
    given: dict[str, Tensor] = {}
    for part in parts:
        if part.name == PARAMETERS and PARAMETERS not in specs:
            add_parameters(parameters, parameters_of(_json_of(part.name, part.body)))
            continue
        spec = specs.get(part.name)
        if spec is None:
            raise _unknown(model, part.name)
        if spec.name in given:
            raise _repeated("form", spec.name)
        kind = part.content_type
        if part.filename.lower().endswith(".npy"):
            kind = NPY
        if kind == "application/json" or (not kind and not part.filename and not is_text(spec)):
            given[spec.name] = tensor_of(spec, _json_of(part.name, part.body))
        else:
            given[spec.name] = of_body(spec, kind or BINARY, part.body, model)
    return given


def _json_of(name: str, text: bytes) -> Any:
    check_json(f"the JSON of '{name}'", text)
    try:
        return decoded(text, msgspec.json.decode)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the part '{name}' of the form is not JSON: {error}") from None


def parameters_of(value: Any) -> dict[str, Parameter]:
    """Returns the parameters in a decoded JSON value. Raises InvalidArgument if the value is not an object of
    strings, numbers and booleans.
    """
    if not isinstance(value, dict) or not all(isinstance(one, str | int | float) for one in value.values()):
        raise InvalidArgument("'parameters' must be an object of strings, numbers, true and false")
    return value


def add_parameters(parameters: dict[str, Parameter], given: dict[str, Parameter]) -> None:
    """Adds the parameters of a body to those from elsewhere. Raises InvalidArgument for a parameter that is
    in both.
    """
    for name in given:
        if name in parameters:
            raise InvalidArgument(f"parameter '{name[:64]}' is given twice: in the body, and before it")
    parameters.update(given)


def _inputs(model: Model) -> Inputs:
    return Inputs(model.name, {spec.name: spec for spec in model.signature.inputs})


def _repeated(what: str, name: str) -> InvalidArgument:
    return InvalidArgument(f"the {what} has input '{name}' more than once")


def _unknown(model: Model, name: str) -> InvalidArgument:
    names = [spec.name for spec in model.signature.inputs]
    if name in KNOWN:
        raise InvalidArgument(
            f"'{name}' is not an input of model '{model.name}', but a parameter: send it in the object"
            f" '{PARAMETERS}'"
        )
    return unknown_input(model.name, names, name)


def _example(model: Model) -> str:
    return "{" + ", ".join(f'"{spec.name}": ...' for spec in model.signature.inputs[:3]) + "}"
