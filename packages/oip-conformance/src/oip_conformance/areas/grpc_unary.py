"""gRPC: health, metadata and inference with raw and typed tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from grpc import StatusCode

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.areas.infer import DIFFERENCE, LEFT, RIGHT, SUM, sum_request
from oip_conformance.row import Area, Level
from oip_conformance.rpc import RpcError
from oip_conformance.suite_models import identity
from oip_conformance.target import Target, check, equal, outputs, rpc_outputs, rpc_refused, same
from oip_conformance.tensors import DATATYPES, Tensor, fp32, sample

MUST, SHOULD, OBSERVED = Level
area = Area("grpc", "grpc")


def _model(name: str, version: str = "") -> Any:
    return rpc.message("ModelRequest", name=name, version=version)


@area.row("live", MUST, spec.GRPC_LIVE)
def live(t: Target) -> None:
    """ServerLive reports that the server is live."""
    check(t.call("ServerLive").live, "live: true", "live: false")


@area.row("ready", MUST, spec.GRPC_READY)
def ready(t: Target) -> None:
    """ServerReady reports that the server is ready."""
    check(t.call("ServerReady").ready, "ready: true", "ready: false")


@area.row("model-ready", MUST, spec.GRPC_MODEL_READY, "sum")
def model_ready(t: Target) -> None:
    """ModelReady reports that a model that can be used is ready."""
    check(t.call("ModelReady", _model(t.name("sum"))).ready, "ready: true", "ready: false")


@area.row("unknown-ready", MUST, spec.GRPC_HEALTH)
def unknown_ready(t: Target) -> None:
    """A model that does not exist is not ready: an answer of false, or a status other than OK."""
    with contextlib.suppress(RpcError):
        check(not t.call("ModelReady", _model("no_such_model")).ready, "ready: false", "ready: true")


@area.row("unknown-ready.answer", OBSERVED, spec.GRPC_HEALTH)
def unknown_ready_answer(t: Target) -> str:
    """How ModelReady says that a model does not exist."""
    try:
        return f"ready: {str(t.call('ModelReady', _model('no_such_model')).ready).lower()}"
    except RpcError as error:
        return f"status {error.code.name}"


@area.row("server-metadata.same", MUST, spec.GRPC_SERVER_METADATA)
def server_metadata_same(t: Target) -> None:
    """ServerMetadata says the same as the server's metadata over REST."""
    answer, document = t.call("ServerMetadata"), t.get("/v2").json()
    equal(
        (answer.name, answer.version, sorted(answer.extensions)),
        (document["name"], document["version"], sorted(document["extensions"])),
        "name, version and extensions",
    )


@area.row("model-metadata", MUST, spec.GRPC_MODEL_METADATA, "sum")
def model_metadata(t: Target) -> None:
    """ModelMetadata has the model's name, inputs and outputs."""
    answer = t.call("ModelMetadata", _model(t.name("sum")))
    equal(answer.name, t.name("sum"), "the name")
    equal(sorted(entry.name for entry in answer.inputs), sorted(t.input_names("sum")), "the inputs")
    equal(sorted(entry.name for entry in answer.outputs), sorted(t.output_names("sum")), "the outputs")


@area.row("model-metadata.same", MUST, spec.GRPC_TENSOR_SHAPE, "sum", "identity_fp32")
def model_metadata_same(t: Target) -> None:
    """ModelMetadata shows the datatypes and shapes that the metadata over REST shows."""
    for name in ("sum", "identity_fp32"):
        answer, document = t.call("ModelMetadata", _model(t.name(name))), t.get(t.path(name)).json()
        for kind in ("inputs", "outputs"):
            got = [(entry.name, entry.datatype, list(entry.shape)) for entry in getattr(answer, kind)]
            equal(got, [(e["name"], e["datatype"], e["shape"]) for e in document[kind]], kind)


@area.row("unknown-metadata", MUST, spec.GRPC_METADATA_ERROR)
def unknown_metadata(t: Target) -> None:
    """ModelMetadata of a model that does not exist has a status other than OK."""
    rpc_refused(lambda: t.call("ModelMetadata", _model("no_such_model")))


@area.row("unknown-model", MUST, spec.GRPC_INFER_ERROR)
def unknown_model(t: Target) -> None:
    """ModelInfer for a model that does not exist has a status other than OK."""
    rpc_refused(lambda: t.call("ModelInfer", rpc.infer_request("no_such_model", [])))


@area.row("unknown-model.status", OBSERVED, spec.GRPC_INFER_ERROR)
def unknown_status(t: Target) -> str:
    """The status of ModelInfer for an unknown model."""
    return str(rpc_refused(lambda: t.call("ModelInfer", rpc.infer_request("no_such_model", []))).code.name)


