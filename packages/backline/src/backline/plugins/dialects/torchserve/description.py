"""The description of TorchServe's APIs that OPTIONS / returns: an OpenAPI 3.0 document of its routes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from backline.access.scope import Scope
from backline.dialects.router import Router
from backline.plugins.dialects.torchserve.errors import error_form
from backline.plugins.dialects.torchserve.inference import respond_pretty
from backline.wire.application import HttpRequest

_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {
        "code": {"type": "integer", "description": "The HTTP status."},
        "type": {"type": "string", "description": "The kind of error."},
        "message": {"type": "string", "description": "What is wrong."},
    },
}
_STATUS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}},
}
_ANY: Final = {"description": "The prediction", "content": {"*/*": {}}}
_BODY: Final = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
#: For each path, its operations: method, operation id, description, and the schema of the response; None for
#: predictions.
_OPERATIONS: Final = (
    ("/", "options", "apiDescription", "This description.", {"type": "object"}),
    ("/api-description", "get", "api-description", "This description.", {"type": "object"}),
    ("/ping", "get", "ping", "Whether all models are ready.", _STATUS),
    ("/predictions/{model_name}", "post", "predictions", "Runs a model.", None),
    ("/predictions/{model_name}/{model_version}", "post", "version_predictions", "Runs a version.", None),
    ("/explanations/{model_name}", "post", "explanations", "Explains a prediction.", None),
    ("/models", "get", "listModels", "The models.", {"type": "object"}),
    ("/models", "post", "registerModel", "Loads a model of a repository.", _STATUS),
    ("/models/{model_name}", "get", "describeModel", "How a model is served.", {"type": "array"}),
    ("/models/{model_name}", "put", "setAutoScale", "Checks the number of workers.", _STATUS),
    ("/models/{model_name}", "delete", "unregisterModel", "Unloads a model.", _STATUS),
    (
        "/models/{model_name}/{model_version}/set-default",
        "put",
        "setDefault",
        "Makes a version the one that serves requests without a version.",
        _STATUS,
    ),
    (
        "/explanations/{model_name}/{model_version}",
        "post",
        "version_explanations",
        "Explains a prediction of a version.",
        None,
    ),
)


def add_description(router: Router) -> None:
    add = partial(router.add, errors=error_form)
    add(Scope.PUBLIC, "OPTIONS", "/", _describe)
    add(Scope.PUBLIC, "GET", "/api-description", _describe)


def _describe(request: HttpRequest) -> None:
    respond_pretty(request, document())


def document() -> dict[str, Any]:
    """Returns the OpenAPI document, as TorchServe's clients read it."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, id, text, schema in _OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, method, id, text, schema)
    return {
        "openapi": "3.0.1",
        "info": {"title": "TorchServe APIs", "description": "Served by Backline", "version": "0.12.0"},
        "paths": paths,
    }


def _operation(path: str, method: str, id: str, text: str, schema: Any) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    found: dict[str, Any] = {
        "description": text,
        "operationId": id,
        "parameters": [
            {"in": "path", "name": name, "required": True, "schema": {"type": "string"}} for name in names
        ],
        "responses": {
            "200": _ANY if schema is None else _json("The result", schema),
            "default": _json("An error", _ERROR),
        },
    }
    if schema is None:
        found["requestBody"] = _BODY
    return found


def _json(text: str, schema: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
