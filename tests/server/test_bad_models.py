"""Models of every kind that misbehave while loading or in a request, next to a model under constant load."""

from __future__ import annotations

import json
import pickle
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

import backline
from backends.served_models import need
from backline_client.protos import message
from backline_client.values.errors import Unavailable
from support import models, networks
from support.repositories import put
from support.server import ServerProcess, serve
from support.waiting import until

#: How a Python file misbehaves on demand; shared by all kinds of models.
MISBEHAVE = """
import ctypes, os, sys, time

def misbehave(how):
    if how == "raise":
        raise ValueError("too loud")
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(4)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "memory":
        held = []
        while True:
            held.append(b"x" * (32 << 20))
            time.sleep(0.01)
    if how == "sleep":
        time.sleep(1000)
    if how == "fork" and os.fork() == 0:
        time.sleep(1000)
    if how == "close":
        os.closerange(3, 100)
"""
HANGING = """
import time

class Model:
    def load(self):
        time.sleep(1000)

    def predict(self, x: str) -> str:
        return x
"""
NATIVE = """
from pathlib import Path

from backline.model import FP32

class Model:
    execution_timeout_seconds = 3.0
    memory_limit_bytes = 300_000_000
    idempotent = False
    max_batch_size = 4

    def load(self):
        misbehave(Path(__file__).with_name("how").read_text())

    def predict(self, how: FP32[1]) -> FP32[1]:
        name = HOWS[int(how[0, 0])]
        misbehave(name)
        if name == "count":
            return how[:0]
        if name == "shape":
            return [[1.0, 2.0]]
        if name == "type":
            return {"nothing": 1}
        return how
"""
TRITON = """
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        misbehave(Path(__file__).with_name("how").read_text())

    def execute(self, requests):
        how = pb_utils.get_input_tensor_by_name(requests[0], "how").as_numpy()
        name = HOWS[int(how[0, 0])]
        misbehave(name)
        if name == "count":
            return []
        if name == "shape":
            how = np.ones((1, 2), np.float32)
        if name == "type":
            return "nothing"
        return [pb_utils.InferenceResponse([pb_utils.Tensor("output", how)])]
"""
HANDLER = """
from pathlib import Path

class Handler:
    def initialize(self, context):
        misbehave((Path(context.system_properties["model_dir"]) / "how").read_text())

    def handle(self, data, context):
        how = data[0]["how"]
        name = HOWS[int(how.reshape(-1)[0])]
        misbehave(name)
        if name == "count":
            return []
        if name == "shape":
            return [[1.0, 2.0]]
        if name == "type":
            return 5
        return [how]
"""
CONFIG = """
backend: "%s"
max_batch_size: 4
input { name: "how" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "output" data_type: %s dims: [ 1 ] }
parameters { key: "backline.execution_timeout_seconds" value { string_value: "3.0" } }
parameters { key: "backline.memory_limit_bytes" value { string_value: "300000000" } }
parameters { key: "backline.idempotent" value { string_value: "false" } }
"""
MANIFEST = {
    "model": {"modelName": "handler", "handler": "h.py", "modelVersion": "1.0"},
    "archiverVersion": "0.12",
}
FILES = {"native": ("model.py", NATIVE), "triton": ("model.py", TRITON), "handler": ("h.py", HANDLER)}
ENDS = {
    "raise": "ValueError: too loud",
    "exit": r"sys\.exit\(3\)|SystemExit: 3",
    "_exit": "worker process ended with exit status 4",
    "segfault": r"killed by SIGSEGV .* at (model|h)\.py, line 13, in misbehave",
    "memory": r"used \d+ MiB of memory, more than its limit of 286 MiB, and was killed",
    "close": r"lost its connection to the server \(perhaps the model closed file descriptors",
}
IN_PREDICT = {
    **ENDS,
    "sleep": r"did not finish within 3 s and was killed at (model|h)\.py, line 20",
    "count": "",
    "shape": "",
    "type": "",
}
#: Each kind's error for a wrong return value. Triton passes shapes through; handlers return JSON.
RETURNED = {
    ("native", "count"): r"output 'output' has shape \[0, 1\], expected \[1, 1\]",
    ("native", "shape"): r"output 'output' has shape \[1, 2\], expected \[1, 1\]",
    ("native", "type"): "output 'output' has dtype object, but the type hint says FP32",
    (
        "triton",
        "count",
    ): "Number of InferenceResponse objects do not match the number of InferenceRequest objects",
    ("triton", "type"): "Expected a list in the execute return",
    ("handler", "count"): "the handler returned 0 results for 1 rows",
    ("handler", "type"): "the handler returned a int, expected a list with one result for each of 1 rows",
}
HOWS = [*IN_PREDICT, "fork", "fine"]


