"""Valid inputs to mutate: HTTP/1.1 requests, HTTP/2 frames, gRPC calls and inference bodies."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import hpack
import numpy as np

from conformance.h2probe import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    settings_payload,
)
from conformance.protobuf import field as proto
from conformance.protobuf import fp32_contents, grpc_message, infer_request, tensor

Fields = list[tuple[str, str]]


@dataclass(frozen=True)
class Http1:
    """The parts of an HTTP/1.1 request. `framing` is length, chunked or none."""

    method: str = "GET"
    path: str = "/"
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    framing: str = "length"
    version: str = "HTTP/1.1"

    def encode(self) -> bytes:
        fields = [("Host", "x"), *self.fields]
        body = self.body
        if self.framing == "chunked":
            fields.append(("Transfer-Encoding", "chunked"))
            pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        elif self.framing == "length" and (body or self.method == "POST"):
            fields.append(("Content-Length", str(len(body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return (
            f"{self.method} {self.path} {self.version}\r\n{head}\r\n".encode("utf-8", "surrogateescape")
            + body
        )


@dataclass(frozen=True)
class Frame:
    """An HTTP/2 frame. Fields of HEADERS and CONTINUATION are encoded when the frame is sent."""

    type: int
    flags: int = 0
    stream: int = 0
    payload: bytes = b""
    fields: Fields | None = None
    length: int | None = None

    def encode(self, encoder: hpack.Encoder) -> bytes:
        payload = self.payload
        if self.fields is not None:
            payload += encoder.encode(self.fields)
        return frame(self.type, self.flags & 0xFF, self.stream & 0xFFFFFFFF, payload, self.length)


def tensor_json(
    name: str = "INPUT0", datatype: str = "FP32", shape: tuple[int, ...] = (1, 16), data: Any = None
) -> dict[str, Any]:
    size = int(np.prod(shape))
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(shape),
        "data": [0] * size if data is None else data,
    }


def in_memory(tensor: dict[str, Any], size: int, offset: int = 0) -> dict[str, Any]:
    """An input or output in the bench's shared memory."""
    place = {
        "shared_memory_region": "region",
        "shared_memory_byte_size": size,
        "shared_memory_offset": offset,
    }
    return {**{key: value for key, value in tensor.items() if key != "data"}, "parameters": place}


#: A JSON inference request for each model of the bench.
INFERENCES: list[tuple[str, dict[str, Any]]] = [
    ("add1", {"inputs": [tensor_json()]}),
    (
        "add1",
        {
            "id": "7",
            "inputs": [tensor_json(shape=(2, 16))],
            "outputs": [{"name": "OUTPUT0"}],
            "parameters": {"key": "value", "n": 1},
        },
    ),
    (
        "add1",
        {"inputs": [tensor_json()], "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 3}}]},
    ),
    (
        "add1",
        {
            "inputs": [tensor_json()],
            "parameters": {"binary_data_output": True, "priority": 1, "timeout": 1000000},
        },
    ),
    (
        "add1",
        {
            "inputs": [tensor_json(data=[[float(n) for n in range(16)]])],
            "parameters": {"sequence_id": 7, "sequence_start": True},
        },
    ),
    ("add1", {"inputs": [in_memory(tensor_json(), 64)], "outputs": [in_memory({"name": "OUTPUT0"}, 64, 64)]}),
    ("bytes", {"inputs": [in_memory(tensor_json(datatype="BYTES", shape=(1024,)), 4096)]}),
    ("bytes", {"inputs": [tensor_json(datatype="BYTES", shape=(2, 2), data=["a", "", "h\u00e9", "\u0000"])]}),
    ("int64", {"inputs": [tensor_json(datatype="INT64", shape=(1, 3), data=[1, -(2**63), 2**63 - 1])]}),
    ("uint8", {"inputs": [tensor_json(datatype="UINT8", shape=(1, 3), data=[0, 255, 7])]}),
    ("bool", {"inputs": [tensor_json(datatype="BOOL", shape=(1, 3), data=[True, False, True])]}),
    ("float64", {"inputs": [tensor_json(datatype="FP64", shape=(2, 2), data=[[1.5, 2], [3e300, -0.0]])]}),
]


def binary_inference(
    model: str, datatype: str, shape: tuple[int, ...], raw: bytes, *, outputs: bool = True
) -> tuple[str, dict[str, Any], bytes]:
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": "INPUT0",
                "datatype": datatype,
                "shape": list(shape),
                "parameters": {"binary_data_size": len(raw)},
            }
        ]
    }
    if outputs:
        document["outputs"] = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    return model, document, raw


