"""The binary tensor extension: tensors after the JSON, in requests and in answers."""

from __future__ import annotations

import math
import struct
from functools import partial

from oip_conformance import specification as spec
from oip_conformance.areas.infer import DIFFERENCE, LEFT, RIGHT, SUM
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Level
from oip_conformance.suite_models import identity
from oip_conformance.target import HEADER_LENGTH, Target, check, equal, key, ok, outputs, refused, same
from oip_conformance.tensors import DATATYPES, Tensor, fp32, sample

MUST, SHOULD, OBSERVED = Level
area = Area("binary", "binary")


def _binary(answer: Answer) -> bool:
    """Whether the outputs of an answer are binary: all of them, or none."""
    entries = key(ok(answer).json(), "outputs", list)
    forms = {"binary_data_size" in (entry.get("parameters") or {}) for entry in entries}
    check(len(forms) == 1, "outputs that are all binary or all JSON", entries)
    return forms.pop()


def _both(t: Target, answer: Answer) -> None:
    found = outputs(answer)
    for wanted, name in zip((SUM, DIFFERENCE), t.output_names("sum"), strict=True):
        same(found.get(name), wanted)


@area.row("announced", MUST, spec.BINARY_ANNOUNCED)
def announced(t: Target) -> None:
    """A server with the extension names binary_tensor_data among its extensions."""
    extensions = key(ok(t.get("/v2")).json(), "extensions", list)
    check("binary_tensor_data" in extensions, "binary_tensor_data", extensions)


@area.row("in-json-out", MUST, spec.BINARY_SIZE, "sum")
def in_json_out(t: Target) -> None:
    """Binary inputs, and outputs in JSON since none was asked for in binary form."""
    answer = t.infer_binary("sum", LEFT, RIGHT)
    check(not _binary(answer), "outputs in JSON", answer.json())
    _both(t, answer)


@area.row("json-in-out", MUST, spec.BINARY_ALL, "sum")
def json_in_out(t: Target) -> None:
    """Inputs in JSON, and all outputs in binary form."""
    answer = t.infer("sum", LEFT, RIGHT, parameters={"binary_data_output": True})
    check(_binary(answer), "outputs in binary form", answer.json())
    _both(t, answer)


@area.row("in-out", MUST, spec.BINARY_ALL, "sum")
def in_out(t: Target) -> None:
    """Binary inputs and binary outputs."""
    answer = t.infer_binary("sum", LEFT, RIGHT, parameters={"binary_data_output": True})
    check(_binary(answer), "outputs in binary form", answer.json())
    _both(t, answer)


@area.row("mixed-inputs", MUST, spec.BINARY_ORDER, "sum")
def mixed_inputs(t: Target) -> None:
    """One input in JSON and the other in binary form, either way round."""
    _both(t, t.infer_binary("sum", LEFT, RIGHT, as_json=[0]))
    _both(t, t.infer_binary("sum", LEFT, RIGHT, as_json=[1]))


@area.row("one-output", MUST, spec.BINARY_OUTPUT, "sum")
def one_output(t: Target) -> None:
    """One output is asked for in binary form, and the other is in JSON."""
    first, second = t.output_names("sum")
    wanted = [{"name": first}, {"name": second, "parameters": {"binary_data": True}}]
    answer = ok(t.infer("sum", LEFT, RIGHT, outputs=wanted))
    forms = {entry["name"]: "data" in entry for entry in key(answer.json(), "outputs", list)}
    equal(forms, {first: True, second: False}, "which outputs have `data`")
    _both(t, answer)


@area.row("output-false", MUST, spec.BINARY_OVERRIDES, "sum")
def output_false(t: Target) -> None:
    """`binary_data` of an output overrides `binary_data_output` of the request."""
    name = t.output_names("sum")[0]
    wanted = [{"name": name, "parameters": {"binary_data": False}}]
    answer = t.infer("sum", LEFT, RIGHT, outputs=wanted, parameters={"binary_data_output": True})
    check(not _binary(answer), "the output in JSON", answer.json())


