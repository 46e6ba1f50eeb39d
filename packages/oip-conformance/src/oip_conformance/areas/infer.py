"""Inference in JSON: datatypes, shapes, batches, ids, parameters and the choice of outputs."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np

from oip_conformance import specification as spec
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Failure, Level
from oip_conformance.suite_models import identity
from oip_conformance.target import Target, check, equal, flat, key, ok, outputs, refused, same
from oip_conformance.tensors import IN_JSON, Tensor, fp32, sample

MUST, SHOULD, OBSERVED = Level
area = Area("infer", "required")

LEFT = fp32("LEFT", [1.0, 2.0, 3.0, 4.0])
RIGHT = fp32("RIGHT", [10.0, 20.0, 30.0, 40.0])
SUM = fp32("SUM", [11.0, 22.0, 33.0, 44.0])
DIFFERENCE = fp32("DIFFERENCE", [-9.0, -18.0, -27.0, -36.0])


def sum_request(t: Target, **fields: object) -> Answer:
    return t.infer("sum", LEFT, RIGHT, **fields)  # type: ignore[arg-type]


def echo(t: Target, model: str, tensor: Tensor, shape: bool = True) -> None:
    """Asserts that the model returns the tensor: its elements and, unless the row is about these only, its shape."""
    same(outputs(t.infer(model, tensor)).get(t.output_names(model)[0]), tensor, f"output of {model}", shape)


@area.row("ok", MUST, spec.INFER_OK, "sum")
def success(t: Target) -> None:
    """A successful inference has status 200, and its answer is an object."""
    check(isinstance(ok(sum_request(t)).json(), dict), "an object", t.exchanges[-1][1])


@area.row("values", MUST, spec.RESPONSE_OUTPUTS, "sum")
def values(t: Target) -> None:
    """Each output has the values that the model computes from the inputs of its name."""
    found = outputs(sum_request(t))
    for wanted, name in zip((SUM, DIFFERENCE), t.output_names("sum"), strict=True):
        same(found.get(name), wanted, shape=False)


@area.row("input-order", MUST, spec.INPUT_NAME, "sum")
def input_order(t: Target) -> None:
    """Inputs are known by their names, in whatever order they come."""
    left, right = t.tensors("sum", LEFT, RIGHT)
    answer = t.post(t.path("sum", "infer"), {"inputs": [right.json(), left.json()]})
    same(outputs(answer).get(t.output_names("sum")[1]), DIFFERENCE, shape=False)


@area.row("content-type", SHOULD, spec.INFER_OK, "sum")
def content_type(t: Target) -> None:
    """The answer in JSON has the content type application/json."""
    answer = ok(sum_request(t))
    check("application/json" in (answer.header("Content-Type") or ""), "application/json", answer.headers)


@area.row("no-content-type", OBSERVED, spec.REQUEST_OBJECT, "sum")
def no_content_type(t: Target) -> str:
    """A request in JSON without a content type."""
    left, right = t.tensors("sum", LEFT, RIGHT)
    body = json.dumps({"inputs": [left.json(), right.json()]}).encode()
    answer = t.post(t.path("sum", "infer"), body)
    return f"refused with {answer.status}" if answer.status >= 400 else "taken"


@area.row("model-name", MUST, spec.RESPONSE_MODEL_NAME, "sum")
def model_name(t: Target) -> None:
    """The answer has the name of the model."""
    equal(key(ok(sum_request(t)).json(), "model_name", str), t.name("sum"), "model_name")


@area.row("model-version", MUST, spec.RESPONSE_MODEL_VERSION, "versioned")
def model_version(t: Target) -> None:
    """If the answer has a version, it is a string, and the version that the path names."""
    answer = ok(t.infer("versioned", Tensor("INPUT", "INT32", (1,), [5]), version="1")).json()
    if answer.get("model_version") is not None:
        equal(key(answer, "model_version", str), "1", "model_version")


def _datatype(datatype: str, t: Target) -> None:
    echo(t, identity(datatype), sample("INPUT", datatype), shape=False)


for _name in IN_JSON:
    area.add(
        f"datatype.{_name}",
        MUST,
        spec.INPUT_DATATYPE,
        f"{_name} elements, the extremes among them, come back from an identity model as they were sent.",
        partial(_datatype, _name),
        identity(_name),
    )


def _half(datatype: str, t: Target) -> str:
    answer = t.infer(identity(datatype), Tensor("INPUT", datatype, (1, 2), [1.5, -2.0]))
    if answer.status != 200:
        return "refused"
    entry = answer.json()["outputs"][0]
    binary = "binary_data_size" in (entry.get("parameters") or {})
    data = [] if binary else flat(entry.get("data"))
    check(binary or data == [1.5, -2.0], "1.5 and -2.0, or an error", data)
    return "answered in binary form" if binary else "taken and returned as numbers"


for _name in ("FP16", "BF16"):
    area.add(
        f"half.{_name}",
        OBSERVED,
        spec.FP16_JSON,
        f"{_name} elements as JSON numbers: refused, or taken.",
        partial(_half, _name),
        identity(_name),
    )


@area.row("nested", MUST, spec.NESTED, "identity_int32")
def nested(t: Target) -> None:
    """Elements may come as nested lists, row by row."""
    tensor = Tensor("INPUT", "INT32", (2, 3), [1, 2, 3, 4, 5, 6])
    entry = {**t.tensors("identity_int32", tensor)[0].entry(), "data": [[1, 2, 3], [4, 5, 6]]}
    answer = t.post(t.path("identity_int32", "infer"), {"inputs": [entry]})
    same(outputs(answer).get(t.output_names("identity_int32")[0]), tensor, shape=False)


@area.row("answer-form", OBSERVED, spec.NESTED, "identity_int32")
def answer_form(t: Target) -> str:
    """The elements of an answer: nested, or flat."""
    answer = ok(t.infer("identity_int32", Tensor("INPUT", "INT32", (2, 2), [1, 2, 3, 4]))).json()
    return "nested" if isinstance(answer["outputs"][0]["data"][0], list) else "flat"


@area.row("row-major", MUST, spec.ROW_MAJOR, "identity_int32")
def row_major(t: Target) -> None:
    """A matrix of three rows and two columns comes back with the same rows and columns."""
    echo(t, "identity_int32", Tensor("INPUT", "INT32", (3, 2), [11, 12, 21, 22, 31, 32]))


@area.row("empty", MUST, spec.INPUT_SHAPE, "identity_fp32")
def empty(t: Target) -> None:
    """A tensor with a dimension of size 0 has no elements, and comes back with its shape."""
    echo(t, "identity_fp32", Tensor("INPUT", "FP32", (0, 3), []))


@area.row("empty-bytes", MUST, spec.INPUT_SHAPE, "identity_bytes")
def empty_bytes(t: Target) -> None:
    """A BYTES tensor without elements comes back with its shape."""
    echo(t, "identity_bytes", Tensor("INPUT", "BYTES", (0, 2), []))


@area.row("scalar", OBSERVED, spec.INPUT_SHAPE, "identity_fp32")
def scalar(t: Target) -> str:
    """A shape without dimensions for a model with two."""
    answer = t.infer("identity_fp32", Tensor("INPUT", "FP32", (), [0.5]))
    return "refused" if answer.status >= 400 else f"taken as {answer.json()['outputs'][0].get('shape')}"


@area.row("integral-float", MUST, spec.INPUT_DATA, "identity_fp32")
def integral_float(t: Target) -> None:
    """Numbers without a decimal point are valid elements of a floating-point tensor."""
    entry = {**t.tensors("identity_fp32", Tensor("", "FP32", (1, 2), []))[0].entry(), "data": [1, 2]}
    found = outputs(t.post(t.path("identity_fp32", "infer"), {"inputs": [entry]}))
    same(found.get(t.output_names("identity_fp32")[0]), Tensor("OUTPUT", "FP32", (1, 2), [1.0, 2.0]), shape=False)


@area.row("int64-exact", MUST, spec.INPUT_DATA, "identity_int64")
def int64_exact(t: Target) -> None:
    """Integers above 2^53, which a double cannot hold, are exact."""
    echo(t, "identity_int64", Tensor("INPUT", "INT64", (1, 3), [2**53 + 1, -(2**53) - 1, 2**62 + 3]), shape=False)


@area.row("fp64-exact", MUST, spec.INPUT_DATA, "identity_fp64")
def fp64_exact(t: Target) -> None:
    """A double comes back to the last bit."""
    echo(t, "identity_fp64", Tensor("INPUT", "FP64", (1, 3), [0.1, math.pi, 5e-324]), shape=False)


@area.row("fp32-exact", MUST, spec.INPUT_DATA, "identity_fp32")
def fp32_exact(t: Target) -> None:
    """A single-precision number comes back as a decimal that reads as the same number."""
    values = [float(np.float32(0.1)), float(np.float32(math.pi)), float(np.float32(1e-45))]
    found = outputs(t.infer("identity_fp32", Tensor("INPUT", "FP32", (1, 3), values)))
    got = [float(np.float32(v)) for v in found[t.output_names("identity_fp32")[0]].data]
    equal(got, values, "the values")


@area.row("nan", OBSERVED, spec.JSON_ARRAY, "identity_fp32")
def nan(t: Target) -> str:
    """NaN, which JSON does not have but Python's JSON writes."""
    answer = t.infer("identity_fp32", Tensor("INPUT", "FP32", (1, 1), [math.nan]))
    if answer.status >= 400:
        return "refused"
    try:
        return f"taken and returned as {answer.json()['outputs'][0]['data']}"
    except Failure:
        return "taken, and the answer is not JSON"


