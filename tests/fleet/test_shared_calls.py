"""Requests to a remote model that arrive together: when they share a call, and what each of them gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, cast

import numpy as np
import pytest
from onnx import TensorProto, helper

from backline.embedded.embedded import Embedded
from backline.engine.ticket import Ticket, unsubmitted
from backline.engine.tracing import Trace
from backline.plugins.fleet import sequence_holders
from backline.plugins.fleet.description import DescriptionWatch
from backline.plugins.fleet.remote_check import RemoteCheck
from backline.plugins.fleet.sequence_holders import HolderCheck, RemoteSequences
from backline_client.client import connect
from backline_client.client.balanced_transport import BalancedTransport
from backline_client.client.grpc_codec import InferCodec
from backline_client.client.transport import InferCall
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    Forbidden,
    Internal,
    InvalidArgument,
)
from backline_client.values.messages import InferRequest, InferResponse, SequenceStep
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor
from support import models
from support.embedded import AwaitedTicket, start
from support.repositories import put
from support.server import ServerProcess, serve
from support.waiting import until

ECHO = """backend: "identity" max_batch_size: 8 {batching}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "z" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "w" data_type: TYPE_INT32 dims: [ 1 ] }} ]
parameters {{ key: "execute_delay_ms" value {{ string_value: "{delay}" }} }}"""
BATCHES = "dynamic_batching { }"
SEQUENCES = (
    "sequence_batching { max_sequence_idle_microseconds: 60000000 oldest { max_candidate_sequences: 16 } }"
)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the models `echo`, `late` (300 ms), `alone`, which does not run requests together,
    `steps`, which has sequences, and `pick`, which fails for numbers above 9.
    """
    folder = tmp_path_factory.mktemp("shared")
    for name, delay, batching in (
        ("echo", 0, BATCHES),
        ("late", 300, BATCHES),
        ("alone", 0, ""),
        ("steps", 0, SEQUENCES),
    ):
        put(folder / "models" / name / "config.pbtxt", ECHO.format(delay=delay, batching=batching))
        put(folder / "models" / name / "1" / "empty", "")
    models.save(
        folder / "models" / "pick" / "1" / "model.onnx",
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["N", 1])],
        [("y", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [10], list(range(10)))],
    )
    put(folder / "models" / "pick" / "config.pbtxt", f"max_batch_size: 8 {BATCHES}")
    with serve(folder / "models", folder / "log") as running:
        yield running


@asynccontextmanager
async def front(
    folder: Path, url: str, model: str, more: str = "", sequence: SequenceStep | None = None
) -> AsyncIterator[Embedded]:
    """A program with the remote model `model`, whose connection is open."""
    parameter = f'parameters {{ key: "urls" value {{ string_value: "{url}" }} }}'
    put(folder / "models" / model / "config.pbtxt", f'backend: "remote" {parameter} {more}')
    put(folder / "models" / model / "1" / "empty", "")
    program = await start(folder / "models")
    try:
        await program.engine.infer(pick(1) if model == "pick" else echo(model, 1.0, sequence=sequence))
        yield program
    finally:
        await program.stop()


def echo(model: str, *values: float, **more: Any) -> InferRequest:
    """A request with one row for each value."""
    x = np.array(values, np.float32).reshape(-1, 1)
    z = np.arange(len(values), dtype=np.int32).reshape(-1, 1)
    tensors = (Tensor("x", DataType.FP32, x.shape, x), Tensor("z", DataType.INT32, z.shape, z))
    return InferRequest(model, {tensor.name: tensor for tensor in tensors}, **more)


def pick(number: int) -> InferRequest:
    x = np.array([[number]], np.int64)
    return InferRequest("pick", {"x": Tensor("x", DataType.INT64, x.shape, x)})


def submit(program: Embedded, requests: Sequence[InferRequest]) -> list[AwaitedTicket]:
    """Submits requests in one turn of the event loop."""
    awaited = [AwaitedTicket(request) for request in requests]
    for one in awaited:
        program.engine.submit(one.ticket)
    return awaited


