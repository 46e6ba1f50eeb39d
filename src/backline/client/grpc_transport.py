"""The transport over gRPC, with the Open Inference Protocol. Needs the extra `grpc`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from backline.client.address import Address
from backline.client.control import ModelControl
from backline.client.credentials import find_credential
from backline.client.errors import (
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    from_grpc_code,
    pushback_of,
)
from backline.client.grpc_control import GrpcControl
from backline.client.handshake import no_tls, unanswered, unverified
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata, answers
from backline.client.transport import InferCall, Transport
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.values.datatypes import DataType
from backline.engine.values.messages import InferResponse, Parameter
from backline.engine.values.signature import TensorSpec
from backline.engine.values.tensor import Tensor, decode_tensor, encode_tensor
from backline.protos import message, to_plain

_CONTENTS = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.BYTES: "bytes_contents",
}


def encode_infer(call: InferCall) -> Any:
    """The ModelInferRequest for a call."""
    request = message("inference.ModelInferRequest")(
        model_name=call.model, model_version=call.version, id=call.id
    )
    for tensor in call.inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        request.raw_input_contents.append(bytes(encode_tensor(tensor)))
    for name in call.outputs or ():
        request.outputs.add(name=name)
    for key, value in (call.parameters or {}).items():
        setattr(request.parameters[key], _parameter_field(value), value)
    return request


def decode_infer(url: str, response: Any) -> InferResponse:
    """Decodes a ModelInferResponse with raw or typed contents. Raises ProtocolError if it is invalid."""
    raw = response.raw_output_contents
    try:
        if raw and len(raw) != len(response.outputs):
            raise ValueError(f"{len(raw)} raw contents for {len(response.outputs)} outputs")
        outputs = []
        for index, output in enumerate(response.outputs):
            datatype, shape = DataType.from_name(output.datatype), tuple(output.shape)
            if raw:
                outputs.append(decode_tensor(output.name, datatype, shape, raw[index]))
                continue
            contents = getattr(output.contents, _CONTENTS[datatype]) if datatype in _CONTENTS else ()
            data = np.array(list(contents), datatype.dtype).reshape(shape)
            outputs.append(Tensor(output.name, datatype, shape, data))
    except (ValueError, InvalidArgument) as error:
        raise ProtocolError(f"{url} sent an inference response that cannot be read: {error}") from None
    parameters: dict[str, Parameter] = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in response.parameters.items()
        if value.WhichOneof("parameter_choice")
    }
    return InferResponse(response.model_name, response.model_version, response.id, outputs, parameters)


def _parameter_field(value: Parameter) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param"
    return "double_param" if isinstance(value, float) else "string_param"


#: The response parameter that marks the last response.
FINAL = "triton_final_response"
SERVICE = "/inference.GRPCInferenceService/"


@cache
def _first_process() -> int:
    """The id of the process that first used grpcio."""
    return os.getpid()


@cache
def _grpc() -> Any:
    """The module grpc. Raises InvalidArgument if grpcio is not installed."""
    try:
        import grpc
        import grpc.aio
    except ImportError as error:
        raise InvalidArgument(
            f"grpc:// URLs need grpcio: pip install 'backline[grpc]' ({error}). http:// works without it"
        ) from None
    return grpc


class GrpcTransport(Transport):
    """A channel of grpcio's asyncio API, without limits on message sizes. It reconnects by itself."""

    def __init__(self, address: Address, options: ClientOptions) -> None:
        grpc = _grpc()
        # grpcio's threads do not survive a fork, so a call would wait forever.
        if _first_process() != os.getpid():
            raise Unavailable(
                "grpcio was used before a fork and does not work in the child process."
                " Start processes with multiprocessing's 'spawn', or use http://"
            )
        self._url = address.url
        self._address = address
        self._options = options
        self._connect_timeout = options.connect_timeout
        self._connected = False
        self._credential = find_credential(address, options)
        fields = self._credential.fields.items()
        self._metadata = tuple((name.lower(), value) for name, value in fields) or None
        target = f"unix:{address.path}" if address.unix else address.authority
        arguments: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # clients in one process must not share a connection
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if address.unix:
            arguments.append(("grpc.default_authority", "localhost"))
        if address.tls:
            self._channel = grpc.aio.secure_channel(target, _credentials(grpc, options), arguments)
        else:
            self._channel = grpc.aio.insecure_channel(target, arguments)
        self._calls: dict[str, Any] = {}
        self._control = GrpcControl(self, address, options)

    @property
    def control(self) -> ModelControl:
        return self._control

    async def close(self) -> None:
        await self._control.close()
        await self._channel.close()

    async def infer(self, call: InferCall) -> InferResponse:
        return decode_infer(self._url, await self.call("ModelInfer", encode_infer(call), call.timeout))

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        grpc = _grpc()
        method = self._channel.stream_stream(
            f"{SERVICE}ModelStreamInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("inference.ModelStreamInferResponse").FromString,
        )
        streaming = None
        try:
            if not self._connected:
                self._connected = await self._connect(call.timeout)
            streaming = method(metadata=(*(self._metadata or ()), ("triton_grpc_error", "true")))
            await streaming.write(encode_infer(call))
            await streaming.done_writing()
            while True:
                try:
                    async with asyncio.timeout(call.timeout):
                        answer = await streaming.read()
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"no response from {self._url} within {call.timeout:.3g} s"
                    ) from None
                if answer is grpc.aio.EOF:
                    if await streaming.code() is not grpc.StatusCode.OK:
                        code, details = (await streaming.code()).value[0], await streaming.details()
                        raise self._credential.explain(
                            from_grpc_code(
                                code,
                                details or f"{self._url} ended the stream with gRPC status {code}",
                                pushback_of(await streaming.trailing_metadata()),
                            ),
                            self._url,
                        )
                    return
                if answer.error_message:
                    raise from_grpc_code(grpc.StatusCode.INTERNAL.value[0], answer.error_message)
                if answer.infer_response.outputs or FINAL not in answer.infer_response.parameters:
                    yield decode_infer(self._url, answer.infer_response)
        except grpc.aio.AioRpcError as error:
            raise self._failure("ModelStreamInfer", error, call.timeout) from None
        except grpc.aio.UsageError as error:
            raise ConnectionFailed(f"the client of {self._url} is closed: {error}") from None
        finally:
            if streaming is not None:
                streaming.cancel()

    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        request = encode_infer(call).SerializeToString()
        method = self._channel.unary_unary(f"{SERVICE}ModelInfer")

        async def send() -> None:
            await self._send("ModelInfer", method, request, call.timeout)

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
                    TensorSpec(entry.name, DataType.from_name(entry.datatype), tuple(entry.shape))
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
        # The protocol has no call for an explained configuration.
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
        """Calls a method of the inference service. `metadata` is added to what the client always sends."""
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._channel.unary_unary(
                f"{SERVICE}{method}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=message(f"inference.{method}Response").FromString,
            )
        return await self._send(method, call, request, timeout, metadata)

    async def _send(
        self, method: str, call: Any, request: Any, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        grpc = _grpc()
        try:
            if not self._connected:  # otherwise a call to an unreachable host would use up its whole timeout
                self._connected = await self._connect(timeout)
            return await call(
                request,
                timeout=timeout,
                metadata=(*(self._metadata or ()), *metadata) if metadata else self._metadata,
            )
        except grpc.aio.AioRpcError as error:
            raise self._failure(method, error, timeout) from None
        except grpc.aio.UsageError as error:
            raise ConnectionFailed(f"the client of {self._url} is closed: {error}") from None

    async def _connect(self, timeout: float) -> bool:
        """Waits for the channel to connect. Returns False if that fails; the next call's error says why."""
        ready = _grpc().ChannelConnectivity.READY
        waiting = {_grpc().ChannelConnectivity.IDLE, _grpc().ChannelConnectivity.CONNECTING}
        limit = min(timeout, self._connect_timeout)
        try:
            async with asyncio.timeout(limit):
                state = self._channel.get_state(try_to_connect=True)
                while state in waiting:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise ConnectionFailed(
                f"{self._url} did not accept a connection within {limit:.3g} s."
                " Is the host reachable, and is this a gRPC port?"
            ) from None
        return bool(state is ready)

    def _failure(self, method: str, error: Any, timeout: float) -> BacklineError:
        code, details = error.code().value[0], error.details() or ""
        if code == 14 and self._channel.get_state() is not _grpc().ChannelConnectivity.READY:
            # A call on an established connection may have reached the server before the connection broke.
            sent, self._connected = self._connected, False
            failed = self._unreachable(details)
            return ConnectionLost(failed.message) if sent else failed
        if code == 4:
            return DeadlineExceeded(
                f"no answer from {self._url} within {timeout:.3g} s" + (f" ({details})" if details else "")
            )
        failure = from_grpc_code(
            code,
            details or f"{self._url} answered {method} with gRPC status {error.code().name}",
            pushback_of(error.trailing_metadata()),
        )
        return self._credential.explain(failure, self._url)

    def _unreachable(self, details: str) -> ConnectionFailed:
        """The error for a failed connection; grpcio tells the cause only in its text, `details`."""
        _, found, reason = details.partition("CERTIFICATE_VERIFY_FAILED: ")
        if found:
            return unverified(self._address, reason.removesuffix(": OK"))
        if self._address.tls and ("Handshake read failed" in details or "WRONG_VERSION" in details):
            return no_tls(self._address)
        told = f"cannot reach {self._url}: {details}."
        dropped = "Socket closed" in details or "reset by peer" in details
        if dropped and (advice := unanswered(self._address, self._options)):
            return ConnectionFailed(told + advice)
        return ConnectionFailed(
            f"{told} Start a server (backline serve REPO), or check the host and port, and that it speaks"
            " gRPC"
        )


def _credentials(grpc: Any, options: ClientOptions) -> Any:
    if not options.verify:
        raise InvalidArgument(
            "gRPC cannot skip certificate verification (verify=False): pass ca='ca.pem', or use https://"
        )
    files = (options.ca, options.key, options.certificate)
    try:
        authority, key, certificate = (None if path is None else Path(path).read_bytes() for path in files)
    except OSError as error:
        raise InvalidArgument(f"cannot read the certificates: {error}") from None
    return grpc.ssl_channel_credentials(authority, key, certificate)
