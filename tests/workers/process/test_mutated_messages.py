"""Workers that send messages with wrong values: the server ends such a worker, and nothing else breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import socket
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any

import msgspec
import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Serving
from backline.engine.ticket import Ticket
from backline.lifecycle.call_graph import CallGraph
from backline.lifecycle.loading.instances import place
from backline.lifecycle.model_calls import ModelCalls
from backline.observe.exposition import exposed
from backline.workers.batch import Batch
from backline.workers.channel.arena import HALF
from backline.workers.channel.protocol import (
    PREFIX,
    WINDOW,
    Ask,
    Column,
    Ended,
    Kind,
    Log,
    Measure,
    NumberList,
    Part,
    Readiness,
    RequestFailure,
    RequestNote,
    Result,
    Spec,
    WorkerCall,
    WorkerLoad,
    WorkerLoaded,
    frame,
)
from backline.workers.debugged import DebuggedWorker
from backline.workers.process.job import BatchRun
from backline.workers.process.pool import PoolOptions, WorkerPool
from backline.workers.process.process import WorkerCommand
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse, ResponseFlow
from backline_client.values.tensor import Tensor

DATA, CONTROL, CALLS = range(3)
ROW = np.zeros((1, 4), np.float32).tobytes()
SPEC = Spec("x", "FP32", [4])
LOADED = WorkerLoaded([SPEC], [SPEC], max_batch_size=8)
DECOUPLED = WorkerLoaded([SPEC], [SPEC], decoupled=True)


class Puppet(DebuggedWorker):
    """A worker without code: the test writes to its ends of the channels."""

    loads: WorkerLoaded

    async def _launch(self, *descriptors: int) -> None:
        self.ends = [socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors[:3]]
        self.ends[DATA].sendall(frame(Kind.LOADED, self.loads))

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    async def stop(self) -> None:
        self.kill("was stopped")

    def _finish(self) -> None:
        super()._finish()
        for end in self.ends:
            end.close()


class NoQueue:
    """A queue whose requests never run."""

    pending = 0

    def submit(self, ticket: Ticket) -> None:
        pass


@dataclass
class Stage:
    """A pool with one puppet, which has received a batch of two requests, numbered 1 and 2."""

    loaded: WorkerLoaded = field(default_factory=lambda: LOADED)
    engine: Engine = field(default_factory=Engine)
    faults: list[Any] = field(default_factory=list)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.faults.append(context))
        called = Model("double", "1", ModelConfig("double"), ModelState.READY)
        called.serving = Serving(lambda _: None, NoQueue())
        self.engine.add(called)
        calls = ModelCalls(self.engine, CallGraph(), None, Model("puppet", "1", ModelConfig("puppet")))
        options = PoolOptions(idempotent=False, worker=type("Loaded", (Puppet,), {"loads": self.loaded}))
        load = WorkerLoad("python", "puppet", "1", "", "/nowhere")
        self.pool = WorkerPool(
            WorkerCommand(load), options, loop, place(ModelConfig("puppet"), Gpus()), calls
        )
        await self.pool.start()
        (self.seat,) = self.pool._seats
        assert isinstance(self.seat.process, Puppet)
        self.puppet = self.seat.process
        tensor = Tensor("x", DataType.FP32, (1, 4), np.zeros((1, 4), np.float32))
        self.tickets = [
            Ticket(InferRequest("puppet", {"x": tensor}), lambda *_: None, lambda *_: None, ResponseFlow())
            for _ in range(2)
        ]
        for ticket in self.tickets:
            ticket.batch_size = 1
        self.batch = Batch(self.tickets, 2, monotonic_ns())
        self.ended: asyncio.Future[Batch] = loop.create_future()
        run = BatchRun(self.batch, None, lambda _, batch: self.ended.set_result(batch), self.pool.responses)
        self.pool.place(run, self.seat)

    async def send(self, channel: int, message: bytes) -> None:
        """Sends a message of the worker, and lets the server handle it."""
        with contextlib.suppress(OSError):
            self.puppet.ends[channel].sendall(message)
        for _ in range(4):
            await asyncio.sleep(0)

    async def end(self) -> list[InferResponse | BacklineError | None]:
        """Ends the worker, and returns the outcomes of the requests."""
        self.puppet.kill("was stopped")
        outcomes = (await asyncio.wait_for(self.ended, 10)).outcomes
        await self.pool.stop()
        return outcomes

    @property
    def why(self) -> str:
        """Why the worker was ended; empty if it still runs."""
        return self.puppet._why


def result(*parts: Part, **given: Any) -> bytes:
    return frame(Kind.RESULT, Result(1, list(parts), **given), [ROW * 8])


def column(rows: int, name: str = "x", at: int = -1) -> Column:
    return Column(name, "FP32", [rows, 4], rows * len(ROW), at)


REAL = [
    (DATA, result(Part([1, 2], [1, 1], [column(2)]), done=True)),
    (DATA, result(Part([1], [], [column(1)], {"a": 1, "b": 0.5}), Part([2], [], [column(1)]), done=True)),
    (DATA, result(Part([1, 2], [1, 1], [column(2, at=HALF)]), done=True, block=HALF)),
    (DATA, result(Part([1], [], [column(1)], {}, True))),
    (DATA, result(failures=[RequestFailure(1, "Unavailable", "busy", 1.0)], ended=[2], done=True)),
    (DATA, result(rescheduled=[1, 2], done=True, began_ns=1, ran_ns=2)),
    (DATA, frame(Kind.LOADED, LOADED)),
    (CONTROL, frame(Kind.PONG, NumberList([0, 65536]))),
    (CALLS, frame(Kind.CALL, WorkerCall(7, [1], "double", "", [column(1)], RequestNote(timeout=5.0)), [ROW])),
    (CALLS, frame(Kind.CALL, WorkerCall(8, [], "double", "1", [], RequestNote(), stream=True))),
    (CALLS, frame(Kind.ASK, Ask(9, "describe", "double", requests=[1]))),
    (CALLS, frame(Kind.ASK, Ask(9, "load", "double", files=[Column("a", "UINT8", [4], 4)]), [b"aaaa"])),
    (CALLS, frame(Kind.DROP, NumberList([7, 8]))),
    (CALLS, frame(Kind.MORE, NumberList([8, 4]))),
    (CALLS, frame(Kind.MEASURE, Measure("declare", "seen", kind="histogram", description="d", number=3))),
    (CALLS, frame(Kind.MEASURE, Measure("observe", "seen", {"a": "b"}, [1.0, 2.0], 1.5))),
    (CALLS, frame(Kind.MEASURE, Measure("increment", "seen", {"c": "d"}, [], 1.5))),
    (CALLS, frame(Kind.LOG, Log(logging.INFO, "said"))),
    (CALLS, frame(Kind.LIMIT, NumberList([1 << 40]))),
    (CALLS, frame(Kind.READY, Readiness("tired"))),
    (CALLS, frame(Kind.ENDED, Ended(1, value=[1]))),
]  # fmt: skip
WRONG = [
    -1, 0, 1, 2, 3, 65536, HALF, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), math.nan, math.inf, -math.inf, None,
    0.5, True, "", "x", "Internal", "ModelState", "é" * 300, [], [[]], [-1], [1, 1], [2**63, 0], {}, {"a": 1},
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each container within a decoded message, with the key of one of its elements."""
    found = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    for key in found:
        yield value, key
        yield from places(value[key])


