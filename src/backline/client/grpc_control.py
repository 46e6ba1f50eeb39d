"""Changes of a server's models by a grpc:// URL: whole models over gRPC, all else over HTTP on the same port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from backline.client.address import Address
from backline.client.control import ModelControl
from backline.client.errors import ConnectionFailed, ProtocolError
from backline.client.http_transport import HttpTransport
from backline.client.identity import USER_HEADER, user_name
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex
from backline.engine.control import Change, LabelMove, Overrides
from backline.engine.errors import Unsupported
from backline.protos import message

if TYPE_CHECKING:
    from backline.client.grpc_transport import GrpcTransport

Result = TypeVar("Result")


class GrpcControl(ModelControl):
    """Triton's two methods, and beside them HTTP, which every port of Backline answers and none of Triton's gRPC ports does."""

    def __init__(self, transport: GrpcTransport, address: Address, options: ClientOptions) -> None:
        self._transport = transport
        self._url = address.url
        url = address.url.replace("grpc", "http", 1)
        self._http = HttpTransport(replace(address, url=url, protocol="http"), options)
        named = any(name.lower() == USER_HEADER for name in options.headers)
        self._who = () if named else ((USER_HEADER, user_name()),)
        #: Whether the port answers HTTP; None until it was tried.
        self._has_http: bool | None = None

    async def close(self) -> None:
        await self._http.close()

    async def models(self, timeout: float) -> list[ModelIndex]:
        """What gRPC tells of them where the port answers nothing else."""
        try:
            return await self._by_http("the list of models", lambda http: http.models(timeout), timeout)
        except Unsupported:
            return await self._transport.repository_index(timeout)

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        if version:
            await self._by_http(
                "loading one version", lambda http: http.load(model, version, overrides, timeout), timeout
            )
            return
        request = message("inference.RepositoryModelLoadRequest")(model_name=model)
        if overrides is not None:
            request.parameters["config"].string_param = overrides.config or "{}"
            for path, content in overrides.files.items():
                request.parameters[f"file:{path}"].bytes_param = content
        await self._transport.call("RepositoryModelLoad", request, timeout, self._who)

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        if version:
            await self._by_http(
                "unloading one version",
                lambda http: http.unload(model, version, dependents, timeout),
                timeout,
            )
            return
        request = message("inference.RepositoryModelUnloadRequest")(model_name=model)
        request.parameters["unload_dependents"].bool_param = dependents
        await self._transport.call("RepositoryModelUnload", request, timeout, self._who)

    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        return await self._by_http("labels", lambda http: http.labels(model, timeout), timeout)

    async def move_label(self, move: LabelMove, timeout: float) -> Change:
        what = "labels" if move.action in ("label", "unlabel") else move.action
        return await self._by_http(what, lambda http: http.move_label(move, timeout), timeout)

    async def history(self, model: str, limit: int, timeout: float) -> list[Change]:
        return await self._by_http("the history", lambda http: http.history(model, limit, timeout), timeout)

    async def refresh(self, timeout: float) -> None:
        await self._by_http("refresh", lambda http: http.refresh(timeout), timeout)

    async def _by_http(
        self, what: str, ask: Callable[[ModelControl], Awaitable[Result]], timeout: float
    ) -> Result:
        """The answer over HTTP. Raises Unsupported where the server answers gRPC, but not HTTP."""
        if self._has_http is not False:
            try:
                result = await ask(self._http.control)
            except (ConnectionFailed, ProtocolError):
                if self._has_http:
                    raise
                await self._transport.server_live(
                    timeout
                )  # raises where nothing answers: then HTTP is not what is missing
                self._has_http = False
            else:
                self._has_http = True
                return result
        raise Unsupported(
            f"{what} goes over HTTP, which the port of {self._url} does not answer: use the server's http:// URL"
        )
