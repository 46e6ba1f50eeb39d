"""Inference over REST: JSON and binary tensors, parameters, and errors."""

from __future__ import annotations

import gc
import json
import struct
import weakref

import numpy as np
import pytest
from fake_models import Caller, HttpAnswer

from backline_client.values.messages import SequenceStep

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


def binary_input(size: int = 64, **changes: object) -> dict[str, object]:
    return {
        "name": "INPUT0",
        "shape": [1, 16],
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    } | changes


def json_input(**changes: object) -> dict[str, object]:
    return {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": ROW.tolist()} | changes


def binary_parts(answer: HttpAnswer) -> list[bytes]:
    offset = int(answer.fields[b"inference-header-content-length"])
    parts = []
    for output in answer.json["outputs"]:
        size = output["parameters"]["binary_data_size"]
        parts.append(answer.body[offset : offset + size])
        offset += size
    assert offset == len(answer.body)
    return parts


@pytest.mark.parametrize("body_type", [bytes, bytearray, memoryview])
def test_binary_in_binary_out(caller: Caller, body_type: type) -> None:
    header = json.dumps({"inputs": [binary_input()], "parameters": {"binary_data_output": True}}).encode()
    for _ in range(2):  # the plan of the second one is cached
        answer = caller.post("/v2/models/add1/infer", body_type(header + ROW.tobytes()), len(header))
        assert answer.status == 200
        assert answer.fields[b"content-type"] == b"application/octet-stream"
        assert answer.json == {
            "model_name": "add1",
            "model_version": "2",
            "outputs": [
                {
                    "name": "OUTPUT0",
                    "datatype": "FP32",
                    "shape": [1, 16],
                    "parameters": {"binary_data_size": 64},
                }
            ],
        }
        assert binary_parts(answer) == [(ROW + 1).tobytes()]


@pytest.mark.parametrize("data", [ROW.tolist(), ROW.reshape(-1).tolist(), list(range(16))])
def test_json_nested_or_flat_in_flat_out(caller: Caller, data: object) -> None:
    answer = caller.infer("add1/versions/1", {"id": "seven", "inputs": [json_input(data=data)]})
    assert answer.status == 200
    assert answer.fields[b"content-type"] == b"application/json"
    assert answer.json == {
        "id": "seven",
        "model_name": "add1",
        "model_version": "1",
        "outputs": [
            {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 16], "data": (ROW + 1).reshape(-1).tolist()}
        ],
    }


