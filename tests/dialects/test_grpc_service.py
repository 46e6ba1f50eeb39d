"""The unary methods of inference.GRPCInferenceService, health checking and reflection."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import numpy as np
import pytest
from fake_models import OIP, Caller, FakeStreamCall, FakeUnaryCall, arrived_at

from backline.engine.model import ModelState
from backline_client.protos import message, pool
from backline_client.values.datatypes import DataType

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)


def row_input(**changes: object) -> dict[str, object]:
    return {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16]} | changes


def infer_fields(**changes: object) -> dict[str, object]:
    return {"model_name": "add1", "inputs": [row_input()], "raw_input_contents": [ROW.tobytes()]} | changes


def test_server_questions(caller: Caller) -> None:
    assert caller.rpc("ServerLive").live is True
    assert caller.rpc("ServerReady").ready is False
    caller.engine.find("loading").state = ModelState.READY
    assert caller.rpc("ServerReady").ready is True
    assert caller.rpc("ServerMetadata").name == "backline"
    assert list(caller.rpc("ServerMetadata").extensions) == caller.get("/v2").json["extensions"]


def test_model_ready(caller: Caller) -> None:
    assert caller.rpc("ModelReady", name="add1", version="1").ready is True
    assert caller.rpc("ModelReady", name="loading").ready is False
    assert caller.rpc("ModelReady", name="nope").ready is False
    assert caller.rpc("ModelReady", name="add1", version="9").ready is False


def test_model_metadata(caller: Caller) -> None:
    metadata = caller.rpc("ModelMetadata", name="add1")
    assert list(metadata.versions) == ["1", "2"]
    assert list(metadata.inputs[0].shape) == [-1, 16]
    assert metadata.outputs[0].datatype == "FP32"
    assert caller.rpc_call("ModelMetadata", name="loading").code == 14


def test_model_config(caller: Caller) -> None:
    config = caller.rpc("ModelConfig", name="add1").config
    assert config.max_batch_size == 64
    assert list(config.input[0].dims) == [16]
    assert config.HasField("dynamic_batching")


async def test_model_statistics(caller: Caller) -> None:
    caller.engine.find("add1", "2").statistics.record_batch([arrived_at(0)], 3, 100, 110, 150, 160)
    (entry,) = (await caller.rpc_later("ModelStatistics", name="add1", version="2")).model_stats
    assert (entry.inference_count, entry.execution_count, entry.batch_stats[0].batch_size) == (3, 1, 3)
    assert entry.response_stats["0"].success.count == 1
    everything = (await caller.rpc_later("ModelStatistics")).model_stats
    assert [entry.version for entry in everything if entry.name == "add1"] == ["1", "2"]
    assert "pair" in [entry.name for entry in everything]


def test_repository_index(caller: Caller) -> None:
    entries = {(entry.name, entry.version): entry.state for entry in caller.rpc("RepositoryIndex").models}
    assert entries["loading", "1"] == "LOADING"
    assert ("loading", "1") not in {
        (entry.name, entry.version) for entry in caller.rpc("RepositoryIndex", ready=True).models
    }
    assert caller.rpc_call("RepositoryIndex", repository_name="mine").code == 12


def test_all_methods_of_the_service_are_there(caller: Caller) -> None:
    for method in pool().FindServiceByName("inference.GRPCInferenceService").methods:
        assert OIP + method.name.encode() in caller.application.rpc


@pytest.mark.parametrize(
    ("method", "what"), [("TraceSetting", "tracing"), ("LogSettings", "the logging extension")]
)
def test_methods_not_served_are_unimplemented(caller: Caller, method: str, what: str) -> None:
    call = caller.rpc_call(method)
    assert call.code == 12
    assert call.error.startswith(f"{what} is not supported by this server")


@pytest.mark.parametrize("received", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xff"])
@pytest.mark.parametrize("method", [b"ModelReady", b"ModelInfer", b"RepositoryIndex"])
def test_messages_that_are_malformed(caller: Caller, method: bytes, received: bytes) -> None:
    assert caller.call(OIP + method, received).code == 3


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_infer_with_raw_contents(caller: Caller, kind: type) -> None:
    for id in ("", "seven", "\u00e4" * 100):
        received = message("inference.ModelInferRequest")(**infer_fields(id=id)).SerializeToString()
        call = caller.call(OIP + b"ModelInfer", kind(received))
        response = message("inference.ModelInferResponse").FromString(call.message)
        assert (response.model_name, response.model_version, response.id) == ("add1", "2", id)
        assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
            ("OUTPUT0", "FP32", [1, 16])
        ]
        assert list(response.raw_output_contents) == [(ROW + 1).tobytes()]


def test_infer_with_typed_contents_answers_raw(caller: Caller) -> None:
    given = row_input(contents={"fp32_contents": ROW.reshape(-1).tolist()})
    response = caller.rpc_infer(model_name="add1", inputs=[given])
    assert list(response.raw_output_contents) == [(ROW + 1).tobytes()]
    assert not response.outputs[0].HasField("contents")


def test_infer_of_two_inputs_and_requested_outputs(caller: Caller) -> None:
    pair = [{"name": name, "datatype": "INT32", "shape": [2]} for name in "AB"]
    raw = [np.array(values, np.int32).tobytes() for values in ([5, 6], [1, 2])]
    response = caller.rpc_infer(model_name="pair", inputs=pair, raw_input_contents=raw)
    assert [output.name for output in response.outputs] == ["SUM", "DIFFERENCE"]
    assert [list(np.frombuffer(content, np.int32)) for content in response.raw_output_contents] == [
        [6, 8],
        [4, 4],
    ]
    response = caller.rpc_infer(
        model_name="pair", inputs=pair, raw_input_contents=raw, outputs=[{"name": "DIFFERENCE"}]
    )
    assert [output.name for output in response.outputs] == ["DIFFERENCE"]


def test_version(caller: Caller) -> None:
    assert caller.rpc_infer(**infer_fields(model_version="1")).model_version == "1"
    call = caller.rpc_call("ModelInfer", **infer_fields(model_version="7"))
    assert (call.code, call.error) == (5, "Request for unknown model: 'add1' version 7 is not found")


def test_shapes_without_elements(caller: Caller) -> None:
    given = row_input(shape=[0, 5])
    for fields in ({}, {"raw_input_contents": [b""]}):
        response = caller.rpc_infer(model_name="echo_FP32_2", inputs=[given], **fields)
        assert (list(response.outputs[0].shape), list(response.raw_output_contents)) == ([0, 5], [b""])


def test_rank_zero(caller: Caller) -> None:
    response = caller.rpc_infer(
        model_name="echo_FP32_0", inputs=[row_input(shape=[])], raw_input_contents=[b"abcd"]
    )
    assert (list(response.outputs[0].shape), list(response.raw_output_contents)) == ([], [b"abcd"])


def test_large_message(caller: Caller) -> None:
    data = np.arange(200_000, dtype=np.float32)
    response = caller.rpc_infer(
        model_name="echo_FP32_1",
        id="big",
        inputs=[row_input(shape=[200_000])],
        raw_input_contents=[data.tobytes()],
    )
    assert response.raw_output_contents[0] == data.tobytes()
    assert response.id == "big"


def test_classification(caller: Caller) -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.7]], np.float32)
    response = caller.rpc_infer(
        model_name="animals",
        inputs=[{"name": "SCORES", "datatype": "FP32", "shape": [1, 4]}],
        outputs=[{"name": "CLASSES", "parameters": {"classification": {"int64_param": 1}}}],
        raw_input_contents=[scores.tobytes()],
    )
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [1, 1])
    assert response.raw_output_contents[0] == b"\x0e\0\0\x000.900000:1:dog"


def test_parameters(caller: Caller) -> None:
    parameters = {
        "mood": {"string_param": "blue"},
        "swing": {"double_param": 0.5},
        "loud": {"bool_param": True},
        "priority": {"uint64_param": 2},
        "timeout": {"int64_param": 1_000_000},
    }
    caller.rpc_infer(**infer_fields(parameters=parameters))
    request = caller.engine.find("add1").serving.queue.seen[-1].request
    assert request.parameters == {"mood": "blue", "swing": 0.5, "loud": True}
    assert request.priority == 2
    assert (request.timeout, request.deadline) == (1.0, None)


@pytest.mark.parametrize(("own", "timeout"), [(10_000_000, 10.0), (1, 1e-6), (0, None), (None, None)])
def test_the_deadline_of_the_call_and_the_timeout_in_the_queue_reach_the_model_apart(
    caller: Caller, own: int | None, timeout: float | None
) -> None:
    """The queue decides which one applies, as its policy may not let a request choose."""
    deadline = time.monotonic() + 5.0
    parameters = {} if own is None else {"timeout": {"int64_param": own}}
    received = message("inference.ModelInferRequest")(
        **infer_fields(parameters=parameters)
    ).SerializeToString()
    caller.application.rpc[OIP + b"ModelInfer"].handler(FakeUnaryCall(deadline=deadline), received)
    request = caller.engine.find("add1").serving.queue.seen[-1].request
    assert (request.deadline, request.timeout) == (deadline, timeout)


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"model_name": "nope"}, 5, "Request for unknown model: 'nope' is not found"),
        ({"model_name": "loading"}, 14, "is not at ready state"),
        ({"inputs": []}, 3, "expected 0 raw_input_contents"),
        ({"inputs": [], "raw_input_contents": []}, 3, "expected 1 inputs but got 0 inputs for model 'add1'"),
        ({"inputs": [row_input()] * 2}, 3, "input 'INPUT0' already exists in request"),
        ({"outputs": [{"name": "OUTPUT0"}] * 2}, 3, "output 'OUTPUT0' already exists in request"),
        ({"outputs": [{"name": "OUTPUT1"}]}, 3, "unexpected inference output 'OUTPUT1'"),
        ({"inputs": [row_input(datatype="FP31")]}, 3, "unknown datatype 'FP31'"),
        ({"inputs": [row_input(shape=[-1, 16])]}, 3, "negative dimension"),
        (
            {"inputs": [row_input(shape=[2**62, 4, 16])]},
            3,
            "input byte size mismatch for input 'INPUT0' for model 'add1'",
        ),
        ({"inputs": [row_input(shape=[0, 2**62, 4])]}, 3, "which is too large"),
        ({"inputs": [row_input(shape=[1] * 100)]}, 3, "100 dimensions"),
        ({"raw_input_contents": [b"x" * 60]}, 3, "Expected 64, got 60"),
        ({"raw_input_contents": [b"x" * 64] * 2}, 3, "expected 1 raw_input_contents"),
        ({"raw_input_contents": []}, 3, "has neither contents nor raw_input_contents"),
        (
            {"inputs": [row_input(contents={"fp32_contents": [1.0]})]},
            3,
            (
                "contents field must not be specified when using raw_input_contents for 'INPUT0' for model "
                "'add1'"
            ),
        ),
        (
            {"parameters": {"triton_x": {"bool_param": True}}},
            3,
            "parameter keys starting with 'triton_' are reserved",
        ),
        ({"parameters": {"timeout": {"string_param": "1"}}}, 3, "'timeout' must be an unsigned integer"),
        ({"parameters": {"mood": {}}}, 3, "parameter 'mood' has no value"),
        (
            {"inputs": [row_input(parameters={"shared_memory_region": {"string_param": "r"}})]},
            12,
            "Client shared memory is disabled",
        ),
    ],
)
def test_faulty_requests(caller: Caller, fields: dict[str, object], code: int, text: str) -> None:
    call = caller.rpc_call("ModelInfer", **infer_fields(**fields))
    assert text in call.error
    assert call.code == code


@pytest.mark.parametrize(
    ("datatype", "contents", "text"),
    [
        ("FP32", {"fp64_contents": [1.0]}, "must use fp32_contents, got fp64_contents"),
        ("FP32", {"fp32_contents": [1.0, 2.0]}, "Expected 4, got 8 (shape [1] of FP32)"),
        ("INT8", {"int_contents": [128]}, "INT8 cannot hold"),
        ("UINT16", {"uint_contents": [65536]}, "UINT16 cannot hold"),
        ("FP16", {"fp32_contents": [1.0]}, "must use raw_input_contents"),
        ("BF16", {"fp32_contents": [1.0]}, "must use raw_input_contents"),
    ],
)
def test_faulty_typed_contents(caller: Caller, datatype: str, contents: dict[str, object], text: str) -> None:
    given = {"name": "INPUT0", "datatype": datatype, "shape": [1], "contents": contents}
    call = caller.rpc_call("ModelInfer", model_name=f"echo_{datatype}_1", inputs=[given])
    assert call.code == 3
    assert text in call.error


def test_id_that_is_not_utf8(caller: Caller) -> None:
    received = (
        message("inference.ModelInferRequest")(**infer_fields(id="abc"))
        .SerializeToString()
        .replace(b"abc", b"a\xffc")
    )
    call = caller.call(OIP + b"ModelInfer", received)
    assert (call.code, call.error) == (3, "the id of the request is not UTF-8")


def test_failing_and_broken_models(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    call = caller.rpc_call("ModelInfer", **infer_fields(model_name="failing"))
    assert (call.code, call.error) == (13, "the runtime failed: out of luck")
    call = caller.rpc_call("ModelInfer", **infer_fields(model_name="broken"))
    assert call.code == 13
    assert "internal error" in call.error
    assert "Traceback" in caplog.text


def test_cancel(caller: Caller) -> None:
    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    call = caller.rpc_call("ModelInfer", **infer_fields())
    (asked,) = queue.held
    call.on_abandon()
    assert asked.cancelled
    asked.complete(None, None)
    assert call.code is None


def test_no_cycle_keeps_a_call_alive(caller: Caller) -> None:
    class Call(FakeUnaryCall):
        pass

    queue = caller.engine.find("add1").serving.queue
    queue.hold()
    call = Call()
    caller.application.rpc[OIP + b"ModelInfer"].handler(
        call, message("inference.ModelInferRequest")(**infer_fields()).SerializeToString()
    )
    gc.disable()
    try:
        queue.release()
        queue.seen.clear()
        alive = weakref.ref(call)
        del call
        assert alive() is None
    finally:
        gc.enable()


def test_unknown_fields_are_ignored(caller: Caller) -> None:
    received = message("inference.ModelInferRequest")(**infer_fields()).SerializeToString()
    unknown = b"\xa0\x06\x01" + b"\xa2\x06\x02hi" + b"\x85\x06abcd" + b"\x81\x06abcdefgh"
    for candidate in (received + unknown, unknown + received):
        assert caller.call(OIP + b"ModelInfer", candidate).code == 0


@pytest.mark.parametrize("datatype", list(DataType), ids=lambda datatype: datatype.name)
def test_every_datatype_has_typed_contents_or_says_so(caller: Caller, datatype: DataType) -> None:
    given = {"name": "INPUT0", "datatype": datatype.name, "shape": [1], "contents": {}}
    assert caller.rpc_call("ModelInfer", model_name=f"echo_{datatype.name}_1", inputs=[given]).code == 3


# health


def health(caller: Caller, service: str) -> FakeUnaryCall:
    return caller.call(
        b"/grpc.health.v1.Health/Check",
        message("grpc.health.v1.HealthCheckRequest")(service=service).SerializeToString(),
    )


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"])
def test_health_check(caller: Caller, service: str) -> None:
    assert health(caller, service).message == b"\x08\x02"
    caller.engine.find("loading").state = ModelState.READY
    assert health(caller, service).message == b"\x08\x01"


def test_health_of_unknown_service(caller: Caller) -> None:
    assert health(caller, "nope").code == 5
    assert caller.call(b"/grpc.health.v1.Health/Check", b"\xff").code == 3


async def test_health_watch_follows_the_engine(caller: Caller) -> None:
    engine = caller.engine
    call = FakeStreamCall()
    await call.requests.put(b"")
    watch = asyncio.ensure_future(caller.application.rpc[b"/grpc.health.v1.Health/Watch"].handler(call))
    assert await call.responses.get() == b"\x08\x02"
    engine.find("loading").state = ModelState.READY
    engine.refresh()
    assert await call.responses.get() == b"\x08\x01"
    engine.refresh()  # no change, so nothing is sent
    engine.stopping()
    assert await call.responses.get() == b"\x08\x02"
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert not engine._listeners


async def test_health_watch_of_unknown_service(caller: Caller) -> None:
    call = FakeStreamCall()
    await call.requests.put(message("grpc.health.v1.HealthCheckRequest")(service="nope").SerializeToString())
    watch = asyncio.ensure_future(caller.application.rpc[b"/grpc.health.v1.Health/Watch"].handler(call))
    assert await call.responses.get() == b"\x08\x03"
    watch.cancel()


# reflection


async def reflect(caller: Caller, version: str, **fields: object):
    call = FakeStreamCall()
    await call.requests.put(
        message("grpc.reflection.v1.ServerReflectionRequest")(**fields).SerializeToString()
    )
    await call.requests.put(None)
    await caller.application.rpc[
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo".encode()
    ].handler(call)
    return message("grpc.reflection.v1.ServerReflectionResponse").FromString(call.responses.get_nowait())


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection(caller: Caller, version: str) -> None:
    response = await reflect(caller, version, list_services="")
    assert [service.name for service in response.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    response = await reflect(
        caller, version, file_containing_symbol="inference.GRPCInferenceService.ModelInfer"
    )
    files = response.file_descriptor_response.file_descriptor_proto
    assert len(files) == 2  # the service and the model configuration it imports
    response = await reflect(caller, version, file_by_filename="backline_client/protos/health.proto")
    assert len(response.file_descriptor_response.file_descriptor_proto) == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_containing_symbol": "no.such"}, 5),
        ({"file_by_filename": "no.such"}, 5),
        ({"all_extension_numbers_of_type": "inference.ModelInferRequest"}, 5),
        ({}, 12),
    ],
)
async def test_reflection_of_unknown_names(caller: Caller, fields: dict[str, object], code: int) -> None:
    assert (await reflect(caller, "v1", **fields)).error_response.error_code == code
