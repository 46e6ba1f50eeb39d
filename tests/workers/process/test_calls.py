"""Python models that call other models of the server: answers, streams, errors, deadlines, and calls that nobody waits for any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.engine.errors import Internal, InvalidArgument, NotFound
from support.repositories import put
from support.server import ServerProcess, serve

DOUBLE = """
from backline.model import FP32

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[-1]) -> FP32[-1]:
        return x * 2
"""
FOURFOLD = """
from backline.model import FP32, Models

def fourfold(x: FP32[-1, -1], models: Models) -> FP32[-1, -1]:
    return models["double"](models["double"](x)["output"])["output"]
"""
JOIN = """
import asyncio
from backline.model import FP32, Models

async def join(x: FP32[-1, -1], models: Models) -> FP32[-1, -1]:
    left, right = await asyncio.gather(models["double"](x), models["fourfold"](x))
    return left["output"] + right["output"]
"""
BATCHED = """
from backline.model import FP32, Models

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[4], models: Models) -> FP32[4]:
        return models["double"](x)["output"] + 1
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from backline.model import FP32, Models

class Model:
    def predict(self, x: FP32[-1, -1], models: Models) -> FP32[-1, -1]:
        with ThreadPoolExecutor(4) as threads:
            return sum(answer["output"] for answer in threads.map(models["double"], [x] * 8))
"""
COUNTING = """
from collections.abc import Iterator
from pathlib import Path

MADE = Path(__file__).with_name("made")

class Model:
    def predict(self, count: int) -> Iterator[int]:
        for number in range(count):
            MADE.write_text(str(number))
            yield number
"""
STREAMED = """
from collections.abc import Iterator
from backline.model import Models

def streamed(count: int, models: Models) -> Iterator[int]:
    for part in models["counting"].stream([count]):
        yield int(part["output"][0]) * 10
"""
STREAMED_ASYNC = """
from collections.abc import AsyncIterator
from backline.model import Models

async def streamed(count: int, models: Models) -> AsyncIterator[int]:
    async for part in models["counting"].stream([count]):
        yield int(part["output"][0]) * 10
"""
FIRST = """
from backline.model import Models

def first(count: int, models: Models) -> int:
    parts = models["counting"].stream([count])
    part = next(parts)
    parts.close()
    return int(part["output"][0])
"""
#: Takes one response, and tells how many were made by the time that no more are.
HELD = """
import time
from pathlib import Path
from backline.model import Models

MADE = Path(__file__).parents[2] / "counting" / "1" / "made"

def held(count: int, models: Models) -> int:
    parts = models["counting"].stream([count])
    next(parts)
    before = -1
    while (made := int(MADE.read_text() or 0)) != before:
        before = made
        time.sleep(0.2)
    parts.close()
    return made
"""
#: Runs until it is told to go on: its gates are files beside it.
GATED = """
import asyncio, os
from pathlib import Path

HERE = Path(__file__).parent

class Model:
    def load(self):
        # Every run that was there before this worker counts.
        self.runs = 0

    async def predict(self, gate: str) -> str:
        (HERE / f"began-{gate}").touch()
        try:
            while not (HERE / f"open-{gate}").exists():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            (HERE / f"cancelled-{gate}").touch()
            raise
        return gate
"""
#: Two steps, one after the other; `how` says by what kind of function.
STEPS = """
from backline.model import Models

def steps(gate: str, models: Models) -> str:
    models["gated"]([gate.encode()])
    return models["after"]([gate.encode()])["output"][0].decode()
"""
STEPS_ASYNC = """
from backline.model import Models

async def steps(gate: str, models: Models) -> str:
    await models["gated"]([gate.encode()])
    return (await models["after"]([gate.encode()]))["output"][0].decode()
"""
AFTER = """
def after(gate: str) -> str:
    return gate
"""
FAILING = """
from backline.model import InvalidArgument

def failing(how: str) -> str:
    if how == "invalid":
        raise InvalidArgument("how is no way")
    raise ValueError("too loud")
"""
CALLING = """
from backline.model import Models

def calling(model: str, how: str, models: Models) -> str:
    return models[model]([how.encode()])["output"][0].decode()
"""
CATCHING = """
from backline.model import BacklineError, Models

def catching(model: str, how: str, models: Models) -> str:
    try:
        return models[model]([how.encode()])["output"][0].decode()
    except BacklineError as error:
        return f"{type(error).__name__}: {error}"
"""
SELF = """
from backline.model import Models

class Model:
    instances = 2

    def predict(self, x: str, models: Models) -> str:
        return models["self"]([x.encode()])["output"][0].decode()
"""
SELF_ASYNC = """
from backline.model import Models

async def predict(x: str, models: Models) -> str:
    return (await models["self_async"]([x.encode()]))["output"][0].decode()
"""
PING = """
from backline.model import Models

def ping(x: str, models: Models) -> str:
    return models["pong"]([x.encode()])["output"][0].decode()
"""
LEFT = """
import asyncio
from backline.model import Models

async def left(gate: str, models: Models) -> str:
    asyncio.ensure_future(models["gated"]([gate.encode()]))
    await models["after"]([gate.encode()])
    return "answered"