def mutate(message: bytes, numbers: random.Random) -> bytes:
    """Changes one to three values in the header of a frame."""
    kind, size, payload = PREFIX.unpack_from(message)
    header = msgspec.msgpack.decode(message[PREFIX.size : PREFIX.size + size])
    for _ in range(numbers.choice([1, 1, 1, 2, 3])):
        container, key = numbers.choice([*places(header)])
        change = numbers.random()
        if change < 0.7 or isinstance(container, dict):
            container[key] = deepcopy(numbers.choice(WRONG))  # it may be changed in turn
        elif change < 0.85:
            container.insert(key, deepcopy(container[key]))
        elif len(header) > 1:
            del container[key]
    encoded = msgspec.msgpack.encode(header)
    rest = message[PREFIX.size + size :]
    return PREFIX.pack(kind, len(encoded), payload) + encoded + rest


async def play(seed: int) -> None:
    numbers = random.Random(seed)
    stage = Stage(numbers.choice([LOADED, DECOUPLED]))
    await stage.start()
    messages = [numbers.choice(REAL) for _ in range(3)]
    for channel, message in (*messages, numbers.choice(messages)):
        if numbers.random() < 0.5:
            message = mutate(message, numbers)
        if numbers.random() < 0.05:
            channel = numbers.randrange(3)
        await stage.send(channel, message)
    why = stage.why

    outcomes = await stage.end()

    assert stage.faults == [], (seed, stage.faults)
    for outcome in outcomes:
        if why and isinstance(outcome, Internal) and "worker process" in outcome.message:
            assert why.startswith(("broke the protocol: ", "used ")), (seed, why)
            assert why in outcome.message, (seed, why)
    batch = stage.batch
    assert batch.started_ns <= batch.gathered_ns <= batch.ran_ns <= batch.ended_ns, seed
    for family in stage.engine.custom_metrics:
        assert "".join(exposed(family)).count("# TYPE") == 1, seed


def test_no_mutated_message_breaks_anything_but_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def all_seeds() -> None:
        for seed in range(600):
            await play(seed)

    asyncio.run(all_seeds())

    assert [record.exc_text for record in caplog.records if record.exc_info] == []