async def responses(asked: Sequence[AwaitedTicket]) -> list[InferResponse]:
    return await asyncio.wait_for(asyncio.gather(*[one.done for one in asked]), 20)


def rows(response: InferResponse, output: str = "y") -> list[float]:
    (tensor,) = [tensor for tensor in response.outputs if tensor.name == output]
    found: list[float] = tensor.data.ravel().tolist()
    return found


def calls(program: Embedded, model: str) -> int:
    """How many calls the program has sent for the model."""
    return program.engine.find(model).statistics.execution_count


def runs(server: ServerProcess, model: str) -> dict[int, int]:
    """How many runs of each size the model has had on the server."""
    with connect(server.url) as client:
        found = client[model].statistics()[0]["batch_stats"]
    return {int(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in found}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_requests_that_arrive_together_share_a_call(
    tmp_path: Path, behind: ServerProcess, protocol: str
) -> None:
    url = behind.url if protocol == "http" else behind.grpc_url
    async with front(tmp_path, url, "echo") as program:
        before = await asyncio.to_thread(runs, behind, "echo")
        asked = [echo("echo", 1, 2, id="a"), echo("echo", 3, id="b"), echo("echo", 4, 5, 6, id="c")]
        answered = await responses(submit(program, asked))
        after = await asyncio.to_thread(runs, behind, "echo")

    assert after.pop(6) == before.pop(6, 0) + 1
    assert after == before
    assert [rows(one) for one in answered] == [[1, 2], [3], [4, 5, 6]]
    assert [rows(one, "w") for one in answered] == [[0, 1], [0], [0, 1, 2]]
    assert [one.id for one in answered] == ["a", "b", "c"]


async def test_a_call_has_no_more_items_than_the_servers_take(tmp_path: Path, behind: ServerProcess) -> None:
    async with front(tmp_path, behind.grpc_url, "echo") as program:
        before = calls(program, "echo")
        answered = await responses(submit(program, [echo("echo", number, number) for number in range(9)]))

        assert [rows(one) for one in answered] == [[number, number] for number in range(9)]
        assert calls(program, "echo") == before + 3


async def test_requests_that_differ_in_what_a_call_says_once_are_sent_apart(
    tmp_path: Path, behind: ServerProcess
) -> None:
    wide = echo("echo", 1)
    wide.inputs["x"] = Tensor("x", DataType.FP32, (1, 3), np.zeros((1, 3), np.float32))
    asked = [
        echo("echo", 1),
        wide,
        echo("echo", 2, outputs=("w",)),
        echo("echo", 3, parameters={"voice": "low"}),
        echo("echo", 4, priority=1),
        echo("echo", 5, sequence=SequenceStep(7, start=True)),
        echo("echo", 6, sequence=SequenceStep(7, end=True)),
    ]
    async with front(tmp_path, behind.grpc_url, "echo") as program:
        before = calls(program, "echo")
        answered = await responses(submit(program, asked))

        assert calls(program, "echo") == before + len(asked)
    assert [len(one.outputs) for one in answered] == [2, 2, 1, 2, 2, 2, 2]


class Traced:
    """Stands in for the trace of a request."""

    context = ""

    def ran(self, run: object) -> None:
        pass


async def test_traced_and_large_requests_are_sent_alone(tmp_path: Path, behind: ServerProcess) -> None:
    large = echo("echo", 1)
    large.inputs["x"] = Tensor("x", DataType.FP32, (1, 20_000), np.zeros((1, 20_000), np.float32))
    async with front(tmp_path, behind.grpc_url, "echo") as program:
        before = calls(program, "echo")
        asked = [AwaitedTicket(request) for request in (large, large, echo("echo", 1), echo("echo", 2))]
        for one in asked[2:]:
            one.ticket.trace = cast(Trace, Traced())
        for one in asked:
            program.engine.submit(one.ticket)
        await responses(asked)

        assert calls(program, "echo") == before + 4


def check_of(signature: Signature) -> RemoteCheck:
    """The check of a remote model that accepts every request."""
    watch = DescriptionWatch("m", None)
    return RemoteCheck("m", b"an id", "grpc://there", lambda ticket: None, watch, signature, 8)


@pytest.mark.parametrize(("width", "shared"), [(2_000, True), (20_000, False)], ids=["small", "large"])
def test_the_size_of_requests_may_follow_from_the_signature(width: int, shared: bool) -> None:
    signature = Signature((TensorSpec("x", DataType.FP32, (-1, width)),), ())
    check = check_of(signature)
    keys = []
    for _ in range(2):
        data = np.zeros((1, width), np.float32)
        request = InferRequest("m", {"x": Tensor("x", DataType.FP32, data.shape, data)})
        ticket = Ticket(request, lambda *_: None)
        check(ticket)
        keys.append(ticket.batch_key)

    assert (keys[0] == keys[1]) is shared


def keys_of(signature: Signature, *requests: InferRequest) -> list[object]:
    """The batch keys of requests that the model accepts."""
    check = check_of(signature)
    tickets = [Ticket(request, lambda *_: None) for request in requests]
    for ticket in tickets:
        check(ticket)
    return [ticket.batch_key for ticket in tickets]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [(True, 1, False), (1, 1.0, False), (0.0, -0.0, False), (1, 1, True), ("1", "1", True)],
    ids=repr,
)
def test_parameters_of_different_types_are_sent_apart(one: Any, other: Any, *, shared: bool) -> None:
    asked = (echo("echo", 1, parameters={"a": one}), echo("echo", 1, parameters={"a": other}))
    keys = keys_of(Signature((TensorSpec("x", DataType.FP32, (-1, 1)),), ()), *asked)

    assert (keys[0] == keys[1]) is shared


