"""Models over WebSocket: streams, chunks of audio in both directions, sequences, keys and origins."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import models
from support.server import ServerProcess, serve

KEY = "bk_socket".ljust(46, "k")
OTHER = "bk_other".ljust(46, "k")
WORDS = """
from collections.abc import Iterator


class Model:
    def predict(self, text: str) -> Iterator[str]:
        for word in text.split():
            yield word.upper()
"""
SUM = """
from backline.model import FP64, Request


class Model:
    def load(self) -> None:
        self.sums = {}

    def predict(self, x: FP64[1], request: Request) -> FP64[1]:
        self.sums[request.sequence] = self.sums.get(request.sequence, 0) + x
        return self.sums[request.sequence]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("sockets")
    repository = folder / "models"
    models.add1(repository)
    (repository / "words" / "1").mkdir(parents=True)
    (repository / "words" / "1" / "model.py").write_text(WORDS)
    (repository / "sum" / "1").mkdir(parents=True)
    (repository / "sum" / "1" / "model.py").write_text(SUM)
    (repository / "sum" / "config.pbtxt").write_text(
        "sequence_batching { max_sequence_idle_microseconds: 60000000 }"
    )
    auth = folder / "auth.toml"
    auth.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
            'scopes = ["infer"]\nmodels = ["add1", "words", "sum"]\n'
            for name, key in (("k", KEY), ("other", OTHER))
        )
    )
    with serve(repository, folder / "log", "--auth", str(auth)) as running:
        yield running