@area.row("null", OBSERVED, spec.COERCION, "identity_fp32")
def null(t: Target) -> str:
    """null as an element."""
    entry = {**t.tensors("identity_fp32", Tensor("", "FP32", (1, 1), []))[0].entry(), "data": [None]}
    answer = t.post(t.path("identity_fp32", "infer"), {"inputs": [entry]})
    return f"refused with {answer.status}" if answer.status >= 400 else "taken"


@area.row("unicode", MUST, spec.INPUT_DATA, "identity_bytes")
def unicode(t: Target) -> None:
    """Texts with accents, ideographs and emoji come back as they were sent."""
    texts = ["h\u00e9", "\u6f22\u5b57", "\U0001f600", "\u0000", " \t\r\n"]
    echo(t, "identity_bytes", Tensor("INPUT", "BYTES", (1, 5), [text.encode() for text in texts]))


@area.row("not-text", OBSERVED, spec.JSON_ARRAY, "identity_bytes")
def not_text(t: Target) -> str:
    """A BYTES element that is not text: whether a server takes an object with base64."""
    entry = t.tensors("identity_bytes", Tensor("", "BYTES", (1, 1), []))[0].entry()
    answer = t.post(t.path("identity_bytes", "infer"), {"inputs": [{**entry, "data": [{"b64": "/w=="}]}]})
    return f"refused with {answer.status}" if answer.status >= 400 else "taken"


