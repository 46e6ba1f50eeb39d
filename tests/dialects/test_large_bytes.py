"""Large BYTES tensors are checked against the model before they are decoded, off the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from fake_models import OIP, Caller, FakeStreamCall

from backline.dialects.input_plan import MAX_BYTES_ELEMENTS
from backline.dialects.json_data import encode_data
from backline.dialects.off_loop import LARGE, is_long
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.planning import PlanBuilder
from backline_client.protos import message
from backline_client.values import tensor as tensors
from backline_client.values.datatypes import DataType
from backline_client.values.errors import PayloadTooLarge

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


def rest_body(
    datatype: str = "BYTES", name: str = "INPUT0", count: int = COUNT
) -> tuple[bytes, dict[bytes, bytes]]:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": [count],
                    "datatype": datatype,
                    "parameters": {"binary_data_size": 4 * count},
                }
            ]
        }
    ).encode()
    return header + bytes(4 * count), {b"inference-header-content-length": b"%d" % len(header)}


def rpc_message(model: str, *, raw: bool, name: str = "INPUT0", count: int = COUNT) -> bytes:
    given: dict[str, object] = {"name": name, "shape": [count], "datatype": "BYTES"}
    if not raw:
        given["contents"] = {"bytes_contents": [b""] * count}
    asked = message("inference.ModelInferRequest")(
        model_name=model, inputs=[given], raw_input_contents=[bytes(4 * count)] if raw else []
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


#: More elements than a request may have.
TOO_MANY = MAX_BYTES_ELEMENTS + 1


async def test_rest_refuses_too_many_elements_before_decoding(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    body, headers = rest_body(count=TOO_MANY)
    request = caller.http("POST", "/v2/models/echo_BYTES_1/infer", body, headers)
    await request.answered.wait()

    assert request.answer is not None
    assert request.answer.status == 413
    assert f"have {TOO_MANY} elements" in request.answer.error
    assert not decoding


async def test_grpc_refuses_too_many_elements_before_decoding(
    caller: Caller, decoding: list[threading.Thread]
) -> None:
    call = caller.call(OIP + b"ModelInfer", rpc_message("echo_BYTES_1", raw=True, count=TOO_MANY))
    await call.answered.wait()

    assert call.code == 8
    assert f"have {TOO_MANY} elements" in call.error
    assert not decoding


@pytest.mark.parametrize("path", ["/v2/models/echo_BYTES_1/generate", "/models/echo_BYTES_1"])
async def test_json_by_names_of_inputs_refuses_too_many_elements(caller: Caller, path: str) -> None:
    answer = await caller.post_large(path, b'{"INPUT0":["' + b'","' * MAX_BYTES_ELEMENTS + b'"]}')

    assert answer.status == 413
    assert f"have {TOO_MANY} elements" in answer.error


def test_the_elements_of_all_inputs_count_together() -> None:
    builder = PlanBuilder("add1", "", None)
    plan = InferPlan(
        tuple(builder.add_input(name, "BYTES", (MAX_BYTES_ELEMENTS // 2 + 1,), None) for name in "ab")
    )

    with pytest.raises(PayloadTooLarge, match=f"have {MAX_BYTES_ELEMENTS + 2} elements"):
        builder.finish(plan)


@pytest.mark.parametrize("character", ['"', "\0", "é"])
def test_a_long_element_is_encoded_as_json_in_pieces_off_the_loop(character: str) -> None:
    text = character * (3 * LARGE)
    tensor = tensors.Tensor("y", DataType.BYTES, (1,), np.array([text.encode()], object))
    (encoded,) = encode_data(tensor)

    assert is_long(tensor)
    assert isinstance(encoded, msgspec.Raw)
    assert bytes(encoded) == msgspec.json.encode(text)
