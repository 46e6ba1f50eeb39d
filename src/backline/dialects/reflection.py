"""gRPC server reflection, versions 1 and 1alpha (https://github.com/grpc/grpc/blob/master/doc/server-reflection.md).

The two differ only in the name of the package, so the messages of version 1 serve both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from backline.access.scope import Scope
from backline.engine.errors import InvalidArgument, NotFound, Unsupported
from backline.protos import message, pool
from backline.wire.application import RpcError, StreamCall, StreamMethod

SERVICE = "grpc.reflection.v1.ServerReflection"
_ALPHA = "grpc.reflection.v1alpha.ServerReflection"


class ReflectionService:
    """Tells the services of the server and the files that describe them."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted({*services, SERVICE})
        self._request = message("grpc.reflection.v1.ServerReflectionRequest")
        self._response = message("grpc.reflection.v1.ServerReflectionResponse")

    def methods(self) -> dict[bytes, StreamMethod]:
        return {
            f"/{service}/ServerReflectionInfo".encode(): StreamMethod(self._serve, Scope.READ)
            for service in (SERVICE, _ALPHA)
        }

    async def _serve(self, call: StreamCall) -> None:
        while (received := await call.receive()) is not None:
            try:
                asked = self._request.FromString(received)
            except DecodeError:
                raise RpcError(
                    InvalidArgument.grpc_code,
                    "the message is not a ServerReflectionRequest: it is malformed or cut short",
                ) from None
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
                return _fail(answer, Unsupported.grpc_code, "unknown kind of request")
        except KeyError:
            return _fail(answer, NotFound.grpc_code, f"not found: {getattr(asked, kind)}")
        answer.file_descriptor_response.file_descriptor_proto.extend(_with_dependencies(file))
        return answer


def _file_of(symbol: str) -> Any:
    """The file that describes a message, an enum, a service or a method. Raises KeyError."""
    try:
        return pool().FindFileContainingSymbol(symbol)
    except KeyError:  # which does not know methods
        return pool().FindMethodByName(symbol).containing_service.file


def _with_dependencies(file: Any) -> list[bytes]:
    """A file and all that it imports, each once, serialized."""
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
