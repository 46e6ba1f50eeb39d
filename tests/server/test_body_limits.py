"""Bodies larger than any valid request to their model are refused before they have arrived."""

from __future__ import annotations

import gzip
import json
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto

from backline.wire.http2 import frames
from backline_client.protos import message
from support import models
from support.server import ServerProcess, serve
from wire.http2.served import FrameClient

MIB = 1 << 20
ADD1 = "/v2/models/add1/infer"
INFER, STREAM = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
WIDTH = 40_000
ENSEMBLE = """
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
platform: "ensemble"
ensemble_scheduling { step [ { model_name: "add1" model_version: -1
  input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "OUTPUT0" } } ] }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Models: add1 and an ensemble of it take up to 8 rows of 16, wide one row of WIDTH, vary any shape."""
    repository = tmp_path_factory.mktemp("models")
    models.add1(repository)
    (repository / "add1" / "config.pbtxt").write_text("max_batch_size: 8")
    (repository / "both" / "1").mkdir(parents=True)
    (repository / "both" / "config.pbtxt").write_text(ENSEMBLE)
    models.identity_of(repository, "wide", TensorProto.DOUBLE, (WIDTH,))
    models.identity_of(repository, "vary", TensorProto.FLOAT)
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as process:
        yield process
        assert "Traceback" not in process.output, process.output[-3000:]


def answer_to(server: ServerProcess, head: str, rest: bytes) -> bytes:
    """What the server sends before it closes the connection, if only this part of a request is sent."""
    with socket.create_connection(("127.0.0.1", server.http_port), 20) as client:
        client.sendall(f"{head}\r\nHost: 127.0.0.1\r\n".encode() + rest)
        received = b""
        while data := client.recv(1 << 16):
            received += data
    return received


def announced(size: int, *fields: str) -> bytes:
    """The rest of a head that announces a body."""
    return "\r\n".join((*fields, f"Content-Length: {size}", "", "")).encode()


@pytest.mark.parametrize(
    "path", [ADD1, "/v2/models/add1/versions/1/infer", "/models/add1", "/v2/models/both/generate"]
)
def test_a_body_is_refused_at_its_content_length(server: ServerProcess, path: str) -> None:
    answer = answer_to(server, f"POST {path} HTTP/1.1", announced(60 * MIB))
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error.startswith(f"The request body of {60 * MIB} bytes exceeds the maximum of ")
    assert ("model 'both'" if "both" in path else "model 'add1'") in error
    assert "plus 1 MiB for names and parameters" in error
    assert "send large values as inputs instead of as parameters" in error


def test_a_chunked_body_is_refused_above_the_limit(server: ServerProcess) -> None:
    chunks = (b"10000\r\n" + bytes(65536) + b"\r\n") * 40
    answer = answer_to(server, f"POST {ADD1} HTTP/1.1\r\nTransfer-Encoding: chunked", b"\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"for model 'add1'" in answer


def test_a_compressed_body_is_refused_above_the_limit_once_inflated(server: ServerProcess) -> None:
    packed = gzip.compress(bytes(3 * MIB))
    answer = answer_to(
        server,
        f"POST {ADD1} HTTP/1.1\r\nConnection: close",
        announced(len(packed), "Content-Encoding: gzip") + packed,
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"for model 'add1'" in answer


def test_a_large_body_for_an_unknown_model_is_refused_at_once(server: ServerProcess) -> None:
    answer = answer_to(server, "POST /v2/models/unknown/infer HTTP/1.1", announced(2 * MIB))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"Request for unknown model: 'unknown' is not found" in answer


@pytest.mark.parametrize("length", [(("content-length", str(2 * MIB)),), ()], ids=["announced", "unknown"])
def test_a_body_over_http2_is_refused(server: ServerProcess, length: tuple[tuple[str, str], ...]) -> None:
    with FrameClient(server.http_port) as client:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", ADD1), (":authority", "127.0.0.1")]
        head = client.encoder.encode([*fields, *length])
        client.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, head))
        if not length:
            client.write(frames.frame(frames.DATA, 0, 1, bytes(16384)) * 64)
            client.write(window_opened(client) * frames.frame(frames.DATA, 0, 1, bytes(16384)))
        status, body = response(client)
        assert status == "413"
        assert b"for model 'add1'" in body


def window_opened(client: FrameClient) -> int:
    """Waits until the server lets the client send more on the stream; how many frames that allows."""
    while True:
        frame = client.read_frame()
        assert frame is not None
        if frame.kind == frames.WINDOW_UPDATE and frame.stream == 1:
            return int.from_bytes(frame.payload, "big") // 16384


