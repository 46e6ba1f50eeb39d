"""Builds OpenAPI documents from the router's table and the models' signatures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from backline.access.scope import EVERYBODY, Scope
from backline.engine.model import Model
from backline.plugins.dialects.openapi.operations import EVENTS, JSON, NAME, OPERATIONS, Operation
from backline.plugins.dialects.openapi.schemas import (
    ERROR,
    EVENT,
    OBJECT,
    form_request,
    infer_request,
    plain_request,
    plain_response,
)
from backline_client.version import __version__

VERSION = "3.1.0"
_SINGULAR = {
    "models": "model",
    "versions": "version",
    "labels": "label",
    "console": "file",
    "predictions": "model",
    "explanations": "model",
    "{model}": "version",
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def server_document(routes: Iterable[tuple[str, str, Scope]]) -> dict[str, Any]:
    """Returns the document of all routes, which are given as method, pattern and scope."""
    paths: dict[str, dict[str, Any]] = {}
    for method, pattern, scope in routes:
        operation = OPERATIONS.get((method, pattern))
        if operation is None:
            continue
        path, names = _named(pattern)
        described = _described(operation, scope, f"{method.lower()}{path}")
        parameters = [{"name": one, "in": "path", "required": True, "schema": NAME} for one in names]
        described["parameters"] = parameters + described.pop("parameters", [])
        paths.setdefault(path, {})[method.lower()] = described
    return _document(
        "Backline", "A model server. Each model has a separate document, with exact schemas.", paths
    )


def model_document(model: Model, *, versioned: bool) -> dict[str, Any]:
    """Returns the document of one model, with the exact schemas of its inputs and outputs."""
    end = f"/{quote(model.name, safe='')}" + (
        f"/versions/{quote(model.version, safe='')}" if versioned else ""
    )
    plain, infer = plain_request(model), infer_request(model)
    binary = _is_binary_only(model)
    routes: dict[tuple[str, str], tuple[str, Mapping[str, Any], Mapping[str, Any] | None]] = {
        ("POST", "/models/{}"): (
            f"/models{end}",
            {JSON: plain, "multipart/form-data": form_request(model)},
            plain_response(model),
        ),
        ("GET", "/v2/models/{}"): (f"/v2/models{end}", {}, None),
        ("GET", "/v2/models/{}/ready"): (f"/v2/models{end}/ready", {}, None),
        ("GET", "/v2/models/{}/config"): (f"/v2/models{end}/config", {}, None),
        ("GET", "/v2/models/{}/explain-config"): (f"/v2/models{end}/explain-config", {}, None),
        ("GET", "/v2/models/{}/stats"): (f"/v2/models{end}/stats", {}, None),
    }
    if not binary:
        stream = "_stream" if model.decoupled else ""
        routes["POST", f"/v2/models/{{}}/infer{stream}"] = (
            f"/v2/models{end}/infer{stream}",
            {JSON: infer},
            None,
        )
    paths: dict[str, dict[str, Any]] = {}
    for (method, pattern), (path, request, response) in routes.items():
        operation = OPERATIONS[method, pattern]
        scope = Scope.INFER if method == "POST" else Scope.READ
        described = _described(operation, scope, f"{method.lower()}{pattern.replace('/{}', '')}")
        if request:
            described["requestBody"]["content"] = {kind: {"schema": one} for kind, one in request.items()}
        if response is not None:
            content = described["responses"]["200"]["content"]
            content[JSON] = {"schema": response}
            if model.decoupled:
                described["responses"]["200"]["content"] = {EVENTS: {"schema": EVENT}}
        paths.setdefault(path, {})[method.lower()] = described
    inputs = "; ".join(str(spec) for spec in model.signature.inputs) or "none"
    outputs = "; ".join(str(spec) for spec in model.signature.outputs)
    kind = " It sends any number of responses to a request." if model.decoupled else ""
    return _document(model.name, f"Inputs: {inputs}. Outputs: {outputs}.{kind}", paths, model.version)


def _is_binary_only(model: Model) -> bool:
    """Returns whether an input or output has a datatype that cannot be sent as JSON in inference requests."""
    both = (*model.signature.inputs, *model.signature.outputs)
    return any(spec.datatype.name in ("FP16", "BF16") for spec in both)


def _named(pattern: str) -> tuple[str, list[str]]:
    """Returns a pattern with its variable segments named ("/v2/models/{model}"), and these names."""
    parts: list[str] = []
    names: list[str] = []
    for part in pattern.split("/"):
        if part.startswith("{}"):
            before = parts[-1] if parts else ""
            names.append(_SINGULAR.get(before, before))
            part = f"{{{names[-1]}}}{part.removeprefix('{}')}"
        parts.append(part)
    return "/".join(parts), names


def _described(operation: Operation, scope: Scope, name: str) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in operation.responses.items()}
    good: dict[str, Any] = {"description": "Done", **({"content": content} if content else {})}
    further = {
        str(status): {"description": meaning, "content": {JSON: {"schema": OBJECT}}}
        for status, meaning in operation.further.items()
    }
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": "_".join(
            re.sub(r"[^\w-]+", "_", part.replace("{", "").replace("}", "")) for part in name.split("/")
        ),
        "responses": {"200": good, **further, "default": _error(streams=EVENTS in operation.responses)},
        "x-backline-scope": scope.value,
    }
    if operation.request:
        described["requestBody"] = {
            "required": operation.needs_body,
            "content": {kind: {"schema": schema} for kind, schema in operation.request.items()},
        }
    if operation.query or operation.header:
        described["parameters"] = [
            {"name": one, "in": place, "required": False, "schema": schema}
            for place, named in (("query", operation.query), ("header", operation.header))
            for one, schema in named.items()
        ]
    if scope in EVERYBODY:
        described["security"] = []
    return described


def _error(*, streams: bool) -> dict[str, Any]:
    """Describes the response to a failed request. An error after the start of a stream is an event."""
    content: dict[str, Any] = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    if streams:
        content[EVENTS] = {"schema": EVENT}
    return {"description": "An error: what is wrong, where, and what to do next", "content": content}


def _document(title: str, text: str, paths: Mapping[str, Any], version: str = __version__) -> dict[str, Any]:
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": version, "description": text},
        "paths": paths,
        "components": {"securitySchemes": _SECURITY, "schemas": {"Error": ERROR}},
        # A server without keys accepts requests without credentials.
        "security": [{}, {"bearer": []}, {"key": []}],
    }