def _sum(t: Target, **fields: Any) -> Any:
    return t.rpc_infer("sum", LEFT, RIGHT, **fields)


@area.row("infer", MUST, spec.GRPC_RAW_ORDER, "sum")
def infer(t: Target) -> None:
    """ModelInfer with raw tensors returns what the model computes."""
    found = rpc_outputs(_sum(t))
    for wanted, name in zip((SUM, DIFFERENCE), t.output_names("sum"), strict=True):
        same(found.get(name), wanted)


@area.row("input-order", MUST, spec.GRPC_RAW_ORDER, "sum")
def input_order(t: Target) -> None:
    """Raw contents belong to the inputs in the order of the request, not of the model."""
    right_left = list(reversed(t.tensors("sum", LEFT, RIGHT)))
    found = rpc_outputs(t.call("ModelInfer", rpc.infer_request(t.name("sum"), right_left)))
    same(found.get(t.output_names("sum")[1]), DIFFERENCE)


@area.row("name", MUST, spec.GRPC_RESPONSE_NAME, "sum")
def name(t: Target) -> None:
    """The response has the name of the model."""
    equal(_sum(t).model_name, t.name("sum"), "model_name")


@area.row("id", MUST, spec.GRPC_ID, "sum")
def id_returned(t: Target) -> None:
    """The id of a request comes back in its response."""
    equal(_sum(t, id="r\u00e9sum\u00e9 42").id, "r\u00e9sum\u00e9 42", "id")


@area.row("same-as-rest", MUST, spec.GRPC_REQUIRED, "sum")
def same_as_rest(t: Target) -> None:
    """REST and gRPC give the same tensors for the same request."""
    rest, grpc = outputs(sum_request(t)), rpc_outputs(_sum(t))
    equal(sorted(grpc), sorted(rest), "the outputs")
    for output, tensor in rest.items():
        same(grpc[output], tensor)


@area.row("answer-form", OBSERVED, spec.GRPC_RESPONSE_RAW, "sum")
def answer_form(t: Target) -> str:
    """The form of outputs for raw inputs and for typed ones."""
    forms = ["raw" if _sum(t, typed=typed).raw_output_contents else "typed" for typed in (False, True)]
    return f"{forms[0]} for raw, {forms[1]} for typed"


@area.row("stream-message", OBSERVED, spec.STREAM_RESPONSE, "sum")
def stream_message(t: Target) -> str:
    """The message of ModelStreamInfer: Triton's, with error_message, or the response of ModelInfer itself."""
    request = rpc.infer_request(t.name("sum"), t.tensors("sum", LEFT, RIGHT))
    try:
        responses = t.stream([request])
    except RpcError as error:
        return error.code.name if error.code is StatusCode.UNIMPLEMENTED else "not Triton's"
    return "Triton's" if responses and responses[0].infer_response.model_name == t.name("sum") else "not Triton's"


def _datatype(datatype: str, t: Target) -> None:
    model = identity(datatype)
    tensor = sample("INPUT", datatype)
    for typed in (False, True) if DATATYPES[datatype].contents else (False,):
        found = rpc_outputs(t.rpc_infer(model, tensor, typed=typed))
        same(found.get(t.output_names(model)[0]), tensor, f"output of {model}, {'typed' if typed else 'raw'} input")


for _name, _kind in DATATYPES.items():
    area.add(
        f"datatype.{_name}",
        MUST,
        spec.GRPC_TYPED if _kind.contents else spec.GRPC_FP16,
        f"{_name} elements come back as they were sent in raw contents"
        + (f", and in `{_kind.contents}`." if _kind.contents else ", the only form that they have."),
        partial(_datatype, _name),
        identity(_name),
    )


@area.row("nan", MUST, spec.GRPC_TYPED, "identity_fp32")
def nan(t: Target) -> None:
    """NaN and the infinities pass in raw and in typed contents."""
    tensor = Tensor("INPUT", "FP32", (1, 3), [math.nan, math.inf, -math.inf])
    for typed in (False, True):
        same(
            rpc_outputs(t.rpc_infer("identity_fp32", tensor, typed=typed)).get(t.output_names("identity_fp32")[0]),
            tensor,
        )


@area.row("empty", MUST, spec.GRPC_RAW_SIZE, "identity_fp32")
def empty(t: Target) -> None:
    """A tensor without elements has raw contents of 0 bytes, and comes back with its shape."""
    tensor = Tensor("INPUT", "FP32", (0, 3), [])
    response = t.rpc_infer("identity_fp32", tensor)
    equal(list(response.outputs[0].shape), [0, 3], "the shape")
    check(not any(response.raw_output_contents), "no bytes", list(response.raw_output_contents))


