"""gRPC health checking, grpc.health.v1.Health (https://github.com/grpc/grpc/blob/master/doc/health-checking.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from backline.access.scope import Scope
from backline.dialects.rpc_failure import guarded
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, NotFound
from backline.protos import message
from backline.wire.application import Buffer, RpcError, StreamCall, StreamMethod, UnaryCall, UnaryMethod

SERVICE = "grpc.health.v1.Health"


class HealthService:
    """Every known service, and the server as a whole (the empty name), is serving when the engine is ready."""

    def __init__(self, engine: Engine, services: Iterable[str]) -> None:
        self._engine = engine
        self._services = frozenset(services) | {"", SERVICE}
        self._request = message("grpc.health.v1.HealthCheckRequest")
        self._response = message("grpc.health.v1.HealthCheckResponse")

    def methods(self) -> dict[bytes, UnaryMethod | StreamMethod]:
        return {
            f"/{SERVICE}/Check".encode(): UnaryMethod(guarded(self._check), Scope.READ),
            f"/{SERVICE}/Watch".encode(): StreamMethod(self._watch, Scope.READ),
        }

    def _check(self, call: UnaryCall, received: Buffer) -> None:
        service = self._parse(received).service
        if service not in self._services:
            raise NotFound(
                f"unknown service '{service}', expected one of {', '.join(repr(name) for name in sorted(self._services))}"
            )
        call.reply(self._encode(service))

    async def _watch(self, call: StreamCall) -> None:
        """Sends the status, and again whenever it changes; SERVICE_UNKNOWN, not an error, for an unknown service."""
        received = await call.receive()
        if received is None:
            raise RpcError(InvalidArgument.grpc_code, "a call of Watch needs a request")
        try:
            service = self._parse(received).service
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

    def _parse(self, received: Buffer) -> Any:
        try:
            return self._request.FromString(received)
        except DecodeError:
            raise InvalidArgument(
                "the message is not a grpc.health.v1.HealthCheckRequest: it is malformed or cut short"
            ) from None

    def _encode(self, service: str) -> bytes:
        if service not in self._services:
            status = self._response.SERVICE_UNKNOWN
        else:
            status = self._response.SERVING if self._engine.ready else self._response.NOT_SERVING
        encoded: bytes = self._response(status=status).SerializeToString()
        return encoded