BINARIES = [
    binary_inference("add1", "FP32", (1, 16), bytes(64)),
    binary_inference("add1", "FP32", (3, 16), bytes(192), outputs=False),
    binary_inference("float16", "FP16", (1, 4), bytes(8)),
    binary_inference("bytes", "BYTES", (1, 2), struct.pack("<I3sI", 3, b"abc", 0)),
    binary_inference("bool", "BOOL", (1, 3), b"\1\0\1"),
    binary_inference("int64", "INT64", (0, 3), b""),
]

GETS = [
    "/",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/add1",
    "/v2/models/add1/ready",
    "/v2/models/add1/config",
    "/v2/models/add1/stats",
    "/v2/models/stats",
    "/v2/models/add1/versions/1",
    "/v2/models/add1/versions/1/ready",
    "/v2/models/bytes/config?x=y&z",
    "/v2/models/nobody",
]


def http1_requests() -> list[Http1]:
    """Valid requests, those with plain JSON inference first."""
    requests = [
        Http1("POST", f"/v2/models/{model}/infer", [], json.dumps(document).encode())
        for model, document in INFERENCES
    ]
    for model, document, raw in BINARIES:
        head = json.dumps(document).encode()
        requests.append(
            Http1(
                "POST",
                f"/v2/models/{model}/infer",
                [("Inference-Header-Content-Length", str(len(head)))],
                head + raw,
            )
        )
    plain = requests[0]
    requests += [
        replace(plain, path="/v2/models/add1/versions/1/infer"),
        replace(plain, framing="chunked"),
        replace(plain, fields=[("Expect", "100-continue")]),
        replace(plain, fields=[("Connection", "close")]),
        replace(plain, fields=[("Accept-Encoding", "gzip, deflate;q=0.5")]),
        replace(plain, fields=[("Content-Encoding", "gzip")], body=gzip.compress(plain.body)),
        replace(
            plain, fields=[("Content-Encoding", "deflate")], body=zlib.compress(plain.body), framing="chunked"
        ),
        replace(plain, version="HTTP/1.0"),
        Http1("POST", "/v2/models/add1/infer", [("Inference-Header-Content-Length", "0")], bytes(64)),
        Http1(
            "POST",
            "/v2/systemsharedmemory/region/other/register",
            [],
            b'{"key": "/nobody", "offset": 0, "byte_size": 64}',
        ),
        Http1("GET", "/v2/systemsharedmemory/region/region/status"),
        Http1("POST", "/v2/repository/index", [], b'{"ready":true}'),
        Http1("HEAD", "/v2"),
        Http1("OPTIONS", "/v2"),
        Http1(
            "GET",
            "/v2/health/ready",
            [("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "")],
        ),
    ]
    requests += [Http1("GET", path) for path in GETS]
    return requests


HTTP1 = http1_requests()

INFER = "/inference.GRPCInferenceService/ModelInfer"


def raw_tensor(datatype: str, shape: tuple[int, ...]) -> bytes:
    return tensor(datatype=datatype, shape=shape)


#: Paths and messages of gRPC calls.
CALLS: list[tuple[str, bytes]] = [
    (INFER, infer_request()),
    (INFER, infer_request(version="1", outputs=["OUTPUT0"])),
    (INFER, infer_request(inputs=[tensor(contents=fp32_contents(*[1.0] * 16))], raw=[])),
    (INFER, infer_request() + proto(3, "id") + proto(4, proto(1, "key") + proto(2, proto(2, 7)))),
    (INFER, infer_request("bytes", [raw_tensor("BYTES", (1, 2))], [struct.pack("<I3sI", 3, b"abc", 0)])),
    (
        INFER,
        infer_request(
            "bytes", [tensor(datatype="BYTES", shape=(1, 2), contents=proto(8, b"abc") + proto(8, b""))], []
        ),
    ),
    (
        INFER,
        infer_request("int64", [tensor(datatype="INT64", shape=(1, 3), contents=proto(3, b"\1\2\3"))], []),
    ),
    (INFER, infer_request("bool", [tensor(datatype="BOOL", shape=(1, 3), contents=proto(1, b"\1\0\1"))], [])),
    (INFER, infer_request("float16", [raw_tensor("FP16", (1, 4))], [bytes(8)])),
    ("/inference.GRPCInferenceService/ModelStreamInfer", infer_request()),
    ("/inference.GRPCInferenceService/ServerLive", b""),
    ("/inference.GRPCInferenceService/ServerReady", b""),
    ("/inference.GRPCInferenceService/ModelReady", proto(1, "add1")),
    ("/inference.GRPCInferenceService/ServerMetadata", b""),
    ("/inference.GRPCInferenceService/ModelMetadata", proto(1, "add1") + proto(2, "1")),
    ("/inference.GRPCInferenceService/ModelConfig", proto(1, "add1")),
    ("/inference.GRPCInferenceService/ModelStatistics", proto(1, "add1")),
    ("/inference.GRPCInferenceService/RepositoryIndex", proto(2, 1)),
    ("/grpc.health.v1.Health/Check", proto(1, "")),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", proto(7, "*")),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", proto(3, "inference.proto")),
]


def request_fields(method: str, path: str, *extra: tuple[str, str]) -> Fields:
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), *extra]