def test_json_and_binary_mixed_both_ways(caller: Caller) -> None:
    document = {
        "inputs": [
            {"name": "A", "shape": [2], "datatype": "INT32", "data": [5, 6]},
            {"name": "B", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
        ],
        "outputs": [{"name": "SUM", "parameters": {"binary_data": True}}, {"name": "DIFFERENCE"}],
    }
    answer = caller.infer("pair", document, np.array([1, 2], np.int32).tobytes())
    assert [output.get("data") for output in answer.json["outputs"]] == [None, [4, 4]]
    assert answer.body.endswith(np.array([6, 8], np.int32).tobytes())


def test_requested_outputs_only(caller: Caller) -> None:
    inputs = [{"name": name, "shape": [2], "datatype": "INT32", "data": [5, 6]} for name in "AB"]
    answer = caller.infer("pair", {"inputs": inputs, "outputs": [{"name": "DIFFERENCE"}]})
    assert [output["name"] for output in answer.json["outputs"]] == ["DIFFERENCE"]


def test_the_default_of_the_request_covers_only_outputs_that_are_not_listed(caller: Caller) -> None:
    inputs = [{"name": name, "shape": [2], "datatype": "INT32", "data": [5, 6]} for name in "AB"]
    document = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    listed = {"outputs": [{"name": "SUM", "parameters": {"binary_data": True}}, {"name": "DIFFERENCE"}]}

    answers = [caller.infer("pair", document), caller.infer("pair", document | listed)]

    assert [[output.get("data") for output in answer.json["outputs"]] for answer in answers] == [
        [None, None],
        [None, [0, 0]],
    ]


def test_bytes_in_binary_form(caller: Caller) -> None:
    elements = [b"", "\u00e4\u00df".encode(), b"\x00\xff"]
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    document = {
        "inputs": [
            {
                "name": "INPUT0",
                "shape": [3],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(raw)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    assert binary_parts(caller.infer("echo_BYTES_1", document, raw)) == [raw]


def test_bytes_that_are_not_utf8_need_binary_form(caller: Caller) -> None:
    raw = struct.pack("<I", 1) + b"\xff"
    document = {
        "inputs": [
            {"name": "INPUT0", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
        ]
    }
    answer = caller.infer("echo_BYTES_1", document, raw)
    assert answer.status == 400
    assert "not UTF-8" in answer.error


def one_input(datatype: str, elements: str, id: str = "") -> bytes:
    """A request whose only input has these elements, separated by commas, as data."""
    shape = elements.count(",") + 1
    start = f'{{"id":"{id}","inputs":[{{"name":"INPUT0","shape":[{shape}],"datatype":"{datatype}","data":['
    return (start + elements + "]}]}").encode()


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_nan_and_infinity_pass_as_words(caller: Caller, datatype: str) -> None:
    """As Triton 2.51 reads and writes them."""
    body = one_input(datatype, "NaN,Infinity,-Infinity,1.5,0", id="NaN")

    answer = caller.http("POST", f"/v2/models/echo_{datatype}_1/infer", body).answer

    assert answer.status == 200, answer.body
    assert answer.body.endswith(b'"data":[NaN,Infinity,-Infinity,1.5,0.0]}]}')
    assert b'"id":"NaN"' in answer.body


async def test_words_pass_in_large_lists_and_leave_strings_alone(caller: Caller) -> None:
    elements = ",".join(["NaN", "-Infinity", "0.25"] * 30_000)
    body = one_input("FP64", elements, id='\\"NaN')

    answer = await caller.post_large("/v2/models/echo_FP64_1/infer", body)

    assert answer.status == 200, answer.body[:300]
    assert answer.body.endswith(f'"data":[{elements}]}}]}}'.encode())
    assert answer.json["id"] == '"NaN'


@pytest.mark.parametrize("value", ["-NaN", "nan", "inf", "NaNa", "Infinity1", "9e999", '"nan"', '"1"'])
def test_other_words_are_no_numbers(caller: Caller, value: str) -> None:
    answer = caller.http("POST", "/v2/models/echo_FP64_1/infer", one_input("FP64", f"NaN,{value}")).answer

    assert answer.status == 400


@pytest.mark.parametrize("datatype", ["INT32", "BOOL", "BYTES"])
def test_datatypes_without_nan_refuse_it(caller: Caller, datatype: str) -> None:
    answer = caller.http("POST", f"/v2/models/echo_{datatype}_1/infer", one_input(datatype, "NaN")).answer

    assert answer.status == 400
    assert "input 'INPUT0'" in answer.error


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_binary_only(caller: Caller, datatype: str) -> None:
    model = f"echo_{datatype}_1"
    answer = caller.infer(
        model, {"inputs": [{"name": "INPUT0", "shape": [1], "datatype": datatype, "data": [1.0]}]}
    )
    assert answer.status == 400
    assert (
        answer.error
        == f"receiving {datatype} data via JSON is not supported. Please use the binary data format for "
        "input INPUT0"
    )
    binary = {
        "inputs": [
            {"name": "INPUT0", "shape": [1], "datatype": datatype, "parameters": {"binary_data_size": 2}}
        ]
    }
    answer = caller.infer(model, binary, b"\x00\x3c")
    assert (
        answer.error
        == f"sending {datatype} data via JSON is not supported. Please use the binary data format for "
        "output OUTPUT0"
    )
    answer = caller.infer(model, binary | {"parameters": {"binary_data_output": True}}, b"\x00\x3c")
    assert binary_parts(answer) == [b"\x00\x3c"]


@pytest.mark.parametrize("shape", [[0], [0, 16], [2, 0, 3]])
def test_shapes_without_elements(caller: Caller, shape: list[int]) -> None:
    model = f"echo_FP32_{len(shape)}"
    answer = caller.infer(
        model, {"inputs": [{"name": "INPUT0", "shape": shape, "datatype": "FP32", "data": []}]}
    )
    assert answer.json["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": shape, "data": []}]
    document = {
        "inputs": [
            {"name": "INPUT0", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 0}}
        ],
        "parameters": {"binary_data_output": True},
    }
    assert caller.infer(model, document, b"").json["outputs"][0]["shape"] == shape


def test_rank_zero(caller: Caller) -> None:
    for data in (5.5, [5.5]):
        answer = caller.infer(
            "echo_FP32_0", {"inputs": [{"name": "INPUT0", "shape": [], "datatype": "FP32", "data": data}]}
        )
        assert answer.json["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": [], "data": [5.5]}]


def test_classification_with_labels(caller: Caller) -> None:
    scores = {"name": "SCORES", "shape": [2, 4], "datatype": "FP32", "data": [0.1, 0.9, 0.5, 0.7, 3, 3, 1, 2]}
    document = {"inputs": [scores], "outputs": [{"name": "CLASSES", "parameters": {"classification": 2}}]}
    (output,) = caller.infer("animals", document).json["outputs"]
    assert output == {
        "name": "CLASSES",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.900000:1:dog", "0.700000:3", "3.000000:0:cat", "3.000000:1:dog"],
    }


def test_classification_of_more_classes_than_there_are(caller: Caller) -> None:
    scores = {"name": "SCORES", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}
    document = {"inputs": [scores], "outputs": [{"name": "CLASSES", "parameters": {"classification": 10}}]}
    assert caller.infer("animals", document).json["outputs"][0]["shape"] == [1, 4]


@pytest.mark.parametrize("count", [0, -1, True, "2", 1.5])
def test_classification_must_be_a_count(caller: Caller, count: object) -> None:
    scores = {"name": "SCORES", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, 3]}
    document = {"inputs": [scores], "outputs": [{"name": "CLASSES", "parameters": {"classification": count}}]}
    assert "'classification' of output 'CLASSES'" in caller.infer("animals", document).error


def test_classification_of_strings_is_refused(caller: Caller) -> None:
    inputs = [{"name": "INPUT0", "shape": [1], "datatype": "BYTES", "data": ["a"]}]
    answer = caller.infer(
        "echo_BYTES_1",
        {"inputs": inputs, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]},
    )
    assert answer.status == 400
    assert "unsupported type 'BYTES'" in answer.error


