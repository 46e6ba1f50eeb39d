"""A real server's response cache, over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from backline import connect
from support import models
from support.redis_server import RedisServer
from support.server import ServerProcess, serve
from support.streaming import REPEAT, put_models
from support.waiting import until

CACHED = "response_cache { enable: true }"
LOCAL = ("--cache-config", "local,size=16MiB")


def put_cached(repository: Path, constant: float = 1.0) -> Path:
    models.add1(repository, constant=constant)
    (repository / "add1" / "config.pbtxt").write_text(CACHED)
    return repository


def ask(url: str, value: float) -> float:
    with connect(url) as client:
        return float(client["add1"](np.full((1, 16), value, np.float32))["OUTPUT0"][0, 0])


def counts(server: ServerProcess, model: str = "add1") -> tuple[int, int, int]:
    """A model's cache hits, misses and executions."""
    with urllib.request.urlopen(f"{server.url}/v2/models/{model}/stats", timeout=10) as answer:
        (stats,) = json.load(answer)["model_stats"]
    inference = stats["inference_stats"]
    return (
        int(inference["cache_hit"]["count"]),
        int(inference["cache_miss"]["count"]),
        int(stats["execution_count"]),
    )


def metrics(server: ServerProcess) -> dict[str, float]:
    """The cache metrics of add1."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: float(value)
        for name, value in re.findall(
            r'^(nv_cache_\w+)\{model="add1",version="1"\} (\S+)$', text, re.MULTILINE
        )
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with serve(put_cached(tmp_path / "models"), tmp_path / "server.log", *LOCAL) as running:
        yield running


@pytest.mark.parametrize("protocol", ["url", "grpc_url"])
def test_a_repeated_request_is_not_executed_again(server: ServerProcess, protocol: str) -> None:
    url = getattr(server, protocol)

    answers = [ask(url, value) for value in (1, 1, 2, 1)]

    assert answers == [2, 2, 3, 2]
    assert counts(server) == (2, 2, 2)


def test_http_and_grpc_share_cached_answers(server: ServerProcess) -> None:
    assert (ask(server.url, 5), ask(server.grpc_url, 5)) == (6, 6)
    assert counts(server) == (1, 1, 1)


def over_generate(server: ServerProcess, route: str) -> float:
    body = json.dumps({"INPUT0": [1.0] * 16}).encode()
    with urllib.request.urlopen(f"{server.url}/v2/models/add1/{route}", body, timeout=10) as answer:
        return float(json.loads(answer.read().removeprefix(b"data: "))["OUTPUT0"][0])


def over_infer_stream(server: ServerProcess) -> float:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
    body = json.dumps({"inputs": [tensor]}).encode()
    with urllib.request.urlopen(f"{server.url}/v2/models/add1/infer_stream", body, timeout=10) as answer:
        return float(json.loads(answer.read().removeprefix(b"data: "))["outputs"][0]["data"][0])


def over_model_stream_infer(server: ServerProcess) -> float:
    tensor = triton.InferInput("INPUT0", [1, 16], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 16), np.float32))
    answers: Queue[Any] = Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("add1", [tensor])
        answer = answers.get(timeout=20)
    return float(answer.as_numpy("OUTPUT0")[0, 0])


@pytest.mark.parametrize(
    "ask_again",
    [
        partial(over_generate, route="generate"),
        partial(over_generate, route="generate_stream"),
        over_infer_stream,
        over_model_stream_infer,
    ],
    ids=["generate", "generate_stream", "infer_stream", "ModelStreamInfer"],
)
def test_requests_that_take_many_responses_share_the_cache(
    server: ServerProcess, ask_again: Callable[[ServerProcess], float]
) -> None:
    assert ask_again(server) == 2
    assert counts(server) == (0, 1, 1)

    assert (ask_again(server), ask(server.url, 1)) == (2, 2)

    assert counts(server) == (2, 1, 1)
    values = metrics(server)
    assert (values["nv_cache_num_hits_per_model"], values["nv_cache_num_misses_per_model"]) == (2, 1)


def test_the_metrics_agree_with_the_statistics(server: ServerProcess) -> None:
    for value in (1, 1, 1, 2):
        ask(server.url, value)

    values = metrics(server)

    assert (values["nv_cache_num_hits_per_model"], values["nv_cache_num_misses_per_model"]) == (2, 2)
    assert values["nv_cache_miss_duration_per_model"] > 0


def test_a_cached_answer_has_the_id_of_its_request(server: ServerProcess) -> None:
    def answer(name: str) -> dict[str, Any]:
        tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}
        body = json.dumps({"id": name, "inputs": [tensor]}).encode()
        with urllib.request.urlopen(f"{server.url}/v2/models/add1/infer", body, timeout=10) as got:
            return dict(json.load(got))

    first, second = answer("a"), answer("b")

    assert (first.pop("id"), second.pop("id")) == ("a", "b")
    assert first == second
    assert counts(server)[0] == 1


def test_a_model_that_does_not_enable_the_cache_runs_every_request(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    with serve(tmp_path / "models", tmp_path / "server.log", *LOCAL) as server:
        answers = [ask(server.url, 1), ask(server.url, 1)]
        server.wait_started()

        assert answers == [2, 2]
        assert counts(server) == (0, 0, 2)
        assert (
            "Response cache: 16 MiB of memory, but no model has response_cache { enable: true }"
            in server.output
        )


def test_startup_prints_where_answers_are_cached(server: ServerProcess) -> None:
    server.wait_started()

    assert "Response cache: 16 MiB of memory, for add1" in server.output


def test_enabling_the_cache_on_a_server_without_one_warns_and_runs(tmp_path: Path) -> None:
    with serve(put_cached(tmp_path / "models"), tmp_path / "server.log") as server:
        answers = [ask(server.url, 1), ask(server.url, 1)]

        assert answers == [2, 2]
        assert counts(server) == (0, 0, 2)
        assert (
            "model 'add1' version 1 asks for the response cache, "
            "but the server has none and runs every request:"
            " start the server with --cache-config local,size=64MiB"
        ) in server.output


def test_a_replaced_model_file_never_gets_the_old_files_answers(tmp_path: Path) -> None:
    repository = put_cached(tmp_path / "models")
    options = (*LOCAL, "--model-control-mode", "poll", "--repository-poll-secs", "0.1")
    with serve(repository, tmp_path / "server.log", *options) as server:
        assert [ask(server.url, 1), ask(server.url, 1)] == [2, 2]
        # A different file with the same size and modification time.
        file = repository / "add1" / "1" / "model.onnx"
        other = models.add1(tmp_path / "other", constant=10.0)
        times = file.stat()
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert other.stat().st_size == times.st_size
        other.replace(file)

        until(lambda: ask(server.url, 2) == 12, lambda: server.output)  # until the new file is served

        assert [ask(server.url, 1), ask(server.grpc_url, 1)] == [11, 11]


def test_the_cache_can_be_disabled_while_serving(tmp_path: Path) -> None:
    repository = put_cached(tmp_path / "models")
    options = (*LOCAL, "--model-control-mode", "poll", "--repository-poll-secs", "0.1")
    with serve(repository, tmp_path / "server.log", *options) as server:
        ask(server.url, 1)
        (repository / "add1" / "config.pbtxt").write_text("response_cache { enable: false }")

        def ran_again() -> bool:
            before = counts(server)[2]
            ask(server.url, 1)
            return counts(server)[2] > before

        until(ran_again, lambda: server.output)
        assert ran_again()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f"max_batch_size: 4 sequence_batching {{ }} {CACHED}",
            "Response Cache does not currently support model add1 with sequence batching scheduler.",
        ),
        (
            f"{REPEAT} {CACHED}",
            "Response Cache does not currently support model add1 with 'decoupled' transaction policy.",
        ),
    ],
    ids=["sequences", "decoupled"],
)
def test_models_that_cannot_use_the_cache_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    if "backend" in text:
        (tmp_path / "models" / "add1" / "1").mkdir(parents=True)
    else:
        models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / "config.pbtxt").write_text(text)

    with serve(tmp_path / "models", tmp_path / "server.log", *LOCAL, ready=False) as server:
        server.wait_started()

        assert f"{reason} Please disable the response cache." in server.output


STREAM = """
from collections.abc import Iterator

