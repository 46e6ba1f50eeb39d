"""Single exchanges with a server, as bytes on the wire: what it answers to a request, right or wrong."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from scenarios.gate import PATIENCE

_SERVICE = "inference.GRPCInferenceService"
_LENGTH = "Inference-Header-Content-Length"
_VARYING = (
    (re.compile(r"\b\d+ ms\b"), "N ms"),
    (re.compile(r"0x[0-9a-f]{6,}"), "0xN"),
    (re.compile(r"[\w./{}-]+/(?=model\.py\b)"), ""),
)

#: A body: JSON data, or bytes as they are. An HTTP exchange may add fields to its header.
Body = Any
Seen = dict[str, Any]


class Exchanges:
    """Sends requests to a server's ports and describes the answers as plain JSON data.

    `hidden` are texts that vary from run to run, such as folders, and what replaces them.
    """

    def __init__(self, http_address: str, grpc_address: str, hidden: Mapping[str, str]) -> None:
        self._http = http_address
        self._grpc = grpc_address
        self._hidden = hidden
        self._channel: grpc.Channel | None = None

    # HTTP

    def http(self, method: str, path: str, body: Body = b"", headers: Mapping[str, str] = {}) -> Seen:
        """The status of an answer, its content type, and its body if it has one.

        JSON is parsed; the bytes that follow the JSON of a binary answer are in hexadecimal.
        """
        connection = http.client.HTTPConnection(self._http, timeout=PATIENCE)
        try:
            connection.request(method, path, _encoded(body), dict(headers))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        seen: Seen = {"status": response.status}
        if content:
            seen["type"] = response.headers.get("Content-Type")
            seen |= self._body(content, response.headers)
        return seen

    def _body(self, content: bytes, headers: http.client.HTTPMessage) -> Seen:
        coding = headers.get("Content-Encoding")
        if coding:
            return {"coding": coding}
        length = int(headers.get(_LENGTH, len(content)))
        text, rest = content[:length].decode(), content[length:]
        try:
            parsed = self._hide(json.loads(text)) if text else None
        except ValueError:
            parsed = self._hide(text)
        return {"body": parsed, **({"binary": rest.hex()} if rest else {})}

    def get(self, *paths: str) -> dict[str, Seen]:
        """The answer to a GET of each path."""
        return {f"GET {path}": self.http("GET", path) for path in paths}

    def post(self, path: str, bodies: Mapping[str, Body], headers: Mapping[str, str] = {}) -> dict[str, Seen]:
        """The answer to a POST of each body."""
        return {name: self.http("POST", path, body, headers) for name, body in bodies.items()}

    # gRPC

    def rpc(self, method: str, message: Mapping[str, Any], metadata: Mapping[str, str] = {}) -> Seen:
        """The status code of a call, and its reply or its details. `message` is protobuf's JSON form."""
        request, reply = _messages(method)
        call = self._connect().unary_unary(
            f"/{_SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        given = json_format.ParseDict(message, request())
        try:
            return {"code": "OK", "reply": self.plain(call(given, PATIENCE, tuple(metadata.items())))}
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": self._hide(error.details())}

    def calls(
        self, method: str, messages: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str] = {}
    ) -> dict[str, Seen]:
        """The result of a call with each message."""
        return {name: self.rpc(method, message, metadata) for name, message in messages.items()}

    def stream(self, messages: Iterable[Mapping[str, Any]], metadata: Mapping[str, str] = {}) -> Seen:
        """The replies on a stream to which the messages are written, and the status code at its end."""
        request, reply = service_pb2.ModelInferRequest, service_pb2.ModelStreamInferResponse
        call = self._connect().stream_stream(
            f"/{_SERVICE}/ModelStreamInfer",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        given = [json_format.ParseDict(message, request()) for message in messages]
        replies: list[Any] = []
        try:
            replies.extend(self.plain(one) for one in call(iter(given), PATIENCE, tuple(metadata.items())))
        except grpc.RpcError as error:
            return {"replies": replies, "code": error.code().name, "details": self._hide(error.details())}
        return {"replies": replies, "code": "OK"}

    def plain(self, message: Any) -> Any:
        """A protobuf message in JSON form."""
        return self._hide(json_format.MessageToDict(message, preserving_proto_field_name=True))

    def _connect(self) -> grpc.Channel:
        if self._channel is None:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
            self._channel = grpc.insecure_channel(self._grpc, options)
        return self._channel

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _hide(self, of: Any) -> Any:
        """The same data without what varies from run to run."""
        if isinstance(of, dict):
            return {name: self._hide(value) for name, value in of.items()}
        if isinstance(of, list):
            return [self._hide(value) for value in of]
        if isinstance(of, str):
            for text, instead in self._hidden.items():
                of = of.replace(text, instead)
            for pattern, instead in _VARYING:
                of = pattern.sub(instead, of)
        return of


def _encoded(body: Body) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def _messages(method: str) -> tuple[Any, Any]:
    """The classes of a method's request and reply."""
    found = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method]
    return getattr(service_pb2, found.input_type.name), getattr(service_pb2, found.output_type.name)


def binary(document: Mapping[str, Any], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    """An inference request whose tensors follow the JSON, and its header fields."""
    head = json.dumps(document).encode()
    return head + b"".join(tensors), {_LENGTH: str(len(head))}


def raw(*tensors: bytes) -> dict[str, list[str]]:
    """The raw tensors of a gRPC request, in protobuf's JSON form."""
    return {"raw_input_contents": [base64.b64encode(one).decode() for one in tensors]}


def without(of: Any, *names: str) -> Any:
    """The same data without the fields of these names, at any depth."""
    if isinstance(of, dict):
        return {name: without(value, *names) for name, value in of.items() if name not in names}
    return [without(value, *names) for value in of] if isinstance(of, list) else of