def response(client: FrameClient) -> tuple[str, bytes]:
    """The status and the body of the response on stream 1."""
    status, body = "", b""
    while (frame := client.read_frame()) is not None:
        if frame.stream != 1 or frame.kind not in (frames.HEADERS, frames.DATA):
            continue
        if frame.kind == frames.HEADERS:
            status = dict(client.decoder.decode(frame.payload))[":status"]
        else:
            body += frame.payload
        if frame.flags & frames.END_STREAM:
            break
    return status, body


def call(server: ServerProcess, method: str, data: bytes, *extra: tuple[str, str]) -> tuple[str, str]:
    """The status and the text of a gRPC call that sends `data` in frames and does not end."""
    with FrameClient(server.grpc_port) as client:
        client.call(1, method, None, extra, end=False)
        client.write(
            b"".join(
                frames.frame(frames.DATA, 0, 1, data[at : at + 16384]) for at in range(0, len(data), 16384)
            )
        )
        while (frame := client.read_frame()) is not None:
            if frame.kind == frames.HEADERS and frame.flags & frames.END_STREAM:
                fields = dict(client.decoder.decode(frame.payload))
                return fields["grpc-status"], fields["grpc-message"]
    raise AssertionError("the connection was closed without a status")


def large_message(model: str, size: int) -> bytes:
    """The first 16 KiB of a message that announces `size` bytes."""
    asked = message("inference.ModelInferRequest")(model_name=model).SerializeToString()
    return struct.pack(">BI", 0, size) + asked + b"\x3a\x80\x80\x80\x08" + bytes(16384)


@pytest.mark.parametrize("method", [INFER, STREAM])
def test_a_grpc_message_is_refused_at_its_beginning(server: ServerProcess, method: str) -> None:
    status, text = call(server, method, large_message("add1", 60 * MIB))
    assert status == "8"
    assert text.startswith(f"a message of {60 * MIB} bytes exceeds the maximum of ")
    assert "for model 'add1'" in text


def test_a_message_that_is_none_is_refused_at_its_beginning(server: ServerProcess) -> None:
    status, text = call(server, INFER, struct.pack(">BI", 0, 60 * MIB) + bytes(16384))
    assert status == "8"
    assert "fields that do not belong to" in text


def test_a_compressed_grpc_message_is_refused_above_the_limit_once_inflated(server: ServerProcess) -> None:
    packed = gzip.compress(large_message("add1", 0)[5:] + bytes(3 * MIB))
    with FrameClient(server.grpc_port) as client:
        data = struct.pack(">BI", 1, len(packed)) + packed
        client.call(1, INFER, data, (("grpc-encoding", "gzip"),))
        while (frame := client.read_frame()) is not None and frame.kind != frames.HEADERS:
            pass
        assert frame is not None
        fields = dict(client.decoder.decode(frame.payload))
    assert fields["grpc-status"] == "8"
    assert "for model 'add1'" in fields["grpc-message"]


def test_a_websocket_message_is_refused_when_its_size_is_announced(server: ServerProcess) -> None:
    handshake = (
        "GET /models/add1/stream HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    with socket.create_connection(("127.0.0.1", server.http_port), 20) as client:
        client.sendall("\r\n".join((*handshake, "", "")).encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
        client.sendall(b"\x82\xff" + (60 * MIB).to_bytes(8, "big") + b"mask")
        closed = client.recv(1 << 16)
    assert closed[2:4] == (1009).to_bytes(2, "big")
    assert closed[4:].startswith(b"a message of 62914560 bytes exceeds the maximum of ")


def test_a_valid_request_of_more_than_a_mebibyte_is_answered(server: ServerProcess) -> None:
    """In JSON it has more than 1 MiB, as each number is on a line of its own."""
    numbers = [-2.2250738585072014e-308] * WIDTH
    tensor = {"name": "INPUT0", "shape": [WIDTH], "datatype": "FP64", "data": numbers}
    written = json.dumps({"inputs": [tensor]}, indent=8).encode()
    assert len(written) > 1.5 * MIB
    head = "POST /v2/models/wide/infer HTTP/1.1\r\nConnection: close"
    assert answer_to(server, head, announced(len(written)) + written).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("library", [tritonclient.http, tritonclient.grpc], ids=["HTTP", "gRPC"])
def test_a_model_with_variable_inputs_takes_large_bodies(server: ServerProcess, library: object) -> None:
    port = server.http_port if library is tritonclient.http else server.grpc_port
    data = np.arange(3 * MIB // 4, dtype=np.float32).reshape(1, -1)
    with library.InferenceServerClient(f"127.0.0.1:{port}") as client:  # type: ignore[attr-defined]
        asked = library.InferInput("INPUT0", data.shape, "FP32")  # type: ignore[attr-defined]
        asked.set_data_from_numpy(data)
        assert np.array_equal(client.infer("vary", [asked]).as_numpy("OUTPUT0"), data)
