"""Requests as plain data whose answers are compared with Triton's, and how to send them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dialects.triton_forms.repository import LOADED, OTHERS


@dataclass(frozen=True)
class Http:
    """A request; a body that is not text is sent as JSON."""

    path: str
    body: Any = None
    fields: Mapping[str, str] = field(default_factory=dict)
    method: str = ""


@dataclass(frozen=True)
class Rpc:
    """A call of inference.GRPCInferenceService; the message is in protobuf's JSON form."""

    method: str
    message: Mapping[str, Any] = field(default_factory=dict)


def tensor(
    name: str = "x", data: Any = (1, 2, 3, 4), shape: Any = (4,), datatype: str = "FP32", **more: Any
) -> Any:
    given = {"name": name, "shape": list(shape), "datatype": datatype, **more}
    return given if data is None else {**given, "data": list(data) if isinstance(data, tuple) else data}


def infer(model: str, *inputs: Any, **more: Any) -> Http:
    return Http(f"/v2/models/{model}/infer", {"inputs": list(inputs), **more})


def rpc(model: str, *inputs: Any, **more: Any) -> Rpc:
    return Rpc("ModelInfer", {"model_name": model, "inputs": list(inputs), **more})


def load(model: str, **parameters: Any) -> Http:
    return Http(f"/v2/repository/models/{model}/load", {"parameters": parameters} if parameters else {})


def typed(
    name: str = "x", contents: Any = None, shape: Any = (4,), datatype: str = "FP32", **more: Any
) -> Any:
    given = {"name": name, "shape": list(shape), "datatype": datatype, **more}
    return given if contents is None else {**given, "contents": contents}


FOUR = {"fp32_contents": [1, 2, 3, 4]}
GOOD = tensor()
INT2 = {"data": [[1, 2]], "shape": [1, 2], "datatype": "INT32"}
REGION = {"shared_memory_region": "nowhere", "shared_memory_byte_size": 16}
DEEP = "[" * 101 + "1" + "]" * 101
RAW = {"Inference-Header-Content-Length": "0"}
ONE = tensor(data=(1,), shape=(1, 1))
SMALL = typed(contents={"fp32_contents": [1]}, shape=(1, 1))
TOO_SMALL = json.dumps({"inputs": [tensor(data=None, parameters={"binary_data_size": 12})]})

