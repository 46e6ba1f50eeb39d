"""Inference requests and responses as protobuf messages of the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from backline_client.client.errors import UNREADABLE, ProtocolError
from backline_client.client.lone_output import LoneOutput, lone_output
from backline_client.client.transport import InferCall, form_of
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.memo import Memo
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Buffer, Shape, Tensor, check_shape, decode_tensor, encode_tensor

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
#: Tags of length-delimited fields (number << 3 | 2): the id of a request or response, and the raw contents of
#: each.
_ID = 3 << 3 | 2
_RAW_INPUT = 7 << 3 | 2
_RAW_OUTPUT = 6 << 3 | 2
#: The maximum number of cached message heads (messages without their ids and contents), and the maximum size
#: of each in bytes.
_REMEMBERED = 256
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class _Head:
    """The fields of a ModelInferResponse except its id and its raw contents."""

    model: str
    version: str
    outputs: tuple[tuple[str, DataType, Shape], ...]
    parameters: dict[str, Parameter] | None


class InferCodec:
    """Encodes requests to a server and decodes its responses, without copying tensors (except BYTES).

    The protobuf runtime would copy tensors two or three times. Here it handles only the rest of a message,
    and the result is cached for messages that differ only in their ids and tensor data.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._requests: Memo[object, bytes] = Memo(_REMEMBERED)
        self._responses: Memo[bytes, _Head] = Memo(_REMEMBERED)
        #: The forms of responses that fit LoneOutput, by size. The next response of the same size probably
        #: differs only in its data.
        self._forms: Memo[int, LoneOutput] = Memo(_REMEMBERED)

    def encode(self, call: InferCall) -> list[Buffer]:
        """Returns the ModelInferRequest of a call, in parts; the message is their concatenation."""
        form = form_of(call)
        head = None if form is None else self._requests.get(form)
        if head is None:
            head = _request_head(call)
            if form is not None and len(head) <= _LONGEST:
                self._requests.keep(form, head)
        parts: list[Buffer] = [head]
        if call.id:
            text = call.id.encode()
            parts.append(bytes((_ID,)) + _varint(len(text)) + text)
        for tensor in call.inputs:
            raw = encode_tensor(tensor)
            parts.append(bytes((_RAW_INPUT,)) + _varint(len(raw)))
            parts.append(raw)
        return parts

    def decode(self, received: Buffer) -> InferResponse:
        """Returns the response in a ModelInferResponse. Raises ProtocolError if the message is invalid."""
        same = self._forms.get(len(received))
        if same is not None and received[: same.start] == same.before:
            return same.response(received)
        try:
            rest, id, places = _split(received)
            head = self._responses.get(rest) if places else None
            if head is None:
                parsed = message("inference.ModelInferResponse").FromString(rest)
                if not places and parsed.outputs:
                    return self.convert(message("inference.ModelInferResponse").FromString(bytes(received)))
                head = _head_of(parsed)
                if len(rest) <= _LONGEST:
                    self._responses.keep(rest, head)
            if len(places) != len(head.outputs):
                raise ValueError(f"{len(places)} raw contents for {len(head.outputs)} outputs")
            view = memoryview(received)
            outputs = [
                decode_tensor(name, datatype, shape, view[start:end])
                for (name, datatype, shape), (start, end) in zip(head.outputs, places, strict=True)
            ]
        except (*UNREADABLE, DecodeError) as error:
            raise self._unreadable(error) from None
        parameters = dict(head.parameters) if head.parameters else head.parameters
        response = InferResponse(head.model, head.version, id, outputs, parameters)
        if len(places) == 1 and places[0][1] == len(received):
            form = lone_output(received, places[0][0], response)
            if form is not None:
                self._forms.keep(len(received), form)
        return response

    def convert(self, response: Any) -> InferResponse:
        """Returns the response in a parsed ModelInferResponse, with raw or typed contents.

        Raises ProtocolError if the contents do not fit the datatypes and shapes.
        """
        raw = response.raw_output_contents
        try:
            if raw and len(raw) != len(response.outputs):
                raise ValueError(f"{len(raw)} raw contents for {len(response.outputs)} outputs")
            outputs = []
            head = _head_of(response)
            for index, (name, datatype, shape) in enumerate(head.outputs):
                if raw:
                    outputs.append(decode_tensor(name, datatype, shape, raw[index]))
                    continue
                contents = response.outputs[index].contents
                check_shape(name, shape)
                typed = getattr(contents, _CONTENTS[datatype]) if datatype in _CONTENTS else ()
                data = np.array(list(typed), datatype.dtype).reshape(shape)
                outputs.append(Tensor(name, datatype, shape, data))
        except UNREADABLE as error:
            raise self._unreadable(error) from None
        return InferResponse(head.model, head.version, response.id, outputs, head.parameters)

    def _unreadable(self, error: Exception) -> ProtocolError:
        return ProtocolError(f"{self._url} sent an inference response that cannot be read: {error}")


def _request_head(call: InferCall) -> bytes:
    """Returns the ModelInferRequest of a call without its id and raw contents."""
    request = message("inference.ModelInferRequest")(model_name=call.model, model_version=call.version)
    for tensor in call.inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
    for name in call.outputs or ():
        request.outputs.add(name=name)
    for key, value in (call.parameters or {}).items():
        setattr(request.parameters[key], _parameter_field(value), value)
    encoded: bytes = request.SerializeToString()
    return encoded


def _head_of(response: Any) -> _Head:
    outputs = tuple(
        (one.name, DataType.from_name(one.datatype), tuple(one.shape)) for one in response.outputs
    )
    parameters: dict[str, Parameter] = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in response.parameters.items()
        if value.WhichOneof("parameter_choice")
    }
    return _Head(response.model_name, response.model_version, outputs, parameters)


def _parameter_field(value: Parameter) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param" if value < 2**63 else "uint64_param"
    return "double_param" if isinstance(value, float) else "string_param"


def _split(received: Buffer) -> tuple[bytes, str, list[tuple[int, int]]]:
    """Separates the id and the raw contents of a ModelInferResponse from the rest.

    Returns three values: the rest, itself a valid ModelInferResponse; the id; and the start and end of each
    raw content. Raises ValueError or IndexError if the message is malformed. Every field defined for this
    message is length-delimited, so the search stops at the first field of another wire type; that field and
    everything after it go into the rest.
    """
    position, total = 0, len(received)
    id = ""
    places: list[tuple[int, int]] = []
    rest: list[bytes] = []
    run = 0  # where the bytes that are not yet in the rest start
    while position < total:
        start = position
        tag = received[position]
        if tag & 7 != 2 or tag > 127:
            break
        length = received[position + 1]
        position += 2
        if length > 127:
            length, position = _read_varint(received, position - 1)
        end = position + length
        if end > total:
            raise ValueError("it is cut short")
        if tag == _RAW_OUTPUT:
            places.append((position, end))
        elif tag == _ID:
            id = str(received[position:end], "utf-8")
        else:
            position = end
            continue
        if run < start:
            rest.append(bytes(received[run:start]))
        run = position = end
    if run < total:
        rest.append(bytes(received[run:total]))
    return rest[0] if len(rest) == 1 else b"".join(rest), id, places


def _read_varint(received: Buffer, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = received[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a length takes more than ten bytes")


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)