class Client:
    """A small client of WebSocket."""

    def __init__(self, server: ServerProcess, path: str, *fields: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.http_port), 30)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{server.http_port}", "Connection: Upgrade",
            "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", *fields, "", "",
        ]  # fmt: skip
        self._socket.sendall("\r\n".join(lines).encode())
        self.status = int(self._file.readline().split()[1])
        self.fields = dict(
            line.decode().strip().lower().split(": ", 1) for line in iter(self._file.readline, b"\r\n")
        )

    def body(self) -> str:
        return self._file.read(int(self.fields["content-length"])).decode()

    def send(self, message: str | bytes) -> None:
        payload = message.encode() if isinstance(message, str) else message
        size = len(payload)
        extra = bytes((size | 0x80,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        opcode = 0x81 if isinstance(message, str) else 0x82
        self._socket.sendall(bytes((opcode,)) + extra + b"\0\0\0\0" + payload)

    def receive(self) -> Any:
        """The next message: what its JSON says, or its bytes."""
        opcode, size = self._file.read(2)
        if size > 125:
            size = int.from_bytes(self._file.read(2), "big")
        payload = self._file.read(size)
        if opcode & 0x0F == 8:
            raise ConnectionError(int.from_bytes(payload[:2], "big"))
        return json.loads(payload) if opcode & 0x0F == 1 else payload

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def connected(server: ServerProcess, path: str, *fields: str) -> Iterator[Client]:
    client = Client(server, path, *(fields or (f"Authorization: Bearer {KEY}",)))
    try:
        yield client
    finally:
        client.close()


def test_parameters_that_no_request_can_have_are_an_error_and_reach_no_model(server: ServerProcess) -> None:
    with connected(server, "/models/words/stream") as client:
        for value in ([1, 2], {"b": 1}, None, 1 << 64):
            client.send(json.dumps({"parameters": {"a": value}}))
            assert "parameter" in client.receive()["error"]
        client.send('{"parameters": [1]}')
        assert "'parameters' must be an object" in client.receive()["error"]
        client.send('{"text": "one"}')
        assert client.receive() == {"outputs": {"output": ["ONE"]}}
    assert "worker process ended" not in server.output


def test_every_message_is_a_request_and_every_response_a_message(server: ServerProcess) -> None:
    with connected(server, "/models/words/stream") as client:
        assert client.status == 101
        client.send('{"text": "one two"}')
        client.send('{"text": "three"}')
        told = [client.receive() for _ in range(5)]
    assert told == [
        {"outputs": {"output": ["ONE"]}},
        {"outputs": {"output": ["TWO"]}},
        {"done": 2},
        {"outputs": {"output": ["THREE"]}},
        {"done": 1},
    ]


def test_chunks_of_numbers_go_in_both_directions_as_they_are(server: ServerProcess) -> None:
    chunk = np.arange(16, dtype=np.float32)
    with connected(server, "/models/add1/stream?output=OUTPUT0") as client:
        for factor in (1, 2):
            client.send((chunk * factor).tobytes())
            assert np.frombuffer(client.receive(), np.float32).tolist() == (chunk * factor + 1).tolist()
            assert client.receive() == {"done": 1}


def test_only_the_caller_that_began_a_sequence_can_continue_or_restart_it(server: ServerProcess) -> None:
    def add(key: str, number: float, sequence: int | str, **flags: bool) -> tuple[int, Any]:
        parameters = {"sequence_id": sequence, **flags}
        given = {"name": "x", "datatype": "FP64", "shape": [1], "data": [number]}
        body = json.dumps({"parameters": parameters, "inputs": [given]}).encode()
        asked = urllib.request.Request(
            f"{server.url}/v2/models/sum/infer", body, {"Authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, json.load(answer)["outputs"][0]["data"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    assert add(KEY, 1, 42, sequence_start=True) == (200, [1])
    for flags in ({}, {"sequence_start": True}, {"sequence_end": True}):
        status, told = add(OTHER, 100, 42, **flags)
        assert (status, "sequence 42 of model 'sum' was begun by another caller" in told) == (403, True), told
    assert add(KEY, 2, 42, sequence_end=True) == (200, [3])
    assert add(OTHER, 5, 42, sequence_start=True, sequence_end=True)[0] == 200


@pytest.mark.parametrize(("place", "sequence"), [("body", 75), ("query", 76)])
def test_a_plain_request_is_a_step_of_its_sequence(server: ServerProcess, place: str, sequence: int) -> None:
    sums = []
    for number, flags in ((1, {"sequence_start": True}), (2, {}), (3, {"sequence_end": True})):
        parameters: dict[str, object] = {"sequence_id": sequence, **flags}
        url, document = f"{server.url}/models/sum", {"x": [number], "parameters": parameters}
        if place == "query":
            del document["parameters"]
            url += "?" + "&".join(f"{name}={json.dumps(value)}" for name, value in parameters.items())
        body = json.dumps(document).encode()
        asked = urllib.request.Request(url, body, {"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(asked) as answer:
            sums.append(json.load(answer)["output"])
    assert sums == [[1], [3], [6]]


def test_parameters_mean_the_same_as_in_other_requests(server: ServerProcess) -> None:
    with connected(server, "/models/sum/stream?output=output") as client:
        sums = []
        for value, flags in ((1, {"sequence_start": True}), (2, {}), (3, {"sequence_end": True})):
            client.send(json.dumps({"parameters": {"sequence_id": 77, **flags}}))
            client.send(np.array([value], np.float64).tobytes())
            sums.append(np.frombuffer(client.receive(), np.float64).tolist())
            assert client.receive() == {"done": 1}
        assert sums == [[1], [3], [6]]
    with connected(server, "/models/add1/stream") as client:
        for parameters, error in (
            ({"priorty": 1}, "Did you mean 'priority'?"),
            ({"timeout": "soon"}, "must be an unsigned integer"),
        ):
            client.send(json.dumps({"INPUT0": [0] * 16, "parameters": parameters}))
            assert error in client.receive()["error"]
    with connected(server, "/models/sum/stream?sequence=true&output=output") as client:
        client.send('{"parameters": {"sequence_id": 78}}')
        client.send(np.array([1], np.float64).tobytes())
        assert "leave out sequence_id" in client.receive()["error"]


def test_the_messages_of_a_connection_can_be_a_sequence(server: ServerProcess) -> None:
    with connected(server, "/models/sum/stream?sequence=true&output=output") as client:
        sums = []
        for value, last in ((1, False), (2, False), (3, True), (4, False)):
            if last:
                client.send('{"parameters": {"sequence_end": true}}')
            client.send(np.array([value], np.float64).tobytes())
            sums.append(np.frombuffer(client.receive(), np.float64).tolist())
            assert client.receive() == {"done": 1}
    assert sums == [[1], [3], [6], [4]]


def test_an_error_ends_the_request_and_not_the_connection(server: ServerProcess) -> None:
    with connected(server, "/models/add1/versions/1/stream") as client:
        client.send('{"INPUT0": [1, 2]}')
        assert "unexpected shape" in client.receive()["error"]
        client.send("not JSON")
        assert "failed to parse the request JSON" in client.receive()["error"]
        client.send(b"123")
        assert "not a multiple" in client.receive()["error"]
        client.send('{"parameters": {"sequence_end": true}}')
        client.send(json.dumps({"INPUT0": [0] * 16}))
        assert "needs a sequence" in client.receive()["error"]
        client.send(json.dumps({"INPUT0": [0] * 16}))
        assert client.receive() == {"outputs": {"OUTPUT0": [1.0] * 16}}


@pytest.mark.parametrize(
    ("path", "fields", "status", "text"),
    [
        ("/models/none/stream", [f"Authorization: Bearer {KEY}"], 403, "none"),
        ("/models/add1/stream", [], 401, "key"),
        (
            "/models/add1/stream",
            ["Sec-WebSocket-Protocol: backline, backline.bearer.bk_wrong"],
            401,
            "unknown",
        ),
        ("/models/add1/stream?outptu=x", [f"Authorization: Bearer {KEY}"], 400, "output"),
        ("/models/add1/infer", [f"Authorization: Bearer {KEY}"], 400, "Upgrade to 'websocket' is refused"),
    ],
    ids=["other-model", "no-key", "wrong-key", "misspelt", "other-route"],
)
def test_a_handshake_that_is_not_allowed_is_refused_in_words(
    server: ServerProcess, path: str, fields: list[str], status: int, text: str
) -> None:
    with connected(server, path, *(fields or ("X-Nothing: here",))) as client:
        assert client.status == status
        assert text in client.body()


def test_a_page_gives_its_key_as_a_subprotocol(server: ServerProcess) -> None:
    offered = f"Sec-WebSocket-Protocol: backline, backline.bearer.{KEY}"
    with connected(server, "/models/add1/stream", offered, "Origin: http://evil.example") as client:
        # A page that knows the key may use it, wherever it is from.
        assert (client.status, client.fields["sec-websocket-protocol"]) == (101, "backline")


def test_a_page_of_another_origin_is_refused(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    with serve(tmp_path / "models", tmp_path / "log") as running:
        with connected(running, "/models/add1/stream", "Origin: http://evil.example") as client:
            assert client.status == 403
            assert "another origin" in client.body()
        own = f"Origin: http://127.0.0.1:{running.http_port}"
        with connected(running, "/models/add1/stream", own) as client:
            assert client.status == 101
        assert running.stop(timeout=30) == 0


def test_a_request_without_a_handshake_is_told_what_to_do(server: ServerProcess) -> None:
    with connected(server, "/models/add1/stream", f"Authorization: Bearer {KEY}") as client:
        assert client.status == 101
    plain = socket.create_connection(("127.0.0.1", server.http_port), 30)
    with plain, plain.makefile("rb") as file:
        lines = ["GET /models/add1/stream HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {KEY}"]
        plain.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        told = file.read().decode()
    assert told.startswith("HTTP/1.1 426 ")
    assert "upgrade: websocket" in told
    assert "POST /models/add1" in told