def test_raw_binary_request(caller: Caller) -> None:
    answer = caller.post("/v2/models/add1/infer", ROW.tobytes(), 0)
    assert answer.json["outputs"][0]["shape"] == [1, 16]
    assert binary_parts(answer) == [(ROW + 1).tobytes()]
    answer = caller.post("/v2/models/echo_INT16_1/infer", b"\1\0\2\0\3\0", 0)
    assert answer.json["outputs"][0]["shape"] == [3]


def test_raw_binary_request_of_bytes(caller: Caller) -> None:
    answer = caller.post("/v2/models/echo_BYTES_1/infer", b"hello", 0)
    assert binary_parts(answer) == [b"\5\0\0\0hello"]


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        (
            "pair",
            b"",
            (
                "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'pair' "
                "model configuration"
            ),
        ),
        (
            "echo_FP32_2",
            b"",
            (
                "The shape of the raw input 'INPUT0' can not be deduced because there are more than one "
                "variable-sized dimension"
            ),
        ),
        (
            "add1",
            b"123",
            "input byte size mismatch for input 'raw_input' for model 'add1'. Expected 64, got 3",
        ),
        ("echo_INT16_1", b"123", "input byte size mismatch for input 'raw_input'"),
    ],
)
def test_raw_binary_request_that_does_not_fit(caller: Caller, model: str, body: bytes, text: str) -> None:
    answer = caller.post(f"/v2/models/{model}/infer", body, 0)
    assert answer.status == 400
    assert text in answer.error


