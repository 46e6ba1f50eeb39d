"""Encodes inference requests for HTTP, and decodes responses: JSON, then the tensors in binary form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np

from backline_client.client.errors import UNREADABLE, ProtocolError, from_http_status
from backline_client.client.http_connection import HttpAnswer
from backline_client.client.transport import InferCall
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.memo import Memo
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Buffer, Tensor, check_shape, decode_tensor, encode_tensor

HEADER_LENGTH: Final = b"inference-header-content-length"
#: The maximum size, in bytes, of a JSON header that is cached.
_LONGEST: Final = 2048

_encode = msgspec.json.Encoder().encode


@decodable
class _OutputJson(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Parameter] = {}
    data: list[Any] | None = None


@decodable
class ResponseJson(msgspec.Struct):
    model_name: str
    outputs: list[_OutputJson]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Parameter] | None = None


@decodable
class _Error(msgspec.Struct):
    error: str | None = None


_decode_error = msgspec.json.Decoder(_Error).decode
_decode = msgspec.json.Decoder(ResponseJson).decode


def encode_infer(call: InferCall, *, binary: bool = True) -> tuple[bytes, list[Buffer]]:
    """Encodes a call as a JSON header and the buffers of its tensors. `binary` asks for binary outputs."""
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


def decode_infer(
    url: str, answer: HttpAnswer, headers: Memo[bytes, ResponseJson] | None = None
) -> InferResponse:
    """Decodes the inference response in an HTTP response with status 200. `headers` caches parsed JSON
    headers by their text.

    Raises ProtocolError if the response is invalid.
    """
    body = memoryview(answer.body)
    length = answer.headers.get(HEADER_LENGTH)
    try:
        end = len(body) if length is None else int(length)
        if not 0 < end <= len(body):
            raise ValueError(f"the JSON header has {end} bytes, but the body has {len(body)}")
        header = _read_header(body[:end]) if length is None else _known_header(body[:end], headers)
        outputs = list(_tensors(header, body, end))
    except UNREADABLE as error:
        raise ProtocolError(f"{url} sent an inference response that cannot be read: {error}") from None
    parameters = dict(header.parameters) if header.parameters else header.parameters
    return InferResponse(header.model_name, header.model_version, header.id, outputs, parameters)


def _known_header(text: memoryview, headers: Memo[bytes, ResponseJson] | None) -> ResponseJson:
    """Returns the parsed JSON header of a response whose tensors follow as binary data."""
    if headers is None or len(text) > _LONGEST:
        return _read_header(text)
    key = bytes(text)
    return headers.get(key) or headers.keep(key, _read_header(text))


def _read_header(text: memoryview) -> ResponseJson:
    """Parses the JSON of a response, in which numbers may be NaN, Infinity or -Infinity."""
    try:
        return _decode(text)
    except UNREADABLE:
        # The standard library is slower than msgspec, but accepts NaN, Infinity and -Infinity.
        return msgspec.convert(json.loads(bytes(text)), ResponseJson)


def decode_event(url: str, data: bytes) -> InferResponse:
    """Decodes the response in an event. Raises the error that the event reports, or ProtocolError if the
    event is invalid.
    """
    try:
        failed = _decode_error(data)
    except UNREADABLE:
        failed = None
    if failed is not None and failed.error is not None:
        raise from_http_status(500, failed.error)
    return decode_infer(url, HttpAnswer(200, {}, data))


def _tensors(header: ResponseJson, body: memoryview, start: int) -> Iterator[Tensor]:
    for output in header.outputs:
        datatype = DataType.from_name(output.datatype)
        check_shape(output.name, output.shape)
        size = output.parameters.get("binary_data_size")
        if size is not None:
            end = start + int(size)
            if not start <= end <= len(body):
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
            data = np.array(output.data, datatype.dtype).reshape(output.shape)
            yield Tensor(output.name, datatype, output.shape, data)
    if start != len(body):
        raise ValueError(f"{len(body) - start} bytes follow the outputs")
