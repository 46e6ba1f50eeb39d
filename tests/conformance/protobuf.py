"""Protobuf and gRPC messages encoded by hand, so that they can be malformed."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def field(number: int, value: bytes | str | int) -> bytes:
    """A field of a message: a string, bytes or message, or a varint."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(
    name: str | bytes = "INPUT0",
    datatype: str = "FP32",
    shape: Iterable[int] = (1, 16),
    contents: bytes | None = None,
) -> bytes:
    """inference.ModelInferRequest.InferInputTensor."""
    message = field(1, name) + field(2, datatype) + field(3, b"".join(map(varint, shape)))
    return message if contents is None else message + field(5, contents)


def fp32_contents(*values: float) -> bytes:
    """inference.InferTensorContents with fp32_contents."""
    return field(6, struct.pack(f"<{len(values)}f", *values))


def infer_request(
    model: str | bytes = "add1",
    inputs: Iterable[bytes] | None = None,
    raw: Iterable[bytes] | None = None,
    *,
    version: str = "",
    outputs: Iterable[str] = (),
) -> bytes:
    """inference.ModelInferRequest: by default for add1 with 16 zeros."""
    message = field(1, model)
    if version:
        message += field(2, version)
    for each in (tensor(),) if inputs is None else inputs:
        message += field(5, each)
    for name in outputs:
        message += field(6, field(1, name))
    for each in (bytes(64),) if raw is None else raw:
        message += field(7, each)
    return message


def grpc_message(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed message; `flag` and `length` may be wrong."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message