#: Configurations, as they are shown.
CONFIGURATIONS: dict[str, Http | Rpc] = {
    **{f"the configuration of {name}": Http(f"/v2/models/{name}/config") for name in LOADED},
    **{f"the configuration of {name} by gRPC": Rpc("ModelConfig", {"name": name}) for name in LOADED},
}
METADATA: dict[str, Http | Rpc] = {
    **{f"the metadata of {name}": Http(f"/v2/models/{name}") for name in LOADED},
    **{f"the metadata of {name} by gRPC": Rpc("ModelMetadata", {"name": name}) for name in ("echo", "chain")},
}
#: Requests that fit no model or no tensor.
REQUESTS: dict[str, Http | Rpc] = {
    "a request": infer("echo", GOOD),
    # numbers and names of inputs
    "no inputs": infer("echo"),
    "no inputs key": Http("/v2/models/echo/infer", {}),
    "one input too many": infer("echo", GOOD, tensor("z")),
    "one input too few": infer("pair", tensor("x", **INT2)),
    "no input of two": infer("pair"),
    "a wrong name": infer("echo", tensor("q")),
    "a wrong name of two": infer("pair", tensor("x", **INT2), tensor("q", **INT2)),
    "two wrong names of two": infer("pair", tensor("p", **INT2), tensor("q", **INT2)),
    "too many with an optional input": infer("choice", GOOD, tensor("z"), tensor("q")),
    "too few with an optional input": infer("choice"),
    "only the optional input": infer("choice", tensor("z")),
    "a wrong name with an optional input": infer("choice", GOOD, tensor("q")),
    "a wrong name instead of the required input": infer("choice", tensor("q")),
    "an input twice": infer("echo", GOOD, GOOD),
    "an unknown output": infer("echo", GOOD, outputs=[{"name": "q"}]),
    "an output twice": infer("echo", GOOD, outputs=[{"name": "y"}, {"name": "y"}]),
    # datatypes and shapes
    "another datatype": infer("echo", tensor(datatype="INT32")),
    "an unknown datatype": infer("echo", tensor(datatype="FP33")),
    "another shape": infer("echo", tensor(data=(1, 2), shape=(2,))),
    "another rank": infer("echo", tensor(shape=(1, 4))),
    "another shape of a batch": infer(
        "pair", tensor("x", data=(1,), shape=(1, 1), datatype="INT32"), tensor("z", **INT2)
    ),
    "no batch dimension": infer(
        "pair", tensor("x", data=(1, 2), shape=(2,), datatype="INT32"), tensor("z", **INT2)
    ),
    "a batch too large": infer(
        "pair", *(tensor(name, data=(1,) * 10, shape=(5, 2), datatype="INT32") for name in "xz")
    ),
    "different batches": infer(
        "pair", tensor("x", **INT2), tensor("z", data=(1,) * 4, shape=(2, 2), datatype="INT32")
    ),
    "an empty batch": infer(
        "pair", *(tensor(name, data=(), shape=(0, 2), datatype="INT32") for name in "xz")
    ),
    "a negative dimension": infer("echo", tensor(shape=(-4,))),
    "a fraction as dimension": infer("echo", tensor(shape=(4.5,))),
    "a text as dimension": infer("echo", tensor(shape=("4",))),
    "no shape": infer("echo", {"name": "x", "datatype": "FP32", "data": [1, 2, 3, 4]}),
    "no datatype": infer("echo", {"name": "x", "shape": [4], "data": [1, 2, 3, 4]}),
    "no name": infer("echo", {"shape": [4], "datatype": "FP32", "data": [1, 2, 3, 4]}),
    "a huge shape": infer("free", tensor(shape=(2**40, 2**40))),
    # data
    "too few elements": infer("echo", tensor(data=(1, 2, 3))),
    "too many elements": infer("echo", tensor(data=(1, 2, 3, 4, 5))),
    "a text among numbers": infer("echo", tensor(data=(1, "2", 3, 4))),
    "a boolean among numbers": infer("echo", tensor(data=(1, True, 3, 4))),
    "null among numbers": infer("echo", tensor(data=(1, None, 3, 4))),
    "a number among texts": infer("words", tensor(data=("a", 1), shape=(2,), datatype="BYTES")),
    "too few texts": infer("words", tensor(data=("a",), shape=(2,), datatype="BYTES")),
    "too many texts": infer("words", tensor(data=("a", "b", "c"), shape=(2,), datatype="BYTES")),
    "a fraction for an integer": infer(
        "pair", tensor("x", **{**INT2, "data": [1, 2.5]}), tensor("z", **INT2)
    ),
    "a number that does not fit": infer(
        "pair", tensor("x", **{**INT2, "data": [1, 2**40]}), tensor("z", **INT2)
    ),
    "a number among booleans": infer("flags", tensor(data=(True, 1), shape=(2,), datatype="BOOL")),
    "data that is a text": infer("echo", tensor(data="abc")),
    "data that is an object": infer("echo", tensor(data={"a": 1})),
    "no data": infer("echo", tensor(data=None)),
    "two sources": infer("echo", tensor(parameters={"binary_data_size": 16})),
    "FP16 as JSON": infer("half", tensor(data=(1, 2), shape=(2,), datatype="FP16")),
    "FP16 as JSON output": Http("/v2/models/half/infer", "\0\0\0\0", RAW),
    "data nested too deeply": Http(
        "/v2/models/echo/infer",
        f'{{"inputs":[{{"name":"x","shape":[4],"datatype":"FP32","data":{DEEP}}}]}}',
    ),
    "binary data that is missing": infer("echo", tensor(data=None, parameters={"binary_data_size": 16})),
    "binary data of the wrong size": infer("echo", tensor(data=None, parameters={"binary_data_size": 12})),
    "a binary size that is a text": infer("echo", tensor(data=None, parameters={"binary_data_size": "16"})),
    # documents
    "an empty body": Http("/v2/models/echo/infer", ""),
    "no JSON": Http("/v2/models/echo/infer", "hello"),
    "half JSON": Http("/v2/models/echo/infer", '{"inputs":'),
    "a list": Http("/v2/models/echo/infer", "[]"),
    "inputs that are an object": Http("/v2/models/echo/infer", {"inputs": {}}),
    "inputs that are a text": Http("/v2/models/echo/infer", {"inputs": "x"}),
    "an input that is a number": infer("echo", 1),
    "an id that is a number": infer("echo", GOOD, id=1),
    "outputs that are an object": infer("echo", GOOD, outputs={}),
    "parameters that are a list": infer("echo", GOOD, parameters=[]),
    "a parameter that is a list": infer("echo", GOOD, parameters={"a": [1]}),
    "a parameter that is null": infer("echo", GOOD, parameters={"a": None}),
    "a reserved parameter": infer("echo", GOOD, parameters={"triton_a": 1}),
    "a priority that is a text": infer("echo", GOOD, parameters={"priority": "1"}),
    "a timeout that is a text": infer("echo", GOOD, parameters={"timeout": "1"}),
    "a negative timeout": infer("echo", GOOD, parameters={"timeout": -1}),
    "a sequence id that is a list": infer("echo", GOOD, parameters={"sequence_id": []}),
    "binary_data_output that is a text": infer("echo", GOOD, parameters={"binary_data_output": "yes"}),
    **{
        f"a {name} that is a list": infer("echo", GOOD, parameters={name: [1]})
        for name in ("sequence_start", "sequence_end", "priority", "timeout", "binary_data_output")
    },
    "a sequence start that is a number": infer(
        "echo", GOOD, parameters={"sequence_id": 1, "sequence_start": 1}
    ),
    "a negative sequence id": infer("echo", GOOD, parameters={"sequence_id": -1}),
    "a sequence id with a fraction": infer("echo", GOOD, parameters={"sequence_id": 1.5}),
    "a reserved parameter that is null": infer("echo", GOOD, parameters={"triton_a": None}),
    "parameters of an input that are a list": infer("echo", tensor(parameters=[])),
    "an output that is a number": infer("echo", GOOD, outputs=[1]),
    "parameters of an output that are a list": infer("echo", GOOD, outputs=[{"name": "y", "parameters": []}]),
    "an output name that is a number": infer("echo", GOOD, outputs=[{"name": 1}]),
    "a name that is a number": infer("echo", tensor(name=1)),
    "a datatype that is a number": infer("echo", tensor(datatype=1)),
    "null as data": infer("echo", {**tensor(data=None), "data": None}),
    "header length beyond the body": Http(
        "/v2/models/echo/infer", {}, {"Inference-Header-Content-Length": "99"}
    ),
    "header length that is a text": Http(
        "/v2/models/echo/infer", {}, {"Inference-Header-Content-Length": "many"}
    ),
    "header length below zero": Http("/v2/models/echo/infer", {}, {"Inference-Header-Content-Length": "-1"}),
    "binary data of the wrong size, and too much of it": Http(
        "/v2/models/echo/infer",
        TOO_SMALL + 16 * "\0",
        {"Inference-Header-Content-Length": str(len(TOO_SMALL))},
    ),
    # raw requests
    "raw data for two inputs": Http("/v2/models/pair/infer", "abcdefgh", RAW),
    "raw data of the wrong size": Http("/v2/models/echo/infer", "abcdefgh", RAW),
    "raw data for two free dimensions": Http("/v2/models/free/infer", "abcdefgh", RAW),
    "raw data for texts": Http("/v2/models/words/infer", "abcdefgh", RAW),
    # outputs
    "too many classes": infer("echo", GOOD, outputs=[{"name": "y", "parameters": {"classification": 10}}]),
    "classes that are a text": infer(
        "echo", GOOD, outputs=[{"name": "y", "parameters": {"classification": "1"}}]
    ),
    "no classes": infer("echo", GOOD, outputs=[{"name": "y", "parameters": {"classification": 0}}]),
    "fewer classes than none": infer(
        "echo", GOOD, outputs=[{"name": "y", "parameters": {"classification": -1}}]
    ),
    "classes of texts": infer(
        "words",
        tensor(data=("a", "b"), shape=(2,), datatype="BYTES"),
        outputs=[{"name": "y", "parameters": {"classification": 1}}],
    ),
    "an output without a name": infer("echo", GOOD, outputs=[{}]),
    # shared memory
    "an input in an unknown region": infer("echo", tensor(data=None, parameters=REGION)),
    "an input in a region without a size": infer(
        "echo", tensor(data=None, parameters={"shared_memory_region": "nowhere"})
    ),
    "an output in an unknown region": infer("echo", GOOD, outputs=[{"name": "y", "parameters": REGION}]),
    "an output in a region, as classes": infer(
        "echo", GOOD, outputs=[{"name": "y", "parameters": {**REGION, "classification": 1}}]
    ),
    "an output in a region, in binary": infer(
        "echo", GOOD, outputs=[{"name": "y", "parameters": {**REGION, "binary_data": True}}]
    ),
    "an input with data in a region": infer("echo", tensor(parameters=REGION)),
    # sequences
    "a sequence without an id": infer("remembering", ONE),
    "a sequence that has not begun": infer("remembering", ONE, parameters={"sequence_id": 5}),
    "a sequence that begins": infer(
        "remembering", ONE, parameters={"sequence_id": 6, "sequence_start": True}
    ),
    "a sequence with a text as id": infer(
        "remembering", ONE, parameters={"sequence_id": "a", "sequence_start": True}
    ),
    "a batch in a sequence": infer(
        "remembering",
        tensor(data=(1, 2), shape=(2, 1)),
        parameters={"sequence_id": 7, "sequence_start": True},
    ),
    "a sequence of an empty id": infer(
        "remembering", ONE, parameters={"sequence_id": "", "sequence_start": True}
    ),
    "a sequence for a model without sequences": infer(
        "echo", GOOD, parameters={"sequence_id": 8, "sequence_start": True}
    ),
    "generate without an input": Http("/v2/models/words/generate", {}),
    "generate with too few texts": Http("/v2/models/words/generate", {"x": "a"}),
    "generate with a number for a text": Http("/v2/models/words/generate", {"x": [1, 2]}),
    "generate with null": Http("/v2/models/words/generate", {"x": None}),
    "generate with an object": Http("/v2/models/words/generate", {"x": {"a": 1}}),
    "generate with FP16": Http("/v2/models/half/generate", {"x": [1, 2]}),
    "generate of a decoupled model": Http("/v2/models/flow/generate", {"x": [1, 2, 3, 4]}),
    # kinds of models
    "a decoupled model": infer("flow", GOOD),
    "an ensemble": infer("chain", tensor("q")),
    # the same by gRPC
    "a message": rpc("echo", typed(contents=FOUR)),
    "a message without inputs": rpc("echo"),
    "a message with a wrong name": rpc("echo", typed("q", FOUR)),
    "a message with too many inputs": rpc("echo", typed(contents=FOUR), typed("q", FOUR)),
    "a message with too few inputs": rpc("pair", typed("x", {"int_contents": [1, 2]}, (1, 2), "INT32")),
    "a message with an input twice": rpc("echo", typed(contents=FOUR), typed(contents=FOUR)),
    "a message with an output twice": rpc(
        "echo", typed(contents=FOUR), outputs=[{"name": "y"}, {"name": "y"}]
    ),
    "a message with an unknown output": rpc("echo", typed(contents=FOUR), outputs=[{"name": "q"}]),
    "a message without contents": rpc("echo", typed()),
    "a message with too few elements": rpc("echo", typed(contents={"fp32_contents": [1]})),
    "a message with too many elements": rpc("echo", typed(contents={"fp32_contents": [1] * 5})),
    "a message with other contents": rpc("echo", typed(contents={"int_contents": [1] * 4})),
    "a message with raw and typed contents": rpc(
        "echo", typed(contents=FOUR), raw_input_contents=["AAAAAAAAAAAAAAAAAAAAAA=="]
    ),
    "a message with too few raw contents": rpc(
        "pair",
        *(typed(name, None, (1, 2), "INT32") for name in "xz"),
        raw_input_contents=["AAAAAAAAAAA="],
    ),
    "a message with too many raw contents": rpc(
        "echo", typed(), raw_input_contents=["AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAAAAAAAA=="]
    ),
    "a message with raw contents of the wrong size": rpc(
        "echo", typed(), raw_input_contents=["AAAAAAAAAAA="]
    ),
    "a message with an unknown datatype": rpc("echo", typed(contents=FOUR, datatype="FP33")),
    "a message with another datatype": rpc(
        "echo", typed(contents={"int_contents": [1] * 4}, datatype="INT32")
    ),
    "a message with another shape": rpc("echo", typed(contents={"fp32_contents": [1, 2]}, shape=(2,))),
    "a message with a negative dimension": rpc("echo", typed(contents=FOUR, shape=(-4,))),
    "a message with FP16 contents": rpc(
        "half", typed(contents={"fp32_contents": [1, 2]}, shape=(2,), datatype="FP16")
    ),
    "a message with texts that are too short": rpc(
        "words", typed(shape=(2,), datatype="BYTES"), raw_input_contents=["AAA="]
    ),
    "a message with too few texts": rpc(
        "words", typed(shape=(2,), datatype="BYTES"), raw_input_contents=["AQAAAGE="]
    ),
    "a message with too many texts": rpc(
        "words", typed(shape=(2,), datatype="BYTES"), raw_input_contents=["AQAAAGEBAAAAYQEAAABh"]
    ),
    "a message to a decoupled model": rpc("flow", typed(contents=FOUR)),
    "a message with an input in an unknown region": rpc(
        "echo",
        typed(
            parameters={
                "shared_memory_region": {"string_param": "nowhere"},
                "shared_memory_byte_size": {"int64_param": 16},
            }
        ),
    ),
    "a message with an output in an unknown region": rpc(
        "echo",
        typed(contents=FOUR),
        outputs=[
            {
                "name": "y",
                "parameters": {
                    "shared_memory_region": {"string_param": "nowhere"},
                    "shared_memory_byte_size": {"int64_param": 16},
                },
            }
        ],
    ),
    "a message with a priority that is a text": rpc(
        "echo", typed(contents=FOUR), parameters={"priority": {"string_param": "1"}}
    ),
    "a message of a sequence without an id": rpc("remembering", SMALL),
    "a message of a sequence that has not begun": rpc(
        "remembering", SMALL, parameters={"sequence_id": {"int64_param": 9}}
    ),
    "a message with a sequence id that is a boolean": rpc(
        "remembering", SMALL, parameters={"sequence_id": {"bool_param": True}}
    ),
    "a message with classes that are a text": rpc(
        "echo",
        typed(contents=FOUR),
        outputs=[{"name": "y", "parameters": {"classification": {"string_param": "1"}}}],
    ),
    "a message with classes": rpc(
        "echo",
        typed(contents=FOUR),
        outputs=[{"name": "y", "parameters": {"classification": {"int64_param": 2}}}],
    ),
    "a message with a region that is a number": rpc(
        "echo", typed(parameters={"shared_memory_region": {"int64_param": 1}})
    ),
    "an input in a region that is a number": infer(
        "echo", tensor(data=None, parameters={**REGION, "shared_memory_region": 1})
    ),
    "an input in a region with a size that is a text": infer(
        "echo", tensor(data=None, parameters={**REGION, "shared_memory_byte_size": "16"})
    ),
    "an output in a region without a size": infer(
        "echo", GOOD, outputs=[{"name": "y", "parameters": {"shared_memory_region": "nowhere"}}]
    ),
    "a message with an output in a region without a size": rpc(
        "echo",
        typed(contents=FOUR),
        outputs=[{"name": "y", "parameters": {"shared_memory_region": {"string_param": "nowhere"}}}],
    ),
    "a message with a region with a size that is a text": rpc(
        "echo",
        typed(
            parameters={
                "shared_memory_region": {"string_param": "nowhere"},
                "shared_memory_byte_size": {"string_param": "16"},
            }
        ),
    ),
    "a message with a region with an offset that is a text": rpc(
        "echo",
        typed(
            parameters={
                "shared_memory_region": {"string_param": "nowhere"},
                "shared_memory_byte_size": {"int64_param": 16},
                "shared_memory_offset": {"string_param": "16"},
            }
        ),
    ),
    **{
        f"generate with {what} for a number": Http("/v2/models/echo/generate", {"x": value})
        for what, value in (("null", None), ("an object", {"a": 1}), ("a text", "a"), ("true", True))
    },
    "a message with a region without a size": rpc(
        "echo", typed(parameters={"shared_memory_region": {"string_param": "nowhere"}})
    ),
    "a message with a parameter that is a fraction": rpc(
        "echo", typed(contents=FOUR), parameters={"a": {"double_param": 1.5}}
    ),
    "a message without an output name": rpc("echo", typed(contents=FOUR), outputs=[{}]),
    "a message with a text as timeout": rpc(
        "echo", typed(contents=FOUR), parameters={"timeout": {"string_param": "1"}}
    ),
    "a message with a binary_data_output": rpc(
        "echo", typed(contents=FOUR), parameters={"binary_data_output": {"bool_param": True}}
    ),
    "a message with a reserved parameter": rpc(
        "echo", typed(contents=FOUR), parameters={"triton_a": {"int64_param": 1}}
    ),
}
#: Models and versions that do not exist.
NAMES: dict[str, Http | Rpc] = {
    "an unknown model": infer("nobody", GOOD),
    "an unknown version": infer("echo/versions/9", GOOD),
    "a version that is a word": infer("echo/versions/stable", GOOD),
    "a version that is too large": infer("echo/versions/99999999999999999999", GOOD),
    "a version of zero": infer("echo/versions/0", GOOD),
    "a model that is not loaded": infer("spare", GOOD),
    "an unknown version by gRPC": rpc("echo", typed(contents=FOUR), model_version="9"),
    "a version that is a word by gRPC": rpc("echo", typed(contents=FOUR), model_version="stable"),
    "a negative version by gRPC": rpc("echo", typed(contents=FOUR), model_version="-1"),
    "an unknown model by gRPC": rpc("nobody", typed(contents=FOUR)),
    **{
        f"{what} of {title}": Http(f"/v2/models/{name}{path}")
        for what, path in (
            ("metadata", ""),
            ("configuration", "/config"),
            ("statistics", "/stats"),
            ("readiness", "/ready"),
        )
        for title, name in (
            ("an unknown model", "nobody"),
            ("a model that is not loaded", "spare"),
            ("an unknown version", "echo/versions/9"),
            ("a version that is a word", "echo/versions/stable"),
        )
    },
    **{
        f"{method} of {title}": Rpc(method, {"name": name, "version": version})
        for method in ("ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady")
        for title, name, version in (
            ("an unknown model", "nobody", ""),
            ("a model that is not loaded", "spare", ""),
            ("an unknown version", "echo", "9"),
            ("a version that is a word", "echo", "stable"),
            ("a negative version", "echo", "-1"),
        )
    },
    "the readiness of a model": Http("/v2/models/echo/ready"),
    "an unknown route": Http("/v2/nothing"),
    "a wrong method": Http("/v2/models/echo/infer"),
}
#: Shared memory regions.
MEMORY: dict[str, Http | Rpc] = {
    "the status of an unknown region": Http("/v2/systemsharedmemory/region/nowhere/status"),
    "the status of an unknown CUDA region": Http("/v2/cudasharedmemory/region/nowhere/status"),
    "no region": Http("/v2/systemsharedmemory/status"),
    "no CUDA region": Http("/v2/cudasharedmemory/status"),
    "an object that does not exist": Http(
        "/v2/systemsharedmemory/region/r/register", {"key": "/absent-object", "offset": 0, "byte_size": 4}
    ),
    "a registration without a key": Http("/v2/systemsharedmemory/region/r/register", {"byte_size": 4}),
    "a registration without a size": Http(
        "/v2/systemsharedmemory/region/r/register", {"key": "/absent-object"}
    ),
    "a registration with a size that is a text": Http(
        "/v2/systemsharedmemory/region/r/register", {"key": "/absent-object", "byte_size": "4"}
    ),
    "a registration that is no JSON": Http("/v2/systemsharedmemory/region/r/register", "hello"),
    "a reserved key": Http(
        "/v2/systemsharedmemory/region/r/register",
        {"key": "triton_python_backend_shm_region_1", "byte_size": 4},
    ),
    "a CUDA region": Http(
        "/v2/cudasharedmemory/region/r/register",
        {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 4},
    ),
    "a CUDA region without a handle": Http(
        "/v2/cudasharedmemory/region/r/register", {"device_id": 0, "byte_size": 4}
    ),
    "an unknown region unregistered": Http("/v2/systemsharedmemory/region/nowhere/unregister", ""),
    "all regions unregistered": Http("/v2/systemsharedmemory/unregister", ""),
    "an unknown CUDA region unregistered": Http("/v2/cudasharedmemory/region/nowhere/unregister", ""),
    "the status of an unknown region by gRPC": Rpc("SystemSharedMemoryStatus", {"name": "nowhere"}),
    "the status of an unknown CUDA region by gRPC": Rpc("CudaSharedMemoryStatus", {"name": "nowhere"}),
    "an object that does not exist by gRPC": Rpc(
        "SystemSharedMemoryRegister", {"name": "r", "key": "/absent-object", "byte_size": 4}
    ),
    "a CUDA region by gRPC": Rpc(
        "CudaSharedMemoryRegister", {"name": "r", "raw_handle": "AAAA", "byte_size": 4}
    ),
    # an object that exists: 64 bytes
    "a region": Http(
        "/v2/systemsharedmemory/region/here/register", {"key": "{object}", "offset": 0, "byte_size": 64}
    ),
    "its status": Http("/v2/systemsharedmemory/region/here/status"),
    "a region twice": Http(
        "/v2/systemsharedmemory/region/here/register", {"key": "{object}", "offset": 0, "byte_size": 64}
    ),
    "a region beyond its object": Http(
        "/v2/systemsharedmemory/region/beyond/register", {"key": "{object}", "offset": 0, "byte_size": 65}
    ),
    "an offset beyond its object": Http(
        "/v2/systemsharedmemory/region/beyond/register", {"key": "{object}", "offset": 65, "byte_size": 4}
    ),
    "a region of nothing": Http(
        "/v2/systemsharedmemory/region/beyond/register", {"key": "{object}", "byte_size": 0}
    ),
    "an input beyond its region": infer(
        "echo",
        tensor(
            data=None,
            parameters={
                "shared_memory_region": "here",
                "shared_memory_offset": 60,
                "shared_memory_byte_size": 16,
            },
        ),
    ),
    "an input at an offset beyond its region": infer(
        "echo",
        tensor(
            data=None,
            parameters={
                "shared_memory_region": "here",
                "shared_memory_offset": 99,
                "shared_memory_byte_size": 16,
            },
        ),
    ),
    "an input in a region with another size": infer(
        "echo", tensor(data=None, parameters={"shared_memory_region": "here", "shared_memory_byte_size": 12})
    ),
    "an output in a region that is too small": infer(
        "echo",
        GOOD,
        outputs=[{"name": "y", "parameters": {"shared_memory_region": "here", "shared_memory_byte_size": 8}}],
    ),
    "an output beyond its region": infer(
        "echo",
        GOOD,
        outputs=[
            {
                "name": "y",
                "parameters": {
                    "shared_memory_region": "here",
                    "shared_memory_offset": 60,
                    "shared_memory_byte_size": 16,
                },
            }
        ],
    ),
    "its end": Http("/v2/systemsharedmemory/region/here/unregister", ""),
}


