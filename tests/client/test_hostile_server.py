"""A server that sends anything but what the protocol says: clients raise its error, and nothing else."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from backline.cli.main import main
from backline_client.client import Client, connect, http_connection
from backline_client.client.errors import BacklineError, ProtocolError, Unavailable
from backline_client.client.http_stream import EventReader

OUTPUT: dict[str, Any] = {"name": "OUTPUT0", "datatype": "FP32", "shape": [1], "data": [1.0]}
TENSOR = {"name": "INPUT0", "datatype": "FP32", "shape": [1]}


def response(**changes: object) -> bytes:
    return json.dumps({"model_name": "m", "outputs": [OUTPUT | changes]}).encode()


DOCUMENTS = [
    b"",
    b"null",
    b"7",
    b"[]",
    b"{}",
    b"[7]",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\xff\xfe",
    b'{"error":7}',
    b'{"name":7,"versions":7,"extensions":7,"platform":7}',
    b'{"models":7,"versions":[7],"model_stats":7,"labels":7,"changes":7,"entries":7}',
    b'{"models":["a"],"versions":[{"name":7}],"model_stats":[7],"labels":{"a":7},"changes":[7],"entries":[7]}',
    b'{"labels":["a"],"changes":[{}],"entries":[{"outcome":7}],"input":[7]}',
    b'{"name":"m","inputs":[7]}',
    b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":["y"]}]}',
    b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":7}]}',
    b'{"name":"m","outputs":[{"name":"x","datatype":"FP33","shape":[1]}]}',
    b'{"input":[{"optional":true}]}',
    response(shape=[2**40, 2**40]),
    response(shape=[2**70]),
    response(shape=[-3]),
    response(data=[{"a": 1}]),
    response(data=[[1], [1, 2]]),
    response(datatype="INT8", data=[300]),
    response(parameters={"binary_data_size": -5}),
    response(parameters={"binary_data_size": 2**70}),
    response(parameters={"binary_data_size": "x"}),
    response().replace(b"[1.0]", b"[1e999]"),
    response(parameters={}).replace(b'"parameters": {}', b'"parameters":{"binary_data_size":1e999}'),
]


FIELDS: list[dict[str, str]] = [
    {},
    {"Inference-Header-Content-Length": "9" * 30},
    {"Content-Type": "text/event-stream"},
]


class Hostile(BaseHTTPRequestHandler):
    """Answers every request with `answer`: a status, header fields and a body."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one segment per answer
    disable_nagle_algorithm = True
    answer: ClassVar[tuple[int, dict[str, str], bytes]] = (200, {}, b"")

    def respond(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, fields, body = self.answer
        self.send_response(status)
        if "Transfer-Encoding" not in fields:
            fields = {"Content-Length": str(len(body)), **fields}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


class HostileServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing if a client leaves before its response, because tests read what is printed."""


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    with HostileServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def questions(client: Client) -> list[Callable[[], object]]:
    model = client.model("m")
    return [
        client.metadata,
        client.models,
        client.statistics,
        lambda: client.labels("m"),
        lambda: client.set_label("m", "a", "1"),
        lambda: client.rollback("m"),
        client.history,
        client.audit,
        model.metadata,
        model.config,
        lambda: model.metadata().completed(model.config()),
        model.statistics,
        lambda: model({"INPUT0": np.zeros(1, np.float32)}),
        lambda: list(model.stream({"INPUT0": np.zeros(1, np.float32)})),
    ]


@pytest.mark.parametrize("status", [200, 400])
def test_no_document_of_a_server_raises_anything_but_an_error_of_the_client(
    hostile: str, status: int
) -> None:
    found = 0
    with connect(hostile, timeout=10) as client:
        for document in DOCUMENTS:
            for fields in FIELDS if status == 200 else FIELDS[:1]:
                Hostile.answer = status, fields, document
                for ask in questions(client):
                    try:
                        ask()
                    except BacklineError:
                        found += 1
    assert found > len(DOCUMENTS) * 10


def test_an_answer_without_end_is_given_up(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "MAX_BODY", 100_000)
    chunks = b"10000\r\n" + bytes(65536) + b"\r\n"
    for fields, body in (
        ({"Content-Length": str(2**50)}, b"{"),
        ({"Transfer-Encoding": "chunked"}, chunks * 9),
    ):
        Hostile.answer = 200, fields, body
        with connect(hostile) as client, pytest.raises(ProtocolError, match="sent a response of more than"):
            client.metadata(timeout=20)


def test_an_absurd_time_to_wait_is_ignored(hostile: str) -> None:
    Hostile.answer = 503, {"Retry-After": "9" * 400}, b'{"error":"later"}'
    with connect(hostile) as client, pytest.raises(Unavailable) as caught:
        client.metadata()
    assert caught.value.retry_after is None


def test_bytes_of_an_event_are_searched_once() -> None:
    reader = EventReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    reader.feed(b"data: " + b"x" * 1000 + b"\n")
    assert reader.next() is None
    assert reader._searched == 1006
    reader.feed(b"\ndata: y\n\n")
    assert reader.next() == b"x" * 1000
    assert reader.next() == b"y"


@pytest.mark.parametrize(
    "event", [b"{broken", b"\xff", b"7", b"{}", b"[" * 100_000, b'{"error":7,"requests":[7]}']
)
def test_watching_a_server_that_sends_no_traces_ends_with_its_error(
    hostile: str, capsys: pytest.CaptureFixture[str], event: bytes
) -> None:
    Hostile.answer = 200, {"Content-Type": "text/event-stream"}, b"data: " + event + b"\n\n"
    with pytest.raises(SystemExit):  # and no other exception
        main(["watch", "--url", hostile])
    assert capsys.readouterr().err.startswith(f"Error: {hostile}")


ESCAPES = "\x1b]0;owned\x07\x1b[31m\n"


@pytest.mark.parametrize("command", ["models show m", "infer m -i x=[1]", "top --once --interval 0.01"])
@pytest.mark.parametrize("status", [200, 400])
def test_no_text_of_a_server_commands_the_terminal(
    hostile: str, capsys: pytest.CaptureFixture[str], command: str, status: int
) -> None:
    document = {"name": ESCAPES, "versions": [ESCAPES], "platform": ESCAPES, "inputs": [TENSOR]}
    Hostile.answer = status, {}, json.dumps(document if status == 200 else {"error": ESCAPES}).encode()
    with pytest.raises(SystemExit):  # and no other exception
        main([*command.split(), "--url", hostile])
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert printed
