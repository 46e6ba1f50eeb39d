"""Worker processes of a real server: responses, crashes, hangs, and the errors that callers get."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import tritonclient.http as tritonclient

import backline
from backline.embedded.embedded import Embedded
from backline.engine.ticket import Ticket
from backline.workers.child.model_code import find_model
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from support.embedded import AwaitedTicket, start
from support.repositories import put
from support.server import ServerProcess, serve

IDENTITY = """
from backline.model import FP32

class Model:
    max_batch_size = 64
    instances = 2

    def predict(self, x: FP32[-1]) -> FP32[-1]:
        return x
"""
FAULTY = """
import ctypes, os, sys, time

class Model:
    execution_timeout_seconds = 1.0

    def predict(self, how: str) -> str:
        if how == "raise":
            raise ValueError("too loud")
        if how == "exit":
            sys.exit(3)
        if how == "_exit":
            os._exit(4)
        if how == "segfault":
            ctypes.string_at(0)
        if how == "sleep":
            time.sleep(1000)
        if how == "fork" and os.fork() == 0:
            return "child"
        if how == "close":
            os.closerange(3, 100)
        if how == "type":
            return 5
        print("printed", how)
        return how
"""
STREAM = """
from collections.abc import Iterator

class Model:
    max_batchsize = 8
    steps = 3

    def predict(self, text: str, count: int) -> Iterator[str]:
        for number in range(count):
            yield f"{text}{number}"
"""
#: The first worker exits at its fourth request; later ones record the requests that they get.
MORTAL = """
import asyncio, os
from pathlib import Path

from backline.model import FP32

class Model:
    max_batch_size = 2
    rows = 0

    async def predict(self, x: FP32[1]) -> FP32[1]:
        runs = Path(__file__).parent / "runs"
        if not runs.exists():
            self.rows += len(x)
            if self.rows == 4:
                runs.touch()
                os._exit(4)
            await asyncio.sleep(100)
        with runs.open("a") as file:
            print(*x.flat, file=file)
        return x
"""
#: Notes each run, and hangs if it is asked to; several requests run at the same time.
HANGING = """
import asyncio
from pathlib import Path

class Model:
    # Long enough for a worker on a busy machine to begin.
    execution_timeout_seconds = 5
    %s

    async def predict(self, how: str) -> str:
        with (Path(__file__).parent / "runs").open("a") as file:
            print(how, file=file)
        await asyncio.sleep(100 if how == "hang" else 0)
        return how
"""
FAILING_LOAD = """
class Model:
    def load(self):
        raise RuntimeError("no weights here")

    def predict(self, x: str) -> str:
        return x
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    for name, text in (
        ("identity", IDENTITY),
        ("faulty", FAULTY),
        ("stream", STREAM),
        ("failing", FAILING_LOAD),
    ):
        put(repository / name / "1" / "model.py", text)
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(repository, log, "--log-level", "info", "--no-strict-readiness") as running:
        yield running


def ask(server: ServerProcess, how: str) -> object:
    with backline.connect(server.url) as client:
        return client["faulty"](np.array([how.encode()], object))["output"][0]


