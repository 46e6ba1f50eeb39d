"""Differences of `backline tritonserver` from Triton. docs/from-triton.md says why."""

from __future__ import annotations

import re
from typing import Any

from scenarios.difference import Difference, any_value, goes_on, is_gone, is_new, less, more

_ANY = ("drop_in/*",)
_STATUSES = ("seen.*.status", "seen.*.code")
_TEXTS = ("seen.*.error", "seen.*.details", "seen.*.error_message", "seen.*.reason", "answers.*.error")
#: The words of Triton's parser for what it cannot read.
_PARSING = re.compile(
    "attempt to (access|get)|failed to parse the request JSON|Unable to (parse|set)|invalid value type for"
)


def _among(*pairs: tuple[Any, Any]) -> Any:
    return lambda triton, backline: (triton, backline) in pairs


def _texts(triton: Any, backline: Any) -> bool:
    return isinstance(triton, str) and isinstance(backline, str)


def _parsing(triton: Any, backline: Any) -> bool:
    """Two texts, of which Triton's is about what it could not read."""
    return _texts(triton, backline) and bool(_PARSING.search(triton))


def _nearly(triton: Any, backline: Any) -> bool:
    return isinstance(triton, float) and abs(triton - backline) < 1e-6


def _within(*exchanges: str) -> tuple[str, ...]:
    """The paths of all fields of exchanges."""
    return tuple(f"seen.{name}.*" for name in exchanges)


#: This difference affects nobody, because scripts match the beginning of a text.
TEXTS_GO_ON = Difference("texts go on", _ANY, _TEXTS, goes_on)
DROP_IN: tuple[Difference, ...] = (
    # texts and statuses
    Difference("errors are JSON", _ANY, ("seen.*.type",), _among(("text/plain", "application/json"))),
    Difference(
        "statuses say what a client can do",
        _ANY,
        _STATUSES,
        _among((500, 400), (503, 400), (501, 415), ("INTERNAL", "INVALID_ARGUMENT")),
    ),
    Difference(
        "statuses say what a client can do",
        _ANY,
        _STATUSES,
        _among((400, 404), (500, 404), ("INVALID_ARGUMENT", "NOT_FOUND"), ("INTERNAL", "NOT_FOUND")),
    ),
    Difference("errors in a request say where they are", _ANY, _TEXTS, _parsing),
    Difference("missing values are NaN", ("json_that_is_wrong",), _within("values that are null"), any_value),
    Difference(
        "statuses say what a client can do",
        ("a_model_is_loaded_and_unloaded",),
        _within("infer when unloaded", "metadata"),
        _among((404, 503), ("text/plain", "application/json")),
    ),
    Difference(
        "load failures name the file",
        ("models_that_do_not_load", "loads_with_parameters", "the_repository_over_grpc"),
        _within(
            *("classless", "unfinished", "stepless", "no name", "an unknown parameter"),
            *("a file that is not in base64", "files without a configuration"),
        ),
        _texts,
    ),
    Difference(
        "errors describe the invalid request",
        _ANY,
        _within(
            *("a batch of zero", "an empty body", "an input is a number", "batches of two sizes"),
            *("a header length below zero", "a header length that is no number", "no gzip"),
            *("a datatype that is not there", "a shape below zero", "a string that is cut off"),
            *("an empty input", "register without a name", "a format that is not there"),
            *("*versions/x", "*versions/x/config", "*versions/x/stats"),
        ),
        _texts,
    ),
    # routes
    Difference(
        "more methods and ports answer",
        ("health_over_http", "the_index_over_http", "routes_of_the_metrics_port", "unknown_routes"),
        (
            *("seen.HEAD.*", "seen.GET.*", "seen.on the HTTP port", "seen.metrics.1", "seen.a POST.1"),
            *_within("GET /v1/models/gain"),
        ),
        any_value,
    ),
    # what is refused, and what is not
    Difference(
        "what Triton ignores is refused",
        _ANY,
        _within(
            *("an unknown setting", "another mode", "a rate below zero", "a level that is not there"),
            *("another field", "none", "an output twice", "too many raw contents", "unload with a text"),
            *("unload without JSON", "an unknown parameter of an unload", "256 as UINT8", "128 as INT8"),
            *("2 to the 31 as INT32", "1e39 as FP32"),
        ),
        any_value,
    ),
    Difference(
        "versions that are not numbers are unknown",
        ("health_over_grpc", "health_over_http"),
        _within("gain x", "gain -1", "*versions/x/ready", "*versions/-1/ready"),
        any_value,
    ),
    Difference(
        "settings are read leniently",
        ("trace_settings_over_http", "log_settings_over_http"),
        _within("an empty body", "a level that is no list"),
        any_value,
    ),
    Difference(
        "code that a request brings is not executed",
        ("loads_with_parameters", "the_repository_over_grpc"),
        (
            *_within("a model from nothing", "the model is replaced", "its own answer", "its answer"),
            *_within("a replaced model", "unloaded at the end"),
        ),
        any_value,
    ),
    # what answers hold
    Difference("numbers are as short as their datatype allows", _ANY, ("seen.*.data.*",), _nearly),
    Difference(
        "small responses are not compressed", ("compressed_bodies",), ("seen.an answer in *",), any_value
    ),
    Difference("metadata says which inputs are optional", _ANY, ("seen.*.inputs.*.parameters",), is_new),
    Difference(
        "the server describes itself",
        ("metadata_over_http", "metadata_over_grpc"),
        ("seen.*.version", "seen.*.extensions*"),
        any_value,
    ),
    Difference(
        "configurations have a newer field",
        ("configurations_over_http",),
        ("seen.*.max_inflight_requests",),
        is_new,
    ),
    Difference(
        "ensemble responses omit the sequence",
        ("an_ensemble_has_an_optional_and_a_decoupled_step",),
        ("seen.*.sequence_*",),
        is_gone,
    ),
    Difference(
        "errors on streams say more, and are statuses if asked",
        ("words_on_a_stream",),
        ("seen.*.infer_response*", *_within("an unknown model, with errors as statuses")),
        any_value,
    ),
    Difference(
        "generate reports errors in the status",
        ("generate_a_stream_of_words",),
        ("seen.of several, without a stream.status",),
        _among((200, 500)),
    ),
    # what is counted
    Difference(
        "an error response counts as a failure",
        ("a_model_calls_another", "a_decoupled_model_sends_a_response_per_frame"),
        ("statistics.*",),
        lambda triton, backline: less(triton, backline) or more(triton, backline),
    ),
    Difference(
        "statistics say more",
        ("statistics_over_http", "statistics_over_grpc"),
        ("seen.*.failure_stats", "seen.*.memory_usage", "seen.*.response_stats*"),
        lambda triton, backline: triton in (None, []),
    ),
    Difference("metrics", ("metrics_of_a_model",), ("seen.*",), is_new),
    Difference("metrics", ("metrics_of_a_model",), ("seen.*nv_pinned_memory_pool_*",), is_gone),
    Difference("metrics", ("metrics_of_a_model",), ("seen.help.*",), _texts),
    Difference(
        "metrics",
        ("metrics_of_a_model",),
        ("seen.tallied.nv_inference_request_failure*",),
        _among(("0", "1")),
    ),
)