@area.row("input-order", MUST, spec.BINARY_ORDER, "sum")
def input_order(t: Target) -> None:
    """Binary data follows the JSON in the order in which the request lists the inputs, not the model."""
    left, right = t.tensors("sum", LEFT, RIGHT)
    entries = [tensor.entry(binary_data_size=16) for tensor in (right, left)]
    _both(t, t.post_binary(t.path("sum", "infer"), {"inputs": entries}, right.raw() + left.raw()))


@area.row("header", MUST, spec.BINARY_HEADER, "sum")
def header(t: Target) -> None:
    """A binary answer has the length of its JSON in Inference-Header-Content-Length, and the tensors are the rest."""
    answer = ok(t.infer("sum", LEFT, RIGHT, parameters={"binary_data_output": True}))
    length = answer.header(HEADER_LENGTH)
    check(length is not None, f"the header field {HEADER_LENGTH}", answer.headers)
    equal(len(answer.body) - int(length or 0), 32, "bytes after the JSON:")


def _datatype(datatype: str, t: Target) -> None:
    model = identity(datatype)
    tensor = sample("INPUT", datatype)
    answer = t.infer_binary(model, tensor, parameters={"binary_data_output": True})
    same(outputs(answer).get(t.output_names(model)[0]), tensor, f"output of {model}")


for _name in DATATYPES:
    area.add(
        f"datatype.{_name}",
        MUST,
        spec.BINARY_DATATYPES,
        f"{_name} elements come back in binary form as they were sent, in their native size.",
        partial(_datatype, _name),
        identity(_name),
    )


@area.row("bool-byte", MUST, spec.BINARY_BOOL, "identity_bool")
def bool_byte(t: Target) -> None:
    """True is one byte of value 1, and false one byte of value 0."""
    answer = t.infer("identity_bool", sample("INPUT", "BOOL"), parameters={"binary_data_output": True})
    equal(ok(answer).body[-4:], b"\x01\x00\x00\x01", "the bytes")


@area.row("nan", MUST, spec.BINARY_LAYOUT, "identity_fp32")
def nan(t: Target) -> None:
    """NaN and the infinities pass in binary form."""
    tensor = Tensor("INPUT", "FP32", (1, 3), [math.nan, math.inf, -math.inf])
    answer = t.infer_binary("identity_fp32", tensor, parameters={"binary_data_output": True})
    same(outputs(answer).get(t.output_names("identity_fp32")[0]), tensor)


@area.row("any-bytes", MUST, spec.BINARY_BYTES, "identity_bytes")
def any_bytes(t: Target) -> None:
    """BYTES elements that are no text, with zeros and all byte values, pass in binary form."""
    tensor = Tensor("INPUT", "BYTES", (1, 3), [bytes(range(256)), b"", b"\x00\xff"])
    answer = t.infer_binary("identity_bytes", tensor, parameters={"binary_data_output": True})
    same(outputs(answer).get(t.output_names("identity_bytes")[0]), tensor)


@area.row("empty", MUST, spec.BINARY_SIZE, "identity_fp32")
def empty(t: Target) -> None:
    """A tensor without elements has 0 bytes."""
    tensor = Tensor("INPUT", "FP32", (0, 3), [])
    answer = t.infer_binary("identity_fp32", tensor, parameters={"binary_data_output": True})
    same(outputs(answer).get(t.output_names("identity_fp32")[0]), tensor)


def _sized(t: Target, size: int, data: bytes) -> Answer:
    """A request with a tensor of four FP32 elements, whatever its binary_data_size and its data are."""
    entry = t.tensors("identity_fp32", fp32("", [1, 2, 3, 4]))[0].entry(binary_data_size=size)
    return t.post_binary(t.path("identity_fp32", "infer"), {"inputs": [entry]}, data)


@area.row("size-short", MUST, spec.BINARY_SIZE, "identity_fp32")
def size_short(t: Target) -> None:
    """Binary data, and a binary_data_size, below what shape and datatype need are an error."""
    refused(_sized(t, 12, bytes(12)))


