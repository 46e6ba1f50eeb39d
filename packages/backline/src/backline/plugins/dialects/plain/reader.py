"""Reads a plain request: JSON with the inputs by name, a form with a part per input, or a raw body."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import numpy as np

from backline.dialects.bodies import json_rows
from backline.dialects.bodies.batch import fitted
from backline.dialects.bodies.bodies import BODIES
from backline.dialects.bodies.columns import Inputs, unknown_input
from backline.dialects.bodies.json_rows import is_rows
from backline.dialects.bodies.multipart import FormPart, media_type, read_multipart
from backline.dialects.bodies.values import bytes_tensor, tensor_of
from backline.dialects.documents import read_pairs, suggestion
from backline.dialects.input_plan import check_bytes_elements, check_tensors
from backline.dialects.json_data import without_words
from backline.dialects.json_scan import check_keys, count
from backline.dialects.off_loop import LARGE, LargeRequest, is_long
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.parameters import (
    BINARY_OUTPUT,
    EMPTY_FINAL,
    SEQUENCE,
    RequestParameters,
    read_parameters,
)
from backline.plugins.dialects.plain.media import BINARY, NPY, Form, accepted, read_npy
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, PayloadTooLarge, UnsupportedMediaType
from backline_client.values.messages import InferRequest, InferResponse, Parameter
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Buffer, Tensor, decode_tensor, element_count

#: The maximum size of a JSON body in bytes. Once decoded, its numbers take up to ten times as much memory.
MAX_JSON = 8 << 20
#: The maximum number of lists in a JSON body. A tensor with two dimensions has a list for each row.
MAX_LISTS = 262_144
Result = TypeVar("Result")
REQUEST_ID = b"x-request-id"
_MAX_ID = 256
#: Matches an integer that Python reads in linear time.
_INTEGER = re.compile(r"-?[0-9]{1,20}").fullmatch
PARAMETERS = "parameters"
#: The parameters that the server interprets in plain HTTP.
KNOWN = ("priority", "timeout", *SEQUENCE)
_NONE: Mapping[str, Parameter] = MappingProxyType({})
_NO_PARAMETERS = RequestParameters()
_FILE_NEEDS_TYPE = "a file needs a Content-Type other than JSON, such as application/octet-stream"
_FORMS = frozenset(("", "application/json", "application/x-www-form-urlencoded"))


@dataclass(slots=True, eq=False)
class PlainPlan:
    """A RequestPlan of plain HTTP, which also says how to write the response.

    `outputs` are the model's outputs. With `unbatched`, the request left out the batch dimension, so the
    response does too. With `rows`, the request was a list of rows, so a response in JSON is one too.
    """

    form: Form
    unbatched: bool
    rows: bool
    outputs: tuple[TensorSpec, ...]
    parameters: RequestParameters

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        given = self.parameters
        return InferRequest(
            model,
            inputs,
            version,
            id,
            None,
            given.others,
            given.priority,
            deadline,
            given.timeout,
            given.sequence,
        )

    def is_large(self, response: InferResponse) -> bool:
        body = BODIES.get(self.form.kind)
        return (body is not None and not body.quick) or any(map(is_long, response.outputs))

    def release(self) -> None:
        """Does nothing: a plan holds no resources."""


class PlainReader:
    """Reads requests of the plain dialect. The method `read` implements the protocol ReadRequest, and also
    takes parameters that are not in the body.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(
        self,
        body: Buffer,
        headers: Mapping[bytes, bytes],
        model: str,
        version: str,
        on_loop: bool,
        further: Mapping[str, Parameter] = _NONE,
    ) -> tuple[PlainPlan, str, dict[str, Tensor]]:
        served = self._engine.find_ready(model, version)
        if on_loop and len(body) > LARGE:
            raise LargeRequest
        form = accepted(headers.get(b"accept", b""))
        kind, attributes = media_type(headers.get(b"content-type", b""))
        parameters = dict(further)
        table = BODIES.get(kind)
        rows = False
        if table is not None and not _takes_files(served):
            if on_loop and not table.quick:
                raise LargeRequest
            given = table.read(_inputs(served), body)
        elif kind == "multipart/form-data":
            given = _of_form(served, read_multipart(body, attributes.get("boundary", "")), parameters)
        elif kind in _FORMS:
            rows = is_rows(body)
            given = _of_rows(served, body) if rows else _of_json(served, body, parameters)
        else:
            spec = _only_input(served, kind)
            given = {spec.name: _of_body(spec, kind, bytes(body), served)}
        check_tensors(given)
        inputs, unbatched = fitted(served, given)
        plan = PlainPlan(
            form,
            unbatched,
            rows,
            served.signature.outputs,
            server_parameters(served, parameters) if parameters else _NO_PARAMETERS,
        )
        return plan, headers.get(REQUEST_ID, b"")[:_MAX_ID].decode("latin-1"), inputs


