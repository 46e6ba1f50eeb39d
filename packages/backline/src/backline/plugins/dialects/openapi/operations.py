"""Describes what each HTTP route does, for people and client generators.

A test checks that every route is described.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from backline.dialects.bodies.bodies import ARROW, CSV
from backline.plugins.dialects.openapi.schemas import (
    BINARY,
    BOOLEAN,
    EVENT,
    INFER_REQUEST,
    INFER_RESPONSE,
    OBJECT,
    STRING,
    TENSOR,
    WHOLE,
    Schema,
    fields,
    having,
    listed,
)
from backline_client.values.control import LONGEST_PAGE

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
#: The schema for the name of a model, version or label.
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 255}
VERSION: Schema = {"anyOf": [NAME, {"type": "integer"}]}


@dataclass(frozen=True, slots=True)
class Operation:
    """The description of a route. `responses` maps media types to schemas; if it is empty, responses have no
    body.

    `further` maps statuses other than 200 to their meanings, if the body is then a JSON object that is not an
    error.
    """

    tag: str
    summary: str
    responses: Mapping[str, Schema] = field(default_factory=dict)
    request: Mapping[str, Schema] = field(default_factory=dict)
    needs_body: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)
    header: Mapping[str, Schema] = field(default_factory=dict)
    further: Mapping[int, str] = field(default_factory=dict)


def _json(schema: Schema) -> Mapping[str, Schema]:
    return {JSON: schema}


def read(tag: str, summary: str, schema: Schema, **query: Schema) -> Operation:
    return Operation(tag, summary, _json(schema), query=query)


def change(
    tag: str, summary: str, request: Schema | None = None, response: Schema | None = None, **query: Schema
) -> Operation:
    needs = request is not None and "required" in request
    return Operation(
        tag,
        summary,
        {} if response is None else _json(response),
        {} if request is None else _json(request),
        needs,
        query,
    )


def both(suffix: str, operation: Operation) -> dict[tuple[str, str], Operation]:
    """Returns an operation for a model, and the same operation for one of its versions. `suffix` is the
    method and the end of the path, such as "GET /config".
    """
    method, _, end = suffix.partition(" ")
    return {
        (method, f"/v2/models/{{}}{end}"): operation,
        (method, f"/v2/models/{{}}/versions/{{}}{end}"): operation,
    }


_HEALTH = having({"live": BOOLEAN, "ready": BOOLEAN})
_MESSAGE = having({"status": STRING})
_INDEX = listed(having({"name": STRING}))
_LABELS = having({"name": STRING, "labels": {"type": "object", "additionalProperties": STRING}})
_CHANGE = having({"time": {"type": "number"}, "action": STRING, "model": STRING})
_RECORDING = having({"model": STRING, "state": STRING, "count": WHOLE, "recorded": WHOLE})
_SETTINGS: Schema = {
    "type": "object",
    "additionalProperties": {"anyOf": [STRING, listed(STRING), {"type": "null"}]},
}
_EXAMPLES = having({"examples": listed(having({"name": STRING}))})
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": LONGEST_PAGE, "default": 100}
_EMPTY = fields({}, {"parameters": OBJECT})
_SIZES = {"offset": {"type": "integer", "minimum": 0}, "byte_size": {"type": "integer", "minimum": 0}}
_MODEL, _SERVER, _REPOSITORY = "Models", "Server", "Repository"
_CONSOLE = "Console"
_TRAFFIC = "Traffic"
_ROUTE = having({"name": STRING, "revision": WHOLE, "route": OBJECT, "targets": listed(OBJECT)})
_LABEL, _SETTING, _MEMORY, _INFER = "Versions and labels", "Settings", "Shared memory", "Inference"

#: The header fields of a request that runs a model once.
_REQUEST_FIELDS: Mapping[str, Schema] = {
    "x-request-id": {**STRING, "description": "The id of the request in traces."},
    "grpc-timeout": {
        "type": "string",
        "pattern": "^[0-9]{1,8}[HMSmun]$",
        "description": "When the client no longer needs the response, such as 500m for 500 milliseconds.",
    },
}

_PLAIN = Operation(
    _INFER,
    "Run a model on inputs by name; responds with JSON or, depending on Accept, with one output as a file",
    {
        JSON: OBJECT,
        EVENTS: EVENT,
        "application/x-npy": BINARY,
        "image/png": BINARY,
        "audio/wav": BINARY,
        "text/plain": STRING,
        "application/octet-stream": BINARY,
        CSV: STRING,
        ARROW: BINARY,
    },
    {
        JSON: OBJECT,
        "multipart/form-data": OBJECT,
        "application/x-npy": BINARY,
        "application/octet-stream": BINARY,
        CSV: STRING,
        ARROW: BINARY,
    },
    True,
    query={
        "priority": WHOLE,
        "timeout": WHOLE,
        "sequence_id": STRING,
        "sequence_start": BOOLEAN,
        "sequence_end": BOOLEAN,
    },
    header=_REQUEST_FIELDS,
)

_PREDICTION: Schema = {
    "type": "object",
    "properties": {"signature_name": STRING, "instances": listed({}), "inputs": {}},
}
_PREDICTED: Schema = {"type": "object", "properties": {"predictions": listed({}), "outputs": {}}}
_STATUS = having({"model_version_status": listed(having({"version": STRING, "state": STRING}))})
_PREDICT = change(
    _INFER, "Run a model on `instances` or `inputs` (TensorFlow Serving)", _PREDICTION, _PREDICTED
)
_EXPLAIN = change(_INFER, "Get the output `explanations` of a model (KServe, version 1)", _PREDICTION, OBJECT)
_OF_SIGNATURE = read(_MODEL, "The signature of a version (TensorFlow Serving)", having({"metadata": OBJECT}))
_JOBS = "Jobs"
_JOB = having({"id": STRING, "model": STRING, "version": STRING, "state": STRING, "attempts": WHOLE})
_SECONDS: Schema = {"type": "number", "exclusiveMinimum": 0}
_WAIT: Schema = {"type": "number", "minimum": 0, "maximum": 60, "default": 0}
_SUBMIT = Operation(
    _JOBS,
    "Run a model later: takes what `infer` takes, and responds once it is on disk",
    {},
    {JSON: OBJECT, "application/octet-stream": BINARY},
    True,
    query={
        "priority": {"type": "integer", "minimum": 1, "maximum": 9, "default": 5},
        "attempts": {"type": "integer", "minimum": 1, "maximum": 20, "default": 3},
        "expires": _SECONDS,
        "kept": _SECONDS,
        "attempt_limit": _SECONDS,
    },
    header={
        "idempotency-key": {
            **STRING,
            "description": "Requests with the same key are one job, however often they are sent.",
        }
    },
    further={202: "The job is accepted"},
)
#: The same routes for a model, for one of its versions and for a label.
_TENSORFLOW_SERVING = {
    (method, f"/v1/models/{{}}{version}{end}"): operation
    for version in ("", "/versions/{}", "/labels/{}")
    for method, end, operation in (
        ("POST", ":predict", _PREDICT),
        ("POST", ":explain", _EXPLAIN),
        ("GET", "/metadata", _OF_SIGNATURE),
        ("GET", "", read(_MODEL, "The states of versions (TensorFlow Serving)", _STATUS)),
    )
}

#: The operations by method and pattern. Routes with and without a version share an operation.
OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/"): Operation(
        _CONSOLE,
        "The console for browsers, the list of routes for other clients",
        {JSON: OBJECT, "text/html": STRING},
    ),
    ("GET", "/console"): Operation(_CONSOLE, "The console", {"text/html": STRING}),
    ("GET", "/console/{}"): Operation(
        _CONSOLE,
        "A file of the console",
        {"text/html": STRING, "text/css": STRING, "text/javascript": STRING, "image/svg+xml": STRING},
    ),
    ("GET", "/v2/access"): read(
        _SERVER, "The caller's permissions", having({"name": STRING, "grants": listed(OBJECT)})
    ),
    ("GET", "/v2/activity"): Operation(
        _SERVER,
        "Counters of all models; as server-sent events, the changes of each second",
        {JSON: OBJECT, EVENTS: EVENT},
    ),
    ("GET", "/v2/traces"): Operation(
        _SERVER,
        "Traces of the last requests; as server-sent events, the trace of each request when it ends",
        {JSON: OBJECT, EVENTS: EVENT},
    ),
    ("GET", "/v2/graph"): read(_MODEL, "Models that call other models", having({"models": listed(OBJECT)})),
    ("GET", "/openapi.json"): read(_SERVER, "This document", OBJECT),
    ("GET", "/metrics"): Operation(_SERVER, "Metrics for Prometheus", {"text/plain": STRING}),
    ("GET", "/v2"): read(
        _SERVER, "Name, version and extensions", having({"name": STRING, "version": STRING})
    ),
    ("GET", "/v2/health/live"): read(_SERVER, "Whether the process responds", _HEALTH),
    ("GET", "/v2/health/ready"): Operation(
        _SERVER, "Whether the server is ready", _json(_HEALTH), further={503: "Not ready", 400: "Not ready"}
    ),
    ("GET", "/v2/models"): read(
        _MODEL,
        "The models and the state of each version",
        having({"models": listed(STRING), "versions": listed(OBJECT)}),
    ),
    ("GET", "/v2/models/stats"): read(
        _MODEL, "Counters of all models", having({"model_stats": listed(OBJECT)})
    ),
    **both(
        "GET ",
        read(_MODEL, "Inputs, outputs and versions", having({"name": STRING, "inputs": listed(TENSOR)})),
    ),
    **both("GET /config", read(_MODEL, "The complete configuration", having({"name": STRING}))),
    **both(
        "GET /explain-config",
        read(
            _MODEL,
            "The complete configuration, with parameters that say how the server runs the model",
            having({"name": STRING}),
        ),
    ),
    **both(
        "GET /config-origins",
        read(
            _MODEL,
            "Where each value of the configuration comes from",
            having({"name": STRING, "values": listed(having({"path": STRING, "origin": STRING}))}),
        ),
    ),
    **both("GET /stats", read(_MODEL, "Counters", having({"model_stats": listed(OBJECT)}))),
    **both("GET /openapi.json", read(_MODEL, "The OpenAPI document of this model", OBJECT)),
    **both(
        "GET /ready",
        Operation(
            _MODEL,
            "Whether the model takes requests",
            _json(OBJECT),
            further={503: "Not ready", 400: "Not ready"},
        ),
    ),
    ("GET", "/v1/models"): read(_MODEL, "The models (KServe)", having({"models": listed(STRING)})),
    **_TENSORFLOW_SERVING,
    ("GET", "/v1/models/{}"): Operation(
        _MODEL,
        "The states of all versions (TensorFlow Serving), and whether the model is ready (KServe)",
        _json(_STATUS),
        further={503: "Not ready"},
    ),
    ("POST", "/models/{}"): _PLAIN,
    ("POST", "/models/{}/versions/{}"): _PLAIN,
    ("POST", "/models/{}/invoke"): replace(_PLAIN, summary="Run a model (SageMaker)"),
    ("POST", "/v1/embeddings"): change(
        _INFER,
        "Embed texts (OpenAI)",
        fields(
            {"model": NAME, "input": {}},
            {"encoding_format": {"enum": ["float", "base64"]}, "dimensions": WHOLE, "user": STRING},
        ),
        having({"data": listed(OBJECT), "model": STRING, "usage": OBJECT}),
    ),
    ("POST", "/invocations"): replace(_PLAIN, summary="Run the default model (SageMaker)"),
    **{
        ("GET", f"/models/{{}}{version}/stream"): Operation(
            _INFER,
            "Run a model on each message of a WebSocket; any other request gets 426",
            query={"output": STRING, "sequence": BOOLEAN},
        )
        for version in ("", "/versions/{}")
    },
    **both("POST /jobs", _SUBMIT),
    ("GET", "/v2/jobs"): read(
        _JOBS,
        "The caller's jobs, newest first",
        having({"jobs": listed(_JOB)}),
        state=STRING,
        model=NAME,
        limit={"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
        cursor=STRING,
    ),
    ("GET", "/v2/jobs/{}"): read(_JOBS, "The state of a job, which may be waited for", _JOB, wait=_WAIT),
    ("DELETE", "/v2/jobs/{}"): Operation(
        _JOBS,
        "Cancel a job or, if it has ended, remove it and its result",
        _json(_JOB),
        query={"wait": _WAIT},
    ),
    ("GET", "/v2/jobs/{}/result"): Operation(
        _JOBS,
        "The result of a job, as the response to the same request without a job",
        {JSON: OBJECT, "application/octet-stream": BINARY},
        query={"wait": _WAIT},
        header={"range": STRING},
    ),
    ("POST", "/v2/jobs/{}/retry"): Operation(
        _JOBS,
        "Queue a failed, cancelled or expired job again",
        query={"wait": _WAIT},
        further={202: "The job is queued"},
    ),
    ("GET", "/ping"): Operation(
        _SERVER,
        "Whether all models are ready (TorchServe)",
        _json(_MESSAGE),
        further={500: "Not ready"},
    ),
    ("OPTIONS", "/"): read(_SERVER, "A description of TorchServe's APIs", OBJECT),
    ("GET", "/models"): read(
        _REPOSITORY,
        "The models (TorchServe)",
        having({"models": listed(OBJECT)}),
        limit=STRING,
        next_page_token=STRING,
    ),
    ("POST", "/models"): Operation(
        _REPOSITORY,
        "Load a model of a repository (TorchServe)",
        _json(_MESSAGE),
        query={"url": STRING, "model_name": STRING},
    ),
    **{
        (method, f"/models/{{}}{version}"): operation
        for version in ("", "/{}")
        for method, operation in (
            (
                "GET",
                read(_REPOSITORY, "How a model is served (TorchServe)", listed(OBJECT), customized=STRING),
            ),
            (
                "PUT",
                change(
                    _REPOSITORY,
                    "Check the number of workers (TorchServe)",
                    None,
                    _MESSAGE,
                    min_worker=STRING,
                    max_worker=STRING,
                ),
            ),
            ("DELETE", change(_REPOSITORY, "Unload a model (TorchServe)", None, _MESSAGE)),
        )
    },
    ("PUT", "/models/{}/{}/set-default"): change(
        _LABEL, "Make a version the stable one (TorchServe)", None, _MESSAGE
    ),
    ("GET", "/api-description"): read(_SERVER, "A description of TorchServe's APIs", OBJECT),
    **{
        (method, f"/{task}/{{}}{version}"): Operation(
            _INFER,
            summary,
            {JSON: OBJECT, "*/*": BINARY},
            {JSON: OBJECT, "*/*": BINARY},
            header=_REQUEST_FIELDS,
        )
        for task, summary in (
            ("predictions", "Run a model (TorchServe)"),
            ("explanations", "Explain a prediction (TorchServe)"),
        )
        for version in ("", "/{}")
        for method in ("POST", "PUT")
    },
    **both(
        "POST /infer",
        Operation(
            _INFER,
            "Run a model (Open Inference Protocol)",
            {JSON: INFER_RESPONSE, "application/octet-stream": BINARY},
            {JSON: INFER_REQUEST},
            True,
        ),
    ),
    **both(
        "POST /infer_stream",
        Operation(
            _INFER,
            "Run a model; a server-sent event per response",
            {EVENTS: EVENT},
            {JSON: INFER_REQUEST},
            True,
        ),
    ),
    **both(
        "POST /generate",
        Operation(_INFER, "Run a model (generate extension)", _json(OBJECT), _json(OBJECT), True),
    ),
    **both(
        "POST /generate_stream",
        Operation(
            _INFER,
            "Run a model (generate extension); a server-sent event per response",
            {EVENTS: EVENT},
            _json(OBJECT),
            True,
        ),
    ),
    ("GET", "/v2/repository/index"): read(_REPOSITORY, "All versions with state and reason", _INDEX),
    ("POST", "/v2/repository/index"): change(
        _REPOSITORY, "All versions with state and reason", fields({}, {"ready": BOOLEAN}), _INDEX
    ),
    ("GET", "/v2/repository/{}/index"): read(_REPOSITORY, "The same as /v2/repository/index", _INDEX),
    ("POST", "/v2/repository/{}/index"): change(
        _REPOSITORY, "The same as /v2/repository/index", fields({}, {"ready": BOOLEAN}), _INDEX
    ),
    ("POST", "/v2/repository/{}/models/{}/load"): change(_REPOSITORY, "Not supported"),
    ("POST", "/v2/repository/{}/models/{}/unload"): change(_REPOSITORY, "Not supported"),
    ("POST", "/v2/repository/models/{}/load"): change(
        _REPOSITORY, "Load the versions that the model's policy selects", _EMPTY
    ),
    ("POST", "/v2/repository/models/{}/versions/{}/load"): change(_REPOSITORY, "Load one version", _EMPTY),
    ("POST", "/v2/repository/models/{}/unload"): change(_REPOSITORY, "Unload a model", _EMPTY),
    ("POST", "/v2/repository/models/{}/versions/{}/unload"): change(
        _REPOSITORY, "Unload one version", _EMPTY
    ),
    ("POST", "/v2/repository/refresh"): change(_REPOSITORY, "Scan the repositories now"),
    ("GET", "/v2/repository/locations"): read(
        _REPOSITORY,
        "The repositories, with their last scans",
        having({"repositories": listed(having({"location": STRING}))}),
    ),
    ("GET", "/v2/repository/history"): read(
        _REPOSITORY,
        "The last changes",
        having({"changes": listed(_CHANGE), "cursor": STRING}),
        model=STRING,
        limit=_LIMIT,
        cursor=STRING,
    ),
    ("GET", "/v2/audit"): read(
        _REPOSITORY,
        "The last entries of the audit log",
        having({"entries": listed(having({"time": {"type": "number"}})), "cursor": STRING}),
        limit=_LIMIT,
        cursor=STRING,
        after={"type": "number"},
    ),
    ("GET", "/v2/models/{}/examples"): read(_MODEL, "The examples that the model ships", _EXAMPLES),
    ("GET", "/v2/models/{}/examples/{}"): Operation(
        _MODEL, "The file of an example", {"application/octet-stream": BINARY}
    ),
    ("GET", "/v2/models/{}/recorded"): read(_SETTING, "The inputs of recorded requests", _EXAMPLES),
    ("GET", "/v2/models/{}/labels"): read(_LABEL, "The labels and their versions", _LABELS),
    ("PUT", "/v2/models/{}/labels/{}"): change(
        _LABEL, "Point a label to a version", fields({"version": VERSION}, {"expected": VERSION}), OBJECT
    ),
    ("DELETE", "/v2/models/{}/labels/{}"): change(_LABEL, "Remove a label", None, OBJECT, expected=STRING),
    ("POST", "/v2/models/{}/promote"): change(
        _LABEL, "Make a version the stable one", fields({"version": VERSION}, {"expected": VERSION}), OBJECT
    ),
    ("POST", "/v2/models/{}/rollback"): change(
        _LABEL, "Undo the last move of a label", fields({}, {"label": NAME}), OBJECT
    ),
    ("GET", "/v2/routes"): read(_TRAFFIC, "All routes", having({"routes": listed(_ROUTE)})),
    ("GET", "/v2/routes/{}"): read(_TRAFFIC, "A route, with the state of its targets", _ROUTE),
    ("PUT", "/v2/routes/{}"): change(
        _TRAFFIC, "Set a route", fields({"route": OBJECT}, {"expected": WHOLE}), OBJECT
    ),
    ("DELETE", "/v2/routes/{}"): change(
        _TRAFFIC, "Remove what requests have set", None, OBJECT, expected=WHOLE
    ),
    ("GET", "/v2/routes/{}/history"): read(
        _TRAFFIC, "The changes of a route", having({"name": STRING, "changes": listed(OBJECT)})
    ),
    ("POST", "/v2/routes/{}/rollback"): change(
        _TRAFFIC, "Undo the last change of a route", fields({}, {"expected": WHOLE}), OBJECT
    ),
    ("POST", "/v2/routes/{}/rollout"): change(
        _TRAFFIC,
        "Begin a rollout under a guard",
        fields({"rollout": having({"to": STRING, "guard": STRING})}, {"expected": WHOLE}),
        OBJECT,
    ),
    ("POST", "/v2/models/{}/feedback"): change(
        _TRAFFIC,
        "Reward the response to a request that a route sent on",
        fields({"id": STRING, "reward": {"type": "number", "minimum": 0, "maximum": 1}}),
        having({"name": STRING, "target": STRING}),
    ),
    ("GET", "/v2/logging"): read(_SETTING, "The settings of the log", OBJECT),
    ("POST", "/v2/logging"): change(_SETTING, "Change settings of the log", OBJECT, OBJECT),
    ("GET", "/v2/logging/lines"): Operation(
        _SETTING,
        "The last lines of the log; as server-sent events, also each new line",
        {JSON: having({"lines": listed(OBJECT)}), EVENTS: EVENT},
    ),
    ("GET", "/v2/trace/setting"): read(_SETTING, "The trace settings", OBJECT),
    ("POST", "/v2/trace/setting"): change(_SETTING, "Change trace settings", _SETTINGS, OBJECT),
    ("GET", "/v2/models/{}/trace/setting"): read(_SETTING, "The trace settings of a model", OBJECT),
    ("POST", "/v2/models/{}/trace/setting"): change(
        _SETTING, "Change trace settings of a model", _SETTINGS, OBJECT
    ),
    ("GET", "/v2/models/{}/record"): read(_SETTING, "The progress of a recording", _RECORDING),
    ("DELETE", "/v2/models/{}/record"): change(_SETTING, "End a recording", None, _RECORDING),
    **{
        ("POST", f"/v2/models/{{}}{version}/record"): change(
            _SETTING,
            "Record the next requests for the model's warm-up",
            fields(
                {},
                {"count": {"type": "integer", "minimum": 1}, "max_bytes": {"type": "integer", "minimum": 1}},
            ),
            _RECORDING,
        )
        for version in ("", "/versions/{}")
    },
    **{
        (method, f"/v2/{kind}sharedmemory{end}"): operation
        for kind in ("system", "cuda")
        for method, end, operation in (
            ("GET", "/status", read(_MEMORY, "All regions", listed(OBJECT))),
            ("GET", "/region/{}/status", read(_MEMORY, "A region", listed(OBJECT))),
            ("POST", "/unregister", change(_MEMORY, "Unregister all regions")),
            ("POST", "/region/{}/unregister", change(_MEMORY, "Unregister a region")),
        )
    },
    ("POST", "/v2/systemsharedmemory/region/{}/register"): change(
        _MEMORY, "Register a region", fields({"key": STRING, "byte_size": _SIZES["byte_size"]}, _SIZES)
    ),
    ("POST", "/v2/cudasharedmemory/region/{}/register"): change(_MEMORY, "Register a region", OBJECT),
}
