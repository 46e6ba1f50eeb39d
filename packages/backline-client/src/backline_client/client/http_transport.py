"""The transport over HTTP/1.1, with the Open Inference Protocol that Backline, Triton and others speak."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from backline_client.client.address import Address
from backline_client.client.control import ModelControl
from backline_client.client.credentials import find_credential
from backline_client.client.errors import UNREADABLE, ProtocolError, from_http_status
from backline_client.client.handshake import unanswered
from backline_client.client.http_codec import (
    HEADER_LENGTH,
    ResponseJson,
    decode_event,
    decode_infer,
    encode_infer,
)
from backline_client.client.http_connection import HttpAnswer
from backline_client.client.http_control import HttpControl
from backline_client.client.http_pool import HttpPool
from backline_client.client.http_stream import stream_events
from backline_client.client.lone_output import LoneOutput, lone_output
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata, answers
from backline_client.client.transport import InferCall, OnOutcome, Sending, TaskSending, Transport, form_of
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, NotFound
from backline_client.values.memo import Memo
from backline_client.values.messages import InferResponse
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Buffer, encode_tensor

if TYPE_CHECKING:
    from backline_client.system.busy_poll import BusyPoll

T = TypeVar("T")

#: The maximum number of digits in a Retry-After field that the client accepts.
LONGEST_WAIT: Final = 6
#: The maximum number of cached request heads, and of cached response headers.
_REMEMBERED = 256
#: The maximum size, in bytes, of a request head that is cached.
_LONGEST = 2048


@decodable
class _TensorJson(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None


@decodable
class _MetadataJson(msgspec.Struct):
    name: str
    versions: list[str] = []
    platform: str = ""
    inputs: list[_TensorJson] = []
    outputs: list[_TensorJson] = []


@decodable
class _IndexJson(msgspec.Struct):
    name: str
    version: str | int = ""
    state: str = ""
    reason: str = ""


@decodable
class _InputJson(msgspec.Struct):
    name: str
    optional: bool = False


@decodable
class _ConfigJson(msgspec.Struct):
    """The fields of a configuration that the client itself reads."""

    input: list[_InputJson] = []


INFER_HEAD = (
    b"POST %b%b/infer HTTP/1.1\r\n%bContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)

STREAM_HEAD = INFER_HEAD.replace(b"/infer ", b"/infer_stream ")


class HttpTransport(Transport):
    """Sends requests over a pool of kept-alive connections. Tensors received in binary form, except BYTES,
    are views of the response's body.
    """

    def __init__(self, address: Address, options: ClientOptions, poll: BusyPoll | None = None) -> None:
        """`poll` is the busy poll of the event loop; see HttpConnection."""
        self._url = address.url
        self._address = address
        self._options = options
        self._prefix = address.path.encode() if not address.unix else b""
        self._credential = find_credential(address, options)
        fields = {"Host": address.authority, **self._credential.fields}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        #: The encoded requests up to their tensors (the HTTP head and the JSON header), by the form of the
        #: call.
        self._heads: Memo[object, bytes] = Memo(_REMEMBERED)
        #: The parsed JSON headers of responses whose tensors are binary, by their text.
        self._headers: Memo[bytes, ResponseJson] = Memo(_REMEMBERED)
        #: The forms of responses that fit LoneOutput, each with the field for the length of the JSON header,
        #: by the size of the body. The next response of the same size probably differs only in its data.
        self._forms: Memo[int, tuple[LoneOutput, bytes]] = Memo(_REMEMBERED)
        self._pool = HttpPool(address, options, poll)
        self._control = HttpControl(self, address.url, options)

    @property
    def control(self) -> ModelControl:
        return self._control

    async def close(self) -> None:
        self._pool.close()

    async def infer(self, call: InferCall) -> InferResponse:
        parts, size = self._infer_request(call)
        return await self._sent(parts, size, call.timeout)

    def start_infer(self, call: InferCall, timeout: float, on_outcome: OnOutcome[InferResponse]) -> Sending:
        parts, size = self._infer_request(call)

        def ended(answer: HttpAnswer | None, error: BacklineError | None) -> None:
            response = None
            if answer is not None:
                try:
                    response = self._response(answer)
                except BacklineError as wrong:
                    error = wrong
            on_outcome(response, error)

        started = self._pool.start(parts, size, timeout, ended)
        return started or TaskSending(self._sent(parts, size, timeout), on_outcome)

    async def _sent(self, parts: list[Buffer], size: int, timeout: float) -> InferResponse:
        return self._response(await self._pool.request(parts, size, timeout))

    def _response(self, answer: HttpAnswer) -> InferResponse:
        if answer.status != 200:
            raise self.failure(answer)
        body, length = answer.body, answer.headers.get(HEADER_LENGTH)
        same = self._forms.get(len(body))
        if same is not None and length == same[1] and body[: same[0].start] == same[0].before:
            return same[0].response(body)
        response = decode_infer(self._url, answer, self._headers)
        found = None if length is None else lone_output(body, int(length), response)
        if length is not None and found is not None:
            self._forms.keep(len(body), (found, length))
        return response

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        parts, _ = self._infer_request(call, STREAM_HEAD, binary=False)
        async with aclosing(self._events(parts, call.timeout)) as events:
            async for event in events:
                yield decode_event(self._url, event)

    async def _events(self, parts: list[Buffer], timeout: float) -> AsyncGenerator[bytes, None]:
        """Sends a request, and yields the data of each event of the response."""
        events = stream_events(
            self._address,
            self._options.ssl_context() if self._address.tls else None,
            parts,
            advice=unanswered(self._address, self._options),
            connect_timeout=self._options.connect_timeout,
            timeout=timeout,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, HttpAnswer):  # the request failed before the stream began
                    raise self.failure(event)
                yield event

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
        inputs = call.inputs
        form_key = None
        if form is INFER_HEAD and len(inputs) == 1 and inputs[0].datatype is not DataType.BYTES:
            form_key = None if call.id or call.metadata else form_of(call)
            known = None if form_key is None else self._heads.get(form_key)
            if known is not None:
                raw = encode_tensor(inputs[0])
                return [known, raw], len(known) + len(raw)
        header, buffers = encode_infer(call, binary=binary)
        length = len(header) + sum(map(len, buffers))
        fields = self._fields
        if call.metadata:
            fields += "".join(f"{name}: {value}\r\n" for name, value in call.metadata).encode()
        head = form % (self._prefix, model_path(call.model, call.version), fields, len(header), length)
        if form_key is not None and len(head) + len(header) <= _LONGEST:
            self._heads.keep(form_key, head + header)
        return [head + header, *buffers], len(head) + length

    # health, metadata, configuration and statistics

    async def server_live(self, timeout: float) -> bool:
        return await self._holds(b"/v2/health/live", timeout)

    async def probe(self, timeout: float) -> bool:
        head = b"GET %b/v2/health/live HTTP/1.1\r\n%b\r\n" % (self._prefix, self._fields)
        return self._is_healthy(await self._pool.request_at_once([head], len(head), timeout))

    async def server_ready(self, timeout: float) -> bool:
        return await self._holds(b"/v2/health/ready", timeout)

    async def model_ready(self, model: str, version: str, timeout: float) -> bool:
        return await self._holds(model_path(model, version) + b"/ready", timeout)

    async def server_metadata(self, timeout: float) -> ServerMetadata:
        found = await self.json(b"/v2", timeout)
        return self.read(
            "its metadata", lambda: msgspec.convert({"name": "", "version": "", **found}, ServerMetadata)
        )

    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata:
        found = await self.json(model_path(model, version), timeout)

        def metadata() -> ModelMetadata:
            known = msgspec.convert(found, _MetadataJson)
            inputs, outputs = tuple(map(_spec, known.inputs)), tuple(map(_spec, known.outputs))
            return ModelMetadata(known.name, tuple(known.versions), known.platform, inputs, outputs)

        return self.read(f"metadata of model '{model}'", metadata)

    async def model_config(
        self, model: str, version: str, timeout: float, *, explained: bool = False
    ) -> dict[str, Any]:
        path = model_path(model, version)
        if explained:
            # NotFound may only mean that the server is not Backline and lacks this route. If the model is
            # missing, the request for /config below raises NotFound too.
            with contextlib.suppress(NotFound):
                return await self._config(path + b"/explain-config", model, timeout)
        return await self._config(path + b"/config", model, timeout)

    async def _config(self, path: bytes, model: str, timeout: float) -> dict[str, Any]:
        found = await self.json(path, timeout)
        self.read(f"a configuration of model '{model}'", lambda: msgspec.convert(found, _ConfigJson))
        config: dict[str, Any] = found
        return config

    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        path = model_path(model, version) if model else b"/v2/models"
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
        """Returns whether a health route answers with status 200."""
        return self._is_healthy(await self.exchange(b"GET", path, timeout))

    def _is_healthy(self, answer: HttpAnswer) -> bool:
        """Returns whether the response of a health route has status 200. Raises the server's error for an
        unexpected status.

        An unhealthy server responds with 400 (Triton) or 503.
        """
        if answer.status == 200:
            return True
        if answer.status in (400, 503):
            return False
        raise self.failure(answer)

    async def json(self, path: bytes, timeout: float, method: bytes = b"GET", body: bytes = b"") -> Any:
        """Returns the JSON document that the server returns for a path; see `document`."""
        return self.document(path, await self.exchange(method, path, timeout, body))

    async def follow(self, path: bytes, timeout: float) -> AsyncGenerator[Any, None]:
        """Yields the JSON document of each event of a stream, until the server ends the stream.

        `timeout` limits the wait for anything that the server sends, in seconds. Raises the same errors as
        `json`.
        """
        head = b"GET %b%b HTTP/1.1\r\n%bAccept: text/event-stream\r\n\r\n"
        async with aclosing(self._events([head % (self._prefix, path, self._fields)], timeout)) as events:
            async for event in events:
                yield self._decode(path, event)

    def document(self, path: bytes, answer: HttpAnswer) -> Any:
        """Returns the JSON document in a response.

        Raises the server's error if the status is not 200, and ProtocolError if the body is not JSON.
        """
        if answer.status != 200:
            raise self.failure(answer)
        return self._decode(path, answer.body)

    def _decode(self, path: bytes, body: Buffer) -> Any:
        try:
            return msgspec.json.decode(body)
        except UNREADABLE as error:
            raise ProtocolError(f"{self._url}{path.decode()} did not answer with JSON: {error}") from None

    def read(self, what: str, build: Callable[[], T]) -> T:
        """Converts a document from the server with `build`; `what` names the document in the error.

        Raises ProtocolError if the document does not have the expected form.
        """
        try:
            return build()
        except UNREADABLE as error:
            raise ProtocolError(f"{self._url} sent {what} that cannot be read: {error!r}") from None

    async def exchange(
        self, method: bytes, path: bytes, timeout: float, body: bytes = b"", fields: bytes = b""
    ) -> HttpAnswer:
        """Sends a request and returns the response, whatever its status. `fields` are further header lines,
        each with its CRLF.
        """
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
        """Returns the error in a response whose status is not 200.

        The message is the field "error" or "detail" of the body. Without these fields, the message has the
        status and, unless the body is a page for browsers, the beginning of the body.
        """
        body = bytes(answer.body)
        message: Any = None
        try:
            found = msgspec.json.decode(body)
            message = found.get("error", found.get("detail")) if isinstance(found, dict) else None
        except UNREADABLE:
            pass
        if not isinstance(message, str) or not message:
            text = "" if _is_page(body) else body[:200].decode(errors="replace").strip()
            message = f"{self._url} responded with status {answer.status}" + (f": {text}" if text else "")
        after = answer.headers.get(b"retry-after", b"")
        believed = after.isdigit() and len(after) <= LONGEST_WAIT
        error = from_http_status(answer.status, message, float(after) if believed else None)
        return self._credential.explain(error, self._url)


def _is_page(body: bytes) -> bool:
    """Returns whether a body is a page for browsers, as other web servers send with an error."""
    return body[:200].lstrip().lower().startswith((b"<!doctype", b"<html"))


def model_path(model: str, version: str) -> bytes:
    """Returns the path of a model, or of one of its versions."""
    path = f"/v2/models/{quote(model, safe='')}"
    return (f"{path}/versions/{quote(version, safe='')}" if version else path).encode()


def _spec(entry: _TensorJson) -> TensorSpec:
    return TensorSpec(
        entry.name,
        DataType.from_name(entry.datatype),
        tuple(entry.shape),
        optional=(entry.parameters or {}).get("optional") is True,
        json=str((entry.parameters or {}).get("json", "")),
        column=(entry.parameters or {}).get("column") is True,
    )