def test_parameters_reach_the_model(caller: Caller) -> None:
    parameters = {
        "mood": "blue",
        "tempo": 120,
        "swing": 0.6,
        "loud": True,
        "sequence_id": 7,
        "sequence_start": True,
        "priority": 3,
    }
    assert caller.infer("add1", {"inputs": [json_input()], "parameters": parameters}).status == 200
    request = caller.engine.find("add1").serving.queue.seen[-1].request
    assert request.priority == 3
    assert request.parameters == {"mood": "blue", "tempo": 120, "swing": 0.6, "loud": True}
    assert request.sequence == SequenceStep(7, start=True)


@pytest.mark.parametrize(("parameter", "timeout"), [(2_500_000, 2.5), (0, None)])
def test_the_timeout_in_microseconds_is_the_time_that_a_request_may_queue(
    caller: Caller, parameter: int, timeout: float | None
) -> None:
    caller.infer("add1", {"inputs": [json_input()], "parameters": {"timeout": parameter}})
    request = caller.engine.find("add1").serving.queue.seen[-1].request
    assert (request.timeout, request.deadline) == (timeout, None)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"triton_x": 1},
            (
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be "
                "specified."
            ),
        ),
        ({"triton_enable_empty_final_response": True}, "parameter keys starting with 'triton_' are reserved"),
        ({"timeout": -1}, "parameter 'timeout' must be an unsigned integer"),
        ({"timeout": 2**64}, "parameter 'timeout' must be an unsigned integer"),
        ({"priority": "high"}, "parameter 'priority' must be an unsigned integer"),
        ({"binary_data_output": 1}, "parameter 'binary_data_output' must be true or false"),
        ({"sequence_id": -1}, "parameter 'sequence_id' must be an unsigned integer"),
        ({"sequence_end": "yes"}, "parameter 'sequence_end' must be true or false"),
        ({"sequence_start": "x" * 1000}, f"true or false, got 'xxx{'x' * 60}..."),
        ({"mood": 2**64}, "parameter 'mood' must fit in 64 bits, got 18446744073709551616"),
        ({"mood": -(2**63) - 1}, "parameter 'mood' must fit in 64 bits"),
        ({"mood": None}, "$.parameters"),
        ({"mood": ["blue"]}, "$.parameters"),
    ],
)
def test_faulty_parameters(caller: Caller, parameters: dict[str, object], text: str) -> None:
    answer = caller.infer("add1", {"inputs": [json_input()], "parameters": parameters})
    assert answer.status == 400
    assert text in answer.error