@area.row("batch", MUST, spec.GRPC_RAW_SIZE, "sum")
def batch(t: Target) -> None:
    """The rows of a batch come back in their order."""
    rows = [[float(row)] * 4 for row in range(6)]
    found = rpc_outputs(t.rpc_infer("sum", fp32("LEFT", *rows), fp32("RIGHT", *([[0.0] * 4] * 6))))
    same(found.get(t.output_names("sum")[0]), fp32("SUM", *rows))


@area.row("outputs-one", MUST, spec.GRPC_OUTPUTS, "sum")
def outputs_one(t: Target) -> None:
    """A request that names one output gets only that."""
    output = t.output_names("sum")[1]
    found = rpc_outputs(_sum(t, outputs=[output]))
    equal(list(found), [output], "the outputs")
    same(found[output], DIFFERENCE)


@area.row("outputs-unknown", MUST, spec.GRPC_INFER_ERROR, "sum")
def outputs_unknown(t: Target) -> None:
    """A request for an output that the model does not have has a status other than OK."""
    rpc_refused(lambda: _sum(t, outputs=["NO_SUCH_OUTPUT"]))


@area.row("version", MUST, spec.GRPC_VERSION, "versioned")
def version(t: Target) -> None:
    """The version of the request is the one that answers, and the response names it."""
    for number in ("1", "2"):
        response = t.rpc_infer("versioned", Tensor("INPUT", "INT32", (1,), [10]), version=number)
        equal(next(iter(rpc_outputs(response).values())).data, [10 + int(number)], f"the answer of version {number}")
        equal(response.model_version, number, "model_version")


@area.row("unknown-version", MUST, spec.GRPC_INFER_ERROR, "versioned")
def unknown_version(t: Target) -> None:
    """A version that does not exist has a status other than OK."""
    rpc_refused(lambda: t.rpc_infer("versioned", Tensor("INPUT", "INT32", (1,), [10]), version="99"))


@area.row("parameters", SHOULD, spec.GRPC_PARAMETERS, "sum")
def parameters(t: Target) -> None:
    """Parameters that a server does not know are passed on or ignored: bool, int64 and string."""
    rpc_outputs(_sum(t, given={"my_switch": True, "my_number": 3, "my_text": "x"}))


def _changed(t: Target, tensors: Sequence[Tensor] = (LEFT, RIGHT), typed: bool = False) -> Any:
    return rpc.infer_request(t.name("sum"), t.tensors("sum", *tensors), typed)


def _refused(t: Target, request: Any) -> RpcError:
    return rpc_refused(lambda: t.call("ModelInfer", request))


@area.row("mixed", MUST, spec.GRPC_MIXED, "sum")
def mixed(t: Target) -> None:
    """Raw and typed contents in one request are an error: for the same input, and for one input each."""
    request = _changed(t)
    request.inputs[0].contents.fp32_contents.extend(LEFT.data)
    _refused(t, request)
    request = _changed(t)
    del request.raw_input_contents[1]
    request.inputs[1].contents.fp32_contents.extend(RIGHT.data)
    _refused(t, request)


@area.row("raw-short", MUST, spec.GRPC_RAW_SIZE, "sum")
def raw_short(t: Target) -> None:
    """Raw contents with too few bytes are an error."""
    request = _changed(t)
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    _refused(t, request)


@area.row("raw-long", MUST, spec.GRPC_RAW_SIZE, "sum")
def raw_long(t: Target) -> None:
    """Raw contents with too many bytes are an error."""
    request = _changed(t)
    request.raw_input_contents[0] += b"\x00\x00\x00\x00"
    _refused(t, request)


@area.row("raw-missing", MUST, spec.GRPC_RAW_ORDER, "sum")
def raw_missing(t: Target) -> None:
    """Raw contents for only one of two inputs are an error."""
    request = _changed(t)
    del request.raw_input_contents[1]
    _refused(t, request)


@area.row("raw-extra", SHOULD, spec.GRPC_RAW_ORDER, "sum")
def raw_extra(t: Target) -> None:
    """More raw contents than inputs are an error."""
    request = _changed(t)
    request.raw_input_contents.append(bytes(16))
    _refused(t, request)


@area.row("typed-short", MUST, spec.GRPC_TYPED_SIZE, "sum")
def typed_short(t: Target) -> None:
    """Typed contents with too few elements are an error."""
    request = _changed(t, typed=True)
    del request.inputs[0].contents.fp32_contents[3]
    _refused(t, request)


@area.row("typed-wrong-field", MUST, spec.GRPC_TYPED, "sum")
def typed_wrong_field(t: Target) -> None:
    """FP32 elements in int_contents are an error."""
    request = _changed(t, typed=True)
    request.inputs[0].contents.ClearField("fp32_contents")
    request.inputs[0].contents.int_contents.extend([1, 2, 3, 4])
    _refused(t, request)