def _of_json(model: Model, body: Buffer, parameters: dict[str, Parameter]) -> dict[str, Tensor]:
    _check_json("the JSON", body)
    specs = {spec.name: spec for spec in model.signature.inputs}
    document = _parsed(body or b"{}", msgspec.json.decode)
    if not isinstance(document, dict):
        raise InvalidArgument(
            f"the request JSON is not an object; send the inputs by name, such as {_example(model)}"
        )
    given = {}
    for name, value in document.items():
        if name in specs:
            given[name] = tensor_of(specs[name], value)
        elif name == PARAMETERS:
            _add(parameters, plain_parameters(value))
        else:
            raise _unknown(model, name)
    return given


def _of_rows(model: Model, body: Buffer) -> dict[str, Tensor]:
    _check_size("the JSON", body)
    return _parsed(body, partial(json_rows.read, _inputs(model)))


def _parsed(body: Buffer, decode: Callable[[Buffer], Result]) -> Result:
    """Returns the result of `_decoded`. Raises InvalidArgument for a body that is not JSON."""
    try:
        return _decoded(body, decode)
    except RecursionError:
        raise InvalidArgument("failed to parse the request JSON: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # `curl --data-binary @FILE` sends a file with the content type of a form, unless told otherwise.
        hint = "" if bytes(body[:16]).lstrip()[:1] in (b"{", b"[") else f"; {_FILE_NEEDS_TYPE}"
        raise InvalidArgument(f"failed to parse the request JSON: {error}{hint}") from None


def _decoded(text: Buffer, decode: Callable[[Buffer], Result]) -> Result:
    """Decodes JSON, in which NaN and the infinities may lack quotes."""
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        rewritten = without_words(text)
        if rewritten is None:
            raise
    return decode(rewritten)


def _check_size(what: str, text: Buffer) -> None:
    if len(text) > MAX_JSON:
        raise _too_large(what, len(text), "bytes", MAX_JSON)


def _check_json(what: str, text: Buffer) -> None:
    """Raises PayloadTooLarge if decoding a JSON text would hold the interpreter's lock for too long.

    `what` names the text in the error.
    """
    _check_size(what, text)
    if len(text) > LARGE:
        check_keys(text)
        lists = count(text, ord("["))
        if lists > MAX_LISTS:
            raise _too_large(what, lists, "lists", MAX_LISTS)


def _too_large(what: str, size: int, of: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{what} has {size} {of}, more than the {limit} allowed here; send large tensors as .npy"
        " (Content-Type: application/x-npy), or as binary data to the route infer"
    )


def plain_parameters(value: Any) -> dict[str, Parameter]:
    """Returns the parameters in a decoded JSON value. Raises InvalidArgument if the value is not an object of
    strings, numbers and booleans.
    """
    if not isinstance(value, dict) or not all(isinstance(one, str | int | float) for one in value.values()):
        raise InvalidArgument("'parameters' must be an object of strings, numbers, true and false")
    return value


def query_parameters(query: bytes) -> dict[str, Parameter]:
    """Returns the parameters in the query of a URL: `true`, `false` and integers as such, and anything else
    as text. Raises InvalidArgument for a malformed query.
    """
    return {name: _parameter_of(text) for name, text in read_pairs(query).items()}


def _parameter_of(text: str) -> Parameter:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if _INTEGER(text) else text


def server_parameters(model: Model, given: Mapping[str, Parameter]) -> RequestParameters:
    """Reads parameters as the Open Inference Protocol does, except for those that choose the form of its
    responses.

    Raises InvalidArgument for an invalid parameter, and for an unknown one if the model reads none.
    """
    for name in given:
        if name in (BINARY_OUTPUT, EMPTY_FINAL):
            raise InvalidArgument(
                f"parameter '{name}' belongs to the Open Inference Protocol; here, the header field Accept"
                " chooses the form of the response"
            )
    read = read_parameters(given)
    if read.others and not model.reads_parameters:
        name = next(iter(read.others))
        raise InvalidArgument(
            f"unknown parameter '{name[:64]}': model '{model.name}' reads no parameters of its own."
            f" {suggestion(name, KNOWN)}"
        )
    return read


def _add(parameters: dict[str, Parameter], given: dict[str, Parameter]) -> None:
    """Adds the parameters of a body to those from elsewhere. Raises InvalidArgument for a parameter that is
    in both.
    """
    for name in given:
        if name in parameters:
            raise InvalidArgument(f"parameter '{name[:64]}' is given twice: in the body, and before it")
    parameters.update(given)


def _of_form(model: Model, parts: list[FormPart], parameters: dict[str, Parameter]) -> dict[str, Tensor]:
    specs = {spec.name: spec for spec in model.signature.inputs}
    given: dict[str, Tensor] = {}
    for part in parts:
        if part.name == PARAMETERS and PARAMETERS not in specs:
            _add(parameters, plain_parameters(_json_of(part.name, part.body)))
            continue
        spec = specs.get(part.name)
        if spec is None:
            raise _unknown(model, part.name)
        if part.name in given:
            raise InvalidArgument(f"the form has input '{part.name}' more than once")
        kind = part.content_type
        if part.filename.lower().endswith(".npy"):
            kind = NPY
        if kind == "application/json" or (not kind and not part.filename and not _is_text(spec)):
            given[part.name] = tensor_of(spec, _json_of(part.name, part.body))
        else:
            given[part.name] = _of_body(spec, kind or BINARY, part.body, model)
    return given


def _is_text(spec: TensorSpec) -> bool:
    return spec.datatype is DataType.BYTES and not spec.json


def _json_of(name: str, text: bytes) -> Any:
    _check_json(f"the JSON of '{name}'", text)
    try:
        return _decoded(text, msgspec.json.decode)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the part '{name}' of the form is not JSON: {error}") from None


def _of_body(spec: TensorSpec, kind: str, body: bytes, model: Model) -> Tensor:
    """Returns the tensor in `body`, a file or raw body of the media type `kind`.

    Raises InvalidArgument if the bytes do not fit the input, and UnsupportedMediaType if the input cannot be
    read from this type.
    """
    if kind in (NPY, "application/npy"):
        return _of_npy(spec, body)
    if spec.datatype is DataType.BYTES:
        return bytes_tensor(spec, body)
    if kind != BINARY:
        raise UnsupportedMediaType(
            f"input '{spec.name}' takes {spec.datatype.name} numbers, which cannot be read from"
            f" '{kind[:64]}'; send JSON, {NPY}, or raw little-endian numbers as {BINARY}"
        )
    return decode_tensor(spec.name, spec.datatype, _shape_for(spec, len(body), model), body)


def _of_npy(spec: TensorSpec, body: bytes) -> Tensor:
    array = read_npy(spec.name, body)
    if spec.datatype is DataType.BYTES:
        if array.dtype.kind not in "SU":
            raise InvalidArgument(
                f"the .npy file for input '{spec.name}' holds numbers; the input takes BYTES"
            )
        check_bytes_elements(array.size)
        elements = np.empty(array.size, np.object_)
        try:
            elements[:] = [
                text.encode() if isinstance(text, str) else text for text in array.reshape(-1).tolist()
            ]
        except (ValueError, SystemError):  # numpy raises SystemError for numbers beyond the last code point
            raise InvalidArgument(
                f"the .npy file for input '{spec.name}' holds text that is not Unicode"
            ) from None
        return Tensor(spec.name, spec.datatype, array.shape, elements.reshape(array.shape))
    wanted = spec.datatype.dtype
    if array.dtype.newbyteorder("=") != wanted:
        raise InvalidArgument(
            f"the .npy file for input '{spec.name}' holds {array.dtype}, but the input takes {wanted}"
        )
    return Tensor(spec.name, spec.datatype, array.shape, np.ascontiguousarray(array, wanted))


def _shape_for(spec: TensorSpec, size: int, model: Model) -> tuple[int, ...]:
    """Returns the shape of an input that is sent as `size` bytes of raw numbers.

    The length of a variable dimension follows from `size`. If a batched model has more than one variable
    dimension, the batch has one item. Raises InvalidArgument if the shape cannot be derived from `size`.
    """
    dimensions = list(spec.shape)
    if model.max_batch_size and dimensions and dimensions.count(-1) > 1:
        dimensions[0] = 1
    if dimensions.count(-1) > 1:
        raise InvalidArgument(
            f"the shape {dimensions} of input '{spec.name}' cannot be derived from the size of a raw body;"
            f" send JSON or {NPY}"
        )
    if -1 in dimensions:
        known = element_count([dim for dim in dimensions if dim >= 0]) * spec.datatype.itemsize
        if not known or size % known:
            raise InvalidArgument(
                f"input '{spec.name}' has {size} bytes, which is not a multiple of {known}:"
                f" {spec.datatype.name}{dimensions}"
            )
        dimensions[dimensions.index(-1)] = size // known
    return tuple(dimensions)


def _inputs(model: Model) -> Inputs:
    return Inputs(model.name, {spec.name: spec for spec in model.signature.inputs})


def _takes_files(model: Model) -> bool:
    """Returns whether a body of any type is the bytes of the model's only required input."""
    required = [spec for spec in model.signature.inputs if not spec.optional]
    return len(required) == 1 and _is_text(required[0]) and not required[0].column


def _only_input(model: Model, kind: str) -> TensorSpec:
    inputs = model.signature.inputs
    required = [spec for spec in inputs if not spec.optional] or list(inputs)
    if len(required) == 1:
        return required[0]
    names = ", ".join(spec.name for spec in inputs) or "none"
    raise UnsupportedMediaType(
        f"a body of type '{kind[:64]}' can be sent only to a model with one input, but this model has"
        f" {len(required)} ({names}); send JSON, or a form with a part for each input"
    )


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
