"""Encoding and decoding of the Open Inference Protocol over gRPC: protobuf messages with raw tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from backline.client.errors import ProtocolError
from backline.client.transport import InferCall
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.messages import InferResponse, Parameter
from backline.engine.tensor import Tensor, decode_tensor, encode_tensor
from backline.protos import message

_CONTENTS = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.BYTES: "bytes_contents",
}


def encode_infer(call: InferCall) -> Any:
    """The ModelInferRequest for a call."""
    request = message("inference.ModelInferRequest")(
        model_name=call.model, model_version=call.version, id=call.id
    )
    for tensor in call.inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        request.raw_input_contents.append(bytes(encode_tensor(tensor)))
    for name in call.outputs or ():
        request.outputs.add(name=name)
    for key, value in (call.parameters or {}).items():
        setattr(request.parameters[key], _parameter_field(value), value)
    return request


def decode_infer(url: str, response: Any) -> InferResponse:
    """The response in a ModelInferResponse, with raw or typed contents. Raises ProtocolError."""
    raw = response.raw_output_contents
    try:
        if raw and len(raw) != len(response.outputs):
            raise ValueError(f"{len(raw)} raw contents for {len(response.outputs)} outputs")
        outputs = []
        for index, output in enumerate(response.outputs):
            datatype, shape = DataType.from_name(output.datatype), tuple(output.shape)
            if raw:
                outputs.append(decode_tensor(output.name, datatype, shape, raw[index]))
                continue
            contents = getattr(output.contents, _CONTENTS[datatype]) if datatype in _CONTENTS else ()
            data = np.array(list(contents), datatype.dtype).reshape(shape)
            outputs.append(Tensor(output.name, datatype, shape, data))
    except (ValueError, InvalidArgument) as error:
        raise ProtocolError(f"{url} sent an inference response that cannot be read: {error}") from None
    parameters: dict[str, Parameter] = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in response.parameters.items()
        if value.WhichOneof("parameter_choice")
    }
    return InferResponse(response.model_name, response.model_version, response.id, outputs, parameters)


def _parameter_field(value: Parameter) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param"
    return "double_param" if isinstance(value, float) else "string_param"
