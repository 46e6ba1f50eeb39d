"""Clients that leave at any moment: `python tests/fuzz/orders.py --orders 100000 --seed 1`.

An order is a random sequence of what clients do on one or two connections: unary calls, streams, decoupled
models, ensembles, models that call models, and cached models, over HTTP/1.1, HTTP/2 and gRPC, with
deadlines, resets, stalled readers and disconnects between any two turns of the event loop. After each order
everything must have been returned: requests, streams, buffered bytes, tasks, places in queues, instances,
permits and file descriptors. No request may complete twice, and none may go without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import click
import hpack
import numpy as np

try:
    import uvloop
except ImportError:
    uvloop = None

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backline.dialects.application import build_application
from backline.embedded.embedded import Embedded
from backline.engine.ticket import Ticket
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.observe.metrics import Metrics
from backline.schedule.cache.config import LocalOptions
from backline.schedule.cache.queue import CachedInstances
from backline.schedule.scheduler import Scheduler
from backline.wire.application import Call, HttpRequest
from backline.wire.connection import Wire
from backline.wire.limits import Limits
from backline.wire.sniffer import Sniffer
from backline.workers.batch import Batch
from backline_client.protos import message
from conformance.h2probe import (
    DATA,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    settings_payload,
)
from fuzz.bench import HANG, FakeTransport, Faults, Finding
from support import models
from support.streaming import ENSEMBLE_INPUTS, ENSEMBLE_STEP, put_models

END_STREAM, END_HEADERS = 0x1, 0x4
#: Orders after which objects are counted.
OFTEN = 500

FLOATS = "FP32"
WORKER = """
import time
from backline.model import FP32

def work(INPUT0: FP32[16]) -> FP32[16]:
    time.sleep(0.0005)
    return INPUT0 + 1
"""
CALLER = """
import asyncio
from backline.model import FP32, Models

async def call(INPUT0: FP32[16], models: Models) -> FP32[16]:
    one, two = await asyncio.gather(models["worker"](INPUT0), models["add1"](INPUT0[None]))
    return one["output"] + two["OUTPUT0"][0]
"""
CHATTY = """
from collections.abc import Iterator
from backline.model import FP32, Models

def chat(INPUT0: FP32[16], models: Models) -> Iterator[FP32[16]]:
    for part in range(6):
        yield models["worker"](INPUT0)["output"] + part
"""
TWICE = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
ensemble_scheduling {
  step { model_name: "add1" model_version: -1
    input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "half" } }
  step { model_name: "limited" model_version: -1
    input_map { key: "INPUT0" value: "half" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }
}
"""
TENFOLD = (
    'platform: "ensemble"'
    + ENSEMBLE_INPUTS
    + """output [ { name: "TEN" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling {
  max_inflight_requests: 2"""
    + ENSEMBLE_STEP
    + """    output_map { key: "OUT" value: "one" } }
  step { model_name: "square" model_version: -1
    input_map { key: "IN" value: "one" } output_map { key: "OUT" value: "TEN" } }
}
"""
)
#: Models with one response, those with any number, and the shape of the input of the first.
ONE = {
    "add1": [1, 16],
    "cached": [1, 16],
    "limited": [1, 16],
    "twice": [1, 16],
    "worker": [16],
    "caller": [16],
}
MANY = ("repeat", "tenfold", "chatty")


