"""Python models that call each other."""

from __future__ import annotations

from pathlib import Path

from support.repositories import put

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
#: Takes one response, and returns how many were generated once no more are.
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
#: Waits until its gate opens; gates are files next to the model's file.
GATED = """
import asyncio, os
from pathlib import Path

HERE = Path(__file__).parent

class Model:
    def load(self):
        # Runs of earlier workers count as well.
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
#: Two steps, one after the other, as a function or a coroutine.
STEPS = """
import os
from pathlib import Path
from backline.model import Models

def steps(gate: str, models: Models) -> str:
    Path(__file__).with_name("pid").write_text(str(os.getpid()))
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
from backline.model import InvalidArgument, Unavailable

def failing(how: str) -> str:
    if how == "invalid":
        raise InvalidArgument("how is no way")
    if how == "busy":
        raise Unavailable("too busy for now", retry_after=7)
    raise ValueError("too loud")
"""
CALLING = """
from backline.model import Models

def calling(model: str, how: str, models: Models) -> str:
    return models[model]([how.encode()])["output"][0].decode()
"""
#: Returns the request without its inputs.
TOLD = """
from backline.model import Request

def told(x: str, request: Request) -> dict:
    sequence = [request.sequence, request.sequence_start, request.sequence_end]
    return {"id": request.id, "parameters": dict(request.parameters), "sequence": sequence}
"""
TELLING = """
from backline.model import Models

def telling(x: str, models: Models) -> dict:
    with models["told"].sequence(7) as sequence:
        sequence(x=[b""], end=True)
        options = {"loud": True, "priority": 1, "timeout": 5_000_000}
        options |= {"sequence_id": 8, "sequence_start": True}
        told = models["told"]([b""], parameters=options)
    return told["output"][0]
"""
#: Loaded on demand, which waits for its gate.
SLEEPING = """
import time
from pathlib import Path

HERE = Path(__file__).parent

class Model:
    def load(self):
        (HERE / "began-load").touch()
        while not (HERE / "open-load").exists():
            time.sleep(0.005)

    def predict(self, x: str) -> str:
        return f"awake for {x}"
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
#: Calls an ensemble that calls it.
IN_ENSEMBLE = """
from backline.model import Models

def in_ensemble(x: str, models: Models) -> str:
    return models["around"]([x.encode()])["y"][0].decode()
"""
AROUND = """
platform: "ensemble"
input { name: "x" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "y" data_type: TYPE_STRING dims: [ 1 ] }
ensemble_scheduling { step { model_name: "in_ensemble" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "output" value: "y" } } }
"""
VERSION_1 = """
def predict(x: str) -> str:
    return f"one of {x}"
"""
VERSION_2 = """
from backline.model import Models

def predict(x: str, models: Models) -> str:
    return f"two of {models.model('versions', 1)([x.encode()])['output'][0].decode()}"
"""
#: One request at a time, of two priorities; each waits for its gate.
SERIAL = """
import time
from pathlib import Path
from backline.model import BYTES

HERE = Path(__file__).parent

class Model:
    max_batch_size = 1

    def predict(self, gate: BYTES[1]) -> BYTES[1]:
        name = gate[0, 0].decode()
        with (HERE / "order").open("a") as order:
            order.write(name)
        while not (HERE / f"open-{name}").exists():
            time.sleep(0.005)
        return gate
"""
SERIAL_CONFIG = """
backend: "python"
max_batch_size: 1
dynamic_batching { priority_levels: 2 default_priority_level: 2 }
"""
URGENT = """
from backline.model import Models

def urgent(gate: str, models: Models) -> str:
    return models["serial"]([[gate.encode()]])["output"][0, 0].decode()
"""
#: Takes responses until it is cancelled.
WATCHING = """
from collections.abc import Iterator
from pathlib import Path
from backline.model import BacklineError, Models

def watching(gate: str, models: Models) -> Iterator[str]:
    yield "begun"
    try:
        models["gated"]([gate.encode()])
    except BacklineError as error:
        Path(__file__).with_name(f"told-{gate}").write_text(type(error).__name__)
        raise
    yield "over"
"""
#: Returns while a call of it runs.
LEFT = """
import asyncio
from pathlib import Path
from backline.model import Models

GATED = Path(__file__).parents[2] / "gated" / "1"

async def left(gate: str, models: Models) -> str:
    call = asyncio.ensure_future(models["gated"]([gate.encode()]))
    while not (GATED / f"began-{gate}").exists():
        await asyncio.sleep(0.005)
    return "answered"
"""
#: Sends invalid messages on its calls channel.
RUDE = """
import gc
from backline.model import Models
from backline.workers.child.caller import Caller
from backline.workers.channel.protocol import (
    Ask, Column, Kind, NumberList, RequestNote, Response, WorkerCall, frame
)

SAID = {
    "noise": b"\\xff" * 100,
    "response": frame(Kind.RESPONSE, Response(1, "m", "1", "", [])),
    "memory": frame(
        Kind.CALL, WorkerCall(9, [], "double", "", [Column("x", "FP32", [4], 16, 0)], RequestNote(), 0)
    ),
    "limit": frame(Kind.LIMIT, NumberList([1, 2])),
    "file": frame(Kind.ASK, Ask(9, "load", "double", files=[Column("1/model.py", "BYTES", [0], 0)])),
}

class Model:
    idempotent = False

    def predict(self, what: str, models: Models) -> str:
        caller = next(found for found in gc.get_objects() if isinstance(found, Caller))
        if what in SAID:
            caller._channel.sendall(SAID[what])
        return models["after"]([what.encode()])["output"][0].decode()
"""
LIMITED = """
from backline.model import BacklineError, Models

def limited(gate: str, models: Models) -> str:
    try:
        models["gated"]([gate.encode()], timeout=1)
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
    "told": TOLD,
    "telling": TELLING,
    "sleeping": SLEEPING,
    "catching": CATCHING,
    "self": SELF,
    "self_async": SELF_ASYNC,
    "ping": PING,
    "pong": PING.replace("pong", "ping").replace("def ping", "def pong"),
    "in_ensemble": IN_ENSEMBLE,
    "serial": SERIAL,
    "urgent": URGENT,
    "watching": WATCHING,
    "left": LEFT,
    "rude": RUDE,
    "limited": LIMITED,
    "changing": CHANGING,
}


def put_models(folder: Path) -> None:
    """Writes a repository with all of them."""
    for name, text in MODELS.items():
        put(folder / name / "1" / "model.py", text)
    put(folder / "around" / "config.pbtxt", AROUND)
    (folder / "around" / "1").mkdir(parents=True)
    put(folder / "serial" / "config.pbtxt", SERIAL_CONFIG)
    put(folder / "sleeping" / "model.toml", 'load = "on_demand"')
    put(folder / "versions" / "1" / "model.py", VERSION_1)
    put(folder / "versions" / "2" / "model.py", VERSION_2)
    put(folder / "versions" / "config.pbtxt", "version_policy { all {} }")