def workers(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


@pytest.mark.parametrize("elements", [16, 150_528], ids=["in its frame", "in shared memory"])
def test_tensors_of_any_size_come_back_unchanged(server: ServerProcess, elements: int) -> None:
    sent = np.random.default_rng(0).random((2, elements)).astype(np.float32)
    with backline.connect(server.url) as client:
        for _ in range(5):
            np.testing.assert_array_equal(client["identity"](sent)["output"], sent)


def page_faults(process: psutil.Process) -> int:
    """Returns the number of a process's minor page faults (proc_pid_stat(5))."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_maps_no_memory_to_receive_a_small_request(server: ServerProcess) -> None:
    sent = np.ones((1, 16), np.float32)
    with backline.connect(server.url) as client:
        faults: list[int] = []
        for _ in range(2):
            for _ in range(200):
                client["identity"](sent)
            faults.append(sum(map(page_faults, workers(server))))
    assert faults[1] - faults[0] < 100


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", r"ValueError: too loud \(model.py, line 9, in predict\)"),
        ("exit", r"sys.exit\(3\)"),
        ("_exit", "ended with exit status 4"),
        ("segfault", "SIGSEGV .* at model.py, line 15, in predict"),
        ("sleep", "did not finish within 1 s and was killed at model.py, line 17, in predict"),
        ("close", "lost its connection to the server"),
        ("type", "the type hint says str"),
    ],
)
def test_a_misbehaving_model_fails_its_own_request_only_with_the_cause(
    server: ServerProcess, how: str, reason: str
) -> None:
    with pytest.raises(Exception, match=reason):
        ask(server, how)
    assert ask(server, "fine") == b"fine"


@pytest.mark.parametrize("parameters", [{"timeout": 2**64 - 1}, {"n": 2**64 - 1}, {"n": -(2**63)}], ids=str)
def test_the_largest_numbers_of_a_request_reach_the_worker(
    server: ServerProcess, parameters: dict[str, int]
) -> None:
    with backline.connect(server.url, timeout=20) as client:
        answer = client["identity"](np.ones((1, 4), np.float32), parameters=parameters)
    assert answer["output"].shape == (1, 4)


def test_a_request_that_cannot_be_encoded_fails_alone(tmp_path: Path) -> None:
    put(tmp_path / "identity" / "1" / "model.py", IDENTITY)
    with backline.connect(f"inproc://{tmp_path}", timeout=20) as client, ThreadPoolExecutor(9) as threads:
        model = client["identity"]
        good = [
            threads.submit(model, np.full((1, 4), row, np.float32), request_id=str(row)) for row in range(8)
        ]
        bad = threads.submit(model, np.ones((1, 4), np.float32), parameters={"mood": "\ud800"})
        with pytest.raises(
            InvalidArgument,
            match=r"cannot be sent to a worker process of model 'identity' version 1: .*surrogates",
        ):
            bad.result()
        assert [one.result()["output"][0, 0] for one in good] == list(range(8))


#: How a model declares whether its requests may run again, how often one that hangs runs, and what its error
#: says.
REPEATS = {
    "silent": ("", 1, "which is not tried again unless the model is declared idempotent"),
    "idempotent": ("idempotent = True", 2, "the previous worker also ended"),
    "forbidding": ("idempotent = False", 1, "which is not tried again: the model is not idempotent"),
}


def test_a_request_that_hangs_runs_again_only_if_the_model_allows_it(tmp_path: Path) -> None:
    paths = {
        name: put(tmp_path / "models" / name / "1" / "model.py", HANGING % declared)
        for name, (declared, _, _) in REPEATS.items()
    }
    with (
        backline.connect(f"inproc://{tmp_path / 'models'}", timeout=120) as client,
        ThreadPoolExecutor(len(REPEATS)) as threads,
    ):
        hangs = {
            name: threads.submit(client[name], np.array([b"hang"], object)) for name in REPEATS
        }  # all at once, because each waits for its limit
        for name, (_, _, reason) in REPEATS.items():
            with pytest.raises(Internal, match=f"did not finish within 5 s and was killed.*{reason}"):
                hangs[name].result()
            assert client[name](np.array([b"fine"], object))["output"][0] == b"fine"

    for name, (_, runs, _) in REPEATS.items():
        assert paths[name].with_name("runs").read_text().split() == ["hang"] * runs + ["fine"]


COUNTING = """
from pathlib import Path

from backline.model import FP32

class Model:
    max_batch_size = 8
    %s

    def predict(self, x: FP32[1]) -> FP32[1]:
        with Path(__file__).with_name("runs").open("a") as runs:
            print(len(x), file=runs)
        if (x < 0).any():
            raise ValueError("negative")
        return x
"""


@pytest.mark.parametrize(
    ("declared", "configured", "runs"),
    [("", "", [2, 1, 1]), ("idempotent = False", "", [2]), ("", "idempotent = false\n", [2])],
    ids=["nowhere", "in the code", "in the configuration"],
)
async def test_a_batch_that_fails_is_run_again_one_by_one_unless_the_model_forbids_it(
    tmp_path: Path, declared: str, configured: str, runs: list[int]
) -> None:
    path = put(tmp_path / "models" / "counting" / "1" / "model.py", COUNTING % declared)
    if configured:
        put(tmp_path / "models" / "counting" / "model.toml", configured)
    program = await start(tmp_path / "models")
    asked = []
    for number in (1, -1):
        x = Tensor("x", DataType.FP32, (1, 1), np.float32([[number]]))
        asked.append(AwaitedTicket(InferRequest("counting", {"x": x})))
    for one in asked:
        program.engine.submit(one.ticket)
    outcomes = await asyncio.gather(*(one.done for one in asked), return_exceptions=True)
    await program.stop()

    assert [int(line) for line in path.with_name("runs").read_text().split()] == runs
    assert isinstance(outcomes[0], Internal if len(runs) == 1 else InferResponse)
    assert isinstance(outcomes[1], Internal)


JSON = """
def predict(options: dict, items: list | None = None) -> dict:
    return {"options": options, "items": items}
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"options": {"a": [1, {"b": None}]}}, {"options": {"a": [1, {"b": None}]}, "items": None}),
        ({"options": {"b64": "eA=="}, "items": []}, {"options": {"b64": "eA=="}, "items": []}),
        ({"options": {}, "items": ["é", 2**70, [1.5]]}, {"options": {}, "items": ["é", 2**70, [1.5]]}),
        ({"options": '{"a": 1}', "items": "[2]"}, {"options": {"a": 1}, "items": [2]}),
        ({"options": ['{"a": 1}']}, {"options": {"a": 1}, "items": None}),
    ],
)
def test_generate_takes_and_gives_json_where_the_hints_say_dict_or_list(
    json_server: ServerProcess, body: dict[str, object], expected: dict[str, object]
) -> None:
    for route in ("generate", "generate_stream"):
        with urllib.request.urlopen(
            f"{json_server.url}/v2/models/taking/{route}", json.dumps(body).encode(), timeout=30
        ) as answer:
            text = answer.read().decode().removeprefix("data: ")
        assert json.loads(text)["output"] == expected