def write_repository(repository: Path) -> None:
    for name in ("add1", "cached", "limited"):
        models.add1(repository, name=name)
    batching = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 300 }\n"
    (repository / "cached/config.pbtxt").write_text(batching + "response_cache { enable: true }")
    limiter = 'rate_limiter { resources [ { name: "r" count: 1 } ] }'
    (repository / "limited/config.pbtxt").write_text(
        batching + f"instance_group [ {{ count: 2 kind: KIND_CPU {limiter} }} ]"
    )
    put_models(repository)
    for name, code in (("worker", WORKER), ("caller", CALLER), ("chatty", CHATTY)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1/model.py").write_text(code)
    for name, text in (("twice", TWICE), ("tenfold", TENFOLD)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)


# what clients send


def inputs_of(model: str, rng: random.Random) -> list[tuple[str, str, list[int], list[float]]]:
    """Name, datatype, shape and values of each input. Few different values, so that the cache has hits."""
    if model in ("repeat", "tenfold"):
        count = rng.choice([0, 1, 3, 8])
        names = ("IN", "DELAY", "WAIT") if model == "repeat" else ("VALUES", "DELAYS", "NEXT")
        delays = [rng.choice([0, 0, 1]) for _ in range(count)]
        values: list[list[float]] = [list(range(1, count + 1)), list(delays), [0]]
        return [
            (name, kind, [len(given)], given)
            for name, kind, given in zip(names, ("INT32", "UINT32", "UINT32"), values, strict=True)
        ]
    return [("INPUT0", FLOATS, ONE.get(model, [16]), [float(rng.randrange(3))] * 16)]


_KINDS = {FLOATS: np.float32, "INT32": np.int32, "UINT32": np.uint32}


def rpc_message(model: str, rng: random.Random, id: str = "") -> bytes:
    request = message("inference.ModelInferRequest")(model_name=model, id=id)
    for name, datatype, shape, values in inputs_of(model, rng):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(np.array(values, _KINDS[datatype]).tobytes())
    encoded: bytes = request.SerializeToString()
    return struct.pack(">BI", 0, len(encoded)) + encoded


def json_request(model: str, rng: random.Random) -> tuple[str, bytes]:
    """The path and body of a request over HTTP."""
    given = inputs_of(model, rng)
    route = (
        rng.choice(["generate", "infer"]) if model in ONE else rng.choice(["generate_stream", "infer_stream"])
    )
    if route.startswith("generate"):
        document: Any = {name: values for name, _, _, values in given}
    else:
        document = {
            "inputs": [
                {"name": name, "datatype": datatype, "shape": shape, "data": values}
                for name, datatype, shape, values in given
            ]
        }
    return f"/v2/models/{model}/{route}", json.dumps(document).encode()


class StallingTransport(FakeTransport):
    """A transport whose client may stop reading."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, slow=True)
        self._stalled = self._due = False
        #: What the client has sent while the server does not read.
        self.undelivered: list[bytes] = []

    def deliver(self, data: bytes) -> None:
        if self.undelivered or not self.is_reading():
            self.undelivered.append(data)
        else:
            super().deliver(data)

    def resume_reading(self) -> None:
        super().resume_reading()
        self._loop.call_soon(self._deliver_next)

    def _deliver_next(self) -> None:
        if self.closing:
            self.undelivered.clear()
        while self.undelivered and self.is_reading():
            super().deliver(self.undelivered.pop(0))

    def stall(self) -> None:
        self._stalled = True

    def read(self) -> None:
        self._stalled = False
        if self._due:
            self._due = False
            self._loop.call_soon(self._sent)

    def _sent(self) -> None:
        if self._stalled:
            self._due = True
        else:
            super()._sent()


@dataclass(eq=False)
class Client:
    """One connection of an order. `due` are the requests that must get an answer unless it leaves."""

    transport: StallingTransport
    rng: random.Random
    due: set[int] = field(default_factory=set)
    #: What it did, for findings.
    story: list[str] = field(default_factory=list)

    def start(self) -> None:
        raise NotImplementedError

    def acts(self) -> list[Callable[[], None]]:
        """What it may do next."""
        raise NotImplementedError

    def finish(self) -> None:
        """Ends its requests, and reads what comes."""
        raise NotImplementedError

    def missing(self) -> bool:
        """Whether an answer is missing."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises Finding if an answer is duplicated or reports a fault."""
        raise NotImplementedError

    def send(self, data: bytes) -> None:
        """Sends whole, or in two pieces."""
        if self.rng.random() < 0.2 and len(data) > 1:
            at = self.rng.randrange(1, len(data))
            self.transport.deliver(data[:at])
            self.transport.deliver(data[at:])
        else:
            self.transport.deliver(data)

    def leave(self) -> None:
        self.transport.abort()
        self.due.clear()

    def deadline(self) -> str | None:
        return self.rng.choice([None, None, None, None, "1n", "100u", "1m", "3m", "20m"])


class Http1Client(Client):
    """Requests one after another, perhaps pipelined."""

    asked = 0

    def start(self) -> None:
        self.ask()

    def acts(self) -> list[Callable[[], None]]:
        return [self.ask, self.leave, self.transport.stall, self.transport.read]

    def ask(self) -> None:
        if self.asked >= 3:
            return
        path, body = json_request(self.rng.choice([*ONE, *MANY]), self.rng)
        deadline = self.deadline()
        field = f"grpc-timeout: {deadline}\r\n" if deadline else ""
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\n{field}content-length: {len(body)}\r\n\r\n"
        if not self.transport.closing:
            self.asked += 1
            self.due.add(self.asked)
        self.send(head.encode() + body)

    def finish(self) -> None:
        self.transport.read()

    def missing(self) -> bool:
        return bool(self.due) and self.transport.written.count(b"HTTP/1.1 ") < self.asked

    def check(self) -> None:
        statuses = self.transport.written.count(b"HTTP/1.1 ")
        if statuses > self.asked:
            raise Finding(f"{self.asked} requests over HTTP/1.1 got {statuses} answers")
        if b"HTTP/1.1 500" in self.transport.written:
            raise Finding(f"status 500: {bytes(self.transport.written[-300:])!r}")


class Http2Client(Client):
    """Up to four streams at once, of gRPC and of HTTP."""

    def start(self) -> None:
        self._encoder = hpack.Encoder()
        self._next = 1
        #: Streams whose requests may go on.
        self._open: list[int] = []
        self._calls: list[int] = []
        self._gone = False
        self._window = self.rng.choice([65535, 65535, 200, 0])
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings_payload((INITIAL_WINDOW_SIZE, self._window))))
        self.call()

    def acts(self) -> list[Callable[[], None]]:
        acts = [self.call, self.call, self.transport.stall, self.transport.read, self.more]
        acts += [self.end, self.reset, self.reset, self.widen, self.widen]
        if self.rng.random() < 0.3:
            acts += [self.leave, self.go_away]
        return acts

    def _headers(self, path: str, *fields: tuple[str, str]) -> tuple[int, bytes]:
        number, self._next = self._next, self._next + 2
        deadline = self.deadline()
        more = [("grpc-timeout", deadline)] if deadline else []
        block = self._encoder.encode(
            [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a"), *fields, *more]
        )
        self._calls.append(number)
        return number, frame(HEADERS, END_HEADERS, number, block)

    def call(self) -> None:
        if len(self._calls) >= 4 or self._gone or self.transport.closing:
            return
        rng = self.rng
        kind = rng.choice(["unary", "stream", "stream", "http"])
        model = rng.choice([*ONE] if kind == "unary" else [*ONE, *MANY])
        if kind == "http":
            path, body = json_request(model, rng)
            number, head = self._headers(path, ("content-type", "application/json"))
            ends = True
        else:
            name = "ModelInfer" if kind == "unary" else "ModelStreamInfer"
            path = f"/inference.GRPCInferenceService/{name}"
            number, head = self._headers(path, ("content-type", "application/grpc"), ("te", "trailers"))
            body = rpc_message(model, rng, str(number))
            ends = kind == "unary" or rng.random() < 0.4
        self.story.append(f"{number} {kind} {model} ends={ends}")
        whole = head + frame(DATA, END_STREAM if ends else 0, number, body)
        if rng.random() < 0.1:
            whole = head  # only the start of a request
            ends = False
        self.due.add(number)
        if not ends and kind == "stream":
            self._open.append(number)
        elif not ends:
            self.due.discard(number)
        self.send(whole)

    def more(self) -> None:
        if self._open and not self.transport.closing:
            number = self.rng.choice(self._open)
            model = self.rng.choice([*ONE, *MANY])
            self.send(frame(DATA, 0, number, rpc_message(model, self.rng, str(number))))

    def end(self) -> None:
        if self._open and not self.transport.closing:
            number = self._open.pop(self.rng.randrange(len(self._open)))
            self.send(frame(DATA, END_STREAM, number))

    def reset(self) -> None:
        if self._calls and not self.transport.closing:
            number = self.rng.choice(self._calls)
            self.due.discard(number)
            if number in self._open:
                self._open.remove(number)
            self.send(frame(RST_STREAM, 0, number, struct.pack(">I", 8)))

    def widen(self) -> None:
        for number in (0, *self._calls):
            self._widen(number, 300)

    def _widen(self, number: int, by: int) -> None:
        if not self.transport.closing:
            self.transport.deliver(frame(WINDOW_UPDATE, 0, number, struct.pack(">I", by)))

    def go_away(self) -> None:
        """Opens no further streams, and still takes the answers on those that are open."""
        self._gone = True
        self.send(frame(GOAWAY, 0, 0, bytes(8)))

    def finish(self) -> None:
        self.transport.read()
        while self._open and not self.transport.closing:
            self.end()
        for number in (0, *self._calls):
            self._widen(number, 1 << 20)
        unended = set(self._calls) - self.due
        for number in unended:
            if not self.transport.closing:
                self.transport.deliver(frame(RST_STREAM, 0, number, struct.pack(">I", 8)))

    def missing(self) -> bool:
        return bool(self.due - set(self._ends()))

    def check(self) -> None:
        if doubled := [number for number, count in self._ends().items() if count > 1]:
            raise Finding(f"streams {doubled} ended twice")

    def _ends(self) -> Counter[int]:
        """How often each stream has ended. Raises Finding for a fault of the server."""
        written = bytes(self.transport.written)
        ends: Counter[int] = Counter()
        decoder = hpack.Decoder()
        at = 0
        while at + 9 <= len(written):
            length = int.from_bytes(written[at : at + 3], "big")
            kind, flags, number = struct.unpack_from(">BBI", written, at + 3)
            payload = written[at + 9 : at + 9 + length]
            at += 9 + length
            if kind == HEADERS:
                fields = dict(decoder.decode(payload, raw=True))
                if fields.get(b"grpc-status") in (b"2", b"13") or fields.get(b":status") == b"500":
                    raise Finding(f"a fault of the server: {fields}")
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                ends[number] += kind != RST_STREAM or not ends[number]
            if kind == GOAWAY and payload[4:8] not in (bytes(4),):
                raise Finding(f"GOAWAY {payload!r}")
        return ends


class Bench:
    """An engine with all kinds of models, and the wire in front of it."""

    def __init__(self, embedded: Embedded, faults: Faults) -> None:
        self._loop = asyncio.get_running_loop()
        self._faults = faults
        self._embedded = embedded
        application = build_application(embedded.engine, Metrics(embedded.engine).page)
        # Small, so that clients reach the limits.
        limits = Limits(
            max_unsent_bytes=2048, max_held_answer_bytes=8192, frames_per_turn=8, bytes_per_turn=4096
        )
        self.wire = Wire(application, limits, self._loop)
        gc.collect()
        found = gc.get_objects()
        self._schedulers = [one for one in found if isinstance(one, Scheduler)]
        self._caches = [one for one in found if isinstance(one, CachedInstances)]
        if not self._schedulers or not self._caches:
            raise RuntimeError("the bench found no schedulers or no caches")
        self._tasks = 0
        self._files = 0
        self.answers = 0

    async def settle(self) -> None:
        """Notes what the engine holds at rest, after every model has answered."""
        await self.serve_all()
        self._tasks = len(asyncio.all_tasks())
        self._files = _open_files()

    async def run(self, seed: int, number: int) -> None:
        """Runs one order. Raises Finding."""
        rng = random.Random(f"{seed} {number}")
        clients: list[Client] = []
        try:
            clients += [self._connect(rng) for _ in range(rng.choice([1, 1, 2]))]
            for _ in range(rng.randrange(2, 12)):
                await self._pause(rng)
                client = rng.choice(clients)
                act = rng.choice(client.acts())
                client.story.append(act.__name__)
                act()
            await self._pause(rng)
        except Finding:
            raise
        except Exception as error:
            raise Finding(f"the protocol raised an exception: {error!r}") from error
        for client in clients:
            client.finish()
        await self._until(lambda: not (self.wire.requests or self.wire.streams))
        try:
            await self._until(lambda: not any(client.missing() for client in clients))
            for client in clients:
                client.check()
        except Finding as finding:
            told = [f"{' '.join(one.story)}, got {bytes(one.transport.written[-500:])!r}" for one in clients]
            raise Finding(f"{finding}; {'; '.join(told)}") from None
        for client in clients:
            self.answers += len(client.due)
            client.transport.deliver_eof()
            client.transport.abort()
        await self._until(lambda: not self._left())
        if text := self._faults.take():
            raise Finding(text)

    def _connect(self, rng: random.Random) -> Client:
        transport = StallingTransport(self._loop)
        sniffer = Sniffer(self.wire)
        transport.set_protocol(sniffer)
        sniffer.connection_made(transport)
        client = rng.choice([Http1Client, Http2Client, Http2Client])(transport, rng)
        client.start()
        return client

    async def _pause(self, rng: random.Random) -> None:
        """Lets any number of turns pass, or some time."""
        if rng.random() < 0.25:
            await asyncio.sleep(rng.random() * 0.003)
        for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8])):
            await asyncio.sleep(0)

    def _left(self) -> str:
        """What has not been returned."""
        wire = self.wire
        left = {
            "requests": wire.requests,
            "streams": wire.streams,
            "buffered bytes": wire.buffered_bytes,
            "held answer bytes": wire.held_answer_bytes,
            "connections": len(wire.connections),
            "peers": len(wire.peers._known),
            "queued requests": sum(one.pending for one in self._schedulers),
            "running requests": sum(one.running for one in self._schedulers),
            "busy instances": sum(bool(one._busy) for one in self._schedulers),
            "unsettled tallies": sum(not one.tally.settled for one in self._schedulers),
            "flights of the cache": sum(len(one._flights) + len(one._passed) for one in self._caches),
            "tasks": max(0, len(asyncio.all_tasks()) - self._tasks),
        }
        if not any(left.values()):
            left["file descriptors"] = max(0, _open_files() - self._files)
        return ", ".join(f"{count} {what}" for what, count in left.items() if count)

    async def _until(self, condition: Callable[[], Any]) -> None:
        deadline = monotonic() + HANG
        turns = 0
        while not condition():
            if monotonic() > deadline:
                raise Finding(f"left over: {self._left()}; {self._faults.take()}")
            turns += 1
            await asyncio.sleep(0 if turns < 20 else 0.0005)

    async def serve_all(self) -> None:
        """Every instance of every model still serves. Raises Finding."""
        for model in (*ONE, *MANY):
            rng = random.Random(model)
            clients = []
            for _ in range(6):
                transport = StallingTransport(self._loop)
                sniffer = Sniffer(self.wire)
                transport.set_protocol(sniffer)
                sniffer.connection_made(transport)
                path, body = json_request(model, rng)
                head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
                transport.deliver(head.encode() + body)
                clients.append(transport)
            await self._until(lambda: not self.wire.requests)
            for transport in clients:
                if not transport.written.startswith(b"HTTP/1.1 200"):
                    raise Finding(f"{model} no longer serves: {bytes(transport.written)!r}")
                transport.abort()
        await self._until(lambda: not self.wire.connections)

    def check_objects(self) -> None:
        """No request, batch or exchange has been forgotten somewhere. Raises Finding."""
        if kinds := _held():
            raise Finding(f"objects that are still referred to: {dict(kinds)}")


