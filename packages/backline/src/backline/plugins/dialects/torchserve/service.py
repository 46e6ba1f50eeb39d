"""TorchServe's APIs over REST and gRPC."""

from __future__ import annotations

from backline.dialects.plugin import Dialect, Methods
from backline.dialects.router import Router
from backline.plugins.dialects.torchserve.description import add_description
from backline.plugins.dialects.torchserve.inference import InferenceService
from backline.plugins.dialects.torchserve.management import ManagementService


class TorchServeDialect(Dialect):
    """TorchServe's APIs."""

    def add_routes(self, router: Router) -> None:
        InferenceService(self.context).add_routes(router)
        ManagementService(self.context).add_routes(router)
        add_description(router)

    def methods(self) -> Methods:
        # Imported late, because protobuf is large and most clients use REST.
        from backline.plugins.dialects.torchserve.rpc import RpcService

        return RpcService(self.context).methods()
