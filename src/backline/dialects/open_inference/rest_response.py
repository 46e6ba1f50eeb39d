"""Inference responses over REST: JSON, followed by the tensors that go out in binary form."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from backline.dialects.open_inference.json_data import encode_data
from backline.dialects.open_inference.plan import InferPlan
from backline.engine.messages import InferResponse, Parameter
from backline.engine.tensor import Buffer, Tensor, encode_tensor
from backline.wire.application import Fields

_JSON_FIELDS: Fields = [(b"content-type", b"application/json")]


class OutputDocument(Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class ResponseDocument(Struct):
    id: str | UnsetType
    model_name: str
    model_version: str
    parameters: dict[str, Parameter] | UnsetType
    outputs: list[OutputDocument]


_encode = msgspec.json.Encoder().encode


def encode_response(plan: InferPlan, response: InferResponse, outputs: list[Tensor]) -> tuple[Fields, list[Buffer]]:
    """The header fields and the buffers of the body. `outputs` are those of the response, classified where that was asked for.

    Raises InvalidArgument for values that JSON does not have.
    """
    documents = []
    buffers: list[Buffer] = [b""]
    binary_default = plan.binary_default
    chosen = plan.binary
    for tensor in outputs:
        name = tensor.name
        if chosen.get(name, binary_default) if chosen else binary_default:
            data = encode_tensor(tensor)
            buffers.append(data)
            documents.append(OutputDocument(name, tensor.datatype.name, tensor.shape, {"binary_data_size": len(data)}))
        else:
            documents.append(OutputDocument(name, tensor.datatype.name, tensor.shape, UNSET, encode_data(tensor)))
    header = _encode(
        ResponseDocument(response.id or UNSET, response.model_name, response.model_version, response.parameters or UNSET, documents)
    )
    buffers[0] = header
    if len(buffers) == 1:
        return _JSON_FIELDS, buffers
    return [(b"content-type", b"application/octet-stream"), (b"inference-header-content-length", b"%d" % len(header))], buffers