@area.row("two-texts", MUST, spec.INPUT_NAME, "strings")
def two_texts(t: Target) -> None:
    """Two BYTES inputs keep their elements apart, the empty ones too."""
    left = Tensor("LEFT", "BYTES", (3,), [b"a", b"", b"c"])
    right = Tensor("RIGHT", "BYTES", (3,), [b"1", b"2", b""])
    found = outputs(t.infer("strings", left, right))
    same(found.get(t.output_names("strings")[0]), Tensor("JOINED", "BYTES", (3,), [b"a1", b"2", b"c"]))


@area.row("batch", MUST, spec.BATCH, "sum")
def batch(t: Target) -> None:
    """A batch of several rows comes back in the order of its rows."""
    left = fp32("LEFT", *([float(row)] * 4 for row in range(5)))
    right = fp32("RIGHT", *([100.0] * 4 for _ in range(5)))
    wanted = fp32("SUM", *([100.0 + row] * 4 for row in range(5)))
    same(outputs(t.infer("sum", left, right)).get(t.output_names("sum")[0]), wanted)


@area.row("batch-too-large", OBSERVED, spec.BATCH, "sum")
def batch_too_large(t: Target) -> str:
    """A batch of nine rows for a model that takes eight."""
    rows = [[1.0] * 4] * 9
    answer = t.infer("sum", fp32("LEFT", *rows), fp32("RIGHT", *rows))
    return f"refused with {answer.status}" if answer.status >= 400 else "taken"


