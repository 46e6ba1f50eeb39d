"""More models than fit in memory, and models loaded on demand, in a real server with real clients."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from backline.lifecycle.lifecycle import Lifecycle
from backline_client.client import connect
from backline_client.values.errors import Unavailable
from support import models, networks
from support.server import ServerProcess, serve

COUNT = 16
SIDE = 1000  # 4 MB of weights
MB = 1_000_000


def large(repository: Path, name: str, constant: float) -> None:
    """y = x @ W, where all of W is `constant`."""
    networks.build(
        repository / name / "1" / "model.onnx",
        [networks.node("MatMul", ["x", "w"], ["y"])],
        [("x", networks.FLOAT, ["N", SIDE])],
        [("y", networks.FLOAT, ["N", SIDE])],
        {"w": np.full((SIDE, SIDE), constant, np.float32)},
    )


def listing(server: ServerProcess) -> dict[str, dict[str, Any]]:
    with urllib.request.urlopen(f"{server.url}/v2/models", timeout=30) as answer:
        return {entry["name"]: entry for entry in json.loads(answer.read())["versions"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The resident memory of a server with one model, without its weights."""
    folder = tmp_path_factory.mktemp("base")
    large(folder / "models", "one", 1.0)
    with serve(folder / "models", folder / "log", "--state-dir", str(folder / "state")) as server:
        with connect(server.url) as client:
            client["one"](np.ones((1, SIDE), np.float32))
        return psutil.Process(server.process.pid).memory_info().rss - 4 * MB


@pytest.fixture(scope="module")
def crowded(base: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, int]]:
    """A server with room for 6 of 16 models, and its budget; model15 is pinned."""
    folder = tmp_path_factory.mktemp("crowded")
    for number in range(COUNT):
        large(folder / "models", f"model{number:02}", number + 1.0)
    (folder / "models" / "model15" / "model.toml").write_text("pinned = true\n")
    budget = base + 6 * 4 * MB + 8 * MB
    with serve(
        folder / "models",
        folder / "log",
        "--state-dir",
        str(folder / "state"),
        "--memory-budget",
        str(budget),
    ) as server:
        yield server, budget


def test_a_model_that_does_not_fit_is_loaded_on_request_and_the_server_is_ready(
    crowded: tuple[ServerProcess, int],
) -> None:
    entries = listing(crowded[0]).values()
    ready = [entry for entry in entries if entry["state"] == "READY"]
    asleep = [entry for entry in entries if entry["state"] == "ON_DEMAND"]
    assert ready
    assert asleep
    assert all(entry["memory_bytes"] >= 4 * MB for entry in ready)
    assert all(entry["ready"] and "the next request loads it" in entry["reason"] for entry in asleep)


def test_all_models_answer_within_the_budget(crowded: tuple[ServerProcess, int]) -> None:
    server, budget = crowded
    process = psutil.Process(server.process.pid)
    highest = 0
    with connect(server.url) as client, connect(server.grpc_url) as other:

        def ask(number: int) -> int:
            result = (client if number % 2 else other)[f"model{number:02}"](np.ones((1, SIDE), np.float32))
            assert np.allclose(result["y"], (number + 1) * SIDE)
            return process.memory_info().rss

        order = np.random.default_rng(3).zipf(1.3, 150) % COUNT
        with ThreadPoolExecutor(3) as threads:
            highest = max(threads.map(ask, [*range(COUNT), *order.tolist()]))
    assert highest <= budget * 1.1


def test_a_pinned_model_is_never_unloaded(crowded: tuple[ServerProcess, int]) -> None:
    server, _ = crowded
    with connect(server.url) as client:
        for number in range(COUNT):
            client[f"model{number:02}"](np.ones((1, SIDE), np.float32))
            assert listing(server)["model15"]["state"] == "READY"


def test_metadata_of_a_model_that_was_never_loaded_comes_with_its_inputs(
    crowded: tuple[ServerProcess, int], tmp_path: Path
) -> None:
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / "model.toml").write_text('load = "on_demand"\n')
    with serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        assert listing(server)["add1"]["state"] == "ON_DEMAND"
        client = triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
        assert client.is_model_ready("add1")
        assert client.get_model_metadata("add1")["inputs"][0]["name"] == "INPUT0"
        assert listing(server)["add1"]["state"] == "READY"
        client.close()