def _load_by_grpc(model: str, **texts: str) -> Rpc:
    parameters = {name: {"string_param": text} for name, text in texts.items()}
    return Rpc("RepositoryModelLoad", {"model_name": model, "parameters": parameters})


CONFIGURED = (
    '{"backend":"python","input":[{"name":"x","data_type":"TYPE_FP32","dims":[4]}],'
    '"output":[{"name":"y","data_type":"TYPE_FP32","dims":[4]}]}'
)
#: The models that cannot be loaded and that no other case loads.
UNLOADABLE = tuple(OTHERS)[tuple(OTHERS).index("classless") :]
#: Loads and unloads.
LOADS: dict[str, Http | Rpc] = {
    "a load of an unknown model": load("nobody"),
    "a load of a broken model": load("broken"),
    "a load of a misspelt configuration": load("misspelt"),
    "a load of a renamed model": load("renamed"),
    "a load with an unknown backend": load("odd"),
    "a load of an ensemble of an unknown model": load("apart"),
    "a load of an ensemble of a broken model": load("leaning"),
    "a load with a negative batch": load("negative"),
    "a load of a model in two repositories": load("double"),
    "a load without versions": load("hollow"),
    "a load without a configuration": load("unconfigured"),
    "an unload of an unknown model": Http("/v2/repository/models/nobody/unload", {}),
    "an unload with an unknown parameter": Http(
        "/v2/repository/models/nobody/unload", {"parameters": {"a": True}}
    ),
    "an unload with a parameter that is a text": Http(
        "/v2/repository/models/nobody/unload", {"parameters": {"unload_dependents": "yes"}}
    ),
    "a load with an unknown parameter": load("spare", speed="high"),
    "a load with a configuration that is no text": load("spare", config={}),
    "a load with a configuration that is no JSON": load("spare", config="hello"),
    "a load with files only": load("spare", **{"file:1/model.py": "AAAA"}),
    "a load with a file outside": load("spare", config=CONFIGURED, **{"file:../../model.py": "AAAA"}),
    "a load with an absolute file": load("spare", config=CONFIGURED, **{"file:/tmp/model.py": "AAAA"}),
    "a load with a file without a version": load("spare", config=CONFIGURED, **{"file:model.py": "AAAA"}),
    "a load with a file that is no base64": load("spare", config=CONFIGURED, **{"file:1/model.py": "?"}),
    "a load with a file that is a number": load("spare", config=CONFIGURED, **{"file:1/model.py": 1}),
    "a load with a file without a name": load("spare", config=CONFIGURED, **{"file:": "AAAA"}),
    "a load that is no JSON": Http("/v2/repository/models/spare/load", "hello"),
    "a load from a named repository": Http("/v2/repository/first/models/spare/load", {}),
    "an index of a named repository": Http("/v2/repository/first/index", {}),
    "a load of an unknown model by gRPC": Rpc("RepositoryModelLoad", {"model_name": "nobody"}),
    "a load of a broken model by gRPC": Rpc("RepositoryModelLoad", {"model_name": "broken"}),
    "a load with an unknown parameter by gRPC": Rpc(
        "RepositoryModelLoad", {"model_name": "spare", "parameters": {"speed": {"string_param": "high"}}}
    ),
    "a load with a wrong parameter by gRPC": Rpc(
        "RepositoryModelLoad", {"model_name": "spare", "parameters": {"config": {"int64_param": 1}}}
    ),
    "a load with files only by gRPC": Rpc(
        "RepositoryModelLoad",
        {"model_name": "spare", "parameters": {"file:1/model.py": {"bytes_param": "AAAA"}}},
    ),
    "a load from a named repository by gRPC": Rpc(
        "RepositoryModelLoad", {"model_name": "spare", "repository_name": "first"}
    ),
    "an unload of an unknown model by gRPC": Rpc("RepositoryModelUnload", {"model_name": "nobody"}),
    "an unload of nothing by gRPC": Rpc("RepositoryModelUnload", {}),
    "a load of nothing by gRPC": Rpc("RepositoryModelLoad", {}),
    **{f"a load of the model {name}": load(name) for name in UNLOADABLE},
    **{
        f"a load of the model {name} by gRPC": Rpc("RepositoryModelLoad", {"model_name": name})
        for name in UNLOADABLE
    },
    "a load whose parameters are a list": Http("/v2/repository/models/spare/load", {"parameters": []}),
    "a load whose parameters are a text": Http("/v2/repository/models/spare/load", {"parameters": "x"}),
    "a load that is a list": Http("/v2/repository/models/spare/load", "[]"),
    "a load with an unknown number": load("spare", speed=1),
    "a load with an unknown boolean": load("spare", speed=True),
    "a load with an unknown list": load("spare", speed=[]),
    "a load with a configuration that is null": load("spare", config=None),
    "a load with an empty configuration": load("spare", config=""),
    "a load with the configuration of another model": load("spare", config='{"name":"other"}'),
    "a load with a negative batch in its configuration": load(
        "spare", config='{"backend":"python","max_batch_size":-1}'
    ),
    "a load with an input without a type": load(
        "spare", config='{"backend":"python","input":[{"name":"x","dims":[4]}]}'
    ),
    "a load with an unknown backend in its configuration": load("spare", config='{"backend":"nonesuch"}'),
    "a load with an unknown field in its configuration": load("spare", config='{"colour":1}'),
    "a load with a file that is no base64 at its end": load(
        "spare", config=CONFIGURED, **{"file:1/model.py": "AAAA?"}
    ),
    "a load with an empty file": load("spare", config=CONFIGURED, **{"file:1/model.py": ""}),
    "a load with a file of a version that is a word": load(
        "spare", config=CONFIGURED, **{"file:one/model.py": "AAAA"}
    ),
    "a load of an unknown model with a file": load("nobody", config=CONFIGURED, **{"file:x": "AAAA"}),
    "a load of an unknown model with a configuration": load("nobody", config=CONFIGURED),
    "a load with a configuration that is no JSON by gRPC": _load_by_grpc("spare", config="hello"),
    "a load with an input without a type by gRPC": _load_by_grpc(
        "spare", config='{"backend":"python","input":[{"name":"x","dims":[4]}]}'
    ),
    "a load with an absolute file by gRPC": Rpc(
        "RepositoryModelLoad",
        {
            "model_name": "spare",
            "parameters": {
                "config": {"string_param": CONFIGURED},
                "file:/tmp/model.py": {"bytes_param": "AAAA"},
            },
        },
    ),
    "a load with a file outside by gRPC": Rpc(
        "RepositoryModelLoad",
        {
            "model_name": "spare",
            "parameters": {
                "config": {"string_param": CONFIGURED},
                "file:../../model.py": {"bytes_param": "AAAA"},
            },
        },
    ),
    "an unload of a broken model": Http("/v2/repository/models/broken/unload", {}),
    "an unload of a model that cannot be read": Http("/v2/repository/models/misspelt/unload", {}),
    "an unload from a named repository": Http("/v2/repository/first/models/spare/unload", {}),
    "an unload from a named repository by gRPC": Rpc(
        "RepositoryModelUnload", {"model_name": "spare", "repository_name": "first"}
    ),
    "an index of a named repository by gRPC": Rpc("RepositoryIndex", {"repository_name": "first"}),
    **{
        f"{what} of {title}": Http(f"/v2/models/{name}{path}")
        for what, path in (
            ("the metadata", ""),
            ("the configuration", "/config"),
            ("the statistics", "/stats"),
            ("the readiness", "/ready"),
        )
        for title, name in (("a model without a class", "classless"), ("a misspelt model", "misspelt"))
    },
    "a request to a misspelt model": infer("misspelt", GOOD),
    "a request to version 1 of a broken model": infer("broken/versions/1", GOOD),
    "a broken model": infer("broken", GOOD),
    "the readiness of a broken model": Http("/v2/models/broken/ready"),
    "the index": Http("/v2/repository/index", {}),
    "the index of ready models": Http("/v2/repository/index", {"ready": True}),
    "the index by gRPC": Rpc("RepositoryIndex"),
}
CASES = {**CONFIGURATIONS, **METADATA, **REQUESTS, **NAMES, **MEMORY, **LOADS}


