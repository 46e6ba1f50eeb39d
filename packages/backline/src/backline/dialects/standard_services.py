"""The gRPC services that clients of other systems expect: health checking, reflection, and KEDA's external
scaler.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md,
https://github.com/grpc/grpc/blob/master/doc/server-reflection.md,
https://keda.sh/docs/latest/concepts/external-scalers/
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from google.protobuf import descriptor_pb2

from backline.access.scope import Scope
from backline.dialects.answers import guarded
from backline.dialects.documents import read_message
from backline.engine.engine import Engine
from backline.observe.scaling import ScalingSignal
from backline.wire.application import Buffer, RpcError, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from backline_client.protos import message, pool
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unsupported

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
_HEALTH_REQUEST = "grpc.health.v1.HealthCheckRequest"
_REFLECTION_ALPHA = "grpc.reflection.v1alpha.ServerReflection"


class HealthService:
    """The gRPC health service.

    All known services, and the server itself (the empty name), are SERVING while the engine is ready.
    """

    def __init__(self, engine: Engine, services: Iterable[str]) -> None:
        self._engine = engine
        self._services = frozenset(services) | {"", HEALTH}
        self._response = message("grpc.health.v1.HealthCheckResponse")

    def methods(self) -> dict[bytes, UnaryMethod | StreamMethod]:
        return {
            f"/{HEALTH}/Check".encode(): UnaryMethod(guarded(self._check), Scope.HEALTH),
            f"/{HEALTH}/Watch".encode(): StreamMethod(self._watch, Scope.HEALTH),
        }

    def _check(self, call: UnaryCall, received: Buffer) -> None:
        service = read_message(_HEALTH_REQUEST, received).service
        if service not in self._services:
            raise NotFound(
                f"unknown service '{service}', expected one of"
                f" {', '.join(repr(name) for name in sorted(self._services))}"
            )
        call.reply(self._encode(service))

    async def _watch(self, call: StreamCall) -> None:
        """Sends the status now and at every change.

        For an unknown service, sends the status SERVICE_UNKNOWN instead of an error.
        """
        received = await call.receive()
        if received is None:
            raise RpcError(InvalidArgument.grpc_code, "Watch needs a request message")
        try:
            service = read_message(_HEALTH_REQUEST, received).service
        except InvalidArgument as error:
            raise RpcError(error.grpc_code, error.public_message) from None
        changed = asyncio.Event()
        unwatch = self._engine.watch(changed.set)
        try:
            last = None
            while True:
                changed.clear()
                status = self._encode(service)
                if status != last:
                    last = status
                    await call.send(status)
                await changed.wait()
        finally:
            unwatch()

    def _encode(self, service: str) -> bytes:
        if service not in self._services:
            status = self._response.SERVICE_UNKNOWN
        else:
            status = self._response.SERVING if self._engine.ready else self._response.NOT_SERVING
        encoded: bytes = self._response(status=status).SerializeToString()
        return encoded


class ReflectionService:
    """Lists the gRPC services and sends the protobuf files that describe them.

    Versions 1 and 1alpha differ only in the package name, so the messages of version 1 serve both.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted({*services, REFLECTION})
        self._response = message("grpc.reflection.v1.ServerReflectionResponse")

    def methods(self) -> dict[bytes, StreamMethod]:
        return {
            f"/{service}/ServerReflectionInfo".encode(): StreamMethod(self._serve, Scope.READ, lists=True)
            for service in (REFLECTION, _REFLECTION_ALPHA)
        }

    async def _serve(self, call: StreamCall) -> None:
        meter = None if call.identity is None else call.identity.meter
        while (received := await call.receive()) is not None:
            try:
                if meter is not None:
                    meter.charge(None, len(received), monotonic())
                asked = read_message("grpc.reflection.v1.ServerReflectionRequest", received)
            except BacklineError as error:
                raise RpcError(error.grpc_code, error.public_message) from None
            await call.send(self._answer(asked).SerializeToString())

    def _answer(self, asked: Any) -> Any:
        answer = self._response(valid_host=asked.host, original_request=asked)
        kind = asked.WhichOneof("message_request")
        if kind == "list_services":
            for service in self._services:
                answer.list_services_response.service.add(name=service)
            return answer
        try:
            if kind == "file_by_filename":
                file = pool().FindFileByName(asked.file_by_filename)
            elif kind == "file_containing_symbol":
                file = _file_of(asked.file_containing_symbol)
            elif kind in ("file_containing_extension", "all_extension_numbers_of_type"):
                return _fail(answer, NotFound.grpc_code, "no message of this server has extensions")
            else:
                return _fail(answer, Unsupported.grpc_code, "unknown kind of reflection request")
        except KeyError:
            return _fail(answer, NotFound.grpc_code, f"not found: {getattr(asked, kind)}")
        answer.file_descriptor_response.file_descriptor_proto.extend(_with_dependencies(file))
        return answer