def _held() -> Counter[str]:
    """The requests, batches and exchanges in memory, by type."""
    gc.collect()
    kinds = (Ticket, Batch, HttpRequest, Call)
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.asynccontextmanager
async def bench(folder: Path, *, limited: bool) -> AsyncIterator[Bench]:
    """A bench with its models in `folder`; `limited` turns the rate limiter on."""
    repository = folder / "models"
    write_repository(repository)
    faults = Faults()
    logging.getLogger().addHandler(faults)
    asyncio.get_running_loop().set_exception_handler(faults.on_loop)
    options = LifecycleOptions(
        mode="explicit",
        load_models=(ALL_MODELS,),
        rate_limit=("r:1",) if limited else None,
        response_cache=LocalOptions(1 << 16),
        state_folder=folder / "state",
    )
    embedded = Embedded([repository], options)
    await embedded.start()
    unready = [f"{one.name}: {one.reason}" for one in embedded.engine.models() if one.state.value != "READY"]
    if unready:
        raise RuntimeError(f"models that did not load: {unready}")
    try:
        made = Bench(embedded, faults)
        await made.settle()
        yield made
    finally:
        await embedded.stop()
        logging.getLogger().removeHandler(faults)


@dataclass
class Report:
    """The results of a run."""

    orders: int = 0
    answers: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


