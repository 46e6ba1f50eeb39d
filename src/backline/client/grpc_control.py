"""Changes to a server's models at a grpc:// URL, partly over gRPC and partly over HTTP on the same port."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backline.client.address import Address
from backline.client.control import USER_HEADER
from backline.client.errors import ConnectionFailed, ProtocolError
from backline.client.http_connection import HttpAnswer
from backline.client.http_control import HttpControl
from backline.client.http_transport import HttpTransport
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex
from backline.engine.control import Overrides
from backline.engine.errors import Unsupported
from backline.protos import message

if TYPE_CHECKING:
    from backline.client.grpc_requests import GrpcRequests


class GrpcControl(HttpControl):
    """Loads and unloads whole models with Triton's gRPC methods; does everything else over HTTP.

    Every port of Backline speaks HTTP; Triton's gRPC port does not.
    """

    def __init__(self, transport: GrpcRequests, address: Address, options: ClientOptions) -> None:
        url = address.url.replace("grpc", "http", 1)
        http = HttpTransport(replace(address, url=url, protocol="http"), options)
        super().__init__(http, address.url, options)
        self._grpc = transport
        self._metadata = ((USER_HEADER, self._user),) if self._user else ()
        #: Whether the port speaks HTTP; None until the first attempt.
        self._has_http: bool | None = None

    async def close(self) -> None:
        await self._transport.close()

    async def models(self, timeout: float) -> list[ModelIndex]:
        try:
            return await super().models(timeout)
        except Unsupported:
            return await self._grpc.repository_index(timeout)

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        if version:
            await super().load(model, version, overrides, timeout)
            return
        request = message("inference.RepositoryModelLoadRequest")(model_name=model)
        if overrides is not None:
            request.parameters["config"].string_param = overrides.config or "{}"
            for path, content in overrides.files.items():
                request.parameters[f"file:{path}"].bytes_param = content
        await self._grpc.call("RepositoryModelLoad", request, timeout, self._metadata)

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        if version:
            await super().unload(model, version, dependents, timeout)
            return
        request = message("inference.RepositoryModelUnloadRequest")(model_name=model)
        request.parameters["unload_dependents"].bool_param = dependents
        await self._grpc.call("RepositoryModelUnload", request, timeout, self._metadata)

    async def _exchange(self, method: str, path: str, document: object, timeout: float) -> HttpAnswer:
        """Sends a request over HTTP and returns the answer.

        Raises Unsupported if the port speaks gRPC but not HTTP.
        """
        if self._has_http is not False:
            try:
                answer = await super()._exchange(method, path, document, timeout)
            except (ConnectionFailed, ProtocolError):
                if self._has_http:
                    raise
                # Raises an error if the port does not answer gRPC either: then HTTP is not the problem.
                await self._grpc.server_live(timeout)
                self._has_http = False
            else:
                self._has_http = True
                return answer
        raise Unsupported(
            f"{method} {path.partition('?')[0]} needs HTTP, which the port of {self._url} does not"
            " speak: use the server's http:// URL"
        )
