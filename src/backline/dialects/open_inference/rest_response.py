"""Inference responses over REST: JSON, followed by the tensors that go out in binary form."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from backline.dialects.json_data import encode_data
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.rest_request import HEADER_LENGTH
from backline.dialects.open_inference.shared_tensors import StoredTensor
from backline.engine.messages import InferResponse, Parameter
from backline.engine.tensor import Buffer, Tensor, encode_tensor
from backline.wire.application import Fields

_JSON_FIELDS: Fields = ((b"content-type", b"application/json"),)
#: So many heads are remembered: they are the same as long as model, output and shape are.
_MAX_REMEMBERED = 1024


class OutputDocument(Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | UnsetType = UNSET
    data: list[Any] | Raw | UnsetType = UNSET


class ResponseDocument(Struct):
    id: str | UnsetType
    model_name: str
    model_version: str
    parameters: dict[str, Parameter] | UnsetType
    outputs: list[OutputDocument]


class ResponseWriter:
    """Writes responses. The JSON of a response with one output in binary form is remembered, as it repeats."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._heads: dict[object, tuple[Fields, bytes]] = {}

    def write(
        self, plan: InferPlan, response: InferResponse, outputs: list[Tensor]
    ) -> tuple[Fields, list[Buffer]]:
        """The header fields and the buffers of the body. `outputs` are those of the response, classified where that was asked for.

        Raises InvalidArgument for values that JSON does not have.
        """
        if len(outputs) == 1 and not response.id and not response.parameters:
            tensor = outputs[0]
            if plan.is_binary(tensor.name):
                data = encode_tensor(tensor)
                key = (
                    response.model_name,
                    response.model_version,
                    tensor.name,
                    tensor.datatype,
                    tensor.shape,
                    len(data),
                )
                head = self._heads.get(key)
                if head is None:
                    fields, buffers = self._write(plan, response, outputs)
                    if len(self._heads) >= _MAX_REMEMBERED:
                        self._heads.clear()
                    head = self._heads[key] = fields, bytes(buffers[0])
                return head[0], [head[1], data]
        return self._write(plan, response, outputs)

    def _write(
        self, plan: InferPlan, response: InferResponse, outputs: list[Tensor]
    ) -> tuple[Fields, list[Buffer]]:
        documents = []
        buffers: list[Buffer] = [b""]
        for tensor in outputs:
            if plan.is_binary(tensor.name):
                data = encode_tensor(tensor)
                buffers.append(data)
                documents.append(
                    OutputDocument(
                        tensor.name, tensor.datatype.name, tensor.shape, {"binary_data_size": len(data)}
                    )
                )
            elif isinstance(tensor, StoredTensor):
                documents.append(OutputDocument(tensor.name, tensor.datatype.name, tensor.shape))
            else:
                documents.append(
                    OutputDocument(
                        tensor.name, tensor.datatype.name, tensor.shape, UNSET, encode_data(tensor)
                    )
                )
        header = self._encode(
            ResponseDocument(
                response.id or UNSET,
                response.model_name,
                response.model_version,
                response.parameters or UNSET,
                documents,
            )
        )
        buffers[0] = header
        if len(buffers) == 1:
            return _JSON_FIELDS, buffers
        return ((b"content-type", b"application/octet-stream"), (HEADER_LENGTH, b"%d" % len(header))), buffers
