"""Every number that a client can send, far outside of what makes sense: each is a client's mistake at most.

The gRPC cases come from the protobuf descriptors and the REST cases from valid requests to every route, so a
new field or route is covered without a new case.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any
from urllib.parse import quote

import grpc
import psutil
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from backline_client.protos import message, pool
from conformance.h1probe import HttpProbe
from support import models
from support.server import ServerProcess, serve

SERVICE = "inference.GRPCInferenceService"
#: What attacks on such fields have used (CWE-190, CWE-681, CWE-369).
EXTREMES: list[Any] = [
    0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 2**64 + 1, 1e308,
    "1", 1.5, True,
]  # fmt: skip
#: JSON has no such numbers, but Python's parser and others accept them.
NOT_JSON = ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "1_000"]
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: (0, 2**31 - 1),
}
TENSOR = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
SHARED = {"shared_memory_region": "r", "shared_memory_byte_size": 64, "shared_memory_offset": 0}
#: A valid document for each route that takes one, with every number that the protocol knows.
DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("/v2/models/add1/infer", {"inputs": [TENSOR], "parameters": {"priority": 1, "timeout": 1000}}),
    ("/v2/models/add1/infer", {"inputs": [TENSOR], "parameters": {"sequence_id": 1, "sequence_start": True}}),
    ("/v2/models/add1/infer", {"inputs": [{**TENSOR, "parameters": {"binary_data_size": 64}}]}),
    ("/v2/models/add1/infer", {"inputs": [{**TENSOR, "parameters": SHARED}]}),
    (
        "/v2/models/add1/infer",
        {"inputs": [TENSOR], "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 3}}]},
    ),
    ("/v2/models/add1/infer", {"inputs": [TENSOR], "outputs": [{"name": "OUTPUT0", "parameters": SHARED}]}),
    ("/v2/models/add1/versions/1/infer", {"inputs": [TENSOR], "id": "1", "parameters": {"x": 1}}),
    ("/v2/models/add1/generate", {"INPUT0": [1.0] * 16, "x": 1}),
    ("/v2/models/add1/generate_stream", {"INPUT0": [1.0] * 16, "x": 1}),
    ("/v2/models/add1/infer_stream", {"inputs": [TENSOR]}),
    ("/v2/systemsharedmemory/region/r/register", {"key": "/none", "offset": 0, "byte_size": 64}),
    ("/v2/logging", {"log_verbose_level": 0, "log_info": True}),
    ("/v2/trace/setting", {"trace_rate": "1000", "trace_count": "1", "log_frequency": "0"}),
    ("/v2/models/add1/trace/setting", {"trace_rate": "1000", "trace_count": "1"}),
    ("/v2/repository/index", {"ready": True, "n": 1}),
    ("/v2/repository/models/add1/unload", {"parameters": {"unload_dependents": 1}}),
    ("/v2/models/add1/labels/stable", {"version": 1}),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("extremes")
    models.add1(folder / "models")
    explicit = ("--model-control-mode", "explicit", "--load-model", "*", "--allow-client-shm", "true")
    with serve(folder / "models", folder / "log", *explicit) as running:
        yield running
        assert "Traceback" not in running.output


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values of a document that are numbers, or texts that hold one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:2]):
            yield from places(inner, (*path, index))
        yield path  # a number in place of a list
    elif isinstance(value, int | float) or (isinstance(value, str) and value.isdigit()):
        yield path


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = deepcopy(document)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def memory(server: ServerProcess) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def answer_of(probe: HttpProbe, path: str, body: bytes) -> int:
    answer = probe.request("POST", path, body, {"Content-Type": "application/json"})
    assert answer.status < 500 or answer.status in (501, 503), (path, body[:300], answer.body[:300])
    return answer.status


@pytest.mark.parametrize("number", range(len(DOCUMENTS)), ids=[path for path, _ in DOCUMENTS])
def test_a_number_in_json_is_a_clients_mistake_at_most(served: ServerProcess, number: int) -> None:
    path, document = DOCUMENTS[number]
    before = memory(served)
    tried = 0
    with closing(HttpProbe("127.0.0.1", served.http_port, timeout=20)) as probe:
        for place in places(document):
            if not place:
                continue
            for value in EXTREMES:
                answer_of(probe, path, json.dumps(changed(document, place, value)).encode())
                tried += 1
            for text in NOT_JSON:
                marked = json.dumps(changed(document, place, "<HERE>")).replace('"<HERE>"', text)
                answer_of(probe, path, marked.encode())
                tried += 1
    assert tried
    assert memory(served) < before + 64 * 1024 * 1024


@pytest.mark.parametrize(
    "key", ["max_batch_size", "version_policy", "dynamic_batching", "instance_group", "input"]
)
def test_a_number_in_the_configuration_of_a_load_is_a_clients_mistake_at_most(
    served: ServerProcess, key: str
) -> None:
    forms: dict[str, Any] = {
        "max_batch_size": lambda value: value,
        "version_policy": lambda value: {"specific": {"versions": [value]}},
        "dynamic_batching": lambda value: {
            "max_queue_delay_microseconds": value,
            "preferred_batch_size": [value],
        },
        "instance_group": lambda value: [{"count": value if value in (0, -1) else -1, "gpus": [value]}],
        "input": lambda value: [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [value]}],
    }
    with closing(HttpProbe("127.0.0.1", served.http_port, timeout=60)) as probe:
        for value in EXTREMES:
            config = json.dumps({"max_batch_size": 8} | {key: forms[key](value)})
            body = json.dumps({"parameters": {"config": config}}).encode()
            answer_of(probe, "/v2/repository/models/add1/load", body)
        restored = probe.request("POST", "/v2/repository/models/add1/load", b"{}")
        assert restored.status == 200


@pytest.mark.parametrize("value", [str(value) for value in EXTREMES] + NOT_JSON)
def test_a_number_in_a_path_or_query_is_a_clients_mistake_at_most(served: ServerProcess, value: str) -> None:
    with closing(HttpProbe("127.0.0.1", served.http_port, timeout=20)) as probe:
        for route in (
            "/v2/models/add1/versions/{}",
            "/v2/models/add1/versions/{}/config",
            "/v2/repository/history?limit={}",
        ):
            answer = probe.request("GET", route.format(quote(value, safe="")))
            assert answer.status < 500


HEADERS: dict[str, list[str]] = {
    "Inference-Header-Content-Length": [str(value) for value in EXTREMES]
    + ["", " 1", "1, 1", "+1", "1e2", "\u0661"],
    "Content-Length": ["-1", "+1", "1e2", "0x10", "1,2", "18446744073709551616", "9" * 400],
    "traceparent": [
        "",
        "00-" + "0" * 32 + "-" + "0" * 16 + "-00",
        "ff-" + "f" * 32 + "-" + "f" * 16 + "-ff",
        "x" * 4000,
    ],
    "grpc-timeout": ["", "-1S", "99999999H", "100000000S", "1", "S", "0n", "1.5S", "NaNS"],
    "x-envoy-expected-rq-timeout-ms": [str(value) for value in EXTREMES] + ["", "9" * 400],
    "Content-Encoding": ["gzip, gzip", "deflate", "br", "", "gzip;q=NaN", "x" * 4000],
    "Accept-Encoding": [
        "gzip;q=1e999",
        "gzip;q=-1",
        "*;q=0",
        "identity;q=0",
        "," * 4000,
        "gzip;q=" + "9" * 400,
    ],
    "Range": ["bytes=0-18446744073709551616"],
    "If-None-Match": ["*"],
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_number_in_a_header_field_is_a_clients_mistake_at_most(served: ServerProcess, name: str) -> None:
    body = json.dumps({"inputs": [TENSOR]}).encode()
    for value in HEADERS[name]:
        head = "POST /v2/models/add1/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"{name}: {value}\r\n"
        if name != "Content-Length":
            head += f"Content-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", served.http_port), timeout=20) as connection:
            connection.sendall(head.encode() + b"\r\n" + body)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        if received:  # a deadline of zero may end the call without a response
            status = int(received.split(b" ", 2)[1])
            assert status < 500 or status in (501, 503, 504), (name, value, received[:300])


def number_fields(
    described: Descriptor, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    """All numeric fields of a message, also in its inner messages and maps."""
    for field in described.fields:
        if field.type in _INTEGERS or field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            yield (*path, field.name), field
        elif field.message_type is not None and len(path) < 5:
            yield from number_fields(field.message_type, (*path, field.name))


def put(target: Any, path: tuple[str, ...], value: Any) -> None:
    """Sets a numeric field, creating the messages on the way."""
    name, *rest = path
    field = target.DESCRIPTOR.fields_by_name[name]
    if not rest:
        if field.is_repeated:
            getattr(target, name).append(value)
        else:
            setattr(target, name, value)
        return
    inner = getattr(target, name)
    if field.message_type.GetOptions().map_entry:
        put(inner["key"], tuple(rest[1:]), value)
    else:
        put(inner.add() if field.is_repeated else inner, tuple(rest), value)


def fitting(field: FieldDescriptor) -> list[Any]:
    """The extremes that a field can carry; others cannot be sent at all."""
    limits = _INTEGERS.get(field.type)
    if limits is None:
        return [
            0.0,
            -1.0,
            1e308 if field.type == FieldDescriptor.TYPE_DOUBLE else 1e38,
            float("nan"),
            float("inf"),
        ]
    low, high = limits
    numbers = [value for value in EXTREMES if isinstance(value, int) and low <= value <= high]
    return sorted({low, high, *map(int, numbers)})


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    """The status of a call."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


