"""Asynchronous and decoupled models in worker processes: concurrency, flow control, cancellation,
statistics.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

import backline
from backline.engine.model import ModelState
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Unavailable
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.embedded import start
from support.repositories import put
from support.server import ServerProcess, metrics_page, serve
from support.waiting import until

GATE = """
import asyncio

class Model:
    def load(self):
        self.waiting = 0
        self.open = None

    async def predict(self, count: int) -> int:
        # Responds once `count` requests are here at the same time.
        self.open = self.open or asyncio.Event()
        self.waiting += 1
        if self.waiting == count:
            self.open.set()
        await self.open.wait()
        return self.waiting
"""
ASYNC_BATCH = """
from backline.model import FP32

class Model:
    max_batch_size = 8

    async def predict(self, x: FP32[1]) -> FP32[1]:
        if (x < 0).any():
            raise ValueError("negative")
        return x + 1
"""
NUMBERS = """
import os
import sys
from collections.abc import Iterator
from pathlib import Path

MADE = Path(__file__).with_name("made")

class Model:
    def predict(self, size: int, count: int) -> Iterator[str]:
        try:
            for number in range(count):
                if number == 3 and size == 0:
                    raise ValueError("no further")
                if number == 3 and size == -1:
                    os._exit(9)
                MADE.write_text(str(number))
                yield str(number).rjust(size)
        finally:
            MADE.with_name("ended").touch()
"""
PATIENT = """
import asyncio
from pathlib import Path

class Model:
    async def predict(self, x: str) -> str:
        Path(__file__).with_name("began").touch()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            Path(__file__).with_name("cancelled").touch()
            raise
        return x
"""
ONE_LOOP = """
import asyncio

class Model:
    async def load(self):
        self.queue = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    async def predict(self, x: int) -> bool:
        await self.queue.put(x)
        return self.loop is asyncio.get_running_loop()

    async def unload(self):
        print("unloaded on the same loop:", self.loop is asyncio.get_running_loop())
"""
ENDLESS = """
from collections.abc import Iterator

class Model:
    def predict(self, x: int) -> Iterator[int]:
        while True:
            yield x
"""
ENDLESS_SENDER = """
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.respond, args=(sender,), daemon=True).start()

    def respond(self, sender):
        while True:
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ones(1, np.int64))]))
            time.sleep(0.01)