class Model:
    def predict(self, text: str) -> Iterator[str]:
        yield text
"""
#: Answers differently on each execution.
RANDOM = """
import os

from backline.model import FP32

class Model:
    def predict(self, x: FP32[16]) -> FP32[16]:
        return x * 0 + int.from_bytes(os.urandom(3), "big")
"""


def put_python(repository: Path, name: str, text: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(text)
    (repository / name / "config.pbtxt").write_text(CACHED)


def test_a_python_model_whose_code_streams_is_refused(tmp_path: Path) -> None:
    put_python(tmp_path / "models", "add1", STREAM)

    with serve(tmp_path / "models", tmp_path / "server.log", *LOCAL, ready=False) as server:
        server.wait_started()

        assert (
            "Response Cache does not currently support model add1 with 'decoupled' transaction policy."
            in server.output
        )


def test_a_python_models_answers_are_cached_in_the_server(tmp_path: Path) -> None:
    put_python(tmp_path / "models", "add1", RANDOM)

    with serve(tmp_path / "models", tmp_path / "server.log", *LOCAL) as server, connect(server.url) as client:
        answers = [client["add1"](np.full((16,), value, np.float32))["output"][0] for value in (3, 4, 3)]

        assert answers[0] == answers[2] != answers[1]
        assert counts(server)[:2] == (1, 2)


def test_concurrent_large_requests_share_one_execution(tmp_path: Path) -> None:
    models.slow(tmp_path / "models", name="add1")
    (tmp_path / "models" / "add1" / "config.pbtxt").write_text(CACHED)
    with serve(tmp_path / "models", tmp_path / "server.log", *LOCAL) as server, connect(server.url) as client:
        value = np.ones((300, 512), np.float32)  # too large to hash on the event loop
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: client["add1"](value), range(8)))

        hits, misses, runs = counts(server)
        assert (hits, misses, runs) == (7, 1, 1)
        assert all(np.array_equal(answer["OUTPUT0"], answers[0]["OUTPUT0"]) for answer in answers)


def test_an_ensemble_and_its_model_are_both_cached(tmp_path: Path) -> None:
    repository = put_cached(tmp_path / "models")
    (repository / "both" / "1").mkdir(parents=True)
    (repository / "both" / "config.pbtxt").write_text(
        f"""platform: "ensemble" {CACHED}
        input {{ name: "IN" data_type: TYPE_FP32 dims: [ -1, 16 ] }}
        output {{ name: "OUT" data_type: TYPE_FP32 dims: [ -1, 16 ] }}
        ensemble_scheduling {{ step {{ model_name: "add1" model_version: -1
          input_map {{ key: "INPUT0" value: "IN" }} output_map {{ key: "OUTPUT0" value: "OUT" }} }} }}"""
    )
    with serve(repository, tmp_path / "server.log", *LOCAL) as server, connect(server.url) as client:
        answers = [float(client["both"](np.ones((1, 16), np.float32))["OUT"][0, 0]) for _ in range(3)]
        other = [float(client["both"](np.full((1, 16), value, np.float32))["OUT"][0, 0]) for value in (2, 1)]

        assert (answers, other) == ([2, 2, 2], [3, 2])
        assert counts(server, "both") == (3, 2, 2)
        assert counts(server) == (0, 2, 2)


def test_a_decoupled_ensemble_runs_every_request(tmp_path: Path) -> None:
    repository = put_models(tmp_path / "models")
    (repository / "squares" / "1").mkdir(parents=True)
    (repository / "squares" / "config.pbtxt").write_text(
        f"""platform: "ensemble" {CACHED}
        input {{ name: "N" data_type: TYPE_INT32 dims: [ 1 ] }}
        output {{ name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }}
        ensemble_scheduling {{ step {{ model_name: "square" model_version: -1
          input_map {{ key: "IN" value: "N" }} output_map {{ key: "OUT" value: "OUT" }} }} }}"""
    )
    with serve(repository, tmp_path / "server.log", *LOCAL) as server, connect(server.url) as client:
        for _ in range(2):
            answers = [int(answer["OUT"][0]) for answer in client["squares"].stream(np.array([3], np.int32))]
            assert answers == [3, 3, 3]

        assert counts(server, "squares")[:2] == (0, 0)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    pytest.importorskip("redis", reason="redis is not installed")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def test_redis_keeps_answers_across_a_restart_and_may_go_down(redis: RedisServer, tmp_path: Path) -> None:
    repository = put_cached(tmp_path / "models")
    option = ("--cache-config", f"redis,host=127.0.0.1,port={redis.port},socket_timeout=2000")
    with serve(repository, tmp_path / "first.log", *option) as server:
        assert ask(server.url, 1) == 2
        assert counts(server) == (0, 1, 1)
        server.wait_started()
        assert f"Response cache: Redis at 127.0.0.1:{redis.port}, for add1" in server.output
        assert server.stop() == 0

    with serve(repository, tmp_path / "second.log", *option) as server:
        assert ask(server.grpc_url, 1) == 2
        assert counts(server) == (1, 0, 0)
        redis.stop()
        assert [ask(server.url, 1), ask(server.url, 1)] == [2, 2]
        assert counts(server)[2] == 2
        server.wait_for(
            f"the response cache at 127.0.0.1:{redis.port} does not respond; requests run without it"
        )


def test_servers_share_answers_only_for_identical_model_files(redis: RedisServer, tmp_path: Path) -> None:
    option = ("--cache-config", f"redis,host=127.0.0.1,port={redis.port},socket_timeout=2000")
    found = []
    for place, constant in (("here", 1.0), ("there", 1.0), ("elsewhere", 10.0)):
        repository = put_cached(tmp_path / place, constant)
        os.utime(repository / "add1" / "1" / "model.onnx", ns=(0, 0))
        with serve(repository, tmp_path / f"{place}.log", *option) as server:
            found.append((ask(server.url, 1), counts(server)))
            server.stop()

    assert found == [(2, (0, 1, 1)), (2, (1, 0, 0)), (11, (0, 1, 1))]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["disk,size=1MiB"], "unknown response cache 'disk', expected local or redis"),
        (["local"], "--cache-config local needs a size, for example local,size=64MiB"),
        (["local,size=lots"], "size is 'lots', expected a number of at least 1"),
        (["local,size=1MiB", "redis,host=h"], "names local and redis, but a server has one response cache"),
    ],
)
def test_an_invalid_cache_option_is_reported_before_startup(
    values: list[str], reason: str, tmp_path: Path
) -> None:
    options = [part for value in values for part in ("--cache-config", value)]
    with serve(tmp_path, tmp_path / "server.log", *options, ready=False) as server:
        assert server.process.wait(30) == 2
        assert reason in " ".join(server.output.split())
