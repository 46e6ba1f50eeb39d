"""ModelStreamInfer: order, in-band errors, limits, cancellation."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fake_models import OIP, Caller, FakeStreamCall

from backline.dialects.open_inference.grpc.stream import MAX_IN_FLIGHT, Asked
from backline.wire.application import RpcError
from backline_client.protos import message

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


def request(**changes: object) -> bytes:
    fields = {
        "model_name": "add1",
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16]}],
        "raw_input_contents": [ROW.tobytes()],
    }
    return message("inference.ModelInferRequest")(**fields | changes).SerializeToString()


async def answer_of(call: FakeStreamCall):
    return message("inference.ModelStreamInferResponse").FromString(await call.responses.get())


def start(caller: Caller, call: FakeStreamCall) -> asyncio.Future[None]:
    return asyncio.ensure_future(caller.application.rpc[OIP + b"ModelStreamInfer"].handler(call))


@asynccontextmanager
async def stream(caller: Caller, metadata: dict[bytes, bytes] | None = None) -> AsyncIterator[FakeStreamCall]:
    """A stream that the client ends normally."""
    call = FakeStreamCall(metadata)
    serving = start(caller, call)
    yield call
    await call.requests.put(None)
    await serving
    assert call.responses.empty()


async def until(condition) -> None:
    """Runs the loop until a condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never was")


async def test_answers_come_one_by_one(caller: Caller) -> None:
    async with stream(caller) as call:
        for number in range(3):
            await call.requests.put(request(id=str(number)))
            answer = await answer_of(call)
            assert not answer.error_message
            assert answer.infer_response.id == str(number)
            assert answer.infer_response.raw_output_contents[0] == (ROW + 1).tobytes()


@pytest.mark.parametrize("name", ["x" * 300, "a%b", " a", "nope"])
async def test_a_name_that_no_model_can_have_is_answered_in_its_turn(caller: Caller, name: str) -> None:
    async with stream(caller) as call:
        await call.requests.put(request(id="bad", model_name=name))
        await call.requests.put(request(id="good"))
        bad = await answer_of(call)
        assert (bad.infer_response.id, bool(bad.error_message)) == ("bad", True)
        assert (await answer_of(call)).infer_response.id == "good"


async def test_a_refused_request_leaves_the_memory_without_the_collector(caller: Caller) -> None:
    async with stream(caller) as call:
        gc.collect()
        gc.disable()
        try:
            for name in ("x" * 300, "nope", "failing"):
                for _ in range(5):
                    await call.requests.put(request(model_name=name))
                    assert (await answer_of(call)).error_message
            assert sum(type(one) is Asked for one in gc.get_objects()) <= 1
        finally:
            gc.enable()


async def test_requests_are_in_flight_together_and_answered_in_order(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    async with stream(caller) as call:
        for number in range(3):
            await call.requests.put(request(id=str(number)))
        await until(lambda: queue.pending == 3)
        queue.release(2)
        queue.release(1)
        assert call.responses.empty()
        queue.release(0)
        assert [(await answer_of(call)).infer_response.id for _ in range(3)] == ["0", "1", "2"]


async def test_requests_in_flight_are_bounded(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    async with stream(caller) as call:
        for number in range(MAX_IN_FLIGHT + 10):
            await call.requests.put(request(id=str(number)))
        await until(lambda: queue.pending == MAX_IN_FLIGHT)
        for _ in range(100):
            await asyncio.sleep(0)
        assert queue.pending == MAX_IN_FLIGHT
        for number in range(MAX_IN_FLIGHT + 10):
            await until(lambda: queue.pending)
            queue.release()
            assert (await answer_of(call)).infer_response.id == str(number)


async def test_error_is_an_answer_and_the_stream_goes_on(caller: Caller) -> None:
    async with stream(caller) as call:
        await call.requests.put(request(id="bad", model_name="nope"))
        await call.requests.put(b"\xff")
        await call.requests.put(request(id="fails", model_name="failing"))
        await call.requests.put(request(id="good"))
        first = await answer_of(call)
        assert first.error_message == "Request for unknown model: 'nope' is not found"
        assert (first.infer_response.id, first.infer_response.model_name) == ("bad", "nope")
        assert "malformed" in (await answer_of(call)).error_message
        assert (await answer_of(call)).error_message == "the runtime failed: out of luck"
        assert (await answer_of(call)).infer_response.id == "good"


async def test_error_ends_the_stream_if_the_client_asks_for_it(caller: Caller) -> None:
    call = FakeStreamCall({b"triton_grpc_error": b"true"})
    serving = start(caller, call)
    await call.requests.put(request(id="good"))
    await call.requests.put(request(model_name="nope"))
    with pytest.raises(RpcError) as caught:
        await serving
    assert (caught.value.code, caught.value.message) == (5, "Request for unknown model: 'nope' is not found")
    assert (await answer_of(call)).infer_response.id == "good"


@pytest.mark.parametrize("parameters", [{}, {"triton_enable_empty_final_response": {"bool_param": True}}])
async def test_the_only_answer_is_marked_as_the_last(caller: Caller, parameters: dict[str, object]) -> None:
    async with stream(caller) as call:
        for model in ("add1", "failing"):
            await call.requests.put(request(model_name=model, parameters=parameters))
            answer = await answer_of(call)
            assert answer.infer_response.parameters["triton_final_response"].bool_param is True
            assert bool(answer.infer_response.raw_output_contents) == (model == "add1")


async def test_cancelling_the_stream_cancels_requests_in_flight(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    call = FakeStreamCall()
    serving = start(caller, call)
    for _ in range(3):
        await call.requests.put(request())
    await until(lambda: queue.pending == 3)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert [asked.cancelled for asked in queue.held] == [True] * 3
    queue.held[0].complete(None, None)
    assert call.responses.empty()


async def test_failure_to_receive_ends_the_stream(caller: Caller) -> None:
    class BrokenCall(FakeStreamCall):
        async def receive(self) -> bytes | None:
            raise RpcError(8, "message too large")

    with pytest.raises(RpcError, match="too large"):
        await start(caller, BrokenCall())


async def test_requests_after_half_close_are_answered(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    call = FakeStreamCall()
    serving = start(caller, call)
    await call.requests.put(request(id="last"))
    await call.requests.put(None)
    await until(lambda: queue.pending == 1)
    queue.release()
    await serving
    assert (await answer_of(call)).infer_response.id == "last"
