"""The requests that a client can send to a gRPC server, and the changes that it can make to the server's
models.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from backline_client.client.address import Address
from backline_client.client.control import USER_HEADER, ModelControl
from backline_client.client.errors import ConnectionFailed, ProtocolError, from_grpc_code
from backline_client.client.grpc_codec import InferCodec
from backline_client.client.http_connection import HttpAnswer
from backline_client.client.http_control import HttpControl
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata, answers
from backline_client.client.transport import InferCall, Transport
from backline_client.protos import message, to_plain
from backline_client.values.control import Overrides
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument, Unsupported
from backline_client.values.messages import InferResponse
from backline_client.values.signature import TensorSpec


class GrpcControl(HttpControl):
    """Loads and unloads whole models with Triton's gRPC methods; does everything else over HTTP.

    Every port of Backline speaks HTTP. Triton's gRPC port does not: there, `models` uses gRPC instead, and
    the other operations raise Unsupported.
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
        """Sends a request over HTTP and returns the response.

        Raises Unsupported if the port speaks gRPC but not HTTP.
        """
        if self._has_http is not False:
            try:
                answer = await super()._exchange(method, path, document, timeout)
            except (ConnectionFailed, ProtocolError):
                if self._has_http:
                    raise
                # Raises an error if the port does not respond over gRPC either, because then HTTP is not the
                # problem.
                await self._grpc.server_live(timeout)
                self._has_http = False
            else:
                self._has_http = True
                return answer
        raise Unsupported(
            f"{method} {path.partition('?')[0]} needs HTTP, which the port of {self._url} does not"
            " speak: use the server's http:// URL"
        )


#: The response parameter that marks the last response.
FINAL = "triton_final_response"
SERVICE = "/inference.GRPCInferenceService/"
#: Makes Triton end a stream with a gRPC status if a request fails.
STREAM_METADATA = (("triton_grpc_error", "true"),)


class GrpcRequests(Transport):
    """The Open Inference Protocol over gRPC. Subclasses send the messages."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        self._url = address.url
        self._address = address
        self._options = options
        self._codec = InferCodec(address.url)
        self._control = GrpcControl(self, address, options)

    @property
    def control(self) -> ModelControl:
        return self._control

    async def close(self) -> None:
        await self._control.close()

    @abstractmethod
    async def exchange(
        self, method: str, request: bytes, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        """Sends a message to a method of the inference service, and returns the response.

        `metadata` is added to the metadata that the client always sends.
        """

    @abstractmethod
    def exchange_stream(
        self, method: str, request: bytes, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Sends a message to a streaming method and yields the responses. Each of them must arrive within
        `timeout` seconds.
        """

    async def infer(self, call: InferCall) -> InferResponse:
        request = b"".join(self._codec.encode(call))
        return self._codec.decode(await self.exchange("ModelInfer", request, call.timeout, call.metadata))

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        request = b"".join(self._codec.encode(call))
        read = message("inference.ModelStreamInferResponse").FromString
        metadata = (*STREAM_METADATA, *call.metadata)
        received = self.exchange_stream("ModelStreamInfer", request, call.timeout, metadata)
        async with aclosing(received) as responses:
            async for response in responses:
                answer = self._parsed(read, "ModelStreamInfer", response)
                if answer.error_message:
                    raise from_grpc_code(Internal.grpc_code, answer.error_message)
                if answer.infer_response.outputs or FINAL not in answer.infer_response.parameters:
                    yield self._codec.convert(answer.infer_response)

    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        request = b"".join(self._codec.encode(call))

        async def send() -> None:
            await self.exchange("ModelInfer", request, call.timeout, call.metadata)

        return send

    async def server_live(self, timeout: float) -> bool:
        return bool((await self._ask("ServerLive", timeout)).live)

    async def server_ready(self, timeout: float) -> bool:
        return bool((await self._ask("ServerReady", timeout)).ready)

    async def model_ready(self, model: str, version: str, timeout: float) -> bool:
        return bool((await self._ask("ModelReady", timeout, name=model, version=version)).ready)

    async def server_metadata(self, timeout: float) -> ServerMetadata:
        found = await self._ask("ServerMetadata", timeout)
        return ServerMetadata(found.name, found.version, tuple(found.extensions))

    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata:
        found = await self._ask("ModelMetadata", timeout, name=model, version=version)
        try:
            inputs, outputs = (
                tuple(
                    TensorSpec(
                        entry.name,
                        DataType.from_name(entry.datatype),
                        tuple(entry.shape),
                        json=entry.parameters["json"].string_param if "json" in entry.parameters else "",
                        column="column" in entry.parameters,
                    )
                    for entry in entries
                )
                for entries in (found.inputs, found.outputs)
            )
        except InvalidArgument as error:
            raise ProtocolError(
                f"{self._url} sent metadata of model '{model}' that cannot be read: {error}"
            ) from None
        return ModelMetadata(found.name, tuple(found.versions), found.platform, inputs, outputs)

    async def model_config(
        self, model: str, version: str, timeout: float, *, explained: bool = False
    ) -> dict[str, Any]:
        # `explained` is ignored, because gRPC has no counterpart of the HTTP route /explain-config.
        found = await self._ask("ModelConfig", timeout, name=model, version=version)
        return to_plain(found.config)

    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        found = await self._ask("ModelStatistics", timeout, name=model, version=version)
        return [to_plain(entry) for entry in found.model_stats]

    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        found = await self._ask("RepositoryIndex", timeout)
        return [
            ModelIndex(entry.name, entry.version, entry.state, entry.reason, ready=answers(entry.state))
            for entry in found.models
        ]

    async def _ask(self, method: str, timeout: float, **fields: str) -> Any:
        return await self.call(method, message(f"inference.{method}Request")(**fields), timeout)

    async def call(
        self, method: str, request: Any, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        """Like `exchange`, but takes and returns parsed messages."""
        response = await self.exchange(method, request.SerializeToString(), timeout, metadata)
        return self._parsed(message(f"inference.{method}Response").FromString, method, response)

    def _parsed(self, read: Callable[[bytes], Any], method: str, response: bytes) -> Any:
        try:
            return read(response)
        except DecodeError:
            raise ProtocolError(f"{self._url} sent a response to {method} that cannot be read") from None
