"""The routes of TensorFlow Serving and of KServe's version 1: predictions, states of models, metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.exchange import ENVOY_TIMEOUT, GRPC_TIMEOUT, HTTP, UnaryInference, deadline_of
from backline.dialects.off_loop import OffLoop
from backline.dialects.plugin import Dialect, Methods
from backline.dialects.router import Part, Router
from backline.plugins.dialects.tensorflow_serving.metadata import signature_document
from backline.plugins.dialects.tensorflow_serving.reader import PredictReader
from backline.plugins.dialects.tensorflow_serving.states import status_document, versions_of
from backline.plugins.dialects.tensorflow_serving.texts import DECOUPLED, no_label, no_servable
from backline.plugins.dialects.tensorflow_serving.writer import write_explanation, write_prediction
from backline.wire.application import Buffer, HttpRequest
from backline_client.values.errors import NotFound, Unavailable

_Take: TypeAlias = Callable[[HttpRequest, Buffer, Mapping[bytes, bytes], str, str, float | None], None]
_MODEL: Final = "/v1/models/{}"
_VERSION: Final = "/v1/models/{}/versions/{}"
_LABEL: Final = "/v1/models/{}/labels/{}"


class TensorFlowServing(Dialect):
    """The APIs of TensorFlow Serving, with what KServe's version 1 adds to REST."""

    def methods(self) -> Methods:
        # Imported late, because protobuf is large and many clients use REST.
        from backline.plugins.dialects.tensorflow_serving.rpc import RpcService

        return RpcService(self.context).methods()

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
            take = UnaryInference(engine, HTTP, read, write, off_loop, decoupled=DECOUPLED).take
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
        versions = versions_of(self.context.engine, name)
        document = {**status_document(versions), "name": name, "ready": any(one.ready for one in versions)}
        if document["ready"]:
            return 200, document
        return Unavailable.http_status, {**document, "error": f"Model with name {name} is not ready."}

    def _state_of_version(self, name: str, version: str, request: HttpRequest) -> None:
        respond_json(request, status_document(versions_of(self.context.engine, name, version)))

    def _metadata(self, name: str, version: str, request: HttpRequest) -> None:
        def known() -> None:
            model = self.context.engine.find_ready(name, version)
            respond_json(request, signature_document(model))

        try:
            self.context.deferred.when_known(name, version, request, known)
        except NotFound:
            raise no_servable(name, version) from None