async def test_only_the_caller_that_began_a_sequence_can_continue_or_restart_it_on_other_servers(
    tmp_path: Path, behind: ServerProcess
) -> None:
    async with front(tmp_path, behind.grpc_url, "steps", sequence=SequenceStep(1, True, True)) as program:

        async def ask(caller: str, start: bool = False, end: bool = False) -> None:
            asked = AwaitedTicket(echo("steps", 1, sequence=SequenceStep(7, start, end)))
            asked.ticket.identity = caller
            program.engine.submit(asked.ticket)
            await responses([asked])

        await ask("a", start=True)
        for start in (False, True):
            with pytest.raises(Forbidden, match="begun by another caller"):
                await ask("b", start)
        await ask("a", end=True)
        await ask("b", start=True)


async def test_sequences_keep_their_callers_and_servers_when_a_remote_model_is_reloaded(
    tmp_path: Path, behind: ServerProcess
) -> None:
    """The servers are the same process under two names, so that the name in use says which was chosen."""
    urls = f"{behind.grpc_url},grpc://localhost:{behind.grpc_port}"
    async with front(tmp_path, urls, "steps", sequence=SequenceStep(1, True, True)) as program:
        control = program.engine.control
        assert control is not None

        async def ask(caller: str, id: int, start: bool = False) -> None:
            asked = AwaitedTicket(echo("steps", 1, sequence=SequenceStep(id, start)))
            asked.ticket.identity = caller
            program.engine.submit(asked.ticket)
            await responses([asked])

        def servers() -> dict[int, str]:
            """The server of each sequence."""
            kept = program._lifecycle._shared.remote_sequences["steps", "1"].servers
            return {id: kept.get(("steps", id))[1] for id in ids}

        ids = range(10, 18)
        await asyncio.gather(*(ask("a", id, start=True) for id in ids))
        before, loaded = servers(), program.engine.find("steps")
        assert len(set(before.values())) == 2

        config = tmp_path / "models" / "steps" / "config.pbtxt"
        config.write_text(
            config.read_text() + ' parameters { key: "max_in_flight" value { string_value: "3" } }'
        )
        await control.load("steps", who="test")
        assert program.engine.find("steps") is not loaded
        for id in ids:
            with pytest.raises(Forbidden, match="begun by another caller"):
                await ask("b", id)
            await ask("a", id)
        assert servers() == before