class Ask:
    """Sends cases to a server; `{object}` in a body stands for the name of a shared memory object."""

    def __init__(self, http_port: int, grpc_port: int, shared_object: str) -> None:
        self._http_port = http_port
        self._object = shared_object
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(
            grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        )

    def run(self, name: str) -> dict[str, Any]:
        """The status, and what the body says."""
        return self.send(CASES[name])

    def send(self, case: Http | Rpc) -> dict[str, Any]:
        """The same, for a case without a name."""
        return self._call(case) if isinstance(case, Rpc) else self._request(case)

    def _request(self, case: Http) -> dict[str, Any]:
        body = case.body if isinstance(case.body, str | None) else json.dumps(case.body)
        if body is not None:
            body = body.replace("{object}", self._object)
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=60)
        try:
            connection.request(
                case.method or ("GET" if body is None else "POST"), case.path, body, dict(case.fields)
            )
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace").replace(self._object, "{object}")
        finally:
            connection.close()
        try:
            said = json.loads(text) if text else ""
        except ValueError:
            said = text
        return {"status": answer.status, "said": said}

    def _call(self, case: Rpc) -> dict[str, Any]:
        method = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[case.method]
        asked = ParseDict(case.message, getattr(service_pb2, method.input_type.name)())
        try:
            answer = getattr(self._stub, case.method)(asked, timeout=60)
        except grpc.RpcError as error:
            return {"status": error.code().name, "said": error.details()}
        said = MessageToDict(answer, preserving_proto_field_name=True)
        return {"status": "OK", "said": said}
