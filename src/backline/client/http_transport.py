"""The transport over HTTP/1.1, with the Open Inference Protocol that Backline, Triton and others speak."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from backline.client.address import Address
from backline.client.control import ModelControl
from backline.client.credentials import find_credential
from backline.client.errors import UNREADABLE, ProtocolError, from_http_status
from backline.client.handshake import unanswered
from backline.client.http_connection import HttpAnswer
from backline.client.http_control import HttpControl
from backline.client.http_pool import HttpPool
from backline.client.http_stream import stream_events
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata, answers
from backline.client.transport import InferCall, Transport
from backline.engine.errors import BacklineError, NotFound
from backline.engine.values.datatypes import DataType
from backline.engine.values.messages import InferResponse, Parameter
from backline.engine.values.signature import TensorSpec
from backline.engine.values.tensor import Buffer, Tensor, decode_tensor, encode_tensor

T = TypeVar("T")

#: The maximum number of digits in a Retry-After field that the client accepts.
LONGEST_WAIT: Final = 6

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


class _TensorJson(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None


class _MetadataJson(msgspec.Struct):
    name: str
    versions: list[str] = []
    platform: str = ""
    inputs: list[_TensorJson] = []
    outputs: list[_TensorJson] = []


class _IndexJson(msgspec.Struct):
    name: str
    version: str | int = ""
    state: str = ""
    reason: str = ""


class _InputJson(msgspec.Struct):
    name: str
    optional: bool = False


class _ConfigJson(msgspec.Struct):
    """The fields of a configuration that the client itself reads."""

    input: list[_InputJson] = []


class _Error(msgspec.Struct):
    error: str | None = None


_decode_error = msgspec.json.Decoder(_Error).decode
_decode = msgspec.json.Decoder(_ResponseJson).decode


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


def decode_infer(url: str, answer: HttpAnswer) -> InferResponse:
    """Decodes the response in an answer with status 200. Raises ProtocolError if it is invalid."""
    body = memoryview(answer.body)
    length = answer.headers.get(b"inference-header-content-length")
    try:
        end = len(body) if length is None else int(length)
        if not 0 < end <= len(body):
            raise ValueError(f"the JSON header has {end} bytes, but the body has {len(body)}")
        header = _read_header(body[:end])
        outputs = list(_tensors(header, body, end))
    except UNREADABLE as error:
        raise ProtocolError(f"{url} sent an inference response that cannot be read: {error}") from None
    return InferResponse(header.model_name, header.model_version, header.id, outputs, header.parameters)


def _read_header(text: memoryview) -> _ResponseJson:
    """Reads the JSON of a response, in which numbers may be NaN, Infinity or -Infinity."""
    try:
        return _decode(text)
    except UNREADABLE:
        # The standard library is slower, but reads these words.
        return msgspec.convert(json.loads(bytes(text)), _ResponseJson)


def decode_event(url: str, data: bytes) -> InferResponse:
    """Decodes the response in an event. Raises the error that the event reports, or ProtocolError."""
    try:
        failed = _decode_error(data)
    except UNREADABLE:
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


INFER_HEAD = (
    b"POST %b%b/infer HTTP/1.1\r\n%bContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)

STREAM_HEAD = INFER_HEAD.replace(b"/infer ", b"/infer_stream ")


class HttpTransport(Transport):
    """Sends requests over a pool of kept-alive connections. Received tensors are views of the body."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self._url = address.url
        self._address = address
        self._options = options
        self._prefix = address.path.encode() if not address.unix else b""
        self._credential = find_credential(address, options)
        fields = {"Host": address.authority, **self._credential.fields}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        self._pool = HttpPool(address, options)
        self._control = HttpControl(self, address.url, options)

    @property
    def control(self) -> ModelControl:
        return self._control

    async def close(self) -> None:
        self._pool.close()

    async def infer(self, call: InferCall) -> InferResponse:
        parts, size = self._infer_request(call)
        answer = await self._pool.request(parts, size, call.timeout)
        if answer.status != 200:
            raise self.failure(answer)
        return decode_infer(self._url, answer)

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        parts, _ = self._infer_request(call, STREAM_HEAD, binary=False)
        context = self._options.ssl_context() if self._address.tls else None
        events = stream_events(
            self._address,
            context,
            parts,
            advice=unanswered(self._address, self._options),
            connect_timeout=self._options.connect_timeout,
            timeout=call.timeout,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, HttpAnswer):  # the request failed before the stream began
                    raise self.failure(event)
                yield decode_event(self._url, event)

    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        parts, size = self._infer_request(call)
        request, timeout = self._pool.request, call.timeout

        async def send() -> None:
            answer = await request(parts, size, timeout)
            if answer.status != 200:
                raise self.failure(answer)

        return send

    def _infer_request(
        self, call: InferCall, form: bytes = INFER_HEAD, *, binary: bool = True
    ) -> tuple[list[Buffer], int]:
        header, buffers = encode_infer(call, binary=binary)
        length = len(header) + sum(map(len, buffers))
        fields = self._fields
        if call.metadata:
            fields += "".join(f"{name}: {value}\r\n" for name, value in call.metadata).encode()
        head = form % (self._prefix, _model_path(call.model, call.version), fields, len(header), length)
        return [head + header, *buffers], len(head) + length

    # health, metadata, configuration and statistics

    async def server_live(self, timeout: float) -> bool:
        return await self._holds(b"/v2/health/live", timeout)

    async def server_ready(self, timeout: float) -> bool:
        return await self._holds(b"/v2/health/ready", timeout)

    async def model_ready(self, model: str, version: str, timeout: float) -> bool:
        return await self._holds(_model_path(model, version) + b"/ready", timeout)

    async def server_metadata(self, timeout: float) -> ServerMetadata:
        found = await self.json(b"/v2", timeout)
        return self.read(
            "its metadata", lambda: msgspec.convert({"name": "", "version": "", **found}, ServerMetadata)
        )

    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata:
        found = await self.json(_model_path(model, version), timeout)

        def metadata() -> ModelMetadata:
            known = msgspec.convert(found, _MetadataJson)
            inputs, outputs = tuple(map(_spec, known.inputs)), tuple(map(_spec, known.outputs))
            return ModelMetadata(known.name, tuple(known.versions), known.platform, inputs, outputs)

        return self.read(f"metadata of model '{model}'", metadata)

    async def model_config(
        self, model: str, version: str, timeout: float, *, explained: bool = False
    ) -> dict[str, Any]:
        path = _model_path(model, version)
        if explained:
            # Other servers lack the route, and a missing model is reported by the next request.
            with contextlib.suppress(NotFound):
                return await self._config(path + b"/explain-config", model, timeout)
        return await self._config(path + b"/config", model, timeout)

    async def _config(self, path: bytes, model: str, timeout: float) -> dict[str, Any]:
        found = await self.json(path, timeout)
        self.read(f"a configuration of model '{model}'", lambda: msgspec.convert(found, _ConfigJson))
        config: dict[str, Any] = found
        return config

    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        path = _model_path(model, version) if model else b"/v2/models"
        found = await self.json(path + b"/stats", timeout)
        return self.read(
            "statistics", lambda: msgspec.convert(found.get("model_stats", []), list[dict[str, Any]])
        )

    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        found = await self.json(b"/v2/repository/index", timeout, method=b"POST")
        index = self.read("a list of models", lambda: msgspec.convert(found, list[_IndexJson]))
        return [
            ModelIndex(entry.name, str(entry.version), entry.state, entry.reason, ready=answers(entry.state))
            for entry in index
        ]

    async def _holds(self, path: bytes, timeout: float) -> bool:
        """Returns whether a health route answers with status 200.

        An unhealthy server answers with 400 (Triton) or 503.
        """
        answer = await self.exchange(b"GET", path, timeout)
        if answer.status == 200:
            return True
        if answer.status in (400, 503):
            return False
        raise self.failure(answer)

    async def json(self, path: bytes, timeout: float, method: bytes = b"GET", body: bytes = b"") -> Any:
        """Returns the JSON document that the server returns for a path; see `document`."""
        return self.document(path, await self.exchange(method, path, timeout, body))

    async def follow(self, path: bytes, timeout: float) -> AsyncGenerator[Any, None]:
        """Yields the JSON document of each event of a stream, until the server ends it.

        `timeout` limits the wait for anything that the server sends, in seconds. Raises the same errors as
        `json`.
        """
        head = b"GET %b%b HTTP/1.1\r\n%bAccept: text/event-stream\r\n\r\n"
        events = stream_events(
            self._address,
            self._options.ssl_context() if self._address.tls else None,
            [head % (self._prefix, path, self._fields)],
            advice=unanswered(self._address, self._options),
            connect_timeout=self._options.connect_timeout,
            timeout=timeout,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, HttpAnswer):
                    raise self.failure(event)
                yield msgspec.json.decode(event)

    def document(self, path: bytes, answer: HttpAnswer) -> Any:
        """Returns the JSON document in an answer.

        Raises ProtocolError if it is not JSON, or the server's error.
        """
        if answer.status != 200:
            raise self.failure(answer)
        try:
            return msgspec.json.decode(answer.body)
        except UNREADABLE as error:
            raise ProtocolError(f"{self._url}{path.decode()} did not answer with JSON: {error}") from None

    def read(self, what: str, build: Callable[[], T]) -> T:
        """Converts a document from the server with `build`.

        Raises ProtocolError if the document does not have the expected form.
        """
        try:
            return build()
        except UNREADABLE as error:
            raise ProtocolError(f"{self._url} sent {what} that cannot be read: {error!r}") from None

    async def exchange(
        self, method: bytes, path: bytes, timeout: float, body: bytes = b"", fields: bytes = b""
    ) -> HttpAnswer:
        """Sends a request and returns any answer. `fields` are further header lines, each with its CRLF."""
        kind = b"Content-Type: application/json\r\n" if body else b""
        length = b"Content-Length: %d\r\n" % len(body) if body or method in (b"POST", b"PUT") else b""
        head = b"%b %b%b HTTP/1.1\r\n%b%b%b%b\r\n" % (
            method,
            self._prefix,
            path,
            self._fields,
            fields,
            kind,
            length,
        )
        return await self._pool.request([head, body] if body else [head], len(head) + len(body), timeout)

    def failure(self, answer: HttpAnswer) -> BacklineError:
        """Returns the error in an answer whose status is not 200.

        Its message is the field "error", or else the body.
        """
        body = bytes(answer.body)
        message: Any = None
        try:
            found = msgspec.json.decode(body)
            message = found.get("error", found.get("detail")) if isinstance(found, dict) else None
        except UNREADABLE:
            pass
        if not isinstance(message, str) or not message:
            text = body[:200].decode(errors="replace").strip()
            message = f"{self._url} answered status {answer.status}" + (f": {text}" if text else "")
        after = answer.headers.get(b"retry-after", b"")
        believed = after.isdigit() and len(after) <= LONGEST_WAIT
        error = from_http_status(answer.status, message, float(after) if believed else None)
        return self._credential.explain(error, self._url)


def _model_path(model: str, version: str) -> bytes:
    path = f"/v2/models/{quote(model, safe='')}"
    return (f"{path}/versions/{quote(version, safe='')}" if version else path).encode()


def _spec(entry: _TensorJson) -> TensorSpec:
    return TensorSpec(
        entry.name,
        DataType.from_name(entry.datatype),
        tuple(entry.shape),
        optional=(entry.parameters or {}).get("optional") is True,
    )
