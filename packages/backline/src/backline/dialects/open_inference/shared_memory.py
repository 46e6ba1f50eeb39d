"""Triton's shared memory extensions: tensors in regions, which clients register over REST and gRPC."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.documents import read_document
from backline.dialects.input_plan import InputPlan
from backline.dialects.off_loop import LARGE, LargeRequest
from backline.dialects.open_inference.plan import size_mismatch
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.parameters import WrongType
from backline.engine.shared_memory import Region, SharedMemory
from backline.wire.application import HttpRequest
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument, NotFound, Unsupported
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Buffer, Shape, Tensor, decode_tensor, encode_tensor

DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
REGION = "shared_memory_region"
REGION_SIZE = "shared_memory_byte_size"
#: The maximum number of bytes copied on the event loop; more would take over a millisecond.
LARGE_COPY = 4 << 20
#: The size of a cudaIpcMemHandle_t in bytes.
_HANDLE_SIZE = 64
ByteCount = Annotated[int, Meta(ge=0)]
_NOTHING = np.empty(0, np.uint8)


class RegionSlice(Struct, frozen=True):
    """The location of a tensor: `size` bytes at `offset` in a region."""

    region: str
    offset: int
    size: int


def read_slice(
    kind: str, name: str, parameters: Mapping[str, Any], memory: SharedMemory | None
) -> RegionSlice | None:
    """Returns the slice that the parameters of an input or output refer to; None if the parameters name no
    region.

    Raises InvalidArgument for invalid parameters, and Unsupported if clients may not share memory.
    """
    if REGION not in parameters:
        return None
    if memory is None:
        raise Unsupported(DISABLED)
    region = parameters[REGION]
    if not isinstance(region, str):
        reason = f"parameter '{REGION}' of {kind} '{name}' must be a string, got {region!r}"
        raise WrongType(REGION, "string", reason)
    numbers = []
    for key in ("shared_memory_offset", REGION_SIZE):
        value = parameters.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            reason = f"parameter '{key}' of {kind} '{name}' must be a number of bytes, got {value!r}"
            raise WrongType(key, "unsigned-integer", reason)
        numbers.append(value)
    return RegionSlice(region, *numbers)


class SharedInput(InputPlan):
    """An input whose data is in shared memory."""

    __slots__ = ("memory", "model", "place")

    def __init__(
        self,
        name: str,
        datatype_name: str,
        shape: Shape,
        place: RegionSlice,
        memory: SharedMemory,
        model: str,
    ) -> None:
        """`model` is the name that error texts show."""
        super().__init__(name, datatype_name, shape)
        self.model = model
        self.place = place
        self.memory = memory

    def read(self, buffer: Buffer, start: int, end: int) -> Tensor:
        """Copies the tensor from its region. The arguments are unused.

        Raises BacklineError if the region is missing or too small, or its bytes do not fit the datatype and
        shape.
        """
        region = self.memory.region(self.place.region)
        region.check(self.place.offset, self.place.size)
        if self.place.size != self.size >= 0:
            raise size_mismatch(self, self.place.size, self.model, "")
        raw = self.memory.read(region, self.place.offset, self.place.size)
        return decode_tensor(self.name, self.datatype, self.shape, raw.data)


class StoredTensor(Tensor):
    """An output that is written to shared memory. `data` is empty."""


class SharedTensors:
    """The tensors of a request in shared memory, cached with the plan of the request.

    Each request gets a copy, in which `held` keeps the regions alive until that request is done.
    """

    __slots__ = ("_memory", "_outputs", "_regions", "held", "large")

    def __init__(
        self, memory: SharedMemory, inputs: list[SharedInput], outputs: dict[str, RegionSlice]
    ) -> None:
        """Raises PayloadTooLarge if the inputs exceed the size limit of requests."""
        size = sum(spec.place.size for spec in inputs)
        memory.check_size(size)
        #: Whether the inputs are too large to read on the event loop.
        self.large = size > LARGE_COPY or sum(spec.place.size for spec in inputs if spec.size < 0) > LARGE
        self._memory = memory
        self._regions = {spec.place.region for spec in inputs} | {place.region for place in outputs.values()}
        self._outputs = outputs
        self.held: dict[str, Region] = {}

    def hold(self, *, on_loop: bool) -> SharedTensors:
        """Returns a copy for one request, which keeps the regions of the tensors alive.

        Raises NotFound for an unknown region, InvalidArgument for an output outside its region, and
        LargeRequest if `on_loop` is true and the inputs are large.
        """
        if on_loop and self.large:
            raise LargeRequest
        held = SharedTensors(self._memory, [], self._outputs)
        held.held = {name: self._memory.region(name) for name in sorted(self._regions)}
        for place in self._outputs.values():
            held.held[place.region].check(place.offset, place.size)
        return held

    def takes(self, output: str) -> bool:
        """Returns whether an output is written to shared memory."""
        return output in self._outputs

    def is_large(self, response: InferResponse) -> bool:
        """Returns whether the outputs are too large to copy on the event loop."""
        return (
            sum(tensor.data.nbytes for tensor in response.outputs if tensor.name in self._outputs)
            > LARGE_COPY
        )

    def store(self, outputs: list[Tensor]) -> list[Tensor]:
        """Writes outputs to their slices. Raises InvalidArgument if an output is larger than its slice."""
        return [
            self._store(tensor, self._outputs[tensor.name]) if tensor.name in self._outputs else tensor
            for tensor in outputs
        ]

    def _store(self, tensor: Tensor, place: RegionSlice) -> StoredTensor:
        data = encode_tensor(tensor)
        if len(data) > place.size:
            raise InvalidArgument(
                f"shared memory size specified with the request for output '{tensor.name}'"
                f" ({place.size} bytes) should be at least"
                f" {len(data)} bytes to hold the results"
            )
        self.held[place.region].write(place.offset, data)
        return StoredTensor(tensor.name, tensor.datatype, tensor.shape, _NOTHING)


class SharedMemoryRegions:
    """Registers, unregisters and describes regions of system shared memory.

    Every method raises Unsupported if clients may not share memory.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def memory(self) -> SharedMemory:
        if self._engine.shared_memory is None:
            raise Unsupported(DISABLED)
        return self._engine.shared_memory

    def status(self, name: str) -> list[dict[str, Any]]:
        """Describes the named region, or all regions if `name` is empty.

        Raises NotFound if there is no region with this name.
        """
        memory = self.memory
        found = [region for region in memory.regions() if name in ("", region.name)]
        if name and not found:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return [
            {"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.byte_size}
            for one in found
        ]

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        self.memory.register(name, key, offset, byte_size)

    def unregister(self, name: str) -> None:
        """Unregisters the named region, or all regions if `name` is empty."""
        if name:
            self.memory.unregister(name)
        else:
            self.memory.unregister_all()


class CudaRegions:
    """CUDA shared memory, which is not supported: tensors reach a GPU through host memory."""

    def __init__(self, system: SharedMemoryRegions) -> None:
        self._system = system

    def status(self, name: str) -> list[dict[str, Any]]:
        """Returns an empty list, as no region can exist. Raises NotFound if `name` is not empty, and
        Unsupported if clients may not share memory.
        """
        self._allowed()
        if name:
            raise NotFound(f"Unable to find cuda shared memory region: '{name}'")
        return []

    def register(self, name: str, handle: bytes, invalid: str) -> None:
        """Always fails: raises InvalidArgument, or Unsupported if clients may not share memory.

        The text of InvalidArgument starts with `invalid` if `handle` has the wrong size.
        """
        self._allowed()
        if len(handle) != _HANDLE_SIZE:
            raise InvalidArgument(f"{invalid}: it has {len(handle)} bytes, expected {_HANDLE_SIZE}")
        raise InvalidArgument(
            f"failed to register CUDA shared memory region: '{name}', GPUs not supported; use"
            " system shared memory, or send the data itself"
        )

    def unregister(self, _: str) -> None:
        self._allowed()

    def _allowed(self) -> None:
        _ = self._system.memory


@decodable
class SystemDocument(Struct, forbid_unknown_fields=True):
    key: str | UnsetType = UNSET
    offset: ByteCount = 0
    byte_size: ByteCount | UnsetType = UNSET


@decodable
class CudaDocument(Struct, forbid_unknown_fields=True):
    raw_handle: dict[str, Any] = {}
    device_id: int = 0
    byte_size: ByteCount = 0


class SharedMemoryRoutes:
    """The REST routes that register, unregister and list regions."""

    def __init__(self, engine: Engine) -> None:
        self._system = SharedMemoryRegions(engine)
        self._cuda = CudaRegions(self._system)

    def add_routes(self, router: Router) -> None:
        router.add(Scope.MANAGE, "POST", "/v2/systemsharedmemory/region/{}/register", self._register)
        router.add(Scope.MANAGE, "POST", "/v2/cudasharedmemory/region/{}/register", self._register_cuda)
        for kind, regions in (("system", self._system), ("cuda", self._cuda)):
            base = f"/v2/{kind}sharedmemory"
            status, unregister = partial(_show, regions), partial(_unregister, regions)
            router.add(Scope.READ, "GET", f"{base}/status", status, "")
            router.add(Scope.READ, "GET", f"{base}/region/{{}}/status", status)
            router.add(Scope.MANAGE, "POST", f"{base}/unregister", unregister, "")
            router.add(Scope.MANAGE, "POST", f"{base}/region/{{}}/unregister", unregister)

    def _register(self, name: str, request: HttpRequest) -> None:
        _ = self._system.memory  # raises Unsupported, before the body is read
        asked = read_document(SystemDocument, request.body)
        if asked.key is UNSET:
            raise InvalidArgument("Shared memory register request has no 'key' field")
        if asked.byte_size is UNSET:
            raise InvalidArgument("Shared memory register request has no 'byte_size' field")
        self._system.register(name, asked.key, asked.offset, asked.byte_size)
        request.respond(200, ())

    def _register_cuda(self, name: str, request: HttpRequest) -> None:
        _ = self._system.memory
        handle = read_document(CudaDocument, request.body).raw_handle.get("b64")
        if not isinstance(handle, str):
            raise InvalidArgument("Shared memory register request has no 'raw_handle' field")
        try:
            raw = b64decode(handle, validate=True)
        except ValueError:
            raw = b""
        self._cuda.register(name, raw, "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
        request.respond(200, ())


def _show(regions: SharedMemoryRegions | CudaRegions, name: str, request: HttpRequest) -> None:
    respond_json(request, regions.status(name))


def _unregister(regions: SharedMemoryRegions | CudaRegions, name: str, request: HttpRequest) -> None:
    regions.unregister(name)
    request.respond(200, ())