def call_frames(
    stream: int, path: str, message: bytes, *extra: tuple[str, str], compressed: bool = False
) -> list[Frame]:
    """A gRPC call with one message."""
    fields = request_fields("POST", path, ("content-type", "application/grpc"), ("te", "trailers"), *extra)
    body = grpc_message(gzip.compress(message), 1) if compressed else grpc_message(message)
    return [Frame(HEADERS, END_HEADERS, stream, fields=fields), Frame(DATA, END_STREAM, stream, body)]


def post_frames(stream: int, request: Http1) -> list[Frame]:
    """An HTTP request over HTTP/2."""
    extra = [
        (name.lower(), value)
        for name, value in request.fields
        if name.lower() not in ("connection", "upgrade", "http2-settings")
    ]
    fields = request_fields(request.method, request.path, *extra)
    if not request.body:
        return [Frame(HEADERS, END_HEADERS | END_STREAM, stream, fields=fields)]
    return [Frame(HEADERS, END_HEADERS, stream, fields=fields), Frame(DATA, END_STREAM, stream, request.body)]


GREETING = [
    Frame(SETTINGS, 0, 0, settings_payload((INITIAL_WINDOW_SIZE, 1 << 20))),
    Frame(SETTINGS, 1, 0),
    Frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)),
]

#: Frames that may appear between others.
EXTRAS = [
    Frame(PING, 0, 0, bytes(8)),
    Frame(PING, 1, 0, bytes(8)),
    Frame(SETTINGS, 0, 0, settings_payload((INITIAL_WINDOW_SIZE, 10))),
    Frame(SETTINGS, 0, 0, settings_payload((1, 0), (2, 0), (3, 100), (5, 65535), (6, 100000))),
    Frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1000)),
    Frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1000)),
    Frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    Frame(RST_STREAM, 0, 1, struct.pack(">I", 8)),
    Frame(DATA, 0, 1, b""),
    Frame(DATA, PADDED, 1, b"\x04" + bytes(8)),
    Frame(CONTINUATION, END_HEADERS, 1, b""),
    Frame(0x7, 0, 0, bytes(8)),
    Frame(0x5, END_HEADERS, 1, bytes(8)),
    Frame(0xBE, 0, 1, b"unknown"),
    Frame(HEADERS, END_HEADERS | END_STREAM, 1, fields=[("x-trailer", "1")]),
]

__all__ = [
    "BINARIES",
    "CALLS",
    "EXTRAS",
    "GREETING",
    "HTTP1",
    "INFERENCES",
    "PREFACE",
    "Frame",
    "Http1",
    "call_frames",
    "post_frames",
]