"""
LIMITED = """
from backline.model import BacklineError, Models

def limited(gate: str, models: Models) -> str:
    try:
        models["gated"]([gate.encode()], timeout=0.1)
    except BacklineError as error:
        return f"{type(error).__name__}: {error}"
"""
CHANGING = """
from backline.model import BacklineError, Models

def changing(what: str, name: str, models: Models) -> str:
    try:
        if what == "load":
            models.load(name)
        elif what == "bring":
            text = b"def brought(x: str) -> str: return x + x"
            models.load(name, config={"backend": "python"}, files={"1/model.py": text})
        elif what == "unload":
            models.unload(name)
        return str(models[name].ready())
    except BacklineError as error:
        return f"{type(error).__name__}: {error}"
"""
MODELS = {
    "double": DOUBLE,
    "fourfold": FOURFOLD,
    "join": JOIN,
    "batched": BATCHED,
    "threads": THREADS,
    "counting": COUNTING,
    "streamed": STREAMED,
    "streamed_async": STREAMED_ASYNC,
    "first": FIRST,
    "held": HELD,
    "gated": GATED,
    "steps": STEPS,
    "steps_async": STEPS_ASYNC,
    "after": AFTER,
    "failing": FAILING,
    "calling": CALLING,
    "catching": CATCHING,
    "self": SELF,
    "self_async": SELF_ASYNC,
    "ping": PING,
    "pong": PING.replace("pong", "ping").replace("def ping", "def pong"),
    "left": LEFT,
    "limited": LIMITED,
    "changing": CHANGING,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, text in MODELS.items():
        put(folder / name / "1" / "model.py", text)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(repository, log, "--model-control-mode", "explicit", "--load-model", "*", "--trust-remote-code") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[backline.client.Client]:
    with backline.connect(server.url) as client:
        yield client


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], object)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("columns", [4, 100_000], ids=["in frames", "in shared memory"])
@pytest.mark.parametrize(("model", "times"), [("fourfold", 4), ("join", 6), ("threads", 16)])
def test_a_model_calls_others_by_functions_coroutines_and_threads(
    client: backline.client.Client, model: str, times: int, columns: int
) -> None:
    x = np.random.default_rng(0).random((2, columns)).astype(np.float32)
    for _ in range(3):
        np.testing.assert_allclose(client[model](x)["output"], x * times, rtol=1e-6)


def test_a_model_of_batches_calls_others_with_its_batch(client: backline.client.Client) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(client["batched"](x)["output"], x * 2 + 1)


@pytest.mark.parametrize("model", ["streamed", "streamed_async"])
def test_responses_of_a_called_model_come_one_by_one(client: backline.client.Client, model: str) -> None:
    assert [int(part["output"][0]) for part in client[model].stream([100])] == list(range(0, 1000, 10))


def test_a_called_model_waits_while_its_responses_are_not_taken(client: backline.client.Client) -> None:
    assert client["held"]([1_000_000])["output"][0] < 100


def test_a_stream_that_is_closed_ends_the_called_model(client: backline.client.Client) -> None:
    assert client["first"]([1_000_000])["output"][0] == 0
    assert client["first"]([1_000_000])["output"][0] == 0


def test_errors_of_a_called_model_have_their_class(client: backline.client.Client) -> None:
    def caught(model: str, how: str) -> str:
        return client["catching"](text(model), text(how))["output"][0].decode()

    assert caught("failing", "invalid") == "InvalidArgument: how is no way"
    assert caught("failing", "x") == "Internal: model 'failing' version 1 failed: ValueError: too loud (model.py, line 7, in failing)"
    assert caught("nobody", "x") == "NotFound: Request for unknown model: 'nobody' is not found"
    assert caught("counting", "x").startswith("InvalidArgument")


@pytest.mark.parametrize(
    ("model", "how", "kind", "told"),
    [
        ("failing", "invalid", InvalidArgument, "how is no way"),
        ("failing", "x", Internal, "model 'calling' version 1 failed: model 'failing' version 1 failed: ValueError: too loud"),
        ("nobody", "x", NotFound, "'nobody' is not found"),
    ],
)
def test_an_error_that_is_not_caught_is_the_answer(
    client: backline.client.Client, model: str, how: str, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        client["calling"](text(model), text(how))


@pytest.mark.parametrize("model", ["self", "self_async", "ping"])
def test_a_circle_of_calls_is_an_error_and_no_wait(client: backline.client.Client, model: str) -> None:
    with pytest.raises(Internal, match=f"a circle of calls, which would wait for itself: '{model}' version 1 -> .*'{model}' version 1"):
        client[model](text("x"), timeout=5)


def test_a_model_loads_and_unloads_others(client: backline.client.Client) -> None:
    def change(what: str, name: str) -> str:
        return client["changing"](text(what), text(name))["output"][0].decode()

    assert change("unload", "after") == "False"
    assert change("load", "after") == "True"
    assert change("load", "nobody").startswith("NotFound: failed to load 'nobody'")
    assert change("bring", "brought") == "True"
    assert client["brought"](text("n"))["output"][0] == b"nn"
    assert "model 'changing' version 1" in {change.who for change in client.history("after")}
