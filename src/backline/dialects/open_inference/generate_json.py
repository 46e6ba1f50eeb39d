"""The generate extension's JSON: names of inputs and outputs as keys, their elements as values; what is no tensor is a parameter."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, NoReturn

import msgspec

from backline.dialects.open_inference.json_data import MAX_DEPTH, decode_data, encode_data
from backline.dialects.open_inference.metadata import SCALAR
from backline.dialects.open_inference.parameters import apply_parameters
from backline.dialects.open_inference.plan import InferPlan, InputPlan, prefix
from backline.engine.errors import InvalidArgument
from backline.engine.messages import InferResponse, Parameter
from backline.engine.model import Model
from backline.engine.signature import TensorSpec
from backline.engine.tensor import Buffer, Shape, Tensor

#: A decoded request: what it asks, its id, its tensors by name.
Decoded = tuple[InferPlan, str, dict[str, Tensor]]
#: The only key with an object.
_PARAMETERS = "parameters"
_encode = msgspec.json.Encoder().encode


class _Object(list[tuple[str, Any]]):
    """A JSON object as it stands, with keys that come twice."""


def read_generate(body: Buffer, model: Model) -> Decoded:
    """The request in `body`. Keys that are names of inputs are tensors, `id` is the request's, all others, and those of the object
    `parameters`, are its parameters; as Triton's, with its texts. Raises InvalidArgument.
    """
    document = _parse(body)
    inputs = {spec.name: spec for spec in model.signature.inputs}
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {}
    for key, value in document:
        if key == _PARAMETERS and key not in inputs:
            if not isinstance(value, _Object):
                raise InvalidArgument(f"Expected JSON object for keyword: '{key}': it is {_kind(value)}")
            for name, part in value:
                try:
                    _take(name, part, inputs, tensors, parameters)
                except InvalidArgument as error:
                    raise InvalidArgument(f"Converting keyword: '{key}': {error.message}") from None
        else:
            _take(key, value, inputs, tensors, parameters)
    id = parameters.pop("id", "")
    if not isinstance(id, str):
        raise InvalidArgument(f"'id' must be a string, got {_kind(id)}")
    plan = InferPlan(())
    reserved = {
        key: value for key, value in parameters.items() if key.startswith("triton_")
    }  # Triton lets them pass here
    apply_parameters(plan, {key: value for key, value in parameters.items() if key not in reserved})
    if reserved:
        plan.parameters = {**(plan.parameters or {}), **reserved}
    return plan, id, tensors


def write_generate(response: InferResponse) -> bytes:
    """The JSON of a response: outputs with one element as it, others as a flat list. Raises InvalidArgument for values that JSON lacks."""
    document: dict[str, Any] = {tensor.name: _value(tensor) for tensor in response.outputs}
    document.update(response.parameters or {})
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.id:
        document["id"] = response.id
    return _encode(dict(sorted(document.items())))


def _parse(body: Buffer) -> _Object:
    if not body:
        raise InvalidArgument("the body is empty, expected a JSON object with the names of inputs")
    try:
        document = json.loads(bytes(body), object_pairs_hook=_Object, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidArgument("failed to parse the request JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"failed to parse the request JSON: {error}") from None
    if not isinstance(document, _Object):
        raise InvalidArgument(
            f"failed to parse the request JSON: it is {_kind(document)}, expected an object with the names of inputs"
        )
    return document


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _take(
    key: str,
    value: Any,
    inputs: dict[str, TensorSpec],
    tensors: dict[str, Tensor],
    parameters: dict[str, Parameter],
) -> None:
    spec = inputs.get(key)
    if spec is not None:
        if key in tensors:
            raise InvalidArgument(f"{prefix('')}input '{key}' already exists in request")
        tensors[key] = _tensor(spec, value)
        return
    if not isinstance(value, (str, int, float)):
        raise InvalidArgument(
            f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'."
        )
    parameters[key] = value


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    if isinstance(value, _Object):
        raise InvalidArgument(
            f"Unable to parse 'data' of input '{spec.name}': it is an object, expected one element or a list of them"
        )
    elements = value if isinstance(value, list) else [value]
    for _ in range(MAX_DEPTH):
        if not any(isinstance(element, list) for element in elements):
            break
        elements = list(
            chain.from_iterable(element if isinstance(element, list) else [element] for element in elements)
        )
    plan = InputPlan(spec.name, spec.datatype.name, _shape(spec, len(elements)))
    return decode_data(plan, _encode(elements), f"$.{spec.name}")


def _shape(spec: TensorSpec, count: int) -> Shape:
    """The shape of `count` elements: the innermost dimension that varies takes what the fixed ones leave, others are 1."""
    shape = list(spec.shape or SCALAR)
    for dimension in shape:
        if dimension > 0:
            if count % dimension:
                raise _no_shape(spec)
            count //= dimension
    for index in reversed(range(len(shape))):
        if shape[index] < 0:
            shape[index], count = count, 1
    if count != 1 and 0 not in spec.shape:
        raise _no_shape(spec)
    return tuple(shape)


def _no_shape(spec: TensorSpec) -> InvalidArgument:
    return InvalidArgument(f"The schema can not convert input '{spec.name}' to tensor with proper shape")


def _value(tensor: Tensor) -> Any:
    values = encode_data(tensor)
    return values[0] if isinstance(values, list) and len(values) == 1 else values


def _kind(value: object) -> str:
    if isinstance(value, _Object):
        return "an object"
    return {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
