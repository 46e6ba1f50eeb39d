"""Handles the requests. A handler runs on the event loop of the server: it must not block."""

from __future__ import annotations

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.plugin import Dialect
from backline.dialects.router import Router
from backline.wire.application import HttpRequest


class NameDialect(Dialect):
    """Created at the first request for one of its routes."""

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", "/NAME/{}", self._inputs)

    def _inputs(self, model: str, request: HttpRequest) -> None:
        def answer() -> None:
            found = self.context.engine.find_ready(model)
            respond_json(request, {"inputs": [str(spec) for spec in found.signature.inputs]})

        self.context.deferred.when_known(model, "", request, answer)