class Neighbour:
    """An unrelated model that gets fifty requests a second."""

    def __init__(self, server: ServerProcess) -> None:
        self.failures: list[Exception] = []
        self.seconds: list[float] = []
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        sent = np.ones((1, 16), np.float32)
        with backline.connect(self._server.url) as client:
            while not self._stop.wait(0.02):
                began = time.monotonic()
                try:
                    client["add1"](sent)
                except Exception as error:
                    self.failures.append(error)
                self.seconds.append(time.monotonic() - began)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Misbehaving:
    """A server in explicit mode, and the files of its models."""

    def __init__(self, server: ServerProcess, repository: Path) -> None:
        self.server = server
        self.process = psutil.Process(server.process.pid)
        self._repository = repository

    def write(self, kind: str, how: str, source: str = "") -> None:
        """Writes a model that misbehaves while loading."""
        file, text = FILES[kind]
        put(self._repository / kind / "1" / file, source or f"HOWS = {HOWS}\n{MISBEHAVE}\n{text}")
        put(self._repository / kind / "1" / "how", how)

    def load(self, model: str) -> tuple[int, str]:
        return self._post(f"/v2/repository/models/{model}/load")

    def unload(self, model: str) -> None:
        self._post(f"/v2/repository/models/{model}/unload")

    def ask(self, kind: str, how: str) -> tuple[int, str]:
        inputs = [{"name": "how", "datatype": "FP32", "shape": [1, 1], "data": [HOWS.index(how)]}]
        return self._post(f"/v2/models/{kind}/infer", json.dumps({"inputs": inputs}).encode())

    def serves(self, kind: str) -> bool:
        """Returns whether a request succeeds. Requests wait for a new worker process, but only for 2 seconds,
        which may be too short on a busy machine: then they are told to come back.
        """
        status, text = self.ask(kind, "fine")
        assert status == 200 or (status == 503 and "has no worker process at the moment" in text), text
        return status == 200

    def _post(self, path: str, body: bytes = b"") -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.server.url + path, body, method="POST"), timeout=30
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["error"]


@pytest.fixture(scope="module")
def models_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misbehaving]:
    repository = tmp_path_factory.mktemp("models")
    models.add1(repository)
    put(repository / "triton" / "config.pbtxt", CONFIG % ("python", "TYPE_FP32"))
    put(repository / "handler" / "config.pbtxt", CONFIG % ("torchserve", "TYPE_STRING"))
    put(repository / "handler" / "1" / "MAR-INF" / "MANIFEST.json", json.dumps(MANIFEST))
    unknown = [networks.node("Transmogrify", ["X"], ["Y"])]
    networks.build(
        repository / "operator" / "1" / "model.onnx",
        unknown,
        [("X", networks.FLOAT, ["N"])],
        [("Y", networks.FLOAT, ["N"])],
    )
    put(repository / "noise" / "1" / "model.onnx", "no protobuf at all")
    put(repository / "pickled" / "1" / "model.pkl").write_bytes(pickle.dumps({"not": "a model"}))
    with serve(
        repository,
        tmp_path_factory.mktemp("log") / "log",
        "--model-control-mode",
        "explicit",
        "--load-model",
        "add1",
    ) as server:
        yield Misbehaving(server, repository)


@pytest.fixture(scope="module", autouse=True)
def neighbour(models_of: Misbehaving) -> Iterator[Neighbour]:
    running = Neighbour(models_of.server)
    yield running
    running.stop()


def assert_reason(answer: tuple[int, str], status: int, text: str) -> None:
    """Checks that the answer gives the reason in the model's terms, with no traceback or server path."""
    assert answer[0] == status, answer
    assert re.search(text, answer[1]), answer
    for hidden in ("Traceback", 'File "', "backline/workers"):
        assert hidden not in answer[1]


@pytest.mark.parametrize("kind", FILES)
def test_a_failed_load_states_the_reason(models_of: Misbehaving, kind: str) -> None:
    for how, text in ENDS.items():
        models_of.write(kind, how)
        assert_reason(models_of.load(kind), 400, text)
    for source, text in (
        ("def x(:", "SyntaxError: "),
        ("import nothing_there", "No module named 'nothing_there'"),
    ):
        models_of.write(kind, "fine", source)
        assert_reason(models_of.load(kind), 400, text)

    assert models_of.process.children(recursive=True) == []


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            "memory_limit_bytes = '1GiB'",
            "Model.memory_limit_bytes is '1GiB', expected a whole number above 0",
        ),
        (
            "execution_timeout_seconds = -1",
            "Model.execution_timeout_seconds is -1, expected a number of seconds above 0",
        ),
    ],
)
def test_an_invalid_setting_is_reported(models_of: Misbehaving, setting: str, text: str) -> None:
    models_of.write(
        "native",
        "fine",
        f"class Model:\n    {setting}\n\n    def predict(self, x: str) -> str:\n        return x\n",
    )

    assert_reason(models_of.load("native"), 400, text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def predict(x) -> float: ...", "predict: 'x' has no type hint; expected FP32"),
        (
            "def predict(x: 'FP32[1]') -> float: ...",
            "predict: a type hint cannot be read: NameError: name 'FP32' is not defined",
        ),
        ("import nothing_there", "; list the packages that the model imports in a requirements.txt"),
    ],
)
def test_a_load_that_fails_for_a_common_mistake_names_it(
    models_of: Misbehaving, source: str, text: str
) -> None:
    models_of.write("native", "fine", source)

    assert_reason(models_of.load("native"), 400, text)