SCALAR = Column("x", "FP32", [], 4)
#: A value of 100,000 nested lists.
DEEP = b"\x95\x01\xa0\xa0\xc0" + b"\x91" * 100_000
UNLIKE = [
    ("a RESULT of batch 9", DATA, frame(Kind.RESULT, Result(9, [Part([1], [], [])]))),
    ("a part with 1 row counts for 2 requests", DATA, result(Part([1, 2], [2], [column(2)]))),
    ("a part with 2 row counts for 2 requests", DATA, result(Part([1, 2], [3, -1], [column(2)]))),
    ("an output 'x' of shape [] for 2 rows", DATA, result(Part([1, 2], [1, 1], [SCALAR]))),
    ("of shape [3, 4] for 2 rows", DATA, result(Part([1, 2], [1, 1], [column(3)]))),
    ("ended without responses to 1 request", DATA, result(Part([1], [], [column(1)]), done=True)),
    ("a frame of kind LOADED", CONTROL, frame(Kind.LOADED, LOADED)),
    ("2 numbers, expected 1", CALLS, frame(Kind.LIMIT, NumberList([1, 2]))),
    ("0 numbers, expected 2", CALLS, frame(Kind.MORE, NumberList([]))),
    ("Invalid enum value 'mean'", CALLS, frame(Kind.MEASURE, Measure("declare", "m", kind="mean"))),  # type: ignore
    ("maximum recursion depth", CALLS, PREFIX.pack(Kind.ENDED, len(DEEP), 0) + DEEP),
]  # fmt: skip


@pytest.mark.parametrize(("why", "channel", "message"), UNLIKE, ids=[why for why, _, _ in UNLIKE])
def test_an_invalid_message_ends_its_worker_with_the_reason(why: str, channel: int, message: bytes) -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.start()
        await stage.send(channel, message)

        assert stage.why.startswith("broke the protocol: ")
        assert why in stage.why
        outcomes = await stage.end()
        assert f"model 'puppet' version 1: its worker process {stage.why} while it ran this request" in str(
            outcomes[-1]
        )
        assert stage.faults == []

    asyncio.run(scenario())


def test_nothing_after_an_invalid_message_is_handled() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.start()
        invalid = frame(Kind.RESULT, Result(9))
        await stage.send(DATA, invalid + result(Part([1, 2], [1, 1], [column(2)]), done=True))
        assert all(isinstance(outcome, Internal) for outcome in await stage.end())

    asyncio.run(scenario())


def test_a_worker_that_sends_responses_without_credit_is_ended() -> None:
    async def scenario() -> None:
        stage = Stage(DECOUPLED)
        await stage.start()
        flow = stage.tickets[0].flow
        assert flow is not None
        flow.pause()  # the client does not read
        for _ in range(WINDOW):
            await stage.send(DATA, result(Part([1], [], [column(1)], {}, True)))
        assert stage.why == ""
        await stage.send(DATA, result(Part([1], [], [column(1)], {}, True)))
        assert stage.why == f"broke the protocol: more than {WINDOW} responses to a request without credit"
        await stage.end()

    asyncio.run(scenario())


def test_a_call_with_a_timeout_that_is_not_a_number_is_refused() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.start()
        call = WorkerCall(7, [], "double", "", [], RequestNote(timeout=math.nan))
        await stage.send(CALLS, frame(Kind.CALL, call))
        stage.puppet.ends[CALLS].setblocking(False)
        assert b"the timeouts of a call must be finite, got nan s and 0.0 s" in stage.puppet.ends[CALLS].recv(
            4096
        )
        assert stage.why == ""
        await stage.end()

    asyncio.run(scenario())


def test_the_time_after_which_to_retry_is_left_out_unless_it_is_a_number() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.start()
        failures = [
            RequestFailure(1, "Unavailable", "busy", math.nan),
            RequestFailure(2, "Unavailable", "", 7.0),
        ]
        await stage.send(DATA, result(failures=failures, done=True))
        outcomes = await stage.end()
        assert [outcome.retry_after for outcome in outcomes if isinstance(outcome, BacklineError)] == [
            None,
            7.0,
        ]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("loaded", "what"),
    [
        (WorkerLoaded([SPEC], [SPEC], max_batch_size=-1), "maximum batch size -1"),
        (WorkerLoaded([Spec("x", "FP32", [4, -2])], [SPEC]), "smallest dimension -2"),
        (WorkerLoaded([SPEC], [Spec("x", "FP32", [2**63])]), f"largest dimension {2**63}"),
        (WorkerLoaded([SPEC], [SPEC], execution_timeout_seconds=math.nan), "execution timeout nan"),
        (WorkerLoaded([SPEC], [SPEC], max_queue_delay_us=-1), "queue delay -1"),
        (WorkerLoaded([SPEC], [SPEC], threads_per_run=-1), "number of threads per run -1"),
    ],
    ids=["batch", "negative", "huge", "timeout", "delay", "threads"],
)
def test_a_worker_with_numbers_out_of_range_does_not_load(loaded: WorkerLoaded, what: str) -> None:
    with pytest.raises(
        InvalidArgument, match=f"model 'puppet' version 1 has the {what}, which is out of range"
    ):
        asyncio.run(Stage(loaded).start())
