"""Inference responses over gRPC: inference.ModelInferResponse, always with raw contents."""

from __future__ import annotations

from typing import Any

from backline.dialects.open_inference.wire_format import join_response
from backline.engine.messages import InferResponse, Parameter
from backline.engine.tensor import Tensor, encode_tensor
from backline.protos import message

#: So many heads are remembered: they are the same as long as model, outputs and shapes are.
_MAX_REMEMBERED = 1024


class ResponseWriter:
    """Writes responses. What precedes the contents is remembered, as it repeats."""

    def __init__(self) -> None:
        self._message = message("inference.ModelInferResponse")
        self._heads: dict[object, bytes] = {}

    def write(self, response: InferResponse, outputs: list[Tensor]) -> bytes:
        """The message. `outputs` are those of the response, classified where that was asked for."""
        if response.parameters:
            head = self._head(response, outputs)
        else:
            key: object
            if len(outputs) == 1:
                output = outputs[0]
                key = (
                    response.model_name,
                    response.model_version,
                    output.name,
                    output.datatype,
                    output.shape,
                )
            else:
                key = (
                    response.model_name,
                    response.model_version,
                    tuple([(output.name, output.datatype, output.shape) for output in outputs]),
                )
            known = self._heads.get(key)
            if known is None:
                if len(self._heads) >= _MAX_REMEMBERED:
                    self._heads.clear()
                known = self._heads[key] = self._head(response, outputs)
            head = known
        return join_response(head, response.id, [encode_tensor(output) for output in outputs])

    def _head(self, response: InferResponse, outputs: list[Tensor]) -> bytes:
        head = self._message(model_name=response.model_name, model_version=response.model_version)
        for key, value in (response.parameters or {}).items():
            set_parameter(head.parameters[key], value)
        for output in outputs:
            head.outputs.add(name=output.name, datatype=output.datatype.name, shape=output.shape)
        serialized: bytes = head.SerializeToString()
        return serialized


def set_parameter(entry: Any, value: Parameter) -> None:
    """Sets an inference.InferParameter."""
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
        if value < 2**63:
            entry.int64_param = value
        else:
            entry.uint64_param = value
    elif isinstance(value, float):
        entry.double_param = value
    else:
        entry.string_param = value
