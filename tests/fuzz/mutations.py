"""Derives inputs from valid ones: mutations of bytes, JSON trees, protobuf fields, heads and frames.

Every input depends only on its seed and number.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import hpack

from conformance.protobuf import grpc_message, varint
from fuzz import corpus
from fuzz.corpus import Frame, Http1

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    16,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**36,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    2**64 + 64,
]
MAX_VARINT = 2**64 - 1
VALUES: list[Any] = [
    *NUMBERS, 1.5, -0.0, 1e308, 1e-400, True, False, None, "", "x", "1", "OUTPUT0", "INPUT0", "FP32",
    "INT8", "BYTES", "FP16", "BF16",
    "\u0000", "\u00e9", "\ud800", "x" * 3000, [], {}, [0], [[]], [None], {"a": 1}, [1, 16], [[0] * 16],
    [0] * 16, {"binary_data_size": 64},
]  # fmt: skip
KEYS = [
    "id", "name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "binary_data_size",
    "binary_data", "classification",
    "binary_data_output", "priority", "timeout", "sequence_id", "sequence_start", "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size", "region", "key", "offset", "byte_size", "triton_x", "headers", "x", "",
]  # fmt: skip
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"-1", b"18446744073709551616",
    b"chunked", b"gzip",
    b"HTTP/1.1", b"HTTP/2.0",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n",
    b"Expect: 100-continue\r\n", b"\xff", b"\x80",
    b"{", b"}", b"[", b"]",
    b'"', b"\\", b"null", b"NaN", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"A" * 5000,
    b"[" * 300, b"X: y\r\n" * 200,
]  # fmt: skip
HEADER_FIELDS = [
    ("Content-Length", "5"), ("Content-Length", "-1"), ("Content-Length", "99999999999999999999"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip, chunked"), ("Content-Encoding", "gzip"), ("Content-Encoding", "br"),
    ("Content-Encoding", "gzip, deflate"),
    ("Accept-Encoding", "gzip;q=0.1, *;q=0"), ("Accept-Encoding", "deflate"), ("Expect", "100-continue"),
    ("Expect", "x"),
    ("Connection", "close"),
    ("Connection", "upgrade"), ("Upgrade", "websocket"), ("Inference-Header-Content-Length", "0"),
    ("Inference-Header-Content-Length", "1"),
    ("Inference-Header-Content-Length", "-5"), ("Inference-Header-Content-Length", "9" * 30),
    ("Host", "y"), ("TE", "gzip"),
    ("X", "\udcff\udc80"), ("", "y"),
    ("X Y", "z"), ("X", "a\r\n b"), ("Content-Type", "application/grpc"), ("Range", "bytes=0-1"),
    ("If-None-Match", "*"),
]  # fmt: skip
GRPC_FIELDS = [
    ("grpc-timeout", "0n"), ("grpc-timeout", "1m"), ("grpc-timeout", "99999999H"), ("grpc-timeout", "x"),
    ("grpc-encoding", "gzip"),
    ("grpc-encoding", "deflate"), ("grpc-encoding", "snappy"), ("grpc-accept-encoding", "gzip,identity"),
    ("x-bin", "AAAA"), ("x-bin", "!"),
    ("triton_grpc_error", "true"), ("content-length", "5"), ("te", "x"), ("connection", "close"),
    ("X", "y"), (":path", "/"),
    (":x", "y"), ("x", "a\0b"),
    ("content-type", "application/grpc+json"), ("content-type", "text/plain"), ("host", "z"),
    ("cookie", "a=b"), ("x", "y" * 5000),
]  # fmt: skip


@dataclass(frozen=True)
class Input:
    """The bytes of one connection, split where they arrive separately."""

    kind: str
    pieces: tuple[bytes, ...]
    #: True if nothing was mutated, so that every request must succeed.
    valid: bool = False

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def mutate_bytes(random: Random, data: bytes, times: int | None = None) -> bytes:
    """Flips, cuts, repeats, inserts and overwrites bytes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6)) if times is None else times):
        at = random.randrange(len(out) + 1)
        size = random.choice((1, 1, 2, 4, 8, 40, 200))
        match random.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << random.randrange(8)
            case 1 if out:
                out[at % len(out)] = random.randrange(256)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = random.choice(TOKENS)
            case 4:
                out[at:at] = out[at : at + size] * random.choice((1, 2, 5))
            case 5:
                out[at : at + size] = random.randbytes(size)
            case 6 if random.random() < 0.3:
                del out[at:]
    return bytes(out)