@area.row("id", MUST, spec.ID, "sum")
def id_returned(t: Target) -> None:
    """The id of a request comes back in its answer."""
    equal(key(ok(sum_request(t, id="42")).json(), "id", str), "42", "id")


@area.row("id-exact", MUST, spec.RESPONSE_ID, "sum")
def id_exact(t: Target) -> None:
    """An id with spaces, quotes and letters beyond ASCII comes back as it was sent."""
    equal(key(ok(sum_request(t, id=' a "b" \u6f22/\\')).json(), "id", str), ' a "b" \u6f22/\\', "id")


@area.row("id-absent", OBSERVED, spec.ID, "sum")
def id_absent(t: Target) -> str:
    """The id in the answer to a request without one."""
    answer = ok(sum_request(t)).json()
    if "id" not in answer:
        return "none"
    return {None: "null", "": "empty"}.get(answer["id"], "made by the server")


@area.row("outputs-all", MUST, spec.OUTPUTS_OPTIONAL, "sum")
def outputs_all(t: Target) -> None:
    """A request that names no outputs gets all of them."""
    equal(sorted(outputs(sum_request(t))), sorted(t.output_names("sum")), "the outputs")


@area.row("outputs-empty", OBSERVED, spec.OUTPUTS_OPTIONAL, "sum")
def outputs_empty(t: Target) -> str:
    """A request with an empty list of outputs."""
    left, right = t.tensors("sum", LEFT, RIGHT)
    answer = t.post(t.path("sum", "infer"), {"inputs": [left.json(), right.json()], "outputs": []})
    if answer.status >= 400:
        return f"refused with {answer.status}"
    count = len(outputs(answer))
    return "all outputs" if count == 2 else f"{count} outputs"


@area.row("outputs-one", MUST, spec.SELECTED_OUTPUTS, "sum")
def outputs_one(t: Target) -> None:
    """A request that names one output gets only that."""
    name = t.output_names("sum")[1]
    found = outputs(sum_request(t, outputs=[name]))
    equal(sorted(found), [name], "the outputs")
    same(found[name], DIFFERENCE)


@area.row("outputs-order", OBSERVED, spec.SELECTED_OUTPUTS, "sum")
def outputs_order(t: Target) -> str:
    """The order of outputs that a request names against the model's order."""
    names = t.output_names("sum")[::-1]
    found = list(outputs(sum_request(t, outputs=names)))
    return "the request's order" if found == names else "the model's order"


@area.row("outputs-unknown", MUST, spec.INFER_ERROR, "sum")
def outputs_unknown(t: Target) -> None:
    """A request for an output that the model does not have is an error."""
    refused(sum_request(t, outputs=["NO_SUCH_OUTPUT"]))


@area.row("parameters-empty", MUST, spec.REQUEST_PARAMETERS, "sum")
def parameters_empty(t: Target) -> None:
    """An empty object of parameters changes nothing."""
    outputs(sum_request(t, parameters={}))


@area.row("parameters-unknown", SHOULD, spec.UNKNOWN_PARAMETERS, "sum")
def parameters_unknown(t: Target) -> None:
    """Parameters that a server does not know are passed on or ignored: text, number and boolean."""
    outputs(sum_request(t, parameters={"my_text": "x", "my_number": 3, "my_switch": True}))


@area.row("extra-key", OBSERVED, spec.REQUEST_OBJECT, "sum")
def extra_key(t: Target) -> str:
    """A key of the request that the protocol does not have."""
    answer = sum_request(t, no_such_key=1)
    return f"refused with {answer.status}" if answer.status >= 400 else "ignored"


@area.row("chunked", SHOULD, spec.REQUEST_OBJECT, "sum")
def chunked(t: Target) -> None:
    """A request body may come in chunks, as HTTP/1.1 has it."""
    body = json.dumps({"inputs": [tensor.json() for tensor in t.tensors("sum", LEFT, RIGHT)]}).encode()
    pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    headers = ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")
    outputs(t.post(t.path("sum", "infer"), encoded, *headers))
