"""A server with quotas, over HTTP and gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backline.cli.keys import command
from support import models
from support.server import ServerProcess, serve

INFER = "/v2/models/add1/infer"
BODY = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.5] * 16}]})
HELD = """
import time
from pathlib import Path
from backline.model import FP32

class Model:
    def predict(self, INPUT0: FP32[1, 16]) -> FP32[1, 16]:
        gate = Path({gate!r})
        opened = gate.stat().st_size
        with open({entered!r}, "a") as file:
            file.write(".")
        while gate.stat().st_size == opened:
            time.sleep(0.01)
        return INPUT0
"""


class Gate:
    """Holds the requests of the model "held". Both files grow, so that no run misses an opening."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gate"
        self.entered = folder / "entered"
        for file in (self.file, self.entered):
            file.touch()
        self._entered = self.entered.stat().st_size

    def holds_another(self) -> bool:
        """Whether a request has begun to wait since this object was made."""
        return self.entered.stat().st_size > self._entered

    def open(self) -> None:
        """Lets all requests pass that wait now."""
        with self.file.open("a") as file:
            file.write(".")


#: A rate so low that nothing is regained during a test.
NEVER = "0.001"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "auth.toml"


def create(file: Path, name: str, *options: str) -> str:
    result = CliRunner().invoke(command, ["create", name, *options, "--auth", str(file)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    found = {
        "few": create(file, "few", "--rate", NEVER, "--burst", "3"),
        "rpc": create(file, "rpc", "--rate", NEVER, "--burst", "3"),
        "stream": create(file, "stream", "--rate", NEVER, "--burst", "3"),
        "garbled": create(file, "garbled", "--rate", NEVER, "--burst", "3"),
        "curious": create(file, "curious", "--rate", NEVER, "--burst", "3"),
        "one": create(file, "one", "--max-in-flight", "1"),
        "one-rpc": create(file, "one-rpc", "--max-in-flight", "1"),
        "slim": create(file, "slim", "--bytes-per-second", "1"),
        "picky": create(file, "picky"),
        "picky-rpc": create(file, "picky-rpc"),
        "free": create(file, "free"),
    }
    quotas = f'[[keys.quotas]]\nmodels = ["add1"]\nrequests_per_second = {NEVER}\nburst = 1\n'
    text = file.read_text()
    for name in ("picky", "picky-rpc"):
        head, tail = text.split(f'name = "{name}"\n')
        table, *others = tail.split("\n[[keys]]")
        text = "\n[[keys]]".join((f'{head}name = "{name}"\n{table}\n{quotas}', *others))
    file.write_text(
        f'{text}\n[anonymous]\nscopes = ["read"]\n'
        f"[anonymous.quota]\nrequests_per_second = {NEVER}\nburst = 2\n"
    )
    return found


@pytest.fixture(scope="module")
def served(
    file: Path, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    models.add1(folder / "models")
    models.add1(folder / "models", name="add2")
    (folder / "models" / "held" / "1").mkdir(parents=True)
    gate = Gate(file.parent)
    held = HELD.format(gate=str(gate.file), entered=str(gate.entered))
    (folder / "models" / "held" / "1" / "model.py").write_text(held)
    options = ("--auth", str(file))
    with serve(folder / "models", folder / "log", *options) as running:
        yield running


def ask(
    served: ServerProcess, key: str | None, path: str = INFER, body: str = BODY
) -> tuple[int, HTTPResponse, str]:
    with closing(HTTPConnection("127.0.0.1", served.http_port, timeout=30)) as connection:
        send(connection, key, path, body)
        answer = connection.getresponse()
        return answer.status, answer, answer.read().decode()


def send(connection: HTTPConnection, key: str | None, path: str = INFER, body: str = BODY) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if path.startswith("/v2/models") and path != "/v2/models/stats":
        connection.request("POST", path, body, headers)
    else:
        connection.request("GET", path, headers=headers)


def message(model: str = "add1") -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(np.full(16, 1.5, np.float32).tobytes())
    return request


@pytest.fixture(scope="module")
def stub(served: ServerProcess) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    options = [("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", options=options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[no-any-return]
    return grpc.StatusCode.OK


def becomes(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within 30 seconds."""
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            return False
    return True


def test_a_key_over_its_rate_is_refused_over_http(served: ServerProcess, keys: dict[str, str]) -> None:
    for left in (2, 1, 0):
        status, answer, _ = ask(served, keys["few"])
        assert status == 200
        if left == 2:
            assert "ratelimit" not in answer.headers
            continue
        assert answer.headers["ratelimit-policy"] == '"requests";q=3;w=3000'
        assert answer.headers["ratelimit"].startswith(f'"requests";r={left};t=')
    status, answer, told = ask(served, keys["few"])
    assert status == 429
    assert 900 < int(answer.headers["retry-after"]) <= 1000
    assert answer.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert "the key 'few' may send 0.001 requests per second with bursts of 3; try again in" in told
    assert ask(served, keys["few"], "/v2/health/ready")[0] == 200
    assert ask(served, keys["free"])[0] == 200


def test_a_key_over_its_rate_is_refused_over_grpc(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, keys: dict[str, str]
) -> None:
    metadata = [("authorization", f"Bearer {keys['rpc']}")]
    for _ in range(3):
        stub.ModelInfer(message(), metadata=metadata, timeout=30)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(message(), metadata=metadata, timeout=30)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the key 'rpc' may send 0.001 requests per second" in refused.value.details()
    trailers = dict(refused.value.trailing_metadata())
    assert 900_000 < int(trailers["grpc-retry-pushback-ms"]) <= 1_000_000


def test_every_message_of_a_stream_counts(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, keys: dict[str, str]
) -> None:
    metadata = [("authorization", f"Bearer {keys['stream']}")]
    answers = list(stub.ModelStreamInfer(iter([message()] * 5), metadata=metadata, timeout=30))
    assert [bool(answer.error_message) for answer in answers] == [False, False, False, True, True]
    assert "the key 'stream' may send" in answers[3].error_message


def test_messages_of_a_stream_that_cannot_be_read_count(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, keys: dict[str, str]
) -> None:
    unreadable = message()
    unreadable.inputs[0].datatype = "FP33"
    messages = iter([unreadable] * 5)
    answers = stub.ModelStreamInfer(messages, metadata=(("authorization", f"Bearer {keys['garbled']}"),))
    texts = [answer.error_message for answer in answers]
    assert [("may send" in text) for text in texts] == [False] * 3 + [True] * 2, texts


def test_every_question_of_reflection_counts(served: ServerProcess, keys: dict[str, str]) -> None:
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")] * 5)
    metadata = (("authorization", f"Bearer {keys['curious']}"),)
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        ask_about = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        answers = ask_about(asked, metadata=metadata)
        assert all(next(answers).list_services_response.service for _ in range(3))
        assert code(lambda: next(answers)) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_callers_without_a_key_share_a_quota(served: ServerProcess) -> None:
    assert [ask(served, None, path)[0] for path in ("/v2", "/v2/models/stats", "/v2")] == [200, 200, 429]
    assert "callers without a key together may send" in ask(served, None, "/v2")[2]


def test_bytes_are_limited(served: ServerProcess, keys: dict[str, str]) -> None:
    assert ask(served, keys["slim"])[0] == 200
    status, _, told = ask(served, keys["slim"])
    assert status == 429
    assert "the key 'slim' may send 1 bytes per second" in told


def test_a_quota_can_be_for_some_models(
    served: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub, keys: dict[str, str]
) -> None:
    asked = ["add2", "add1", "add1", "add2"]
    assert [ask(served, keys["picky"], f"/v2/models/{model}/infer")[0] for model in asked] == [
        200,
        200,
        429,
        200,
    ]
    metadata = [("authorization", f"Bearer {keys['picky-rpc']}")]
    codes = [
        code(lambda model=model: stub.ModelInfer(message(model), metadata=metadata, timeout=30))
        for model in asked
    ]
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert codes == [grpc.StatusCode.OK, grpc.StatusCode.OK, refused, grpc.StatusCode.OK]


@pytest.mark.parametrize("route", ["infer", "generate", "generate_stream"])
@pytest.mark.parametrize("ending", ["disconnect", "response"])
def test_a_slot_over_http_is_free_again_when_its_request_has_ended(
    served: ServerProcess, keys: dict[str, str], file: Path, route: str, ending: str
) -> None:
    gate = Gate(file.parent)
    body = BODY if route == "infer" else json.dumps({"INPUT0": [1.5] * 16})
    with closing(HTTPConnection("127.0.0.1", served.http_port, timeout=30)) as connection:
        send(connection, keys["one"], f"/v2/models/held/{route}", body)
        assert becomes(gate.holds_another)
        assert ask(served, keys["one"])[0] == 429
        if ending == "response":
            gate.open()
            assert connection.getresponse().read()
    assert becomes(lambda: ask(served, keys["one"])[0] == 200)
    gate.open()
    assert [ask(served, keys["one"])[0] for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("ending", ["cancel", "deadline", "response"])
def test_a_slot_over_grpc_is_free_again_when_its_request_has_ended(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
    keys: dict[str, str],
    file: Path,
    streamed: bool,
    ending: str,
) -> None:
    gate = Gate(file.parent)
    metadata = [("authorization", f"Bearer {keys['one-rpc']}")]
    timeout = 5 if ending == "deadline" else 30
    held = message("held")

    def outcome() -> grpc.StatusCode:
        return code(lambda: stub.ModelInfer(message(), metadata=metadata, timeout=30))

    call = (
        stub.ModelStreamInfer(iter([held]), metadata=metadata, timeout=timeout)
        if streamed
        else stub.ModelInfer.future(held, metadata=metadata, timeout=timeout)
    )
    assert becomes(gate.holds_another)
    if ending != "deadline":
        assert outcome() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if ending == "cancel":
        call.cancel()
    elif ending == "response":
        gate.open()
        assert code(lambda: list(call) if streamed else call.result()) is grpc.StatusCode.OK
    assert becomes(lambda: outcome() is grpc.StatusCode.OK)
    gate.open()
    assert outcome() is grpc.StatusCode.OK


def test_a_changed_file_changes_the_quotas_of_open_connections(
    served: ServerProcess, keys: dict[str, str], file: Path
) -> None:
    with closing(HTTPConnection("127.0.0.1", served.http_port, timeout=30)) as connection:

        def status() -> int:
            send(connection, keys["few"])
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert becomes(lambda: status() == 429)
        file.write_text(
            file.read_text()
            .replace('name = "few"', 'name = "many"')
            .replace("burst = 3", "burst = 1000000", 1)
        )
        assert becomes(lambda: status() == 200)