def _places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) pair in a JSON tree."""
    if isinstance(tree, dict):
        items: Any = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree[:40]))
    else:
        return found
    for key, value in items:
        found.append((tree, key))
        _places(value, found)
    return found


def mutate_json(random: Random, document: Any) -> bytes:
    """Changes values, keys, order and number of members in a tree, and sometimes the text too."""
    tree = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 2, 3))):
        places = _places(tree, [])
        if not places:
            break
        container, key = random.choice(places)
        match random.randrange(8):
            case 0 | 1 | 2:
                container[key] = deepcopy(random.choice(VALUES))
            case 3:
                del container[key]
            case 4 if isinstance(container, dict):
                container[random.choice(KEYS)] = deepcopy(random.choice(VALUES))
            case 5 if isinstance(container, list):
                container.insert(
                    key, random.choice((deepcopy(container[key]), deepcopy(random.choice(VALUES))))
                )
            case 6:
                container[key] = [container[key]]
            case 7:
                container[key] = _nested(random.choice((2, 50, 101, 1000)), container[key])
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    if random.random() < 0.02:
        deep = random.choice((101, 2000, 20000))
        text = text.replace(b"0", b"[" * deep + random.choice((b"", b"0")) + b"]" * deep, 1)
    return mutate_bytes(random, text) if random.random() < 0.1 else text


def _nested(depth: int, value: Any) -> Any:
    # json.dumps and deepcopy recurse too: the depth leaves a third of the stack to each.
    for _ in range(min(depth, 120)):
        value = [value]
    return value


def parse_protobuf(message: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of a message as (number, wire type, value with its length); empty if it is not protobuf."""
    fields = []
    at = 0
    while at < len(message):
        key, at = _varint_at(message, at)
        begin = at
        match key & 7:
            case 0:
                _, at = _varint_at(message, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint_at(message, at)
                at += size
            case 5:
                at += 4
            case _:
                return []
        if at > len(message):
            return []
        fields.append((key >> 3, key & 7, message[begin:at]))
    return fields


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return value, len(message) + 1


def mutate_protobuf(random: Random, message: bytes, depth: int = 0) -> bytes:
    """Drops, repeats, renumbers and changes fields at any depth."""
    fields = parse_protobuf(message)
    if not fields or random.random() < 0.1:
        return mutate_bytes(random, message, 1)
    at = random.randrange(len(fields))
    number, kind, value = fields[at]
    match random.randrange(7):
        case 0:
            del fields[at]
        case 1:
            fields.insert(at, fields[at])
        case 2:
            fields[at] = (random.choice((number + 1, random.randrange(1, 12), 536870911)), kind, value)
        case 3:
            fields.append((random.randrange(1, 10), 0, varint(random.choice(NUMBERS) & MAX_VARINT)))
        case 4 if kind == 0:
            fields[at] = (number, kind, varint(random.choice(NUMBERS) & MAX_VARINT))
        case _ if kind == 2:
            size, start = _varint_at(value, 0)
            inner = value[start:]
            changed = (
                mutate_protobuf(random, inner, depth + 1)
                if depth < 4 and random.random() < 0.7
                else random.choice(
                    (
                        b"",
                        b"x",
                        varint(random.choice(NUMBERS) & MAX_VARINT) * 2,
                        mutate_bytes(random, inner, 1),
                        bytes(size + 4),
                    )
                )
            )
            fields[at] = (number, kind, varint(len(changed)) + changed)
    return b"".join(varint(number << 3 | kind) + value for number, kind, value in fields)


def mutate_http1(random: Random, request: Http1) -> bytes:
    """Changes a request's parts, or the bytes of its head."""
    match random.randrange(8):
        case 0:
            request = replace(request, fields=[*request.fields, random.choice(HEADER_FIELDS)])
        case 1:
            request = replace(
                request,
                fields=[*request.fields, *random.choices(HEADER_FIELDS, k=random.choice((2, 3, 200)))],
            )
        case 2:
            methods = (
                "GET",
                "POST",
                "HEAD",
                "OPTIONS",
                "PUT",
                "DELETE",
                "CONNECT",
                "TRACE",
                "PATCH",
                "BREW",
                "",
                "get",
                "PRI",
            )
            request = replace(request, method=random.choice(methods))
        case 3:
            path = mutate_bytes(random, request.path.encode(), 1).decode("utf-8", "surrogateescape")
            request = replace(
                request,
                path=random.choice(
                    (
                        path,
                        "*",
                        "http://x/v2",
                        "//",
                        request.path + "%2F..",
                        request.path + "?" + "q" * 3000,
                        "",
                    )
                ),
            )
        case 4:
            request = replace(request, framing=random.choice(("length", "chunked", "none")))
        case 5:
            request = replace(
                request, version=random.choice(("HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "", "x"))
            )
        case _:
            return mutate_bytes(random, request.encode())
    data = request.encode()
    return mutate_bytes(random, data) if random.random() < 0.2 else data


def with_body(request: Http1, body: bytes) -> Http1:
    return replace(request, body=body)


def json_request(random: Random) -> bytes:
    model, document = random.choice(corpus.INFERENCES)
    request = Http1(
        "POST",
        f"/v2/models/{model}/infer",
        [],
        mutate_json(random, document),
        random.choice(("length", "length", "chunked")),
    )
    return request.encode()


def binary_request(random: Random) -> bytes:
    """Binary tensors with inconsistent JSON, size, header or bytes."""
    model, document, raw = random.choice(corpus.BINARIES)
    head = mutate_json(random, document) if random.random() < 0.6 else json.dumps(document).encode()
    length = str(
        len(head)
        if random.random() < 0.8
        else random.choice((*NUMBERS, len(head) - 1, len(head) + 1, len(head) + len(raw)))
    )
    if random.random() < 0.4:
        raw = mutate_bytes(random, raw)
    return Http1(
        "POST", f"/v2/models/{model}/infer", [("Inference-Header-Content-Length", length)], head + raw
    ).encode()


def http1_input(random: Random) -> bytes:
    """One to four requests, any of them mutated."""
    parts = []
    for _ in range(random.choice((1, 1, 2, 4))):
        request = random.choice(corpus.HTTP1)
        parts.append(
            random.choice(
                (
                    mutate_http1(random, request),
                    request.encode(),
                    json_request(random),
                    binary_request(random),
                )
            )
        )
    data = b"".join(parts)
    return mutate_bytes(random, data) if random.random() < 0.1 else data


def mutate_frame(random: Random, one: Frame) -> Frame:
    match random.randrange(7):
        case 0:
            return replace(one, type=random.choice((*range(10), 0xC8)))
        case 1:
            return replace(one, flags=one.flags ^ (1 << random.randrange(8)))
        case 2:
            return replace(
                one, stream=random.choice((0, 1, 2, 3, 5, one.stream + 2, 2**31 - 1, one.stream | 2**31))
            )
        case 3:
            return replace(
                one,
                length=random.choice(
                    (0, 1, len(one.payload) + 1, max(0, len(one.payload) - 1), 16384, 16385, 2**24 - 1)
                ),
            )
        case 4 if one.fields is not None:
            fields = list(one.fields)
            at = random.randrange(len(fields) + 1)
            if random.random() < 0.4 and fields:
                del fields[at % len(fields)]
            else:
                fields.insert(at, random.choice(GRPC_FIELDS))
            return replace(one, fields=fields)
        case 5 if one.fields is not None and one.fields:
            fields = list(one.fields)
            at = random.randrange(len(fields))
            values = (
                "",
                "*",
                "/",
                "/v2/models/bytes/infer",
                corpus.INFER,
                "GET",
                "CONNECT",
                "https",
                "x\r\ny",
                "\x80",
                "%00",
            )
            fields[at] = (fields[at][0], random.choice(values))
            return replace(one, fields=fields)
        case _:
            if one.fields is not None:
                return replace(
                    one,
                    payload=random.choice(
                        (
                            b"\x80",
                            b"\xff\xff\xff\xff\x7f",
                            b"\x20",
                            b"\x3f\xff\x7f",
                            b"\xbe",
                            random.randbytes(3),
                        )
                    ),
                )
            return replace(one, payload=mutate_bytes(random, one.payload))


def grpc_frames(random: Random, stream: int) -> list[Frame]:
    """A call with a mutated message or mutated framing."""
    path, message = random.choice(corpus.CALLS)
    if random.random() < 0.5:
        path, message = random.choice(corpus.CALLS[:9])
    if random.random() < 0.7:
        message = mutate_protobuf(random, message)
    extra = [random.choice(GRPC_FIELDS[:9])] if random.random() < 0.2 else []
    compressed = random.random() < 0.1
    if compressed:
        extra.append(("grpc-encoding", "gzip"))
    frames = corpus.call_frames(stream, path, message, *extra, compressed=compressed)
    if random.random() < 0.2:
        body = frames[1].payload
        length = random.choice((*NUMBERS[:20], len(message) + 1, max(0, len(message) - 1))) & 0xFFFFFFFF
        changed = (
            body + body,
            body[:3],
            body[:-1],
            grpc_message(message, random.randrange(4)),
            grpc_message(message, length=length),
            b"",
        )
        frames[1] = replace(frames[1], payload=random.choice(changed))
    if random.random() < 0.2 and frames[1].payload:
        payload = frames[1].payload
        cut = random.randrange(len(payload))
        frames[1:] = [
            replace(frames[1], flags=0, payload=payload[:cut]),
            replace(frames[1], payload=payload[cut:]),
        ]
    return frames


def http2_input(random: Random) -> bytes:
    """Interleaved requests and calls, with frames mutated, repeated, dropped and inserted."""
    streams: list[list[Frame]] = []
    mutated = random.random() < 0.7
    for number in range(1, 2 * random.choice((1, 2, 3, 6)) + 1, 2):
        if random.random() < 0.7:
            streams.append(grpc_frames(random, number))
        else:
            request = random.choice(corpus.HTTP1)
            if random.random() < 0.4:
                model, document = random.choice(corpus.INFERENCES)
                request = Http1("POST", f"/v2/models/{model}/infer", [], mutate_json(random, document))
            streams.append(corpus.post_frames(number, request))
    frames = list(corpus.GREETING)
    if random.random() < 0.6:
        frames += [one for stream in streams for one in stream]
    else:
        while streams:
            stream = random.choice(streams)
            frames.append(stream.pop(0))
            if not stream:
                streams.remove(stream)
    if mutated:
        for _ in range(random.choice((1, 1, 2, 4))):
            at = random.randrange(len(frames))
            match random.randrange(6):
                case 0 | 1:
                    frames[at] = mutate_frame(random, frames[at])
                case 2:
                    frames.insert(at, random.choice(corpus.EXTRAS))
                case 3:
                    frames.insert(at, frames[at])
                case 4:
                    del frames[at]
                case 5:
                    frames[at : at + 2] = frames[at : at + 2][::-1]
    encoder = hpack.Encoder()
    data = corpus.PREFACE + b"".join(one.encode(encoder) for one in frames)
    return mutate_bytes(random, data) if random.random() < 0.1 else data


def cut(random: Random, data: bytes) -> tuple[bytes, ...]:
    """Most inputs arrive in one piece, some in a few, some byte by byte at the start."""
    way = random.random()
    if way < 0.5 or len(data) < 2:
        return (data,)
    if way < 0.9:
        at = sorted(random.randrange(1, len(data)) for _ in range(random.choice((1, 2, 5))))
    else:
        at = list(range(1, min(len(data), 200)))
    return tuple(
        data[begin:end] for begin, end in zip([0, *at], [*at, len(data)], strict=True) if end > begin
    )


def make_input(seed: int, number: int) -> Input:
    """The input with a number."""
    random = Random(f"{seed}:{number}")
    kind = random.choices(
        ("json", "binary", "http1", "http2", "valid http1", "valid http2", "noise"), (20, 12, 25, 35, 2, 4, 2)
    )[0]
    match kind:
        case "json":
            data = json_request(random)
        case "binary":
            data = binary_request(random)
        case "http1":
            data = http1_input(random)
        case "http2":
            data = http2_input(random)
        case "valid http1":
            data = b"".join(random.choice(corpus.HTTP1).encode() for _ in range(random.choice((1, 3))))
        case "valid http2":
            encoder = hpack.Encoder()
            frames = list(corpus.GREETING)
            for stream in range(1, 8, 2):
                frames += random.choice(
                    (
                        corpus.call_frames(stream, *random.choice(corpus.CALLS)),
                        corpus.call_frames(
                            stream, *random.choice(corpus.CALLS), ("grpc-encoding", "gzip"), compressed=True
                        ),
                        corpus.post_frames(stream, random.choice(corpus.HTTP1)),
                    )
                )
            data = corpus.PREFACE + b"".join(one.encode(encoder) for one in frames)
        case _:
            data = random.randbytes(random.choice((1, 9, 40, 300)))
            if random.random() < 0.5:
                data = corpus.PREFACE + data
    return Input(kind, cut(random, data), kind.startswith("valid"))
