"""Encoding and decoding of the Open Inference Protocol over HTTP: a JSON header, then binary tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from backline.client.errors import ProtocolError, from_http_status
from backline.client.http_connection import HttpAnswer
from backline.client.transport import InferCall
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.messages import InferResponse, Parameter
from backline.engine.tensor import Buffer, Tensor, decode_tensor, encode_tensor

_encode = msgspec.json.Encoder().encode


class _OutputJson(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Parameter] = {}
    data: list[Any] | None = None


class _ResponseJson(msgspec.Struct):
    model_name: str
    outputs: list[_OutputJson]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Parameter] | None = None


class _Error(msgspec.Struct):
    error: str | None = None


_decode_error = msgspec.json.Decoder(_Error).decode
_decode = msgspec.json.Decoder(_ResponseJson).decode


def encode_infer(call: InferCall, *, binary: bool = True) -> tuple[bytes, list[Buffer]]:
    """The JSON header for a call and its tensors' buffers, in order; outputs come in binary or as JSON."""
    inputs = []
    buffers: list[Buffer] = []
    for tensor in call.inputs:
        raw = encode_tensor(tensor)
        buffers.append(raw)
        inputs.append(
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": tensor.datatype.name,
                "parameters": {"binary_data_size": len(raw)},
            }
        )
    header: dict[str, Any] = {"inputs": inputs}
    if call.id:
        header["id"] = call.id
    parameters = dict(call.parameters or {})
    if call.outputs is not None:
        header["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in call.outputs]
    elif binary:
        parameters["binary_data_output"] = True
    if parameters:
        header["parameters"] = parameters
    return _encode(header), buffers


def decode_infer(url: str, answer: HttpAnswer) -> InferResponse:
    """The response in an answer with status 200. Raises ProtocolError."""
    body = memoryview(answer.body)
    length = answer.headers.get(b"inference-header-content-length")
    try:
        end = len(body) if length is None else int(length)
        if not 0 < end <= len(body):
            raise ValueError(f"header of {end} bytes in a body of {len(body)}")
        header = _decode(body[:end])
        outputs = list(_tensors(header, body, end))
    except (ValueError, InvalidArgument, msgspec.DecodeError) as error:
        raise ProtocolError(f"{url} sent an inference response that cannot be read: {error}") from None
    return InferResponse(header.model_name, header.model_version, header.id, outputs, header.parameters)


def decode_event(url: str, data: bytes) -> InferResponse:
    """The response in an event. Raises the error that the event reports, or ProtocolError."""
    try:
        failed = _decode_error(data)
    except msgspec.DecodeError:
        failed = None
    if failed is not None and failed.error is not None:
        raise from_http_status(500, failed.error)
    return decode_infer(url, HttpAnswer(200, {}, data))


def _tensors(header: _ResponseJson, body: memoryview, start: int) -> Iterator[Tensor]:
    for output in header.outputs:
        datatype = DataType.from_name(output.datatype)
        size = output.parameters.get("binary_data_size")
        if size is not None:
            end = start + int(size)
            if end > len(body):
                raise ValueError(f"output '{output.name}' ends at byte {end} of {len(body)}")
            yield decode_tensor(output.name, datatype, output.shape, body[start:end])
            start = end
        elif output.data is None:
            raise ValueError(f"output '{output.name}' has neither data nor binary_data_size")
        elif datatype is DataType.BYTES:
            data = np.empty(len(output.data), np.object_)
            data[:] = [element.encode() if isinstance(element, str) else element for element in output.data]
            yield Tensor(output.name, datatype, output.shape, data.reshape(output.shape))
        else:
            yield Tensor(
                output.name,
                datatype,
                output.shape,
                np.array(output.data, datatype.dtype).reshape(output.shape),
            )
    if start != len(body):
        raise ValueError(f"{len(body) - start} bytes follow the outputs")
