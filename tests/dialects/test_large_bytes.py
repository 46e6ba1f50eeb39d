"""Large BYTES tensors are checked against the model before they are decoded, off the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

import pytest
from fake_models import OIP, Caller, FakeStreamCall

from backline.dialects.off_loop import LARGE
from backline.engine.values import tensor as tensors
from backline.protos import message

#: Empty elements of 4 bytes each, more than are decoded on the loop.
COUNT = LARGE // 4 + 1
EMPTY = bytes(4 * COUNT)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that decoded BYTES tensors."""
    threads: list[threading.Thread] = []
    decode: Callable[..., object] = tensors._decode_bytes

    def watched(*given: object) -> object:
        threads.append(threading.current_thread())
        return decode(*given)

    monkeypatch.setattr(tensors, "_decode_bytes", watched)
    return threads


def rest_body(datatype: str = "BYTES", name: str = "INPUT0") -> tuple[bytes, dict[bytes, bytes]]:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": [COUNT],
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(EMPTY)},
                }
            ]
        }
    ).encode()
    return header + EMPTY, {b"inference-header-content-length": b"%d" % len(header)}


def rpc_message(model: str, *, raw: bool, name: str = "INPUT0") -> bytes:
    given: dict[str, object] = {"name": name, "shape": [COUNT], "datatype": "BYTES"}
    if not raw:
        given["contents"] = {"bytes_contents": [b""] * COUNT}
    asked = message("inference.ModelInferRequest")(
        model_name=model, inputs=[given], raw_input_contents=[EMPTY] if raw else []
    )
    return bytes(asked.SerializeToString())


async def test_rest_refuses_a_datatype_that_the_model_lacks_before_decoding(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    body, headers = rest_body()

    for _ in range(2):  # the second time its plan is cached
        request = caller.http("POST", "/v2/models/add1/infer", body, headers)
        await request.answered.wait()

        assert request.answer is not None
        assert request.answer.status == 400
        assert "data-type is 'BYTES', but model 'add1' expects 'FP32'" in request.answer.error
    assert not decoding


async def test_rest_refuses_an_unknown_name_before_decoding(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    body, headers = rest_body(name="OTHER")
    request = caller.http("POST", "/v2/models/echo_BYTES_1/infer", body, headers)
    await request.answered.wait()

    assert request.answer is not None
    assert request.answer.status == 400
    assert "missing required input(s) ['INPUT0']" in request.answer.error
    assert not decoding


@pytest.mark.parametrize("raw", [True, False])
async def test_grpc_refuses_a_datatype_that_the_model_lacks_before_decoding(
    caller: Caller, decoding: list[threading.Thread], raw: bool
) -> None:
    call = caller.call(OIP + b"ModelInfer", rpc_message("add1", raw=raw))
    await call.answered.wait()

    assert call.code == 3
    assert "data-type is 'BYTES', but model 'add1' expects 'FP32'" in call.error
    assert not decoding


async def test_rest_decodes_many_elements_off_the_loop(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    body, headers = rest_body()
    request = caller.http("POST", "/v2/models/echo_BYTES_1/infer", body, headers)
    await request.answered.wait()

    assert request.answer is not None
    assert request.answer.status == 200
    assert decoding
    assert threading.main_thread() not in decoding


async def test_grpc_decodes_many_elements_off_the_loop(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    call = caller.call(OIP + b"ModelInfer", rpc_message("echo_BYTES_1", raw=True))
    await call.answered.wait()

    assert call.code == 0
    assert decoding
    assert threading.main_thread() not in decoding


async def test_a_grpc_stream_decodes_many_elements_off_the_loop_and_in_order(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    call = FakeStreamCall()
    for received in (rpc_message("echo_BYTES_1", raw=True), rpc_message("nope", raw=True)):
        call.requests.put_nowait(received)
    call.requests.put_nowait(None)
    await asyncio.wait_for(
        caller.application.rpc[OIP + b"ModelStreamInfer"].handler(call),  # type: ignore[arg-type,misc]
        30,
    )

    answers = [
        message("inference.ModelStreamInferResponse").FromString(call.responses.get_nowait())
        for _ in range(2)
    ]
    assert len(answers[0].infer_response.raw_output_contents[0]) == len(EMPTY)
    assert "nope" in answers[1].error_message
    assert decoding
    assert threading.main_thread() not in decoding
