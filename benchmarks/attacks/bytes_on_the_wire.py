"""Builds the bytes that attacks send (HTTP/1.1 requests, HTTP/2 frames, gRPC messages), for large writes."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4
INITIAL_WINDOW_SIZE = 4
MIB = 1 << 20

ADD1 = "/v2/models/add1/infer"
#: A model that takes inputs of any shape, so that its requests may have any size.
ANY = "any"
ANY_PATH = f"/v2/models/{ANY}/infer"
#: The size in bytes of the tensors of large requests, in JSON or in protobuf: with the rest, almost the
#: permitted 64 MiB.
LARGE_TENSOR = 60 * MIB
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

#: A key that some attackers hold, with the scopes `read` and `manage`, and the header field with it.
HOLDER_KEY = "bk_holder_of_a_key_with_few_scopes"
HOLDER_FIELD = f"Authorization: Bearer {HOLDER_KEY}"


def frame(type: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", type, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def greeting(*pairs: tuple[int, int]) -> bytes:
    """Returns the start of an HTTP/2 connection: the preface and SETTINGS."""
    return PREFACE + settings(*pairs) + frame(SETTINGS, 1, 0)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def fields(method: str, path: str, *extra: tuple[str, str]) -> list[tuple[str, str]]:
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), *extra]


GRPC_FIELDS = fields("POST", MODEL_INFER, ("content-type", "application/grpc"), ("te", "trailers"))
LIVE_FIELDS = fields(
    "POST",
    "/inference.GRPCInferenceService/ServerLive",
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


def headers(encoder: hpack.Encoder, stream: int, what: Sequence[tuple[str, str]], *, end: bool) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, encoder.encode(what))


def data(stream: int, payload: bytes, *, end: bool) -> bytes:
    """Returns the payload in DATA frames of at most 16 KiB each."""
    pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if end and at == last else 0, stream, piece) for at, piece in enumerate(pieces)
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def infer_message(model: str, shape: Sequence[int], raw: bytes) -> bytes:
    """Returns an inference.ModelInferRequest with one FP32 input, INPUT0."""
    tensor = _field(1, b"INPUT0") + _field(2, b"FP32") + _field(3, b"".join(map(_varint, shape)))
    return _field(1, model.encode()) + _field(5, tensor) + _field(7, raw)


def begun_message(model: str, raw_size: int) -> bytes:
    """Returns the beginning of an inference.ModelInferRequest, up to its raw input of `raw_size` bytes."""
    return _field(1, model.encode()) + _varint(7 << 3 | 2) + _varint(raw_size)


def grpc_message(message: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


def add1_message() -> bytes:
    return grpc_message(infer_message("add1", (1, 16), bytes(64)))


def post(path: str, body: bytes, *extra: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *extra, "", ""]
    return "\r\n".join(head).encode() + body


def binary_request(model: str, shape: Sequence[int], raw: bytes, *extra: str) -> bytes:
    """Returns an HTTP inference request with a binary input and a binary output."""
    dimensions = ",".join(map(str, shape))
    document = (
        f'{{"inputs":[{{"name":"INPUT0","datatype":"FP32","shape":[{dimensions}],'
        f'"parameters":{{"binary_data_size":{len(raw)}}}}}],'
        '"parameters":{"binary_data_output":true}}'
    ).encode()
    return post(
        f"/v2/models/{model}/infer",
        document + raw,
        f"Inference-Header-Content-Length: {len(document)}",
        *extra,
    )


def large_request(*extra: str) -> bytes:
    """Returns a valid inference request over HTTP with a large tensor in JSON."""
    count = LARGE_TENSOR // 2
    tensor = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,%d],"data":[%b0]}]}'
    return post(ANY_PATH, tensor % (count, b"0," * (count - 1)), *extra)


def image_request(*extra: str) -> bytes:
    """Returns an inference request over HTTP with an image of 301 KB in JSON; so is the response."""
    tensor = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,3,224,224],"data":[%b0]}]}'
    return post("/v2/models/ident/infer", tensor % (b"0," * (3 * 224 * 224 - 1)), *extra)


def large_message() -> bytes:
    """Returns a valid inference.ModelInferRequest with a large tensor."""
    return infer_message(ANY, (1, LARGE_TENSOR // 4), bytes(LARGE_TENSOR))


def add1_request(*extra: str) -> bytes:
    """Returns an inference request over HTTP, with further header fields."""
    return binary_request("add1", (1, 16), bytes(64), *extra)


@cache
def zipped_ident_message() -> bytes:
    """Returns a gRPC message of 600 bytes for ident, which decompress to a tensor of 602,112 bytes."""
    return grpc_message(
        gzip.compress(infer_message("ident", (1, 3, 224, 224), bytes(602112))), compressed=True
    )


@cache
def zipped_ident_request() -> bytes:
    document = (
        b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,3,224,224],'
        b'"parameters":{"binary_data_size":602112}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    packed = gzip.compress(document + bytes(602112))
    length = f"Inference-Header-Content-Length: {len(document)}"
    return post("/v2/models/ident/infer", packed, length, "Content-Encoding: gzip")


@cache
def bomb(wrapper: int = 31, size: int = 256 * MIB) -> bytes:
    """Returns `size` spaces, compressed about a thousandfold. `wrapper` is 31 for gzip or 15 for zlib."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wrapper)
    blank = b" " * MIB
    return b"".join(packer.compress(blank) for _ in range(size // MIB)) + packer.flush()