METHODS = {method.name: method for method in pool().FindServiceByName(SERVICE).methods}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ModelStreamInfer"])
def test_a_number_in_a_grpc_message_is_a_clients_mistake_at_most(served: ServerProcess, name: str) -> None:
    method = METHODS[name]
    before = memory(served)
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/{name}")
        for path, field in number_fields(method.input_type):
            for value in fitting(field):
                asked = message(method.input_type.full_name)()
                if name == "ModelInfer":
                    asked.model_name = "add1"
                    if path[0] != "inputs":
                        asked.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
                        asked.raw_input_contents.append(bytes(64))
                elif "model_name" in method.input_type.fields_by_name:
                    asked.model_name = "add1"
                put(asked, path, value)
                code = code_of(lambda asked=asked: call(asked.SerializeToString(), timeout=30))
                assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (path, value)
    assert memory(served) < before + 64 * 1024 * 1024


def test_the_descriptors_have_the_numbers_that_matter() -> None:
    infer = {".".join(path) for path, _ in number_fields(METHODS["ModelInfer"].input_type)}
    assert {"inputs.shape", "inputs.contents.int64_contents", "parameters.value.int64_param"} <= infer
    register = {path[-1] for path, _ in number_fields(METHODS["SystemSharedMemoryRegister"].input_type)}
    assert register == {"offset", "byte_size"}


def test_the_model_is_served_after_all_that(served: ServerProcess) -> None:
    with closing(HttpProbe("127.0.0.1", served.http_port, timeout=20)) as probe:
        probe.request("POST", "/v2/repository/models/add1/load", b"{}")
        answer = probe.request("POST", "/v2/models/add1/infer", json.dumps({"inputs": [TENSOR]}).encode())
        assert answer.status == 200
