"""Requests that cannot be answered: each is refused, with a status that says so and an error in the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oip_conformance import specification as spec
from oip_conformance.areas.infer import LEFT, RIGHT, sum_request
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Level, NotRun
from oip_conformance.target import Target, check, outputs, refused
from oip_conformance.tensors import Tensor

MUST, SHOULD, OBSERVED = Level
area = Area("errors", "required")


def _request(t: Target, change: Callable[[dict[str, Any]], object]) -> Answer:
    """A correct request to `sum` that is made wrong by `change`."""
    body: dict[str, Any] = {"inputs": [tensor.json() for tensor in t.tensors("sum", LEFT, RIGHT)]}
    change(body)
    return t.post(t.path("sum", "infer"), body)


#: What is wrong: id, the sentence, and the change to a correct request.
_WRONG: tuple[tuple[str, str, spec.Citation, Callable[[dict[str, Any]], object]], ...] = (
    ("no-inputs", "A request without `inputs` is an error.", spec.REQUEST_INPUTS, lambda body: body.pop("inputs")),
    (
        "inputs-empty",
        "A request with an empty list of inputs, for a model that needs two, is an error.",
        spec.MODEL_INPUTS,
        lambda body: body["inputs"].clear(),
    ),
    (
        "input-missing",
        "A request that lacks one of the model's inputs is an error.",
        spec.MODEL_INPUTS,
        lambda body: body["inputs"].pop(),
    ),
    (
        "input-unknown",
        "A request with an input that the model does not have is an error.",
        spec.INPUT_NAME,
        lambda body: body["inputs"][1].update(name="NO_SUCH_INPUT"),
    ),
    (
        "input-twice",
        "A request with the same input twice is an error.",
        spec.INPUT_NAME,
        lambda body: body["inputs"].append(body["inputs"][0]),
    ),
    (
        "input-nameless",
        "An input without a name is an error.",
        spec.INPUT_NAME,
        lambda body: body["inputs"][0].pop("name"),
    ),
    (
        "no-shape",
        "An input without a shape is an error.",
        spec.INPUT_SHAPE,
        lambda body: body["inputs"][0].pop("shape"),
    ),
    (
        "no-datatype",
        "An input without a datatype is an error.",
        spec.INPUT_DATATYPE,
        lambda body: body["inputs"][0].pop("datatype"),
    ),
    ("no-data", "An input without data is an error.", spec.INPUT_DATA, lambda body: body["inputs"][0].pop("data")),
    (
        "datatype-unknown",
        "An input with a datatype that the protocol does not have is an error.",
        spec.INPUT_DATATYPE,
        lambda body: body["inputs"][0].update(datatype="FLOAT"),
    ),
    (
        "datatype-other",
        "An input with another datatype than the model's metadata shows is an error.",
        spec.TENSOR_DATATYPE,
        lambda body: body["inputs"][0].update(datatype="INT64", data=[1, 2, 3, 4]),
    ),
    (
        "rank",
        "An input with fewer dimensions than the model's metadata shows is an error.",
        spec.TENSOR_SHAPE,
        lambda body: body["inputs"][0].update(shape=[4]),
    ),
    (
        "width",
        "An input with five columns, where the model's metadata shows four, is an error.",
        spec.TENSOR_SHAPE,
        lambda body: [entry.update(shape=[1, 5], data=[1.0] * 5) for entry in body["inputs"]],
    ),
    (
        "shape-negative",
        "A shape with a negative size is an error.",
        spec.INPUT_SHAPE,
        lambda body: body["inputs"][0].update(shape=[-1, 4]),
    ),
    (
        "shape-fraction",
        "A shape with a size that is not a whole number is an error.",
        spec.INPUT_SHAPE,
        lambda body: body["inputs"][0].update(shape=[1, 4.5]),
    ),
    (
        "shape-overflow",
        "A shape whose number of elements exceeds 64 bits is an error, whatever that product becomes in a register.",
        spec.INPUT_SHAPE,
        lambda body: body["inputs"][0].update(shape=[2**62, 4], data=[]),
    ),
    (
        "data-short",
        "An input with fewer elements than its shape says is an error.",
        spec.BATCH,
        lambda body: body["inputs"][0].update(data=[1.0, 2.0, 3.0]),
    ),
    (
        "data-long",
        "An input with more elements than its shape says is an error.",
        spec.BATCH,
        lambda body: body["inputs"][0].update(data=[1.0, 2.0, 3.0, 4.0, 5.0]),
    ),
    (
        "batches-differ",
        "Inputs of different batch sizes are an error.",
        spec.BATCH,
        lambda body: body["inputs"][0].update(shape=[2, 4], data=[1.0] * 8),
    ),
)


#: Those that contradict no sentence, only what the sentence assumes.
_UNWISE = ("input-twice", "batches-differ")
#: Those that contradict a model's metadata, which a server that has none cannot know.
_AGAINST_METADATA = ("datatype-other", "rank", "width", "batches-differ")


def _add(id: str, sentence: str, citation: spec.Citation, change: Callable[[dict[str, Any]], object]) -> None:
    def run(t: Target) -> None:
        if id in _AGAINST_METADATA and t.get(t.path("sum")).status != 200:
            raise NotRun("the server shows no metadata that the request contradicts")
        refused(_request(t, change))

    area.add(id, SHOULD if id in _UNWISE else MUST, citation, sentence, run, "sum")


for _case in _WRONG:
    _add(*_case)


@area.row("ragged", OBSERVED, spec.NESTED, "identity_int32")
def ragged(t: Target) -> str:
    """Nested lists of different lengths with the right number of elements."""
    entry = {**t.tensors("identity_int32", Tensor("", "INT32", (2, 2), []))[0].entry(), "data": [[1, 2, 3], [4]]}
    answer = t.post(t.path("identity_int32", "infer"), {"inputs": [entry]})
    return f"refused with {answer.status}" if answer.status >= 400 else "taken"


def _element(t: Target, model: str, datatype: str, item: object) -> str:
    entry = {**t.tensors(model, Tensor("", datatype, (1, 1), []))[0].entry(), "data": [item]}
    answer = t.post(t.path(model, "infer"), {"inputs": [entry]})
    if answer.status >= 400:
        return f"refused with {answer.status}"
    return f"taken as {next(iter(outputs(answer).values())).data[0]!r}"


@area.row("text-for-number", OBSERVED, spec.COERCION, "identity_int32")
def text_for_number(t: Target) -> str:
    """The text "7" as an element of an INT32 tensor."""
    return _element(t, "identity_int32", "INT32", "7")


@area.row("fraction-for-integer", OBSERVED, spec.COERCION, "identity_int32")
def fraction_for_integer(t: Target) -> str:
    """1.5 as an element of an INT32 tensor."""
    return _element(t, "identity_int32", "INT32", 1.5)


@area.row("out-of-range", OBSERVED, spec.COERCION, "identity_int8")
def out_of_range(t: Target) -> str:
    """300 as an element of an INT8 tensor, which cannot hold it."""
    return _element(t, "identity_int8", "INT8", 300)


@area.row("not-json", MUST, spec.REQUEST_OBJECT, "sum")
def not_json(t: Target) -> None:
    """A body that is not JSON is an error."""
    refused(t.post(t.path("sum", "infer"), b'{"inputs": [', ("Content-Type", "application/json")))


@area.row("body-empty", MUST, spec.REQUEST_OBJECT, "sum")
def body_empty(t: Target) -> None:
    """An empty body is an error."""
    refused(t.post(t.path("sum", "infer")))


@area.row("unknown-model", MUST, spec.INFER_ERROR)
def unknown_model(t: Target) -> None:
    """A request to a model that does not exist is an error."""
    refused(t.post("/v2/models/no_such_model/infer", {"inputs": []}))


@area.row("unknown-model.status", OBSERVED, spec.INFER_ERROR)
def unknown_status(t: Target) -> str:
    """The status of a request to an unknown model: 400 or 404."""
    return f"status {t.post('/v2/models/no_such_model/infer', {'inputs': []}).status}"


@area.row("wrong-method", SHOULD, spec.REQUEST_OBJECT, "sum")
def wrong_method(t: Target) -> None:
    """GET on an inference path is an error of the client: 404 or 405."""
    answer = t.get(t.path("sum", "infer"))
    check(answer.status in (404, 405), "status 404 or 405", answer.status)


@area.row("status-400", SHOULD, spec.INFER_ERROR, "sum")
def status_400(t: Target) -> None:
    """Whatever is wrong with a request, the status is of the client's kind (400 to 499), not of the server's."""
    for name, _, _, change in _WRONG:
        answer = _request(t, change)
        check(answer.status < 500, f"a status below 500 for {name}", answer.status)


@area.row("model-fails", MUST, spec.INFER_ERROR, "failing")
def model_fails(t: Target) -> None:
    """If the model fails, the answer is an error, not a success."""
    refused(t.infer("failing", Tensor("INPUT", "INT32", (1,), [1])))


@area.row("model-fails.status", OBSERVED, spec.INFER_ERROR, "failing")
def model_fails_status(t: Target) -> str:
    """The status when the model fails: 400 or 500."""
    return f"status {t.infer('failing', Tensor('INPUT', 'INT32', (1,), [1])).status}"


@area.row("no-traceback", SHOULD, spec.ERROR_OBJECT, "failing")
def no_traceback(t: Target) -> None:
    """The error of a failing model does not show the server's files."""
    text = t.infer("failing", Tensor("INPUT", "INT32", (1,), [1])).body.decode(errors="replace")
    check("Traceback" not in text and 'File "' not in text, "no traceback", text[:300])


@area.row("afterwards", MUST, spec.INFER_OK, "sum")
def afterwards(t: Target) -> None:
    """After each of these wrong requests a correct one succeeds."""
    for _, _, _, change in _WRONG:
        _request(t, change)
    outputs(sum_request(t))
