"""JSON Schemas (draft 2020-12, as in OpenAPI 3.1) of tensors, from a model's signature, and of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from backline.dialects.bodies.values import NON_FINITE
from backline.dialects.open_inference.metadata import SCALAR
from backline.engine.model import Model
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec

Schema: TypeAlias = Mapping[str, Any]

OBJECT: Schema = {"type": "object"}
STRING: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
BINARY: Schema = {"type": "string", "format": "binary"}
#: A stream has no schema as a whole.
EVENT: Schema = {"description": "Server-sent events, whose data is JSON."}
PARAMETER: Schema = {"type": ["string", "number", "boolean"]}
PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": PARAMETER,
    "description": "Priority, timeout and sequence of the request, and parameters for the model.",
}
ENCODED: Schema = {
    "type": "object",
    "description": "A string that is not UTF-8.",
    "properties": {
        "b64": {
            "type": "string",
            "contentEncoding": "base64",
            "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        }
    },
    "required": ["b64"],
    "additionalProperties": False,
}
#: The largest finite value of each floating-point datatype for which the schema limits the values.
_LIMITS = {
    DataType.FP16: float(np.finfo(np.float16).max),
    DataType.FP32: float(np.finfo(np.float32).max),
    DataType.BF16: 3.3895313892515355e38,
}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def fields(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Returns the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        **({"required": list(required)} if required else {}),
        "additionalProperties": False,
    }


def having(required: Mapping[str, Schema]) -> Schema:
    """Returns the schema of an object with at least these fields."""
    return {"type": "object", "properties": dict(required), "required": list(required)}


def element(spec: TensorSpec, *, exact: bool = False) -> Schema:
    """Returns the schema of one element of a tensor.

    `exact` leaves out the forms that only plain HTTP has: objects and lists for inputs that take JSON, and
    the strings for infinity and NaN.
    """
    datatype = spec.datatype
    if datatype is DataType.BYTES:
        if exact:
            return {"anyOf": [STRING, ENCODED]}
        if spec.json:
            return {"type": "object" if spec.json == "object" else "array"}
        # An x-media keyword makes the console ask for a file of that kind.
        media = {"x-media": spec.media} if spec.media else {}
        missing = [{"type": "null"}] if spec.column else []
        return {"anyOf": [STRING, ENCODED, *missing], **media}
    if datatype is DataType.BOOL:
        return BOOLEAN
    if datatype.dtype.kind in "iu" and datatype is not DataType.BF16:
        limits = np.iinfo(datatype.dtype)
        return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    limit = _LIMITS.get(datatype)
    number = {"type": "number", **({} if limit is None else {"minimum": -limit, "maximum": limit})}
    if exact:
        return number
    return {"anyOf": [number, {"enum": list(NON_FINITE)}, *([BOOLEAN] if spec.column else [])]}


def nested(spec: TensorSpec, shape: Sequence[int]) -> Schema:
    """Returns the schema of a tensor that is sent as nested lists of the given shape."""
    schema = element(spec)
    for dimension in reversed(shape):
        sizes = {"minItems": dimension, "maxItems": dimension} if dimension >= 0 else {}
        schema = {"type": "array", "items": schema, **sizes}
    return schema


def plain_input(spec: TensorSpec, *, batched: bool) -> Schema:
    """Returns the schema of an input in plain HTTP, which may leave out the batch dimension."""
    full = {**nested(spec, spec.shape), "description": f"{spec}"}
    if not batched or not spec.shape:
        return full
    one = nested(spec, spec.shape[1:])
    return {
        "description": f"{spec}; without the first dimension, it is one item",
        "anyOf": [{**one, "title": "one item"}, {**full, "title": "a batch of items", "minItems": 1}],
    }


def plain_request(model: Model) -> Schema:
    batched = model.max_batch_size > 0
    inputs = model.signature.inputs
    required = {spec.name: plain_input(spec, batched=batched) for spec in inputs if not spec.optional}
    optional = {spec.name: plain_input(spec, batched=batched) for spec in inputs if spec.optional}
    if all(spec.name != "parameters" for spec in inputs):
        optional["parameters"] = PARAMETERS
    return fields(required, optional)


def plain_response(model: Model) -> Schema:
    """Returns the schema of a response in plain HTTP: the outputs by name, as nested lists.

    An output of a batched model may have a batch dimension of any size, or none if the request had none.
    """
    schemas = {}
    for spec in model.signature.outputs:
        shapes = [spec.shape]
        if model.max_batch_size > 0 and spec.shape:
            shapes.append(spec.shape[1:])
        schemas[spec.name] = {"description": str(spec), "anyOf": [nested(spec, shape) for shape in shapes]}
    return {"type": "object", "properties": schemas}


def form_request(model: Model) -> Schema:
    """Returns the schema of a form with a part for each input."""
    inputs = model.signature.inputs
    return {
        "type": "object",
        "properties": {spec.name: {**BINARY, "description": str(spec)} for spec in inputs},
        "required": [spec.name for spec in inputs if not spec.optional],
    }


def infer_request(model: Model) -> Schema:
    """Returns the schema of an Open Inference Protocol request to this model."""
    inputs = [_inference_tensor(spec, spec.shape or SCALAR) for spec in model.signature.inputs]
    required = sum(not spec.optional for spec in model.signature.inputs)
    entries: Schema = {"type": "array", "items": {"anyOf": inputs}} if inputs else {"type": "array"}
    names = {"enum": [spec.name for spec in model.signature.outputs]}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": STRING,
            "parameters": OBJECT,
            "inputs": {**entries, "minItems": required, "maxItems": len(inputs)},
            "outputs": listed(having({"name": names})),
        },
    }


def _inference_tensor(spec: TensorSpec, shape: Sequence[int]) -> Schema:
    # Not const: generated clients check each number of a shape against the const of any dimension.
    dimensions = [
        {"type": "integer", "minimum": max(size, 0), **({} if size < 0 else {"maximum": size})}
        for size in shape
    ]
    return fields(
        {
            "name": {"const": spec.name},
            "datatype": {"const": spec.datatype.name},
            "shape": {
                "type": "array",
                **({"prefixItems": dimensions} if dimensions else {}),
                "minItems": len(shape),
                "maxItems": len(shape),
            },
            "data": listed(element(spec, exact=True)),
        }
    )


TENSOR = having({"name": STRING, "datatype": STRING, "shape": listed(WHOLE)})
INFER_REQUEST = having({"inputs": listed(TENSOR)})
INFER_RESPONSE = having({"model_name": STRING, "model_version": STRING, "outputs": listed(TENSOR)})
ERROR: Schema = {**fields({"error": STRING}), "description": "What is wrong, where, and what to do next."}
