"""Serves the OpenAPI documents."""

from __future__ import annotations

from backline.access.scope import Scope
from backline.dialects.answers import JSON, encode_json
from backline.dialects.plugin import Dialect, DialectContext
from backline.dialects.router import Router
from backline.wire.application import HttpRequest


class OpenApiDialect(Dialect):
    """Registers the routes of the OpenAPI documents. The modules that build the documents are imported at the
    first request.
    """

    def __init__(self, context: DialectContext) -> None:
        super().__init__(context)
        self._router: Router | None = None
        self._server: bytes | None = None

    def add_routes(self, router: Router) -> None:
        self._router = router
        router.add(Scope.READ, "GET", "/openapi.json", self._of_server)
        router.add(Scope.READ, "GET", "/v2/models/{}/openapi.json", self._of_model, "")
        router.add(Scope.READ, "GET", "/v2/models/{}/versions/{}/openapi.json", self._of_model)

    def _of_server(self, request: HttpRequest) -> None:
        if self._server is None:
            from backline.plugins.dialects.openapi.document import server_document

            routes = [] if self._router is None else self._router.routes()
            self._server = encode_json(server_document(routes))
        _respond(request, self._server)

    def _of_model(self, name: str, version: str, request: HttpRequest) -> None:
        def answer() -> None:
            from backline.plugins.dialects.openapi.document import model_document

            model = self.context.engine.find_ready(name, version)
            _respond(request, encode_json(model_document(model, versioned=bool(version))))

        self.context.deferred.when_known(name, version, request, answer)


def _respond(request: HttpRequest, document: bytes) -> None:
    request.respond(200, [(b"content-type", JSON)], [document], compressible=True)
