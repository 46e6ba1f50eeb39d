"""TorchServe's errors: {"code": ..., "type": ..., "message": ...}, with the names of Java's exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState
from backline.workers.process.job import WorkerEnded
from backline_client.values.errors import BacklineError, Forbidden, NotFound, Unavailable

_encode = msgspec.json.Encoder().encode
#: What TorchServe says when it has nobody to run a request, followed here by the reason.
_NO_WORKER: Final = (
    'Model "{}" has no worker to serve inference request. Please use scale workers API to add workers. {}'
)
#: The beginnings of the texts for results that are not what a handler must return.
_BAD_RESULTS: Final = (
    "number of batch response mismatched",
    "Invalid model predict output",
    "Unsupported model output data type.",
)
#: The HTTP status and the type of an error, by the status that other dialects give it.
_TYPES: Mapping[int, tuple[int, str]] = {
    400: (400, "BadRequestException"),
    401: (401, "InvalidKeyException"),
    403: (403, "ForbiddenException"),
    404: (404, "ResourceNotFoundException"),
    405: (405, "MethodNotAllowedException"),
    406: (406, "NotAcceptableException"),
    409: (409, "ConflictStatusException"),
    413: (413, "RequestEntityTooLargeException"),
    415: (415, "UnsupportedMediaTypeException"),
    429: (429, "TooManyRequestsException"),
    501: (501, "UnsupportedOperationException"),
    503: (503, "ServiceUnavailableException"),
    504: (504, "RequestTimeoutException"),
}
_INTERNAL: Final = "InternalServerException"


class ModelNotFound(NotFound):
    """There is no model with this name."""


class ModelVersionNotFound(NotFound):
    """The model has no version with this name."""


class DefaultVersion(Forbidden):
    """The version serves requests without a version, and so cannot be unregistered."""


class Conflict(BacklineError):
    http_status = 409
    grpc_code = 6


class NoWorker(Unavailable):
    """The model is known, but nothing can run a request."""


class PredictionFailed(BacklineError):
    """An error of a request that a model has run. `cause` is the error, which other dialects show."""

    def __init__(self, cause: BacklineError) -> None:
        message = cause.message
        self.status = cause.http_status
        self.grpc_code = cause.grpc_code  # type: ignore[misc]
        self.retry_after = cause.retry_after
        bad = next((text for text in _BAD_RESULTS if text in message), None)
        if isinstance(cause, WorkerEnded):
            message = f"Worker died. {message}"
        elif bad is not None:
            self.status = 503
            message = message[message.index(bad) :]
        elif self.status == 500:
            self.status = 503
            message = f"Prediction failed: {message}"
        if self.status != cause.http_status:
            self.grpc_code = Unavailable.grpc_code  # type: ignore[misc]
        super().__init__(message)


_NAMES: Mapping[type[BacklineError], str] = {
    ModelNotFound: "ModelNotFoundException",
    ModelVersionNotFound: "ModelVersionNotFoundException",
    DefaultVersion: "InvalidModelVersionException",
}


#: The reasons of versions that are unavailable because they were unloaded, and did not fail.
_UNLOADED: Final = ("", "unloaded")
#: The packages of TorchServe's exceptions; those of other types are in org.pytorch.serve.http.
_PACKAGES: Mapping[str, str] = {
    "ModelNotFoundException": "archive.model",
    "ModelVersionNotFoundException": "archive.model",
    "InvalidKeyException": "archive.model",
}
_HTTP_PACKAGE: Final = "http"


class RpcFailure(BacklineError):
    """An error of a gRPC call in TorchServe's form: a second line names the type."""

    def __init__(self, error: BacklineError, code: int | None = None) -> None:
        """`code` is the gRPC status; None for the error's own."""
        name = _kind(error)[1]
        self.kind = f"org.pytorch.serve.{_PACKAGES.get(name, _HTTP_PACKAGE)}.{name}"
        self.text = error.public_message
        self.retry_after = error.retry_after
        self.grpc_code = error.grpc_code if code is None else code  # type: ignore[misc]
        super().__init__(f"{self.text}\n{self.kind}")


def error_form(error: BacklineError) -> tuple[int, bytes]:
    """Returns the HTTP status of an error, and TorchServe's JSON for it."""
    status, name = _kind(error)
    message = error.public_message.encode(errors="replace").decode()
    return status, pretty({"code": status, "type": name, "message": message})


def _kind(error: BacklineError) -> tuple[int, str]:
    """Returns the HTTP status and the type of an error."""
    if isinstance(error, PredictionFailed):
        return error.status, _INTERNAL
    status, name = _TYPES.get(error.http_status, (error.http_status, _INTERNAL))
    return status, _NAMES.get(type(error), name)


def pretty(document: Any) -> bytes:
    """Encodes JSON as TorchServe does: over several lines, with a line break at the end."""
    return msgspec.json.format(_encode(document), indent=2) + b"\n"


def is_registered(engine: Engine, name: str) -> bool:
    """Returns whether a model has a version that has not been unloaded."""
    return engine.is_known(name) and not all(map(_is_gone, engine.versions(name)))


def _is_gone(model: Model) -> bool:
    ended = model.state is ModelState.UNAVAILABLE and model.reason in _UNLOADED
    return ended or model.state is ModelState.UNLOADING


def check_known(engine: Engine, name: str, version: str = "") -> None:
    """Raises ModelNotFound or ModelVersionNotFound for a model or version that the server does not know, or
    has unloaded.
    """
    if not (is_registered(engine, name) or (engine.is_stopping and engine.is_known(name))):
        raise ModelNotFound(f"Model not found: {name}")
    if version:
        try:
            engine.find(name, version)
        except BacklineError:
            raise ModelVersionNotFound(f"Model version: {version} does not exist for model: {name}") from None


def find_ready(engine: Engine, name: str, version: str) -> Model:
    """Returns a version that can respond. Raises what `check_known` raises, and NoWorker if the version is
    not ready.
    """
    try:
        return engine.find_ready(name, version)
    except BacklineError as error:
        check_known(engine, name, version)
        if isinstance(error, Unavailable):
            raise no_worker(name, error) from None
        raise


def no_worker(model: str, error: Unavailable) -> NoWorker:
    """Returns TorchServe's error for a request that nobody can run now."""
    return NoWorker(_NO_WORKER.format(model, error.message), error.retry_after)