@pytest.mark.parametrize(
    ("document", "binary", "text"),
    [
        ({}, None, "missing required field `inputs`"),
        ({"inputs": []}, None, "expected 1 inputs but got 0 inputs for model 'add1'"),
        (
            {"inputs": [json_input(shape=[1, "16"])]},
            None,
            "Expected `int`, got `str` - at `$.inputs[0].shape[1]`",
        ),
        (
            {"inputs": [json_input(datatype="FP31")]},
            None,
            "invalid datatype for input INPUT0: unknown datatype 'FP31'",
        ),
        (
            {"inputs": [json_input(datatype="INT32", data=list(range(16)))]},
            None,
            "data-type is 'INT32', but model 'add1' expects 'FP32'",
        ),
        ({"inputs": [json_input(shape=[1, 17])]}, None, "Shape does not match true shape of 'data' field"),
        ({"inputs": [json_input(shape=[1, 15])]}, None, "Shape does not match true shape of 'data' field"),
        (
            {"inputs": [json_input(shape=[2, 8])]},
            None,
            "input 'INPUT0' for model 'add1'. Expected [-1,16], got [2,8].",
        ),
        ({"inputs": [json_input(shape=[-1, 16])]}, None, "negative dimension"),
        ({"inputs": [json_input(shape=[2**64, 16])]}, None, "which is too large"),
        (
            {"inputs": [json_input(shape=[2**36, 16])]},
            None,
            "Shape does not match true shape of 'data' field",
        ),
        (
            {"inputs": [json_input(shape=[1, 2**63 - 1], data=[1.0])]},
            None,
            "Shape does not match true shape of 'data' field",
        ),
        (
            {"inputs": [json_input(shape=[2**32, 2**32, 1])]},
            None,
            "Shape does not match true shape of 'data' field",
        ),
        ({"inputs": [json_input(shape=[0, 2**40, 2**40], data=[])]}, None, "which is too large"),
        ({"inputs": [json_input(shape=[1] * 100)]}, None, "100 dimensions"),
        ({"inputs": [json_input(), json_input()]}, None, "input 'INPUT0' already exists in request"),
        (
            {"inputs": [json_input()], "outputs": [{"name": "OUTPUT0"}] * 2},
            None,
            "output 'OUTPUT0' already exists in request",
        ),
        (
            {"inputs": [json_input()], "outputs": [{"name": "OUTPUT1"}]},
            None,
            "unexpected inference output 'OUTPUT1' for model 'add1'",
        ),
        ({"inputs": [binary_input(data=[1])]}, b"", "Input must set only one of the following fields"),
        (
            {"inputs": [{"name": "INPUT0", "shape": [1, 16], "datatype": "FP32"}]},
            None,
            "Input must set only one of the following fields",
        ),
        (
            {"inputs": [binary_input(60)]},
            bytes(60),
            "input byte size mismatch for input 'INPUT0' for model 'add1'. Expected 64, got 60",
        ),
        ({"inputs": [binary_input(-64)]}, bytes(64), "must be a number of bytes"),
        (
            {"inputs": [binary_input()]},
            bytes(60),
            "unexpected size for input 'INPUT0', expecting 4 additional bytes for model 'add1'",
        ),
        ({"inputs": [binary_input()]}, bytes(65), "unexpected additional input data for model 'add1'"),
        ({"inputs": [json_input()]}, b"x", "unexpected additional input data for model 'add1'"),
        (
            {"inputs": [json_input(data=["1"] * 16)]},
            None,
            "Expected `float`, got `str` - at `$.inputs[0].data[0]`",
        ),
        ({"inputs": [json_input(data=[True] * 16)]}, None, "Expected `float`, got `bool`"),
        ({"inputs": [json_input(data=[1e300] * 16)]}, None, "FP32 cannot hold"),
        ({"inputs": [json_input(data={"a": 1})]}, None, "attempt to access JSON non-array as array"),
        ({"inputs": [json_input(data=[[1, 2], 3] + [4] * 13)]}, None, "Expected `array`, got `int`"),
        ({"inputs": [json_input(data=None)]}, None, "data"),
        ({"inputs": "INPUT0"}, None, "Expected `array`, got `str` - at `$.inputs`"),
        ({"inputs": [json_input()], "id": 7}, None, "Expected `str`, got `int` - at `$.id`"),
    ],
)
def test_faulty_requests_are_400(caller: Caller, document: object, binary: bytes | None, text: str) -> None:
    answer = caller.infer("add1", document, binary)
    assert answer.status == 400, answer.error
    assert text in answer.error


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("INT8", [128], "Expected `int` <= 127"),
        ("INT8", [-129], "Expected `int` >= -128"),
        ("UINT8", [-1], "Expected `int` >= 0"),
        ("INT64", [2**63], "Expected `int` <= 9223372036854775807"),
        ("UINT64", [2**64], "UINT64 cannot hold"),
        ("UINT64", [-1], "Expected `int` >= 0"),
        ("INT32", [1.0], "Expected `int`, got `float`"),
        ("INT32", [True], "Expected `int`, got `bool`"),
        ("BOOL", [1], "Expected `bool`, got `int`"),
        ("BYTES", [1], "Expected `str`, got `int`"),
        ("BYTES", ["a", "b"], "unexpected number of string elements 2 for inference input"),
        ("BYTES", [], "expected 1 string elements for inference input"),
    ],
)
def test_values_that_do_not_fit_the_datatype(
    caller: Caller, datatype: str, data: list[object], text: str
) -> None:
    document = {"inputs": [{"name": "INPUT0", "shape": [1], "datatype": datatype, "data": data}]}
    answer = caller.infer(f"echo_{datatype}_1", document)
    assert answer.status == 400
    assert text.lower() in answer.error.lower()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff",
        b'{"inputs":[{"name":"\xff"}]}',
        b'{"inputs":' + b"[" * 1_000_000,
        b'{"parameters":' + b"[" * 1_000_000,
        b'{"surprise":' + b"[" * 1_000_000,
        b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","data":'
        + b"[" * 1_000_000
        + b"]" * 1_000_000
        + b"}]}",
        b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","data":'
        + b"[" * 200
        + b"1"
        + b"]" * 200
        + b"}]}",
        b'{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","data":[NaN' + b",1" * 15 + b"}]}",
        b'{"id":"\\ud800","inputs":[]}',
        b'{"inputs":[],"parameters":{"a":[1]},"more":"\xed\xa0\x80"}',
        b'{"inputs":[],"parameters":{"a":[1]},"more":',
        b'{"inputs":[],"parameters":{"a":[1]},"more":[NaN]}',
        b'{"inputs":[],"parameters":{"a":[1]},"parameters":5}',
        b'{"inputs":[],"parameters":{"a":[1]},"more":' + b"[" * 20_000,
    ],
)
async def test_malformed_json_is_400(caller: Caller, body: bytes) -> None:
    assert (await caller.post_large("/v2/models/add1/infer", body)).status == 400