@pytest.fixture(scope="module")
def json_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("json")
    put(folder / "models" / "taking" / "1" / "model.py", JSON)
    with serve(folder / "models", folder / "server.log") as running:
        yield running


def test_a_model_that_forks_answers_once(server: ServerProcess) -> None:
    assert ask(server, "fork") == b"fork"
    assert ask(server, "fine") == b"fine"


def test_a_models_output_is_in_the_log_with_its_name(server: ServerProcess) -> None:
    ask(server, "hello")
    end = time.monotonic() + 5
    while "model 'faulty' version 1: printed hello" not in server.output:
        assert time.monotonic() < end, server.output


def test_a_failed_load_names_the_exception_and_its_line(server: ServerProcess) -> None:
    assert "RuntimeError: no weights here (model.py, line 4, in load)" in server.output


def test_a_misspelt_setting_is_a_warning(server: ServerProcess) -> None:
    assert (
        "model.py of model 'stream': Model.max_batchsize is not a setting and has no effect; did you mean"
        " 'max_batch_size'?" in server.output
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "class Model:\n    def predit(self, x: int) -> int: ...",
            "found none; class Model has no method predict, but predit",
        ),
        ("class Model:\n    def load(self): ...", "found none; class Model has no method predict"),
        (
            "def count(text: str): ...",
            "found none; function count has no return type hint, such as -> FP32[-1]",
        ),
    ],
)
def test_a_file_without_a_model_fails_with_what_is_missing(text: str, reason: str) -> None:
    module = ModuleType("model")
    exec(text, vars(module))

    with pytest.raises(InvalidArgument, match=f"{re.escape(reason)}$"):
        find_model(module, "model.py")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="such type hints are an error where they stand")
def test_a_helper_may_have_type_hints_that_only_a_type_checker_knows() -> None:
    module = ModuleType("model")
    text = "def helper(x: unknown.Type): ...\ndef predict(x: int) -> int: ..."
    exec(compile(text, "model.py", "exec", dont_inherit=True), vars(module))

    assert find_model(module, "model.py").name == "predict"


def test_no_request_fails_while_workers_are_killed(tmp_path: Path) -> None:
    put(tmp_path / "models" / "identity" / "1" / "model.py", IDENTITY)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        failures: list[Exception] = []
        slowest = 0.0
        stop = threading.Event()

        def load() -> None:
            nonlocal slowest
            sent = np.ones((1, 16), np.float32)
            with backline.connect(server.url) as client:
                model = client["identity"]
                while not stop.wait(0.02):
                    began = time.monotonic()
                    try:
                        model(sent)
                    except Exception as error:
                        failures.append(error)
                    slowest = max(slowest, time.monotonic() - began)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            stop.wait(1)
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(workers(server)[-1].pid, signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert slowest < 2


def test_retried_requests_run_in_their_order_of_arrival(tmp_path: Path) -> None:
    model = put(tmp_path / "mortal" / "1" / "model.py", MORTAL)

    async def ask_four() -> None:
        program = Embedded([tmp_path])
        await program.start()
        left = [1, 2, 3, 4]
        answered = asyncio.Event()

        def complete(ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
            left.remove(ticket.request.inputs["x"].data[0, 0])
            if not left:
                answered.set()

        for number in (1, 2, 3, 4):
            x = Tensor("x", DataType.FP32, (1, 1), np.full((1, 1), number, np.float32))
            program.engine.submit(Ticket(InferRequest("mortal", {"x": x}), complete))
        await asyncio.wait_for(answered.wait(), 20)
        await program.stop()

    asyncio.run(ask_four())

    assert model.with_name("runs").read_text().split() == ["1.0", "2.0", "3.0", "4.0"]


def test_no_worker_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    put(tmp_path / "models" / "identity" / "1" / "model.py", IDENTITY)
    with serve(tmp_path / "models", tmp_path / "log") as running:
        children = workers(running)
        running.process.kill()
        running.process.wait()
        _, alive = psutil.wait_procs(children, timeout=5)
    assert len(children) == 2
    assert alive == []


def test_code_in_a_load_request_does_not_run_without_trust(tmp_path: Path) -> None:
    put(tmp_path / "models" / "identity" / "1" / "model.py", IDENTITY)
    with (
        serve(tmp_path / "models", tmp_path / "log", "--model-control-mode", "explicit") as running,
        pytest.raises(Exception, match="--trust-remote-code"),
        tritonclient.InferenceServerClient(running.url.removeprefix("http://")) as client,
    ):
        client.load_model(
            "evil", config='{"backend": "python"}', files={"file:1/model.py": IDENTITY.encode()}
        )


def test_a_model_that_asks_for_too_many_instances_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "many" / "1" / "model.py", IDENTITY.replace("instances = 2", f"instances = {2**62}"))

    with serve(tmp_path, tmp_path / "log", ready=False) as server:
        server.wait_for(f"asks for {2**62} instances, expected 1 to 256", timeout=60)