@pytest.mark.parametrize("hint", ["float", "FP32[-1]", "str", "dict"])
def test_a_missing_return_statement_is_reported(models_of: Misbehaving, hint: str) -> None:
    """NumPy would turn None into NaN, and JSON into null."""
    source = f"from backline.model import FP32\n\ndef predict(how: FP32[1, 1]) -> {hint}:\n    how + 1\n"
    models_of.write("native", "fine", source)
    assert models_of.load("native")[0] == 200

    assert_reason(models_of.ask("native", "fine"), 500, "'output' is None; is a return statement missing")
    models_of.unload("native")


@pytest.mark.parametrize("kind", FILES)
def test_misbehaviour_in_a_request_is_reported_and_the_next_request_succeeds(
    models_of: Misbehaving, kind: str
) -> None:
    models_of.write(kind, "fork")  # its child must die with it
    assert models_of.load(kind)[0] == 200

    for how, text in IN_PREDICT.items():
        if (kind, how) in RETURNED or text:
            assert_reason(models_of.ask(kind, how), 500, RETURNED.get((kind, how), text))
        until(lambda: models_of.serves(kind))  # a new process has started
    assert models_of.ask(kind, "fork")[0] == 200
    models_of.unload(kind)

    until(lambda: not models_of.process.children(recursive=True))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("operator", "Transmogrify"),
        ("noise", r"model\.onnx' cannot be loaded by ONNX Runtime"),
        ("pickled", "is a pickle, which can execute anything"),
    ],
)
def test_an_invalid_model_file_states_the_reason(models_of: Misbehaving, model: str, text: str) -> None:
    if model == "pickled":
        need("sklearn")
    assert_reason(models_of.load(model), 400, text)


def test_the_neighbour_never_failed_or_stalled(models_of: Misbehaving, neighbour: Neighbour) -> None:
    neighbour.stop()

    assert neighbour.failures == []
    assert len(neighbour.seconds) > 50
    assert np.percentile(neighbour.seconds, 99) < 0.5
    assert models_of.server.process.poll() is None


def hanging(server: ServerProcess) -> bool:
    with urllib.request.urlopen(f"{server.url}/v2/models", timeout=5) as answer:
        return any(
            version.get("progress", {}).get("phase") == "load" for version in json.load(answer)["versions"]
        )


@pytest.mark.parametrize("end", ["unload", "stop"])
def test_a_hanging_load_is_shown_and_can_be_aborted(tmp_path: Path, end: str) -> None:
    put(tmp_path / "models" / "hangs" / "1" / "model.py", HANGING)
    with (
        serve(tmp_path / "models", tmp_path / "log", "--model-control-mode", "explicit") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        with backline.connect(server.url, timeout=60) as client:
            asked = threads.submit(client.load, "hangs")
            while not hanging(server):
                time.sleep(0.02)
            began = time.monotonic()
            if end == "stop":
                server.stop()
            else:
                client.unload("hangs")
            by = {"unload": "a request to unload it", "stop": "the server's shutdown"}[end]
            with pytest.raises(Unavailable, match=f"the load of 'hangs' was aborted by {by}"):
                asked.result()
            assert time.monotonic() - began < 15
        server.stop()
    assert "Traceback" not in server.output
    assert "never retrieved" not in server.output


def test_clients_never_see_the_servers_paths(tmp_path: Path) -> None:
    """The operator finds them in the log."""
    repository = tmp_path / "models"
    broken = repository / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    (repository / "odd" / "1").mkdir(parents=True)
    messages: list[str] = []
    with serve(repository, tmp_path / "log", "--model-control-mode", "explicit", ready=False) as server:
        server.wait_started()
        for action, path, body in (
            ("POST", "/v2/repository/models/broken/load", b""),
            ("POST", "/v2/repository/models/odd/load", b""),
            ("GET", "/v2/models", b""),
            ("POST", "/v2/repository/index", b""),
            ("POST", "/v2/models/broken/infer", b"{}"),
            ("GET", "/v2/models/broken/ready", b""),
            ("GET", "/v2/repository/history", b""),
        ):
            asked = urllib.request.Request(server.url + path, body or None, method=action)
            try:
                with urllib.request.urlopen(asked) as answer:
                    messages.append(answer.read().decode())
            except urllib.error.HTTPError as error:
                messages.append(error.read().decode())
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            load = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
            with pytest.raises(grpc.RpcError) as caught:
                load(message("inference.RepositoryModelLoadRequest")(model_name="broken").SerializeToString())
            messages.append(caught.value.details())
        assert server.stop() == 0
    assert "'models/broken/1/model.onnx'" in messages[0]
    assert "'models/broken/1/model.onnx'" in messages[-1]
    assert not [text for text in messages if str(tmp_path) in text]
    assert str(broken) in server.output
