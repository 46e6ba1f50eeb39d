"""Inference requests, right and wrong, as JSON, as bytes and as protobuf messages."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np

from scenarios.exchanges import binary, raw
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

_VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 4294967295],
    "UINT64": [0, 18446744073709551615],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-2147483648, 2147483647],
    "INT64": [-9223372036854775808, 9223372036854775807],
    "FP16": [1.5, -0.25],
    "FP32": [1.5, -0.1],
    "FP64": [1.5, -0.1],
    "BYTES": ["a", "ü €"],
}
_NUMPY = {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
}


def name_of(datatype: str) -> str:
    return "STRING" if datatype == "BYTES" else datatype


def encoded(datatype: str, values: list[Any]) -> bytes:
    """The values as bytes on the wire."""
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    kind = _NUMPY.get(datatype) or f"{'u' if datatype[0] == 'U' else 'i'}{int(datatype.lstrip('UINT')) // 8}"
    return np.array(values, f"<{kind}" if kind != "?" else kind).tobytes()


def tensor(datatype: str, **fields: Any) -> dict[str, Any]:
    return {"name": name_of(datatype), "datatype": datatype, "shape": [2], **fields}


def audio(data: Any, shape: Any = (1, 2), **fields: Any) -> dict[str, Any]:
    return {"name": "AUDIO", "datatype": "FP32", "shape": shape, "data": data, **fields}


@scenario("http")
def every_datatype_as_json(session: Session) -> Seen:
    return session.wire.post(
        "/v2/models/types/infer",
        {name: {"inputs": [tensor(name, data=values)]} for name, values in _VALUES.items()},
    )


@scenario("http")
def every_datatype_as_bytes(session: Session) -> Seen:
    seen = {}
    for name, values in _VALUES.items():
        content = encoded(name, values)
        document = {
            "inputs": [tensor(name, parameters={"binary_data_size": len(content)})],
            "parameters": {"binary_data_output": True},
        }
        seen[name] = session.wire.http("POST", "/v2/models/types/infer", *binary(document, content))
    return seen


@scenario("grpc")
def every_datatype_in_raw_contents(session: Session) -> Seen:
    return session.wire.calls(
        "ModelInfer",
        {
            name: {"model_name": "types", "inputs": [tensor(name)], **raw(encoded(name, values))}
            for name, values in _VALUES.items()
        },
    )


@scenario("grpc")
def every_datatype_in_typed_contents(session: Session) -> Seen:
    return session.wire.calls(
        "ModelInfer",
        {
            name: {"model_name": "types", "inputs": [tensor(name, contents={field: _VALUES[name]})]}
            for name, field in _CONTENTS.items()
        },
    )


@scenario("http")
def ids_outputs_and_parameters(session: Session) -> Seen:
    given = tensor("INT32", data=[1, 2])
    other = tensor("FP32", data=[1, 2])
    bodies = {
        "an id": {"id": "mine", "inputs": [given]},
        "an empty id": {"id": "", "inputs": [given]},
        "a number as id": {"id": 5, "inputs": [given]},
        "parameters": {"inputs": [given], "parameters": {"a": 1, "b": "text", "c": True}},
        "a parameter with a fraction": {"inputs": [given], "parameters": {"a": 1.5}},
        "a parameter that is a list": {"inputs": [given], "parameters": {"a": [1]}},
        "a reserved parameter": {"inputs": [given], "parameters": {"triton_mine": 1}},
        "a priority": {"inputs": [given], "parameters": {"priority": 1}},
        "a timeout": {"inputs": [given], "parameters": {"timeout": 60000000}},
        "a text as timeout": {"inputs": [given], "parameters": {"timeout": "soon"}},
        "a sequence id": {"inputs": [given], "parameters": {"sequence_id": 7}},
        "one output of two": {"inputs": [given, other], "outputs": [{"name": "OF_FP32"}]},
        "outputs in another order": {
            "inputs": [given, other],
            "outputs": [{"name": "OF_FP32"}, {"name": "OF_INT32"}],
        },
        "no outputs wanted": {"inputs": [given], "outputs": []},
        "an output that is not there": {"inputs": [given], "outputs": [{"name": "NOPE"}]},
        "an output without a name": {"inputs": [given], "outputs": [{}]},
        "a binary output": {
            "inputs": [given],
            "outputs": [{"name": "OF_INT32", "parameters": {"binary_data": True}}],
        },
        "binary_data is no boolean": {
            "inputs": [given],
            "outputs": [{"name": "OF_INT32", "parameters": {"binary_data": "yes"}}],
        },
        "fields that nobody knows": {"inputs": [{**given, "colour": 1}], "colour": 2},
    }
    return session.wire.post("/v2/models/types/infer", bodies)


@scenario("http")
def json_that_is_wrong(session: Session) -> Seen:
    bodies = {
        "no JSON": b"nope",
        "an empty body": b"",
        "half of it": b'{"inputs": [',
        "a list": [],
        "an empty object": {},
        "no inputs": {"inputs": []},
        "inputs are no list": {"inputs": 5},
        "an input is a number": {"inputs": [5]},
        "an input without a name": {"inputs": [{"datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]},
        "an input without a datatype": {"inputs": [{"name": "AUDIO", "shape": [1, 2], "data": [1, 2]}]},
        "an input without a shape": {"inputs": [{"name": "AUDIO", "datatype": "FP32", "data": [1, 2]}]},
        "an input without data": {"inputs": [{"name": "AUDIO", "datatype": "FP32", "shape": [1, 2]}]},
        "a datatype that is not there": {"inputs": [audio([1, 2], datatype="FP31")]},
        "another datatype": {"inputs": [audio([1, 2], datatype="INT32")]},
        "a shape that is a text": {"inputs": [audio([1, 2], shape="1,2")]},
        "a shape below zero": {"inputs": [audio([1, 2], shape=[1, -2])]},
        "a shape with a fraction": {"inputs": [audio([1, 2], shape=[1, 2.5])]},
        "too few values": {"inputs": [audio([1])]},
        "too many values": {"inputs": [audio([1, 2, 3])]},
        "values that are texts": {"inputs": [audio(["a", "b"])]},
        "values that are null": {"inputs": [audio([None, 1])]},
        "data is a number": {"inputs": [audio(1)]},
        "nested data": {"inputs": [audio([[1, 2]])]},
        "data nested in another form": {"inputs": [audio([[1], [2]])]},
        "no dimension for the batch": {"inputs": [audio([1, 2], shape=[2])]},
        "too large a batch": {"inputs": [audio([1] * 9, shape=[9, 1])]},
        "a batch of zero": {"inputs": [audio([], shape=[0, 1])]},
        "an input that is not there": {"inputs": [audio([1, 2]), {**audio([1, 2]), "name": "NOPE"}]},
        "only an input that is not there": {"inputs": [{**audio([1, 2]), "name": "NOPE"}]},
        "an input twice": {"inputs": [audio([1, 2]), audio([1, 2])]},
        "batches of two sizes": {
            "inputs": [audio([1, 2]), {"name": "GAIN", "datatype": "FP32", "shape": [2, 1], "data": [1, 2]}]
        },
        "another shape of a fixed input": {
            "inputs": [audio([1]), {"name": "GAIN", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]
        },
    }
    return session.wire.post("/v2/models/gain/infer", bodies)


@scenario("http")
def numbers_that_do_not_fit(session: Session) -> Seen:
    bodies = {
        "256 as UINT8": {"inputs": [tensor("UINT8", data=[1, 256])]},
        "-1 as UINT8": {"inputs": [tensor("UINT8", data=[1, -1])]},
        "128 as INT8": {"inputs": [tensor("INT8", data=[1, 128])]},
        "a fraction as INT32": {"inputs": [tensor("INT32", data=[1, 1.5])]},
        "2 to the 31 as INT32": {"inputs": [tensor("INT32", data=[1, 2**31])]},
        "a number as BOOL": {"inputs": [tensor("BOOL", data=[1, 0])]},
        "a boolean as INT32": {"inputs": [tensor("INT32", data=[True, False])]},
        "a number as BYTES": {"inputs": [tensor("BYTES", data=[1, 2])]},
        "an integer as FP32": {"inputs": [tensor("FP32", data=[1, 2])]},
        "1e39 as FP32": {"inputs": [tensor("FP32", data=[1, 1e39])]},
    }
    return session.wire.post("/v2/models/types/infer", bodies)


@scenario("http")
def requests_for_the_wrong_model(session: Session) -> Seen:
    body = {"inputs": [audio([1, 2])]}
    paths = ("nobody", "spare", "gain/versions/9", "gain/versions/x", "gain/versions/1", "release/versions/2")
    return {path: session.wire.http("POST", f"/v2/models/{path}/infer", body) for path in paths} | {
        "a decoupled model": session.wire.http("POST", "/v2/models/frames/infer", body),
        "a decoupled ensemble": session.wire.http("POST", "/v2/models/mastering/infer", body),
        "a sequence model without a sequence": session.wire.http(
            "POST",
            "/v2/models/meter/infer",
            {"inputs": [{"name": "LEVEL", "datatype": "INT32", "shape": [1, 1], "data": [1]}]},
        ),
    }


@scenario("http")
def binary_requests_that_are_wrong(session: Session) -> Seen:
    content = encoded("FP32", [1, 2])

    def ask(document: Any, *tensors: bytes, length: str = "") -> Seen:
        body, headers = binary(document, *tensors)
        if length:
            headers = dict.fromkeys(headers, length)
        return session.wire.http("POST", "/v2/models/gain/infer", body, headers)

    def given(size: Any, **fields: Any) -> dict[str, Any]:
        one = audio(None, parameters={"binary_data_size": size}, **fields)
        del one["data"]
        return {"inputs": [one]}

    return {
        "right": ask(given(8), content),
        "too few bytes": ask(given(8), content[:6]),
        "too many bytes": ask(given(8), content + b"xx"),
        "a smaller size than the shape": ask(given(4), content[:4]),
        "a larger size than the shape": ask(given(12), content + content[:4]),
        "a size that is a text": ask(given("8"), content),
        "a size below zero": ask(given(-8), content),
        "data and bytes": ask({"inputs": [audio([1, 2], parameters={"binary_data_size": 8})]}, content),
        "a header length that is no number": ask(given(8), content, length="x"),
        "a header length below zero": ask(given(8), content, length="-1"),
        "a header length beyond the body": ask(given(8), content, length="100000"),
        "a header length within the JSON": ask(given(8), content, length="10"),
        "a raw body for a model with several inputs": session.wire.http(
            "POST", "/v2/models/fixed/infer", content, {"Inference-Header-Content-Length": "0"}
        ),
        "a raw body": session.wire.http(
            "POST", "/v2/models/text/infer", b"some text", {"Inference-Header-Content-Length": "0"}
        ),
        "an empty raw body": session.wire.http(
            "POST", "/v2/models/text/infer", b"", {"Inference-Header-Content-Length": "0"}
        ),
        "raw numbers": session.wire.http(
            "POST", "/v2/models/lengths/infer", content, {"Inference-Header-Content-Length": "0"}
        ),
    }


@scenario("http")
def compressed_bodies(session: Session) -> Seen:
    body = json.dumps({"inputs": [audio([1, 2])]}).encode()

    def ask(content: bytes, **headers: str) -> Seen:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return session.wire.http("POST", "/v2/models/gain/infer", content, named)

    return {
        "gzip": ask(gzip.compress(body), Content_Encoding="gzip"),
        "deflate": ask(zlib.compress(body), Content_Encoding="deflate"),
        "no gzip": ask(body, Content_Encoding="gzip"),
        "a coding that is not there": ask(body, Content_Encoding="br"),
        "identity": ask(body, Content_Encoding="identity"),
        "an answer in gzip": ask(body, Accept_Encoding="gzip"),
        "an answer in deflate": ask(body, Accept_Encoding="deflate"),
        "an answer in the preferred coding": ask(body, Accept_Encoding="gzip;q=0.1, deflate;q=0.9"),
        "an answer in neither": ask(body, Accept_Encoding="br"),
        "a metadata answer in gzip": session.wire.http(
            "GET", "/v2/models/gain", b"", {"Accept-Encoding": "gzip"}
        ),
    }


@scenario("http")
def fields_of_the_header_reach_the_model(session: Session) -> Seen:
    body = {"inputs": [tensor("INT32", data=[1, 2])]}
    headers = {"Forwarded-One": "1", "X-Other": "2"}
    return {
        "a field": session.wire.http("POST", "/v2/models/types/infer", body, headers),
        "a parameter of the same name": session.wire.http(
            "POST", "/v2/models/types/infer", {**body, "parameters": {"forwarded-one": "mine"}}, headers
        ),
    }


@scenario("grpc")
def metadata_reaches_the_model(session: Session) -> Seen:
    given = {"model_name": "types", "inputs": [tensor("INT32", contents={"int_contents": [1, 2]})]}
    return {
        "a field": session.wire.rpc("ModelInfer", given, {"forwarded-one": "1", "x-other": "2"}),
        "no field": session.wire.rpc("ModelInfer", given),
    }


@scenario("http")
def errors_of_a_model(session: Session) -> Seen:
    def scaled(scale: float) -> Any:
        return {
            "inputs": [
                {"name": "MATRIX", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]},
                {"name": "SCALE", "datatype": "FP32", "shape": [1], "data": [scale]},
            ]
        }

    bodies = {f"error {number}": scaled(-number) for number in range(1, 8)}
    return session.wire.post(
        "/v2/models/fixed/infer", {"none": scaled(2), **bodies, "an exception": scaled(1000)}
    )


@scenario("grpc")
def errors_of_a_model_over_grpc(session: Session) -> Seen:
    def scaled(scale: float) -> Any:
        return {
            "model_name": "fixed",
            "inputs": [
                {"name": "MATRIX", "datatype": "FP32", "shape": [2, 3]},
                {"name": "SCALE", "datatype": "FP32", "shape": [1]},
            ],
            **raw(encoded("FP32", [1, 2, 3, 4, 5, 6]), encoded("FP32", [scale])),
        }

    messages = {f"error {number}": scaled(-number) for number in range(1, 8)}
    return session.wire.calls("ModelInfer", {"none": scaled(2), **messages, "an exception": scaled(1000)})


@scenario("grpc")
def messages_that_are_wrong(session: Session) -> Seen:
    content = encoded("FP32", [1, 2])

    def given(**fields: Any) -> dict[str, Any]:
        return {"name": "AUDIO", "datatype": "FP32", "shape": [1, 2], **fields}

    def message(*inputs: Any, model: str = "gain", **fields: Any) -> dict[str, Any]:
        return {"model_name": model, "inputs": list(inputs), **fields}

    typed = given(contents={"fp32_contents": [1, 2]})
    gain = {"name": "GAIN", "datatype": "FP32", "shape": [2, 1], "contents": {"fp32_contents": [1, 2]}}
    messages = {
        "right": message(typed),
        "right and raw": message(given(), **raw(content)),
        "an id": message(typed, id="mine"),
        "no model": message(typed, model=""),
        "an unknown model": message(typed, model="nobody"),
        "an unloaded model": message(typed, model="spare"),
        "an unknown version": message(typed, model_version="9"),
        "no number as version": message(typed, model_version="x"),
        "an unavailable version": message(typed, model="release", model_version="2"),
        "a decoupled model": message(typed, model="frames"),
        "no inputs": message(),
        "an empty input": message({}),
        "both contents": message(typed, **raw(content)),
        "too few raw contents": message(given(), {**given(), "name": "GAIN"}, **raw(content)),
        "too many raw contents": message(given(), **raw(content, content)),
        "no contents": message(given()),
        "contents of another type": message(given(contents={"int_contents": [1, 2]})),
        "too few values": message(given(contents={"fp32_contents": [1]})),
        "too many values": message(given(contents={"fp32_contents": [1, 2, 3]})),
        "too few bytes": message(given(), **raw(content[:6])),
        "too many bytes": message(given(), **raw(content + b"xx")),
        "another datatype": message(given(datatype="INT32"), **raw(content)),
        "a datatype that is not there": message(given(datatype="FP31"), **raw(content)),
        "a shape below zero": message(given(shape=[1, -2]), **raw(content)),
        "no dimension for the batch": message(given(shape=[2]), **raw(content)),
        "too large a batch": message(given(shape=[9, 1]), **raw(encoded("FP32", [1] * 9))),
        "an input that is not there": message(typed, {**typed, "name": "NOPE"}),
        "only an input that is not there": message({**typed, "name": "NOPE"}),
        "an input twice": message(typed, typed),
        "batches of two sizes": message(typed, gain),
        "an output that is not there": message(typed, outputs=[{"name": "NOPE"}]),
        "an output twice": message(typed, outputs=[{"name": "LOUDER"}, {"name": "LOUDER"}]),
        "a reserved parameter": message(typed, parameters={"triton_mine": {"int64_param": 1}}),
        "a text as priority": message(typed, parameters={"priority": {"string_param": "x"}}),
        "a text as timeout": message(typed, parameters={"timeout": {"string_param": "x"}}),
        "a number as sequence_start": message(typed, parameters={"sequence_start": {"int64_param": 1}}),
        "a string that is cut off": {
            "model_name": "text",
            "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1]}],
            **raw(struct.pack("<I", 9) + b"abc"),
        },
        "fewer strings than the shape": {
            "model_name": "types",
            "inputs": [tensor("BYTES")],
            **raw(encoded("BYTES", ["a"])),
        },
        "more strings than the shape": {
            "model_name": "types",
            "inputs": [tensor("BYTES")],
            **raw(encoded("BYTES", ["a", "b", "c"])),
        },
    }
    return session.wire.calls("ModelInfer", messages)


@scenario("http", "grpc")
def classes(session: Session) -> Seen:
    """Classification: how many classes, of which output."""
    counts: dict[str, Any] = {"one": 1, "all": 4, "more than there are": 9, "none": 0, "a text": "2"}
    if session.way == "http":
        given = {"name": "TEMPO", "datatype": "FP32", "shape": [1, 1], "data": [95]}
        bodies = {
            name: {
                "inputs": [given],
                "outputs": [{"name": "SCORES", "parameters": {"classification": count}}],
            }
            for name, count in counts.items()
        }
        bodies["with binary data"] = {
            "inputs": [given],
            "outputs": [{"name": "SCORES", "parameters": {"classification": 2, "binary_data": True}}],
        }
        return session.wire.post("/v2/models/genre/infer", bodies)
    typed = {"name": "TEMPO", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [95]}}
    return session.wire.calls(
        "ModelInfer",
        {
            name: {
                "model_name": "genre",
                "inputs": [typed],
                "outputs": [
                    {
                        "name": "SCORES",
                        "parameters": {
                            "classification": {
                                "string_param" if isinstance(count, str) else "int64_param": count
                            }
                        },
                    }
                ],
            }
            for name, count in counts.items()
        },
    )