@area.row("bytes-length-long", MUST, spec.GRPC_RAW_SIZE, "identity_bytes")
def bytes_length_long(t: Target) -> None:
    """A BYTES element whose length points beyond its raw contents is an error."""
    tensor = t.tensors("identity_bytes", Tensor("", "BYTES", (1, 1), [b"abcd"]))[0]
    request = rpc.infer_request(t.name("identity_bytes"), [tensor])
    request.raw_input_contents[0] = b"\x64\x00\x00\x00abcd"
    _refused(t, request)


@area.row("shape-negative", MUST, spec.GRPC_RAW_SIZE, "identity_fp32")
def shape_negative(t: Target) -> None:
    """A negative size in a shape is an error."""
    tensor = t.tensors("identity_fp32", fp32("", [1, 2, 3, 4]))[0]
    request = rpc.infer_request(t.name("identity_fp32"), [tensor])
    request.inputs[0].shape[:] = [-1, -4]
    _refused(t, request)


@area.row("datatype-other", MUST, spec.GRPC_INFER_ERROR, "sum")
def datatype_other(t: Target) -> None:
    """An input with another datatype than the model's is an error."""
    request = _changed(t)
    request.inputs[0].datatype = "INT32"
    _refused(t, request)


@area.row("input-missing", MUST, spec.GRPC_INFER_ERROR, "sum")
def input_missing(t: Target) -> None:
    """A request that lacks one of the model's inputs is an error."""
    request = _changed(t)
    del request.inputs[1], request.raw_input_contents[1]
    _refused(t, request)


@area.row("invalid-argument", SHOULD, spec.GRPC_INFER_ERROR, "sum")
def invalid_argument(t: Target) -> None:
    """What is wrong with a request has the status INVALID_ARGUMENT."""
    request = _changed(t)
    del request.inputs[1], request.raw_input_contents[1]
    rpc_refused(lambda: t.call("ModelInfer", request), StatusCode.INVALID_ARGUMENT)


@area.row("model-fails", MUST, spec.GRPC_INFER_ERROR, "failing")
def model_fails(t: Target) -> None:
    """If the model fails, the status is not OK."""
    rpc_refused(lambda: t.rpc_infer("failing", Tensor("INPUT", "INT32", (1,), [1])))


@area.row("deadline", SHOULD, spec.GRPC_INFER_ERROR, "slow")
def deadline(t: Target) -> None:
    """A call whose deadline passes ends with DEADLINE_EXCEEDED, and the next one succeeds."""
    assert t.rpc is not None
    request = rpc.infer_request(t.name("slow"), t.tensors("slow", Tensor("", "INT32", (1,), [700])))
    code = t.rpc.future("ModelInfer", request, 0.2).code()
    check(code is StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", code)
    rpc_outputs(t.rpc_infer("slow", Tensor("INPUT", "INT32", (1,), [1])))


@area.row("cancel", MUST, spec.GRPC_INFER_ERROR, "slow")
def cancel(t: Target) -> None:
    """A call that its client cancels harms no later one."""
    assert t.rpc is not None
    request = rpc.infer_request(t.name("slow"), t.tensors("slow", Tensor("", "INT32", (1,), [300])))
    for _ in range(3):
        t.rpc.future("ModelInfer", request, 5).cancel()
    rpc_outputs(t.rpc_infer("slow", Tensor("INPUT", "INT32", (1,), [1])))


@area.row("concurrent", MUST, spec.GRPC_ID, "sum")
def concurrent(t: Target) -> None:
    """Responses to calls at the same time are never swapped: each has the id and the values of its request."""
    assert t.rpc is not None
    pending = []
    for number in range(96):
        tensors = t.tensors("sum", fp32("", [float(number)] * 4), fp32("", [1.0] * 4))
        pending.append(t.rpc.future("ModelInfer", rpc.infer_request(t.name("sum"), tensors, id=str(number)), 5))
    for number, future in enumerate(pending):
        response = future.result()
        equal(response.id, str(number), "id")
        equal(rpc_outputs(response)[t.output_names("sum")[0]].data, [number + 1.0] * 4, f"values of {number}")


@area.row("large", MUST, spec.GRPC_RAW_SIZE, "identity_fp32")
def large(t: Target) -> None:
    """A tensor of three mebibytes, within gRPC's default limit of four, comes back whole."""
    tensor = Tensor("INPUT", "FP32", (768, 1024), [float(i % 1009) for i in range(768)] * 1024)
    found = rpc_outputs(t.rpc_infer("identity_fp32", tensor))[t.output_names("identity_fp32")[0]]
    check(found.shape == tensor.shape and found.data == tensor.data, "the same elements", f"shape {found.shape}")