@pytest.mark.parametrize("length", [b"-1", b"x", b"9" * 30, b"1000000", b"", b" 5", b"5, 5"])
def test_faulty_header_length(caller: Caller, length: bytes) -> None:
    answer = caller.http(
        "POST", "/v2/models/add1/infer", b"{}", {b"inference-header-content-length": length}
    ).answer
    assert answer.status == 400
    assert "header" in answer.error


def test_header_length_beyond_the_body_in_tritons_words(caller: Caller) -> None:
    assert (
        caller.post("/v2/models/add1/infer", b"{}", 3).error
        == "inference header size should be in range (0, 2), got: 3"
    )


def test_shared_memory_is_501(caller: Caller) -> None:
    answer = caller.infer(
        "add1",
        {"inputs": [json_input(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 64})]},
    )
    assert answer.status == 501
    assert "Client shared memory is disabled" in answer.error


def test_unknown_model_and_version(caller: Caller) -> None:
    answer = caller.infer("nope", {"inputs": [json_input()]})
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'nope' is not found")
    answer = caller.infer("add1/versions/9", {"inputs": [json_input()]})
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'add1' version 9 is not found")
    assert (
        caller.infer("empty", {"inputs": [json_input()]}).error
        == "Request for unknown model: 'empty' has no available versions"
    )


def test_model_that_is_not_ready_is_503_with_retry_after(caller: Caller) -> None:
    answer = caller.infer("loading", {"inputs": [json_input()]})
    assert answer.status == 503
    assert answer.fields[b"retry-after"] == b"1"
    assert "version 1 is not at ready state" in answer.error