def _file_of(symbol: str) -> Any:
    """Returns the file that defines a message, enum, service or method; raises KeyError if there is none."""
    try:
        return pool().FindFileContainingSymbol(symbol)
    except KeyError:  # FindFileContainingSymbol does not find methods
        return pool().FindMethodByName(symbol).containing_service.file


def _with_dependencies(file: Any) -> list[bytes]:
    """Returns a file and its transitive imports, serialized, with each file included once."""
    serialized: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current.name not in serialized:
            description = descriptor_pb2.FileDescriptorProto()
            current.CopyToProto(description)
            serialized[current.name] = description.SerializeToString()
            waiting.extend(current.dependencies)
    return list(serialized.values())


def _fail(answer: Any, code: int, text: str) -> Any:
    answer.error_response.error_code = code
    answer.error_response.error_message = text
    return answer


EXTERNAL_SCALER = "externalscaler.ExternalScaler"
#: The metric's name, the same as on the metrics page.
METRIC = "backline_desired_replicas"
#: Seconds between two checks of whether the server is active, for callers of StreamIsActive.
_LOOK = 5.0


class ExternalScaler:
    """The service through which KEDA asks how many servers the load needs.

    It reports the scaling signal of this server: the factor by which the number of servers should change.

    With `metricType: Value` in the trigger, KEDA multiplies the number of servers by this factor. The result
    is right for the whole fleet as long as all servers have about the same load.
    """

    def __init__(self, signal: Callable[[], ScalingSignal]) -> None:
        self._signal = signal

    def methods(self) -> dict[bytes, UnaryMethod | StreamMethod]:
        unary = {
            "IsActive": self._is_active,
            "GetMetricSpec": self._spec,
            "GetMetrics": self._metrics,
        }
        return {
            **{
                f"/{EXTERNAL_SCALER}/{name}".encode(): UnaryMethod(guarded(handler), Scope.METRICS)
                for name, handler in unary.items()
            },
            f"/{EXTERNAL_SCALER}/StreamIsActive".encode(): StreamMethod(self._follow, Scope.METRICS),
        }

    def _is_active(self, call: UnaryCall, received: Buffer) -> None:
        read_message("externalscaler.ScaledObjectRef", received)
        call.reply(self._activity())

    def _spec(self, call: UnaryCall, received: Buffer) -> None:
        read_message("externalscaler.ScaledObjectRef", received)
        answer = message("externalscaler.GetMetricSpecResponse")()
        answer.metricSpecs.add(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        call.reply(answer.SerializeToString())

    def _metrics(self, call: UnaryCall, received: Buffer) -> None:
        asked = read_message("externalscaler.GetMetricsRequest", received)
        desired = self._signal().desired_replicas
        answer = message("externalscaler.GetMetricsResponse")()
        answer.metricValues.add(
            metricName=asked.metricName or METRIC, metricValue=math.ceil(desired), metricValueFloat=desired
        )
        call.reply(answer.SerializeToString())

    async def _follow(self, call: StreamCall) -> None:
        """Sends a message that says whether the server is active: one now, and one after each check that
        finds a change.
        """
        received = await call.receive()
        if received is None:
            raise RpcError(InvalidArgument.grpc_code, "StreamIsActive needs a request message")
        last = None
        while True:
            activity = self._activity()
            if activity != last:
                last = activity
                await call.send(activity)
            await asyncio.sleep(_LOOK)

    def _activity(self) -> bytes:
        """Returns an encoded message that says whether requests were in flight within the signal's window."""
        active = message("externalscaler.IsActiveResponse")(result=self._signal().utilisation > 0)
        encoded: bytes = active.SerializeToString()
        return encoded