"""
ENDLESS_SENDER_CONFIGURATION = """
backend: "python"
input [ { name: "x" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT64 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
"""
ASYNC_NUMBERS = """
from collections.abc import AsyncIterator

class Model:
    async def predict(self, size: int, count: int) -> AsyncIterator[str]:
        for number in range(count):
            yield str(number).rjust(size)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    models = {
        "gate": GATE,
        "async_batch": ASYNC_BATCH,
        "numbers": NUMBERS,
        "async_numbers": ASYNC_NUMBERS,
        "patient": PATIENT,
    }
    for name, text in models.items():
        put(folder / name / "1" / "model.py", text)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


def leave_at_once(server: ServerProcess, model: str, body: str) -> None:
    """Requests a stream and resets the connection at once."""
    with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
        head = (
            f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(f"{head}{body}".encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def events(server: ServerProcess, model: str, size: int, count: int) -> list[dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    connection.request(
        "POST", f"/v2/models/{model}/generate_stream", json.dumps({"size": size, "count": count})
    )
    text = connection.getresponse().read().decode()
    connection.close()
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line.startswith("data: ")]


def slow_reader(server: ServerProcess, model: str) -> socket.socket:
    """Requests 64 MiB of responses and does not read them."""
    reader = socket.create_connection(("127.0.0.1", server.http_port))
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps({"size": 65536, "count": 1000}).encode()
    head = (
        f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    reader.sendall(head.encode() + body)
    reader.recv(1)
    return reader


def test_requests_of_an_asynchronous_model_run_at_the_same_time(server: ServerProcess) -> None:
    async def ask() -> list[int]:
        async with backline.connect_async(server.url) as client:
            answers = await asyncio.gather(*(client["gate"](np.array([8])) for _ in range(8)))
            return [int(answer["output"][0]) for answer in answers]

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == [8] * 8


def test_an_invalid_request_in_an_asynchronous_batch_fails_alone(server: ServerProcess) -> None:
    async def ask() -> list[object]:
        async with backline.connect_async(server.url) as client:
            rows = [np.array([[value]], np.float32) for value in (1, -1, 2, 3, -2, 4)]
            return await asyncio.gather(*(client["async_batch"](row) for row in rows), return_exceptions=True)

    answers = asyncio.run(ask())

    assert [isinstance(answer, BacklineError) for answer in answers] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("model", ["numbers", "async_numbers"])
def test_all_responses_come_in_order_as_events(server: ServerProcess, model: str) -> None:
    assert [event["output"] for event in events(server, model, 1, 100)] == [
        str(number).rjust(1) for number in range(100)
    ]


@pytest.mark.parametrize("model", ["numbers", "async_numbers"])
def test_all_responses_come_in_order_over_a_grpc_stream(server: ServerProcess, model: str) -> None:
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        inputs = []
        for name, value in (("size", 1), ("count", 50)):
            tensor = triton.InferInput(name, [1], "INT64")
            tensor.set_data_from_numpy(np.array([value]))
            inputs.append(tensor)
        client.async_stream_infer(model, inputs)
        got = [answers.get(timeout=20) for _ in range(50)]

    assert [error for _, error in got] == [None] * 50
    assert [int(result.as_numpy("output")[0]) for result, _ in got if result is not None] == list(range(50))


def test_a_stream_pauses_while_its_client_reads_nothing(server: ServerProcess, repository: Path) -> None:
    made = repository / "numbers" / "1" / "made"
    workers = psutil.Process(server.process.pid).children()
    with slow_reader(server, "numbers"):
        seen = -1

        def stands_still() -> bool:
            nonlocal seen
            before, seen = seen, int(made.read_text() or -1) if made.exists() else -1
            time.sleep(0.3)  # nothing must happen meanwhile
            return before == seen >= 0

        until(stands_still)

        assert 0 < seen < 900
        assert max(one.memory_info().rss for one in workers) < 200 << 20


@pytest.mark.parametrize("model", ["async_numbers"])
def test_slow_clients_do_not_block_other_streams(server: ServerProcess, model: str) -> None:
    readers = [slow_reader(server, model) for _ in range(12)]
    try:
        assert len(events(server, model, 1, 100)) == 100
    finally:
        for reader in readers:
            reader.close()


def test_a_stream_ends_when_its_client_disconnects(server: ServerProcess, repository: Path) -> None:
    ended = repository / "numbers" / "1" / "ended"
    until(lambda: len(events(server, "numbers", 1, 1)) == 1)
    ended.unlink()
    slow_reader(server, "numbers").close()

    until(ended.exists)

    assert int((repository / "numbers" / "1" / "made").read_text()) < 999


def test_load_predict_and_unload_share_an_event_loop(tmp_path: Path) -> None:
    put(tmp_path / "models" / "one_loop" / "1" / "model.py", ONE_LOOP)
    with serve(tmp_path / "models", tmp_path / "log", "--log-level", "info") as server:
        with backline.connect(server.url) as client:
            assert client["one_loop"](np.array([1]))["output"].tolist() == [True]
        server.stop()

        assert "unloaded on the same loop: True" in server.output


@pytest.mark.parametrize(
    ("code", "configuration"),
    [(ENDLESS, ""), (ENDLESS_SENDER, ENDLESS_SENDER_CONFIGURATION)],
    ids=["generator", "sender that ignores the cancellation"],
)
async def test_an_unload_ends_endless_streams(tmp_path: Path, code: str, configuration: str) -> None:
    put(tmp_path / "models" / "endless" / "1" / "model.py", code)
    if configuration:
        (tmp_path / "models" / "endless" / "config.pbtxt").write_text(configuration)
    program = await start(tmp_path / "models", drain_seconds=0.1)
    control, model = program.engine.control, program.engine.find("endless")
    assert control is not None
    x = Tensor("x", DataType.INT64, (1,), np.array([1]))

    responses = program.engine.stream(InferRequest("endless", {"x": x}))
    await anext(responses)
    await control.unload("endless", who="test")
    with pytest.raises(Unavailable, match="is being unloaded"):
        async for _ in responses:
            pass
    while model.state is not ModelState.UNAVAILABLE:
        changed = asyncio.Event()
        stop = program.engine.watch(changed.set)
        await asyncio.wait_for(changed.wait(), 30)
        stop()
    await program.stop()


def test_a_coroutine_is_cancelled_with_its_request(server: ServerProcess, repository: Path) -> None:
    folder = repository / "patient" / "1"
    with socket.create_connection(("127.0.0.1", server.http_port)) as client:
        body = b'{"x": "hello"}'
        client.sendall(
            b"POST /v2/models/patient/generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        until((folder / "began").exists)

    until((folder / "cancelled").exists)

    assert len(events(server, "async_numbers", 1, 3)) == 3


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "ValueError: no further"), (-1, "ended with exit status 9 after the first responses")],
)
def test_an_error_follows_the_responses_sent_before_it(server: ServerProcess, size: int, reason: str) -> None:
    *responses, last = events(server, "numbers", size, 10)

    assert [int(str(response["output"])) for response in responses] == [0, 1, 2]
    assert reason in str(last["error"])


def test_each_response_is_counted_by_its_index_in_the_stream(tmp_path: Path) -> None:
    put(tmp_path / "models" / "async_numbers" / "1" / "model.py", ASYNC_NUMBERS)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        for count in (1, 3):
            events(server, "async_numbers", 1, count)
        with backline.connect(server.url) as client:
            (statistics,) = client["async_numbers"].statistics()
        page = metrics_page(server)

    assert [int(one["success"]["count"]) for _, one in sorted(statistics["response_stats"].items())] == [
        2,
        1,
        1,
    ]
    model = 'model="async_numbers",version="1"'
    assert page[f'backline_responses_total{{{model},outcome="success"}}'] == 4
    assert page[f"nv_inference_first_response_histogram_ms_count{{{model}}}"] == 2


@pytest.mark.parametrize("model", ["numbers", "async_numbers"])
def test_clients_that_disconnect_at_once_leave_no_open_stream(server: ServerProcess, model: str) -> None:
    for _ in range(300):
        leave_at_once(server, model, '{"size": 10, "count": 1000000000}')

    assert [event["output"] for event in events(server, model, 1, 3)] == ["0", "1", "2"]
