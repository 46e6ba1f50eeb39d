"""Header fields and metadata that models see as parameters; the expected values were recorded from Triton
2.51."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from backline.dialects.forwarding import ForwardPattern
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from support.server import ServerProcess, serve

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        told = [np.array([request.parameters() or "{}"], dtype=np.object_) for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("seen", one)]) for one in told]
"""
CONFIG = """backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "seen" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "parameters": {"p": 1}}


@pytest.fixture(scope="module")
def forwarding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("forwarding")
    version = folder / "models" / "seen" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    options = (
        "--http-header-forward-pattern=x-user|^p$|priority",
        "--grpc-header-forward-pattern=x-user|^p$",
    )
    with serve(folder / "models", folder / "log", *options) as server:
        yield server


def ask(
    server: ServerProcess, fields: dict[str, str], route: str = "infer", body: Any = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    connection.request("POST", f"/v2/models/seen/{route}", json.dumps(body or BODY), fields)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"X-User": "Ann", "Other": "x"}, {"p": 1, "X-User": "Ann"}),
        ({"x-USER": "b", "X-User-Two": "c"}, {"p": 1, "x-USER": "b", "X-User-Two": "c"}),
        ({"my-x-user-yours": "q"}, {"p": 1, "my-x-user-yours": "q"}),
        ({"Other": "x"}, {"p": 1}),
        ({"p": "field"}, {"p": "field"}),
    ],
)
def test_a_model_sees_header_fields_as_the_client_spelled_them(
    forwarding: ServerProcess, fields: dict[str, str], seen: dict[str, Any]
) -> None:
    status, told = ask(forwarding, fields)

    assert status == 200, told
    assert json.loads(told["outputs"][0]["data"][0]) == seen


def test_a_repeated_connection_does_not_keep_the_fields_of_another_request(forwarding: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", forwarding.http_port, timeout=30)
    seen = []
    for user in ("Ann", "Bob", "", "Ann"):
        connection.request(
            "POST", "/v2/models/seen/infer", json.dumps(BODY), {"X-User": user} if user else {}
        )
        told = json.loads(connection.getresponse().read())
        seen.append(json.loads(told["outputs"][0]["data"][0]).get("X-User"))
    connection.close()

    assert seen == ["Ann", "Bob", None, "Ann"]


def test_generate_forwards_header_fields(forwarding: ServerProcess) -> None:
    status, told = ask(forwarding, {"X-User": "Ann"}, "generate", {"x": 1, "temperature": 2})

    assert status == 200, told
    assert json.loads(told["seen"]) == {"temperature": 2, "X-User": "Ann"}


def test_a_reserved_name_is_refused(forwarding: ServerProcess) -> None:
    assert ask(forwarding, {"Priority": "3"}) == (
        400,
        {"error": "Header 'Priority' is reserved for Triton usage and cannot be forwarded."},
    )


def _call(server: ServerProcess, metadata: Sequence[tuple[str, str | bytes]], *, stream: bool) -> Any:
    asked = messages.ModelInferRequest(model_name="seen")
    tensor = asked.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1)
    asked.parameters["p"].int64_param = 1
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if stream:
            (told,) = stub.ModelStreamInfer(iter([asked]), metadata=metadata)
            answer = told.infer_response
        else:
            answer = stub.ModelInfer(asked, metadata=metadata)
    return json.loads(answer.raw_output_contents[0][4:])


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_sees_metadata(forwarding: ServerProcess, stream: bool) -> None:
    metadata = (("x-user", "Ann"), ("other", "x"), ("x-user-bin", b"\x01"))

    assert _call(forwarding, metadata, stream=stream) == {"p": 1, "x-user": "Ann"}
    assert _call(forwarding, (("p", "field"),), stream=stream) == {"p": "field"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("(?-i)X-User", ["X-User", "X-User-Two"]),
        ("user$", ["X-User", "x-USER"]),
        ("^x-", ["X-User", "x-USER", "X-User-Two"]),
        (".*", ["X-User", "x-USER", "X-User-Two", "Other"]),
        ("nothing", []),
    ],
)
def test_a_pattern_matches_any_part_of_a_name_and_ignores_case_unless_told(
    pattern: str, names: list[str]
) -> None:
    fields = {name.encode(): b"v" for name in ("X-User", "x-USER", "X-User-Two", "Other")}

    request = ForwardPattern(pattern).apply(InferRequest("m", {}), fields)

    assert list(request.parameters or {}) == names


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="is not a regular expression"):
        ForwardPattern("(((")