@pytest.mark.parametrize("way", ["config over gRPC", "raw request"])
def test_callers_that_need_the_signature_wait_for_the_first_load(tmp_path: Path, way: str) -> None:
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / "model.toml").write_text('load = "on_demand"\n')
    with serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        if way == "raw request":
            request = urllib.request.Request(
                f"{server.url}/v2/models/add1/infer",
                bytes(64),
                {"Inference-Header-Content-Length": "0"},
                method="POST",
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.read().endswith(np.ones(16, np.float32).tobytes())
        else:
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
            assert [entry.name for entry in client.get_model_config("add1").config.input] == ["INPUT0"]
            client.close()


def test_a_model_that_is_idle_sleeps_and_wakes_with_its_counters(home: Any, repository: Path) -> None:
    models.add1(repository)
    (repository / "add1" / "model.toml").write_text("idle_unload_seconds = 0.1\n")

    async def scenario() -> None:
        async with home(repository) as server:
            assert await server.answer() == 1
            await server.until(lambda: server.engine.find("add1").on_demand)
            asleep = server.engine.find("add1")
            assert asleep.reason == "unloaded after it was idle; the next request loads it"
            assert [spec.name for spec in asleep.signature.inputs] == ["INPUT0"]
            assert await server.answer() == 1
            assert server.engine.find("add1").statistics.inference_count == 2

    asyncio.run(scenario())


def test_a_failed_load_on_demand_gives_its_reason_and_the_next_may_succeed(
    home: Any, repository: Path
) -> None:
    file = models.add1(repository)
    good = file.read_bytes()
    (repository / "add1" / "model.toml").write_text('load = "on_demand"\n')
    file.write_bytes(b"not a model")

    async def scenario() -> None:
        async with home(repository, mode="poll", poll_seconds=0.05) as server:
            lifecycle: Lifecycle = server.lifecycle
            with pytest.raises(Unavailable, match=r"'add1' version 1 cannot be loaded: .*model\.onnx"):
                await server.answer()
            assert "the last load failed" in server.engine.find("add1").reason
            file.write_bytes(good)
            await lifecycle.refresh()
            await server.until(lambda: True)
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert await server.answer() == 1
                        break
                    except Unavailable:  # requests get the last failure for a second
                        await asyncio.sleep(0.1)

    asyncio.run(scenario())


def test_a_model_larger_than_the_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    large(tmp_path / "models", "one", 1.0)
    options = ("--state-dir", str(tmp_path / "state"), "--memory-budget", "20MiB")
    with (
        serve(tmp_path / "models", tmp_path / "log", *options) as server,
        connect(server.url) as client,
        pytest.raises(Unavailable, match="the memory budget of 20 MiB has no room for it"),
    ):
        client["one"](np.ones((1, SIDE), np.float32))


def test_an_unload_gives_the_memory_of_a_large_model_back(tmp_path: Path) -> None:
    side = 5000
    networks.build(
        tmp_path / "models" / "large" / "1" / "model.onnx",
        [networks.node("MatMul", ["x", "w"], ["y"])],
        [("x", networks.FLOAT, ["N", side])],
        [("y", networks.FLOAT, ["N", side])],
        {"w": networks.floats(side, side)},
    )
    with serve(
        tmp_path / "models",
        tmp_path / "log",
        "--state-dir",
        str(tmp_path / "state"),
        "--model-control-mode",
        "explicit",
    ) as server:
        process = psutil.Process(server.process.pid)

        def private() -> int:
            # Pages of libraries come and go with what the server last did.
            memory = process.memory_info()
            return memory.rss - memory.shared

        after: list[int] = []
        with connect(server.url) as client:
            for _ in range(6):
                client.load("large")
                assert client["large"](np.zeros((1, side), np.float32)) is not None
                loaded = private()
                client.unload("large")
                limit = after[1] * 1.05 if len(after) > 1 else loaded - 80 * MB
                end = time.monotonic() + 20
                while private() > limit and time.monotonic() < end:  # freed shortly after the response
                    client.live()
                after.append(private())
        # The first load also allocates what all later ones use again.
        assert after[-1] <= after[1] * 1.05


def test_a_version_kept_for_a_rollback_is_evicted_before_any_other(base: int, tmp_path: Path) -> None:
    # 64 MB of weights each: what the runtime allocates at its first load and run, some 8 MB, is counted for
    # the model that is loaded then, and must not decide.
    side, weights = 4000, 64 * MB
    for name, version in (("kept", "1"), ("kept", "2"), ("other", "1")):
        networks.build(
            tmp_path / "models" / name / version / "model.onnx",
            [networks.node("MatMul", ["x", "w"], ["y"])],
            [("x", networks.FLOAT, ["N", side])],
            [("y", networks.FLOAT, ["N", side])],
            {"w": np.full((side, side), float(version), np.float32)},
        )
    (tmp_path / "models" / "other" / "model.toml").write_text('load = "on_demand"\n')
    options = ("--state-dir", str(tmp_path / "state"), "--model-control-mode", "poll")
    # While a model is loaded, it may need its weights twice.
    budget = ("--memory-budget", str(base + 3 * weights + weights // 2))

    def states(client: Any) -> dict[tuple[str, str], bool]:
        return {(one.name, one.version): one.memory_bytes > 0 for one in client.models()}

    with (
        serve(tmp_path / "models", tmp_path / "log", *options, *budget) as server,
        connect(server.url) as client,
    ):
        client.promote("kept", "1")
        client.promote("kept", "2")
        client["kept"](np.ones((1, side), np.float32))
        assert states(client)["kept", "1"], "it stays loaded while there is room"
        client["other"](np.ones((1, side), np.float32))
        assert states(client)["kept", "2"]
        assert not states(client).get(("kept", "1"), False)
        assert client.rollback("kept").version == "1"
