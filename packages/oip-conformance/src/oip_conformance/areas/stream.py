"""ModelStreamInfer: many requests on one stream, any number of responses to each."""

from __future__ import annotations

from typing import Any

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.areas.infer import LEFT, RIGHT, SUM
from oip_conformance.row import Area, Failure, Level
from oip_conformance.target import Target, check, equal, rpc_outputs, same, stream_outcome
from oip_conformance.tensors import Tensor, fp32

MUST, SHOULD, OBSERVED = Level
area = Area("stream", "stream")


def _sum(t: Target, number: int | None = None, **fields: Any) -> Any:
    tensors = (LEFT, RIGHT) if number is None else (fp32("", [float(number)] * 4), fp32("", [0.0] * 4))
    return rpc.infer_request(t.name("sum"), t.tensors("sum", *tensors), **fields)


def _repeat(t: Target, values: list[int], delay: int = 0, **fields: Any) -> Any:
    tensors = Tensor("", "INT32", (len(values),), values), Tensor("", "INT32", (1,), [delay])
    return rpc.infer_request(t.name("repeat"), t.tensors("repeat", *tensors), **fields)


def _answers(responses: list[Any]) -> list[Any]:
    """The inference responses, none of which may be an error."""
    for response in responses:
        if response.error_message:
            raise Failure("no error_message", response.error_message)
    return [response.infer_response for response in responses]


def _values(responses: list[Any]) -> list[int]:
    return [tensor.data[0] for answer in _answers(responses) for tensor in rpc_outputs(answer).values()]


@area.row("one", MUST, spec.STREAM_ANY, "sum")
def one(t: Target) -> None:
    """A request on a stream has the response that ModelInfer would give."""
    answers = _answers(t.stream([_sum(t, id="7")]))
    equal(len(answers), 1, "the number of responses:")
    same(rpc_outputs(answers[0]).get(t.output_names("sum")[0]), SUM)


@area.row("id", MUST, spec.STREAM_SAME, "sum")
def id_returned(t: Target) -> None:
    """A response on a stream has the id and the model's name of its request."""
    answer = _answers(t.stream([_sum(t, id="7")]))[0]
    equal((answer.id, answer.model_name), ("7", t.name("sum")), "id and model_name")


@area.row("many", MUST, spec.STREAM, "sum")
def many(t: Target) -> None:
    """Twenty requests on one stream have twenty responses, each with its id and its values."""
    answers = _answers(t.stream([_sum(t, number, id=str(number)) for number in range(20)]))
    got = {answer.id: rpc_outputs(answer)[t.output_names("sum")[0]].data for answer in answers}
    equal(got, {str(number): [float(number)] * 4 for number in range(20)}, "values by id")
    equal(len(answers), 20, "the number of responses:")


@area.row("order", OBSERVED, spec.STREAM, "sum")
def order(t: Target) -> str:
    """The order of responses on a stream against the order of requests."""
    answers = _answers(t.stream([_sum(t, number, id=str(number)) for number in range(20)]))
    return "kept" if [answer.id for answer in answers] == [str(number) for number in range(20)] else "not kept"


@area.row("nothing", MUST, spec.STREAM, "sum")
def nothing(t: Target) -> None:
    """A stream without requests ends with OK and without responses."""
    equal(len(t.stream([])), 0, "the number of responses:")


@area.row("two-models", MUST, spec.STREAM_SAME, "sum", "slow")
def two_models(t: Target) -> None:
    """Requests to two models on one stream are each answered by their model."""
    slow = rpc.infer_request(t.name("slow"), t.tensors("slow", Tensor("", "INT32", (1,), [20])), id="slow")
    answers = _answers(t.stream([slow, _sum(t, id="sum")]))
    equal({a.id: a.model_name for a in answers}, {"slow": t.name("slow"), "sum": t.name("sum")}, "models by id")


@area.row("error", MUST, spec.STREAM_ERROR, "sum")
def error(t: Target) -> None:
    """A wrong request on a stream has an error: in error_message, or as the stream's status."""
    request = _sum(t)
    del request.inputs[1], request.raw_input_contents[1]
    check(list(stream_outcome(lambda: t.stream([request]))), "an error", "a stream that ends with OK and no error")


@area.row("error.form", OBSERVED, spec.STREAM_ERROR, "sum")
def error_form(t: Target) -> str:
    """Where the error of a wrong request stands: in error_message, or in the stream's status."""
    request = _sum(t)
    del request.inputs[1], request.raw_input_contents[1]
    try:
        return "error_message" if any(r.error_message for r in t.stream([request])) else "nowhere"
    except rpc.RpcError as ended:
        return f"status {ended.code.name}"


@area.row("error-then-more", SHOULD, spec.STREAM_ERROR, "sum")
def error_then_more(t: Target) -> None:
    """An error on a stream does not end it: the next request is answered."""
    wrong = _sum(t, id="wrong")
    del wrong.inputs[1], wrong.raw_input_contents[1]
    responses = t.stream([wrong, _sum(t, id="right")])
    equal([r.infer_response.id for r in responses if not r.error_message], ["right"], "the ids of answers")


@area.row("decoupled", MUST, spec.STREAM_RESPONSE, "repeat")
def decoupled(t: Target) -> None:
    """A model that answers several times to one request does so on the stream, in its order."""
    equal(_values(t.stream([_repeat(t, [3, 1, 2])])), [3, 1, 2], "the responses")


@area.row("decoupled-none", MUST, spec.STREAM_RESPONSE, "repeat")
def decoupled_none(t: Target) -> None:
    """A request to which the model does not respond has no response with outputs, and the stream ends with OK."""
    equal(_values(t.stream([_repeat(t, [])])), [], "the responses")


@area.row("decoupled-error", MUST, spec.STREAM_ERROR, "repeat")
def decoupled_error(t: Target) -> None:
    """An error after two responses comes after them, and does not replace them."""
    values: list[int] = []
    errors = 0
    for response in t.stream([_repeat(t, [1, 2, -1])]):
        if response.error_message:
            errors += 1
        else:
            values += [tensor.data[0] for tensor in rpc_outputs(response.infer_response).values()]
    equal((values, errors), ([1, 2], 1), "values and errors")


@area.row("decoupled-interleaved", MUST, spec.STREAM_SAME, "repeat")
def decoupled_interleaved(t: Target) -> None:
    """Two requests to such a model on one stream each get all of their responses, in their order."""
    requests = [_repeat(t, [1, 2, 3], 5, id="a"), _repeat(t, [10, 20, 30], 5, id="b")]
    got: dict[str, list[int]] = {"a": [], "b": []}
    for answer in _answers(t.stream(requests)):
        got.setdefault(answer.id, []).extend(tensor.data[0] for tensor in rpc_outputs(answer).values())
    equal(got, {"a": [1, 2, 3], "b": [10, 20, 30]}, "the responses by id")