@area.row("size-long", MUST, spec.BINARY_SIZE, "identity_fp32")
def size_long(t: Target) -> None:
    """A binary_data_size beyond the end of the body is an error."""
    refused(_sized(t, 20, bytes(16)))


@area.row("size-negative", MUST, spec.BINARY_SIZE, "identity_fp32")
def size_negative(t: Target) -> None:
    """A negative binary_data_size is an error."""
    refused(_sized(t, -16, bytes(16)))


@area.row("shape-differs", MUST, spec.BINARY_SIZE, "identity_fp32")
def shape_differs(t: Target) -> None:
    """Binary data that is longer than the shape says is an error, though its size is right."""
    refused(_sized(t, 20, bytes(20)))


@area.row("tail", SHOULD, spec.BINARY_SIZE, "identity_fp32")
def tail(t: Target) -> None:
    """Bytes after the last tensor are an error."""
    refused(t.infer_binary("identity_fp32", fp32("INPUT", [1, 2, 3, 4]), tail=b"1234"))


@area.row("header-long", MUST, spec.BINARY_HEADER, "identity_fp32")
def header_long(t: Target) -> None:
    """An Inference-Header-Content-Length beyond the end of the body is an error."""
    refused(t.infer_binary("identity_fp32", fp32("INPUT", [1, 2, 3, 4]), header=100_000))


@area.row("header-short", MUST, spec.BINARY_HEADER, "identity_fp32")
def header_short(t: Target) -> None:
    """An Inference-Header-Content-Length that cuts the JSON is an error."""
    refused(t.infer_binary("identity_fp32", fp32("INPUT", [1, 2, 3, 4]), header=-5))


@area.row("data-and-binary", SHOULD, spec.BINARY_SIZE, "identity_fp32")
def data_and_binary(t: Target) -> None:
    """An input with `data` and binary_data_size at once is an error."""
    tensor = t.tensors("identity_fp32", fp32("INPUT", [1, 2, 3, 4]))[0]
    entry = {**tensor.json(), "parameters": {"binary_data_size": 16}}
    refused(t.post_binary(t.path("identity_fp32", "infer"), {"inputs": [entry]}, tensor.raw()))


@area.row("bytes-length-long", MUST, spec.BINARY_BYTES, "identity_bytes")
def bytes_length_long(t: Target) -> None:
    """A BYTES element whose length points beyond its tensor is an error."""
    name = t.input_names("identity_bytes")[0]
    entry = Tensor(name, "BYTES", (1, 1), []).entry(binary_data_size=8)
    refused(t.post_binary(t.path("identity_bytes", "infer"), {"inputs": [entry]}, struct.pack("<I", 100) + b"abcd"))


@area.row("raw-request", MUST, spec.RAW_REQUEST, "slow")
def raw_request(t: Target) -> None:
    """With an Inference-Header-Content-Length of 0 the whole body is the only input, and outputs are binary."""
    answer = t.post(t.path("slow", "infer"), struct.pack("<i", 1), (HEADER_LENGTH, "0"))
    check(_binary(answer), "outputs in binary form", answer.json())
    equal(outputs(answer)[t.output_names("slow")[0]].data, [1], "the output")


@area.row("raw-two-inputs", MUST, spec.RAW_ONE_INPUT, "sum")
def raw_two_inputs(t: Target) -> None:
    """A raw binary request to a model with two inputs is an error."""
    refused(t.post(t.path("sum", "infer"), bytes(32), (HEADER_LENGTH, "0")))


@area.row("large", MUST, spec.BINARY_LAYOUT, "identity_fp32")
def large(t: Target) -> None:
    """A tensor of two mebibytes comes back whole."""
    tensor = Tensor("INPUT", "FP32", (512, 1024), [float(i % 1009) for i in range(512)] * 1024)
    answer = t.infer_binary("identity_fp32", tensor, parameters={"binary_data_output": True})
    found = outputs(answer)[t.output_names("identity_fp32")[0]]
    check(found.shape == tensor.shape and found.data == tensor.data, "the same elements", f"shape {found.shape}")