async def run(orders: int, seed: int, first: int = 0, *, progress: bool = False) -> Report:
    """Runs the orders `first` to `first + orders` of a seed, and stops at the first finding.

    The rate limiter is on for odd seeds.
    """
    report = Report()
    with tempfile.TemporaryDirectory(prefix="backline-orders-") as folder:
        async with bench(Path(folder), limited=seed % 2 == 1) as target:
            began = monotonic()
            number = first
            try:
                for number in range(first, first + orders):
                    await target.run(seed, number)
                    report.orders += 1
                    if report.orders % OFTEN == 0:
                        target.check_objects()
                    if progress and report.orders % 5000 == 0:
                        click.echo(f"{report.orders} orders in {monotonic() - began:.0f} s", err=True)
                target.check_objects()
                await target.serve_all()
            except Finding as finding:
                report.findings.append(
                    f"order {number} (--orders 1 --first {number} --seed {seed}): {finding}"
                )
            report.seconds = monotonic() - began
            report.answers = target.answers
    return report


@click.command(help=__doc__)
@click.option("--orders", default=100_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first order.")
def main(orders: int, seed: int, first: int) -> None:
    factory = uvloop.new_event_loop if uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        report = runner.run(run(orders, seed, first, progress=True))
    click.echo(f"{report.orders} orders with {report.answers} answers in {report.seconds:.0f} s")
    click.echo("\n".join(report.findings))
    sys.exit(1 if report.findings else 0)


if __name__ == "__main__":
    main()
