"""Writes inference responses over REST: JSON, followed by the tensors in binary form."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from backline.dialects.json_data import encode_data, encode_numbers
from backline.dialects.open_inference.outputs import wanted_outputs
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.rest.messages import HEADER_LENGTH
from backline.dialects.open_inference.shared_memory import StoredTensor
from backline.engine.engine import Engine
from backline.wire.application import Fields
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.memo import Memo
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Buffer, Tensor, encode_tensor

_JSON_FIELDS: Fields = ((b"content-type", b"application/json"),)
#: The maximum number of cached beginnings of responses.
_MAX_REMEMBERED = 1024
#: The end of the JSON of a response whose last output has data.
_END = b"}]}"
#: The maximum size in bytes of JSON that is copied into one buffer.
_JOINED = 16 * 1024


@decodable
class OutputDocument(Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | UnsetType = UNSET
    data: list[Any] | Raw | UnsetType = UNSET


@decodable
class ResponseDocument(Struct):
    id: str | UnsetType
    model_name: str
    model_version: str
    parameters: dict[str, Parameter] | UnsetType
    outputs: list[OutputDocument]


class RestWriter:
    """Writes responses. For responses with one output, everything except the data is cached, because many
    responses differ in nothing else.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._encode = msgspec.json.Encoder().encode
        self._heads: Memo[object, tuple[Fields, bytes]] = Memo(_MAX_REMEMBERED)
        self._json_heads: Memo[object, bytes] = Memo(_MAX_REMEMBERED)

    def write(self, plan: InferPlan, response: InferResponse) -> tuple[Fields, list[Buffer]]:
        """Returns the header fields and the buffers of the body.

        Raises BacklineError, such as InvalidArgument for values that JSON cannot represent.
        """
        outputs = response.outputs if plan.keeps_outputs else wanted_outputs(self._engine, plan, response)
        if len(outputs) == 1 and not response.id and not response.parameters:
            tensor = outputs[0]
            if plan.binary.get(tensor.name, plan.binary_default):
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
                    head = self._heads.keep(key, (fields, bytes(buffers[0])))
                return head[0], [head[1], data]
            if tensor.datatype is not DataType.BYTES and not isinstance(tensor, StoredTensor):
                return _JSON_FIELDS, self._write_numbers(response, tensor)
        return self._write(plan, response, outputs)

    def _write_numbers(self, response: InferResponse, tensor: Tensor) -> list[Buffer]:
        """Returns the JSON of a response whose only output is numeric."""
        elements = encode_numbers(tensor)
        key = (response.model_name, response.model_version, tensor.name, tensor.datatype, tensor.shape)
        head = self._json_heads.get(key)
        if head is None:
            output = OutputDocument(tensor.name, tensor.datatype.name, tensor.shape, UNSET, Raw(b"0"))
            document = self._encode(
                ResponseDocument(UNSET, response.model_name, response.model_version, UNSET, [output])
            )
            head = self._json_heads.keep(key, document.removesuffix(b"0" + _END))
        if len(elements) > _JOINED:
            return [head, elements, _END]
        return [b"".join((head, elements, _END))]

    def _write(
        self, plan: InferPlan, response: InferResponse, outputs: list[Tensor]
    ) -> tuple[Fields, list[Buffer]]:
        documents = []
        buffers: list[Buffer] = [b""]
        for tensor in outputs:
            parameters: dict[str, int] | UnsetType = UNSET
            elements: list[Any] | Raw | UnsetType = UNSET
            if plan.is_binary(tensor.name):
                data = encode_tensor(tensor)
                buffers.append(data)
                parameters = {"binary_data_size": len(data)}
            elif not isinstance(tensor, StoredTensor):
                elements = encode_data(tensor)
            documents.append(
                OutputDocument(tensor.name, tensor.datatype.name, tensor.shape, parameters, elements)
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