def test_full_queue_is_503_with_retry_after(caller: Caller) -> None:
    caller.engine.find("add1").serving.queue.full = True
    answer = caller.infer("add1", {"inputs": [json_input()]})
    assert (answer.status, answer.fields[b"retry-after"], answer.error) == (
        503,
        b"2",
        "Exceeds maximum queue size",
    )


def test_failing_model(caller: Caller) -> None:
    answer = caller.infer("failing", {"inputs": [json_input()]})
    assert (answer.status, answer.error) == (500, "the runtime failed: out of luck")


def test_unexpected_exception_goes_only_to_the_log(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    answer = caller.infer("broken", {"inputs": [json_input()]})
    assert answer.status == 500
    assert answer.error == "internal error: the server failed to handle this request, see its log"
    assert "Traceback" in caplog.text


def test_answer_comes_when_the_model_has_run(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    request = caller.http("POST", "/v2/models/add1/infer", json.dumps({"inputs": [json_input()]}).encode())
    assert request.answer is None
    queue.release()
    assert request.answer.status == 200


def test_disconnect_cancels_the_request(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    request = caller.http("POST", "/v2/models/add1/infer", json.dumps({"inputs": [json_input()]}).encode())
    (asked,) = queue.held
    request.on_abandon()
    assert asked.cancelled
    asked.complete(None, None)  # as if an engine had already started it
    assert request.answer is None


def test_no_cycle_keeps_a_request_alive(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    request = caller.http("POST", "/v2/models/add1/infer", json.dumps({"inputs": [json_input()]}).encode())
    gc.disable()
    try:
        queue.release()
        queue.seen.clear()
        alive = weakref.ref(request.answer)
        del request
        assert alive() is None
    finally:
        gc.enable()


def test_large_tensors_are_not_copied(caller: Caller) -> None:
    data = np.arange(100_000, dtype=np.float32)
    document = {
        "inputs": [
            {
                "name": "INPUT0",
                "shape": [100_000],
                "datatype": "FP32",
                "parameters": {"binary_data_size": data.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(document).encode()
    body = header + data.tobytes()
    request = caller.http(
        "POST",
        "/v2/models/echo_FP32_1/infer",
        body,
        {b"inference-header-content-length": b"%d" % len(header)},
    )
    received = np.frombuffer(body, np.uint8)
    sent = np.frombuffer(request.buffers[1], np.uint8)
    assert np.shares_memory(received, sent)


def test_requests_that_differ_in_the_header_are_not_confused(caller: Caller) -> None:
    answers = []
    for raw in (b"\1\2", b"\1\2\3"):
        given = {
            "name": "INPUT0",
            "shape": [len(raw)],
            "datatype": "INT8",
            "parameters": {"binary_data_size": len(raw)},
        }
        answers.append(caller.infer("echo_INT8_1", {"inputs": [given]}, raw))
    assert [answer.json["outputs"][0]["data"] for answer in answers] == [[1, 2], [1, 2, 3]]


@pytest.mark.parametrize("id", ["1", "two words", "a\\", 'a"b', "\u00e4", "", "x,y", "\n", "a" * 2000])
def test_id_comes_back(caller: Caller, id: str) -> None:
    for separators in ((",", ":"), (", ", ": ")):
        for _ in range(2):
            header = json.dumps({"id": id, "inputs": [binary_input()]}, separators=separators).encode()
            answer = caller.post("/v2/models/add1/infer", header + ROW.tobytes(), len(header))
            assert answer.json.get("id", "") == id
            assert answer.json["outputs"][0]["data"] == list(range(1, 17))
            header = json.dumps({"id": "other", "inputs": [binary_input()]}, separators=separators).encode()
            assert (
                caller.post("/v2/models/add1/infer", header + ROW.tobytes(), len(header)).json["id"]
                == "other"
            )