def test_a_caller_that_begins_many_sequences_does_not_free_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence_holders, "_MOST", 10)
    check = HolderCheck("steps", lambda ticket: None, 60.0, RemoteSequences().arrivals)

    def ask(caller: str, id: int) -> None:
        ticket = unsubmitted(echo("steps", 1, sequence=SequenceStep(id, start=True)))
        ticket.identity = caller
        check(ticket)

    ask("a", 7)
    for id in range(100, 120):
        ask("b", id)

    with pytest.raises(Forbidden, match="sequence 7 of model 'steps' was begun by another caller"):
        ask("b", 7)


@pytest.mark.parametrize("way", ["responded", "failed", "refused", "cancelled"])
def test_a_sequence_belongs_to_its_caller_until_its_last_request_succeeds(way: str) -> None:
    check = HolderCheck("steps", lambda ticket: None, 60.0, RemoteSequences().arrivals)

    def ask(caller: str, **step: bool) -> Ticket:
        ticket = unsubmitted(echo("steps", 1, sequence=SequenceStep(7, **step)))
        ticket.identity = caller
        check(ticket)
        return ticket

    ask("a", start=True)
    last = ask("a", end=True)
    if way == "refused":
        last.refuse(Internal("the queue is full"))
    else:
        last.start(None)
        if way == "responded":
            last.complete(InferResponse("steps", "1", "", []), None)
        elif way == "failed":
            last.complete(None, Internal("lost"))
        else:
            last.cancel()

    if way == "responded":
        ask("b", start=True)
    else:
        with pytest.raises(Forbidden, match="begun by another caller"):
            ask("b", start=True)


async def test_callers_may_use_the_same_ids_for_a_model_without_sequences(
    tmp_path: Path, behind: ServerProcess
) -> None:
    async with front(tmp_path, behind.grpc_url, "echo") as program:
        for caller in ("a", "b"):
            asked = AwaitedTicket(echo("echo", 1, sequence=SequenceStep(7, True)))
            asked.ticket.identity = caller
            program.engine.submit(asked.ticket)
            await responses([asked])


async def test_an_empty_request_does_not_succeed_because_it_shares_a_call(
    tmp_path: Path, behind: ServerProcess
) -> None:
    async with front(tmp_path, behind.grpc_url, "echo") as program:
        empty, other = submit(program, [echo("echo"), echo("echo", 1)])

        with pytest.raises(InvalidArgument, match="has an empty batch"):
            await asyncio.wait_for(empty.done, 20)
        assert rows(await asyncio.wait_for(other.done, 20)) == [1]


@pytest.mark.parametrize(("length", "shared"), [(1_000, True), (100_000, False)], ids=["small", "large"])
def test_the_size_of_strings_is_that_of_their_bytes(length: int, *, shared: bool) -> None:
    def of(text: bytes) -> InferRequest:
        data = np.array([[text]], np.object_)
        return InferRequest("m", {"x": Tensor("x", DataType.BYTES, data.shape, data)})

    signature = Signature((TensorSpec("x", DataType.BYTES, (-1, 1)),), ())
    keys = keys_of(signature, of(b"a" * length), of(b"b" * length))

    assert (keys[0] == keys[1]) is shared


@pytest.mark.parametrize(
    ("model", "more", "shared"),
    [
        ("echo", "", True),
        ("echo", "max_batch_size: 8", False),
        ("echo", 'parameters { key: "backline.idempotent" value { string_value: "false" } }', False),
        ("alone", "", False),
        ("alone", BATCHES, True),
    ],
    ids=["servers_do", "switched_off", "not_idempotent", "servers_do_not", "switched_on"],
)
async def test_calls_are_shared_if_the_servers_run_requests_together_or_the_configuration_says_so(
    tmp_path: Path, behind: ServerProcess, model: str, more: str, shared: bool
) -> None:
    async with front(tmp_path, behind.grpc_url, model, more) as program:
        before = calls(program, model)
        await responses(submit(program, [echo(model, 1), echo(model, 2)]))

        assert calls(program, model) == before + (1 if shared else 2)


