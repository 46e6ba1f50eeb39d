"""The shared memory extensions over REST."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.open_inference.documents import read_document
from backline.dialects.open_inference.shared_memory import CudaRegions, SharedMemoryRegions
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument
from backline.wire.application import HttpRequest

Bytes = Annotated[int, Meta(ge=0)]


class SystemDocument(Struct, forbid_unknown_fields=True):
    key: str | UnsetType = UNSET
    offset: Bytes = 0
    byte_size: Bytes | UnsetType = UNSET


class CudaDocument(Struct, forbid_unknown_fields=True):
    raw_handle: dict[str, Any] = {}
    device_id: int = 0
    byte_size: Bytes = 0


class RestSharedMemory:
    """The handlers of the routes."""

    def __init__(self, engine: Engine) -> None:
        self._system = SharedMemoryRegions(engine)
        self._cuda = CudaRegions(self._system)

    def add_routes(self, router: Router) -> None:
        router.add(Scope.MANAGE, "POST", "/v2/systemsharedmemory/region/{}/register", self._register)
        router.add(Scope.MANAGE, "POST", "/v2/cudasharedmemory/region/{}/register", self._register_cuda)
        for kind, regions in (("system", self._system), ("cuda", self._cuda)):
            base = f"/v2/{kind}sharedmemory"
            status, unregister = partial(_status, regions), partial(_unregister, regions)
            router.add(Scope.READ, "GET", f"{base}/status", status, "")
            router.add(Scope.READ, "GET", f"{base}/region/{{}}/status", status)
            router.add(Scope.MANAGE, "POST", f"{base}/unregister", unregister, "")
            router.add(Scope.MANAGE, "POST", f"{base}/region/{{}}/unregister", unregister)

    def _register(self, name: str, request: HttpRequest) -> None:
        _ = self._system.memory  # whether it is allowed comes before what is wrong with the request
        asked = read_document(SystemDocument, request.body)
        if asked.key is UNSET:
            raise InvalidArgument("Shared memory register request has no 'key' field")
        if asked.byte_size is UNSET:
            raise InvalidArgument("Shared memory register request has no 'byte_size' field")
        self._system.register(name, asked.key, asked.offset, asked.byte_size)
        request.respond(200, ())

    def _register_cuda(self, name: str, request: HttpRequest) -> None:
        read_document(CudaDocument, request.body)
        self._cuda.register(name)


def _status(regions: SharedMemoryRegions | CudaRegions, name: str, request: HttpRequest) -> None:
    respond_json(request, regions.status(name))


def _unregister(regions: SharedMemoryRegions | CudaRegions, name: str, request: HttpRequest) -> None:
    regions.unregister(name)
    request.respond(200, ())
