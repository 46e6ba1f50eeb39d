"""The cases for the models in `models`, for Triton and this server: each sends requests and returns plain
data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from workers.process.triton.asking import Ask, text

Case = Callable[[Ask], Any]
#: Cases by name.
CASES: dict[str, Case] = {}

NUMBERS = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


def case(name: str, ask: Case) -> None:
    assert name not in CASES, name
    CASES[name] = ask


# tensors


def _identity(datatype: str, array: np.ndarray, by: str, ask: Ask) -> Any:
    return ask.infer(f"identity_{datatype.lower()}", {"x": (datatype, array)}, by=by)


for _by in ("http", "grpc"):
    for _name, _dtype in NUMBERS.items():
        case(
            f"tensor {_name} by {_by}",
            partial(_identity, _name, np.array([[0, 1, 2], [3, 4, 5]], _dtype), _by),
        )
    case(
        f"tensor BYTES by {_by}",
        partial(
            _identity, "BYTES", np.array([[b"", b"a\0b"], ["\u00fc".encode(), b"\xff"]], np.object_), _by
        ),
    )
    case(
        f"tensor BF16 by {_by}",
        lambda ask, by=_by: ask.infer("dlpack", {"x": ("BF16", np.array([[1.0, -2.5]], bfloat16))}, by=by),
    )
case("tensor without elements", partial(_identity, "FP32", np.zeros((0, 3), np.float32), "http"))
case(
    "tensor of 1 MB",
    lambda ask: _digest(
        _identity("FP32", np.arange(262144, dtype=np.float32).reshape(512, 512), "grpc", ask)
    ),
)
case(
    "tensor BYTES of 100 KB",
    lambda ask: _digest(_identity("BYTES", np.array([[b"x" * 1000] * 100], np.object_), "grpc", ask)),
)


def _digest(answer: Any) -> Any:
    datatype, shape, data = answer["outputs"]["y"]
    return [datatype, shape, data[0], data[-1], len(data)]


# functions of the API


def _told(
    what: str, ask: Ask, *, by: str = "http", more: dict[str, np.ndarray] | None = None, **options: Any
) -> Any:
    answer = ask.infer("functions", {"what": text(what), **(more or {})}, by=by, **options)
    return json.loads(answer["outputs"]["told"][2][0]) if "outputs" in answer else answer


def _told_json(what: str, ask: Ask, **options: Any) -> Any:
    return json.loads(_told(what, ask, **options))


FUNCTIONS = (
    "arguments", "repository", "model_dir", "file", "beside", "missing_input", "tensor",
    "tensor_in_fortran_order", "tensor_of_scalar", "tensor_without_name", "tensor_of_list",
    "tensor_of_complex", "tensor_of_text", "tensor_of_bytes_objects", "dlpack_round_trip",
    "dlpack_by_protocol", "dlpack_from_numpy", "dlpack_of_bytes", "dlpack_not_contiguous",
    "dlpack_of_nothing", "dlpack_without_name", "datatypes", "datatypes_of_configurations",
    "datatype_of_configuration", "tensors_of_configuration", "decoupled_policy", "byte_tensors",
    "byte_tensors_of_others", "constants", "errors", "response", "response_of_nothing", "response_of_arrays",
    "own_request", "own_request_without_model", "own_request_of_nothing", "own_request_of_no_output",
    "own_request_in_a_wrong_sequence", "own_request_with_wrong_parameters", "own_request_with_wrong_keys",
    "memory", "both_names",
)  # fmt: skip
for _function in FUNCTIONS:
    case(f"function {_function}", partial(_told, _function))
case("configuration in initialize", partial(_told, "configuration"))
case(
    "configuration at the server",
    lambda ask: (ask.load("functions"), ask.get("/v2/models/functions/config")[1])[1],
)
_MORE = {"number": np.arange(3, dtype=np.int16), "text": np.array([b"a", b"b"], np.object_)}
case("request inputs", partial(_told, "inputs", more=_MORE))
case("request input is writable", partial(_told, "input_is_writable", more=_MORE))
for _by in ("http", "grpc"):
    case(f"request by {_by}", partial(_told, "request", by=_by))
    case(
        f"request parameters by {_by}",
        partial(_told_json, "parameters", by=_by, parameters={"a": 1, "b": "x", "c": True}),
    )
    case(
        f"request with everything by {_by}",
        partial(
            _told,
            "request",
            by=_by,
            request_id="r7",
            timeout=90_000_000,
            parameters={"a": 5},
            outputs=["told"],
        ),
    )

# one response


def _answers(how: str, ask: Ask, **options: Any) -> Any:
    return ask.infer("answers", {"how": text(how)}, **options)


ANSWERS = (
    "fine", "error", "error_beside_outputs", "raised", "raised_inside", "raised_of_triton", "exit", "too_few",
    "too_many", "no_list", "no_response", "undeclared_output", "missing_output", "no_output",
    "other_datatype", "other_shape", "sent", "sent_and_none", "sent_in_two_steps", "sent_error", "sent_late",
    "sent_and_raised", "sent_and_returned",
)  # fmt: skip
for _how in ANSWERS:
    case(f"answer {_how}", partial(_answers, _how))
CODES = (
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
)
for _by in ("http", "grpc"):
    for _code in CODES:
        case(f"answer error {_code} by {_by}", partial(_answers, f"error:{_code}", by=_by))
case("answer raised by grpc", partial(_answers, "raised", by="grpc"))
case("answer raised on a stream", lambda ask: ask.stream("answers", {"how": text("raised")}))
case(
    "answer fine on a stream",
    lambda ask: ask.stream("answers", {"how": text("fine")}, {"how": text("sent_late")}),
)
case("answer with the outputs that are asked for", partial(_answers, "fine", outputs=["number"]))
case("answer sent with the outputs that are asked for", partial(_answers, "sent", outputs=["number"]))
for _step in ("twice", "final first", "after the last", "final twice", "nothing", "flag"):
    case(
        f"answer sender says {_step}",
        lambda ask, step=_step: [_answers(f"told_by_sender:{step}", ask), _answers("said_before", ask)],
    )

# many responses


def _decoupled(how: str, ask: Ask, **options: Any) -> Any:
    return ask.stream("decoupled", {"how": text(how)}, **options)


DECOUPLED = (
    "some:0", "some:1", "some:3", "last_with_flag", "by_keyword", "from_thread", "returned", "raised",
    "raised_after_some", "failed", "failed_in_two_steps", "failed_in_between", "empty", "fewer_outputs",
)  # fmt: skip
for _how in DECOUPLED:
    case(f"decoupled {_how}", partial(_decoupled, _how))
case("decoupled with the outputs that are asked for", partial(_decoupled, "some:2", outputs=["number"]))
case("decoupled with an id", partial(_decoupled, "some:1", request_id="r9"))
case("decoupled without empty final responses", partial(_decoupled, "last_with_flag", empty_final=False))
for _step in ("after the last", "nothing", "flag"):
    case(
        f"decoupled sender says {_step}",
        lambda ask, step=_step: [_decoupled(f"told_by_sender:{step}", ask), _decoupled("said_before", ask)],
    )
for _by in ("http", "grpc"):
    case(
        f"decoupled as one response by {_by}",
        lambda ask, by=_by: ask.infer("decoupled", {"how": text("some:1")}, by=by),
    )

# coroutines

case("coroutine", lambda ask: ask.infer("coroutine", {"x": np.array([[4], [5]], np.int32)}))
case("coroutine raised", lambda ask: ask.infer("coroutine", {"x": np.array([[-4]], np.int32)}))
case(
    "coroutines of a decoupled model beside each other",
    lambda ask: sorted(
        one["outputs"]["y"][2]
        for one in ask.stream("coroutine_decoupled", *({"x": np.array([x], np.int32)} for x in (1, 2)))
    ),
)

# sequences


def _sequence(ask: Ask, by: str, identity: int = 5) -> Any:
    answers = []
    for index in range(3):
        answer = ask.infer(
            "sequence",
            {"x": np.array([[index + 1]], np.int32)},
            by=by,
            sequence_id=identity,
            sequence_start=index == 0,
            sequence_end=index == 2,
        )
        answers.append(
            [answer["outputs"]["sum"], json.loads(answer["outputs"]["told"][2][0])]
            if "outputs" in answer
            else answer
        )
    return answers


for _by in ("http", "grpc"):
    case(f"sequence by {_by}", partial(_sequence, by=_by))
case("sequence without an id", lambda ask: ask.infer("sequence", {"x": np.array([[1]], np.int32)}))

# requests to other models


def _calls(how: str, ask: Ask) -> Any:
    for model in ("answers", "decoupled", "functions", "sequence", "around"):
        ask.load(model)
    answer = ask.infer("caller", {"how": text(how)})
    return json.loads(answer["outputs"]["told"][2][0]) if "outputs" in answer else answer


CALLS = (
    "once", "some_outputs", "version", "failed", "raised", "unknown", "wrong_input", "wrong_name",
    "wrong_output", "wrong_output_async", "many_of_a_wrong_output", "without_a_sequence", "told",
    "beside_each_other", "from_threads", "many", "many_with_flag", "many_failed", "many_async", "many_as_one",
    "many_as_one_async", "one_as_many", "endless", "sequence", "ready", "loads", "loads_with_configuration",
    "loads_nobody", "unloads_nobody", "itself", "around",
)  # fmt: skip
for _how in CALLS:
    case(f"call {_how}", partial(_calls, _how))

# configurations that the model completes, and loads that fail

_X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
_Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [4]}


def _completed(how: str, ask: Ask, **given: Any) -> Any:
    """The completed configuration, or why the load fails."""
    error = ask.load(
        "completing", {"backend": "python", "parameters": {"how": {"string_value": how}}, **given}
    )
    if error is not None:
        return {"error": error}
    config = ask.get("/v2/models/completing/config")[1]
    return {
        name: config.get(name)
        for name in ("max_batch_size", "input", "output", "dynamic_batching", "model_transaction_policy")
    }


_SEQUENCES = {
    "sequence_batching": {"max_sequence_idle_microseconds": 5000},
    "max_batch_size": 4,
    "input": [_X],
    "output": [_Y],
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "everything": {}, "everything of what is there": {"input": [_X], "output": [_Y], "max_batch_size": 2},
    "smaller batch": {"max_batch_size": 9}, "dynamic batching": {},
    "dynamic batching of sequences": _SEQUENCES, "decoupled": {},
    "not decoupled": {"model_transaction_policy": {"decoupled": True}}, "other policy": {},
    "input without name": {}, "input without datatype": {}, "input without dims": {}, "input with more": {},
    "output without name": {}, "output without datatype": {}, "output without dims": {},
    "output with more": {}, "other datatype of input": {"input": [_X]},
    "other dims of input": {"input": [_X]}, "other datatype of output": {"output": [_Y]},
    "other dims of output": {"output": [_Y]}, "optional input": {},
    "no longer optional": {"input": [{**_X, "optional": True}]}, "unknown datatype": {},
    "nothing returned": {}, "dict returned": {}, "raised": {}, "read": {"input": [_X]},
    "nothing": {"input": [_X], "output": [_Y]},
}  # fmt: skip
for _how, _given in COMPLETIONS.items():
    case(f"completion {_how}", partial(_completed, _how, **_given))
case(
    "completion serves",
    lambda ask: (_completed("everything", ask), ask.infer("completing", {"x": np.ones((1, 4), np.float32)}))[
        1
    ],
)


def _failed_load(how: str, ask: Ask) -> Any:
    tensors = {"input": [_X], "output": [_Y]}
    return ask.load("failing", {"backend": "python", "parameters": {"how": {"string_value": how}}, **tensors})


for _how in ("raised", "raised_of_triton", "fine"):
    case(f"load {_how}", partial(_failed_load, _how))
for _model in ("without_execute", "without_class", "with_syntax_error"):
    case(f"load {_model}", lambda ask, model=_model: ask.load(model))

# metrics and the log


def _metrics(how: str, ask: Ask, prefix: str = "") -> Any:
    answer = ask.infer("metrics", {"how": text(how)})
    told = json.loads(answer["outputs"]["told"][2][0]) if "outputs" in answer else answer
    return [told, ask.metrics(prefix)] if prefix else told


SHOWN = {
    "counter": "requests_seen",
    "counter_with_total": "words_total",
    "gauge": "queue_seen",
    "histogram": "length_seen",
}
for _how, _prefix in SHOWN.items():
    case(f"metric {_how}", partial(_metrics, _how, prefix=_prefix))
for _how in (
    "same_labels", "counter_below", "counter_set", "counter_observed", "histogram_value", "histogram_set",
    "histogram_incremented", "histogram_without_buckets", "histogram_of_disorder", "counter_with_buckets",
    "labels_of_numbers", "other_kind", "odd_name", "logged", "logged_number",
):  # fmt: skip
    case(f"metric {_how}" if "logged" not in _how else _how, partial(_metrics, _how))

# iterative sequences


def _iterative(ask: Ask, by: str, runs: int, **options: Any) -> Any:
    return ask.infer("iterative", {"n": np.array([[runs]], np.int32)}, by=by, **options)


for _runs in (1, 4):
    case(f"iterative {_runs} runs", partial(_iterative, by="grpc", runs=_runs))
case(
    "iterative with an id",
    partial(_iterative, by="http", runs=3, sequence_id=7, sequence_start=True, sequence_end=True),
)