async def test_an_invalid_request_fails_alone(tmp_path: Path, behind: ServerProcess) -> None:
    async with front(tmp_path, behind.grpc_url, "pick") as program:
        first, wrong, last = submit(program, [pick(3), pick(99), pick(5)])

        assert [rows(one) for one in await responses([first, last])] == [[3], [5]]
        with pytest.raises(BacklineError, match="out of data bounds"):
            await wrong.done
        assert program.engine.find("pick").statistics.fail.count == 1


async def test_requests_to_a_model_that_is_not_idempotent_are_not_sent_again(
    tmp_path: Path, behind: ServerProcess
) -> None:
    once = 'parameters { key: "backline.idempotent" value { string_value: "false" } }'
    async with front(tmp_path, behind.grpc_url, "pick", f"{BATCHES} {once}") as program:
        asked = submit(program, [pick(3), pick(99)])
        for one in asked:
            with pytest.raises(Internal, match=r"out of data bounds.*in a batch of 2.*not idempotent"):
                await one.done


async def test_requests_that_are_sent_again_alone_do_not_exceed_the_calls_in_flight(
    tmp_path: Path, behind: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight: list[int] = [0]
    send = BalancedTransport.start_infer

    def counted(transport: BalancedTransport, call: InferCall, timeout: float, on_outcome: Any) -> Any:
        in_flight.append(in_flight[-1] + 1)

        def ended(*outcome: Any) -> None:
            in_flight.append(in_flight[-1] - 1)
            on_outcome(*outcome)

        return send(transport, call, timeout, ended)

    monkeypatch.setattr(BalancedTransport, "start_infer", counted)
    few = 'parameters { key: "max_in_flight" value { string_value: "2" } }'
    async with front(tmp_path, behind.grpc_url, "pick", few) as program:
        asked = submit(program, [pick(number) for number in (1, 99, 2, 3, 4, 5, 6, 7, 8, 98, 9)])
        outcomes = await asyncio.wait_for(
            asyncio.gather(*[one.done for one in asked], return_exceptions=True), 20
        )

    assert max(in_flight) == 2
    assert in_flight.count(2) > 1
    wrong = [one for one in outcomes if isinstance(one, BaseException)]
    assert [type(one) for one in wrong] == [InvalidArgument] * 2
    good = [rows(one)[0] for one in outcomes if not isinstance(one, BaseException)]
    assert good == [1, 2, 3, 4, 5, 6, 7, 8, 9]


async def test_a_deadline_ends_a_request_that_waits_to_be_sent_again(
    tmp_path: Path, behind: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = BalancedTransport.start_infer

    def shared_calls_fail(transport: BalancedTransport, call: InferCall, *rest: Any) -> Any:
        sent.append(call.requests)
        if call.requests > 1:
            raise Internal("a stand-in for a failure that one of the requests may have caused")
        return send(transport, call, *rest)

    monkeypatch.setattr(BalancedTransport, "start_infer", shared_calls_fail)
    async with front(tmp_path, behind.grpc_url, "late") as program:
        soon = echo("late", 3, deadline=monotonic() + 0.45)  # the two calls before it take 0.6 s
        first, second, hurried = submit(program, [echo("late", 1), echo("late", 2), soon])

        with pytest.raises(DeadlineExceeded, match="before its deadline"):
            await hurried.done
        assert [rows(one) for one in await responses([first, second])] == [[1], [2]]
    assert sent[-3:] == [3, 1, 1]


async def test_a_deadline_ends_its_request_and_not_the_call(tmp_path: Path, behind: ServerProcess) -> None:
    async with front(tmp_path, behind.grpc_url, "late") as program:
        before = calls(program, "late")
        soon = echo("late", 1, deadline=monotonic() + 0.1)
        hurried, patient = submit(program, [soon, echo("late", 2)])

        with pytest.raises(DeadlineExceeded, match="before its deadline"):
            await hurried.done
        assert not patient.done.done()
        assert [rows(one) for one in await responses([patient])] == [[2]]
        assert calls(program, "late") == before + 1


async def test_a_cancelled_request_leaves_the_call_to_the_others(
    tmp_path: Path, behind: ServerProcess
) -> None:
    async with front(tmp_path, behind.grpc_url, "late") as program:
        before = await asyncio.to_thread(runs, behind, "late")
        gone, patient = submit(program, [echo("late", 1), echo("late", 2)])
        await asyncio.to_thread(until, lambda: calls_in_flight(program, "late"))
        gone.ticket.cancel()

        assert [rows(one) for one in await responses([patient])] == [[2]]
        assert (await asyncio.to_thread(runs, behind, "late")).get(2, 0) == before.get(2, 0) + 1
        assert not gone.done.done()


async def test_a_call_that_nobody_waits_for_is_withdrawn(tmp_path: Path, behind: ServerProcess) -> None:
    async with front(tmp_path, behind.grpc_url, "late") as program:
        asked = submit(program, [echo("late", 1), echo("late", 2)])
        await asyncio.to_thread(until, lambda: calls_in_flight(program, "late"))
        for one in asked:
            one.ticket.cancel()
        await asyncio.to_thread(until, lambda: not calls_in_flight(program, "late"))

        assert program.engine.find("late").statistics.cancelled == 2


def calls_in_flight(program: Embedded, model: str) -> int:
    return program.engine.find(model).serving.queue.running


async def test_a_server_that_is_gone_fails_every_request_of_a_call_once(tmp_path: Path) -> None:
    put(tmp_path / "behind" / "echo" / "config.pbtxt", ECHO.format(delay=0, batching=BATCHES))
    put(tmp_path / "behind" / "echo" / "1" / "empty", "")
    with serve(tmp_path / "behind", tmp_path / "log") as server:
        async with front(tmp_path, server.grpc_url, "echo") as program:
            server.process.kill()
            await asyncio.to_thread(server.process.wait)
            asked = submit(program, [echo("echo", number) for number in range(4)])
            outcomes = await asyncio.gather(*[one.done for one in asked], return_exceptions=True)

    assert all(isinstance(one, BacklineError) and not isinstance(one, InvalidArgument) for one in outcomes)
    assert all("is served by" in str(one) for one in outcomes)


@pytest.mark.parametrize(("model", "count"), [("echo", 2), ("alone", 300)], ids=["shared", "many"])
async def test_requests_that_no_call_can_carry_fail_and_free_their_instance(
    model: str, count: int, tmp_path: Path, behind: ServerProcess
) -> None:
    few = 'parameters { key: "max_in_flight" value { string_value: "1" } }'
    too_large = {"a": 2**64}  # more than gRPC's uint64_param holds
    async with front(tmp_path, behind.grpc_url, model, few) as program:
        asked = submit(program, [echo(model, 1, parameters=too_large) for _ in range(count)])
        errors = await asyncio.wait_for(
            asyncio.gather(*[one.done for one in asked], return_exceptions=True), 20
        )

        assert {type(error) for error in errors} == {InvalidArgument}
        assert str(errors[0]).startswith(
            f"model '{model}' is served by {behind.grpc_url}, but the request cannot"
        )
        assert [rows(one) for one in await responses(submit(program, [echo(model, 3)]))] == [[3]]


async def test_the_largest_sequence_id_is_carried_over_grpc(tmp_path: Path, behind: ServerProcess) -> None:
    largest = SequenceStep(2**64 - 1, start=True, end=True)
    async with front(tmp_path, behind.grpc_url, "echo") as program:
        assert [
            rows(one) for one in await responses(submit(program, [echo("echo", 3, sequence=largest)]))
        ] == [[3]]


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, 2**63, 2**64 - 1], ids=str)
def test_an_integer_parameter_keeps_its_value_over_grpc(value: int) -> None:
    head = b"".join(
        InferCodec("grpc://there").encode(InferCall("echo", (), parameters={"sequence_id": value}))
    )
    (parameter,) = message("inference.ModelInferRequest").FromString(head).parameters.values()

    assert getattr(parameter, parameter.WhichOneof("parameter_choice")) == value
