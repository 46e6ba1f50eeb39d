"""The routes of TensorFlow Serving and of KServe's version 1: predictions, states of models, metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.exchange import ENVOY_TIMEOUT, GRPC_TIMEOUT, HTTP, UnaryInference, deadline_of
from backline.dialects.off_loop import OffLoop
from backline.dialects.plugin import Dialect
from backline.dialects.router import Part, Router
from backline.engine.model import NO_VERSION, Model, ModelState
from backline.plugins.dialects.tensorflow_serving.metadata import signature_document
from backline.plugins.dialects.tensorflow_serving.reader import PredictReader
from backline.plugins.dialects.tensorflow_serving.texts import no_label, no_servable
from backline.plugins.dialects.tensorflow_serving.writer import write_explanation, write_prediction
from backline.wire.application import Buffer, HttpRequest
from backline_client.values.errors import NotFound, Unavailable
from backline_client.values.names import version_order
from backline_client.values.private_places import for_clients

_Take: TypeAlias = Callable[[HttpRequest, Buffer, Mapping[bytes, bytes], str, str, float | None], None]
_DECOUPLED: Final = "the model sends any number of responses; this protocol has one for each request"
_MODEL: Final = "/v1/models/{}"
_VERSION: Final = "/v1/models/{}/versions/{}"
_LABEL: Final = "/v1/models/{}/labels/{}"
#: The words for the states. A version that is loaded by its first request is as good as available.
_STATES: Final = {
    ModelState.UNKNOWN: "UNKNOWN",
    ModelState.ON_DEMAND: "AVAILABLE",
    ModelState.LOADING: "LOADING",
    ModelState.READY: "AVAILABLE",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.UNAVAILABLE: "END",
}


class TensorFlowServing(Dialect):
    """The REST API of TensorFlow Serving, with what KServe's version 1 adds to it."""

    def add_routes(self, router: Router) -> None:
        engine, off_loop = self.context.engine, OffLoop()
        self._is_unknown = engine.is_unknown
        router.join(Scope.READ, "/v1/models", self._names, lists=True)
        router.join(Scope.READ, _MODEL, self._state)
        router.add(Scope.READ, "GET", _VERSION, self._state_of_version)
        router.add(Scope.READ, "GET", _LABEL, self._labelled(self._state_of_version))
        router.add(Scope.READ, "GET", f"{_MODEL}/metadata", self._metadata, "")
        router.add(Scope.READ, "GET", f"{_VERSION}/metadata", self._metadata)
        router.add(Scope.READ, "GET", f"{_LABEL}/metadata", self._labelled(self._metadata))
        for verb, read, write in (
            ("predict", PredictReader(engine).read, write_prediction),
            ("explain", PredictReader(engine, explains=True).read, write_explanation),
        ):
            take = UnaryInference(engine, HTTP, read, write, off_loop, decoupled=_DECOUPLED).take
            run = partial(self._run, take)
            router.add(Scope.INFER, "POST", f"{_MODEL}:{verb}", run, "")
            router.add(Scope.INFER, "POST", f"{_VERSION}:{verb}", run)
            router.add(Scope.INFER, "POST", f"{_LABEL}:{verb}", self._labelled(run))

    def _labelled(self, handler: Callable[..., None]) -> Callable[..., None]:
        """Wraps a handler so that it takes labels, and refuses those that the model does not have."""

        def handle(name: str, label: str, request: HttpRequest) -> None:
            if label not in self.context.engine.labels(name):
                raise no_label(label) if self.context.engine.is_known(name) else no_servable(name, "")
            handler(name, label, request)

        return handle

    def _run(self, take: _Take, name: str, version: str, request: HttpRequest) -> None:
        headers = request.headers
        deadline = deadline_of(headers) if GRPC_TIMEOUT in headers or ENVOY_TIMEOUT in headers else None
        try:
            if not self._is_unknown(name, version):
                take(request, request.body, headers, name, version, deadline)
                return
            again = partial(self._run, take, name, version, request)
            self.context.deferred.when_known(name, version, request, again)
        except NotFound:
            if self.context.engine.is_known(name) and not version:
                raise  # the model is known, and the error says why no version of it is served
            raise no_servable(name, version) from None

    # what models there are

    def _names(self, request: HttpRequest) -> Part:
        identity = request.identity
        names = self.context.engine.names()
        if identity is not None:
            names = [name for name in names if identity.may(Scope.READ, name)]
        return 200, {"models": names}

    def _state(self, name: str, _: HttpRequest) -> Part:
        """Returns the states of all versions, newest first, and whether one of them is ready, as KServe's
        clients read it.
        """
        versions = self._versions(name)
        document = {**_status(versions), "name": name, "ready": any(one.ready for one in versions)}
        if document["ready"]:
            return 200, document
        return Unavailable.http_status, {**document, "error": f"Model with name {name} is not ready."}

    def _versions(self, name: str) -> list[Model]:
        try:
            found = self.context.engine.versions(name)
        except NotFound:
            found = []
        found = [one for one in found if one.version != NO_VERSION]
        if not found:
            raise NotFound(f"Could not find any versions of model {name}")
        return sorted(found, key=lambda one: version_order(one.version), reverse=True)

    def _state_of_version(self, name: str, version: str, request: HttpRequest) -> None:
        wanted = self.context.engine.labels(name).get(version, version)
        found = [one for one in self._versions(name) if one.version == wanted]
        if not found:
            raise NotFound(f"Could not find version {version} of model {name}")
        respond_json(request, _status(found))

    def _metadata(self, name: str, version: str, request: HttpRequest) -> None:
        def known() -> None:
            model = self.context.engine.find_ready(name, version)
            respond_json(request, signature_document(model))

        try:
            self.context.deferred.when_known(name, version, request, known)
        except NotFound:
            raise no_servable(name, version) from None


def _status(versions: list[Model]) -> dict[str, Any]:
    return {
        "model_version_status": [
            {
                "version": one.version,
                "state": _STATES[one.state],
                "status": {
                    "error_code": "UNKNOWN" if one.state is ModelState.UNAVAILABLE and one.reason else "OK",
                    "error_message": for_clients(one.reason),
                },
            }
            for one in versions
        ]
    }
