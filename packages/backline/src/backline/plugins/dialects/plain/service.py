"""Plain HTTP: POST /models/{model} runs a model on inputs by name."""

from __future__ import annotations

from backline.access.scope import Scope
from backline.dialects.bodies.service import BodyService
from backline.dialects.plugin import Dialect
from backline.dialects.router import Router
from backline.plugins.dialects.plain.sockets import SocketService


class PlainDialect(Dialect):
    """Plain HTTP and its WebSockets."""

    def add_routes(self, router: Router) -> None:
        run = BodyService(self.context.engine, self.context.deferred).run
        router.add(Scope.INFER, "POST", "/models/{}", run, "")
        router.add(Scope.INFER, "POST", "/models/{}/versions/{}", run)
        SocketService(self.context.engine).add_routes(router)
