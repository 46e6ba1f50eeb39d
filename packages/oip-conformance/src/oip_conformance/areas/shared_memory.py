"""The system shared-memory extension: tensors in memory that client and server share."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.areas.infer import LEFT, RIGHT, SUM
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Failure, Level
from oip_conformance.rpc import RpcError
from oip_conformance.target import Target, check, equal, key, ok, refused, rpc_refused

MUST, SHOULD, OBSERVED = Level
area = Area("shared-memory", "shared-memory")
SIZE = 64
REGION = "oip_conformance"


def _bytes(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None
    return memory.buf


@contextlib.contextmanager
def _memory(t: Target, register: bool = True, region: str = REGION) -> Iterator[SharedMemory]:
    """Memory of 64 bytes with the two inputs of `sum` at its start, registered with the server."""
    memory = SharedMemory(create=True, size=SIZE)
    try:
        _bytes(memory)[:32] = LEFT.raw() + RIGHT.raw()
        if register:
            ok(_register(t, memory.name, region=region))
        yield memory
    finally:
        with contextlib.suppress(Failure):
            _unregister(t, region)
        memory.close()
        memory.unlink()


def _unregister(t: Target, region: str = REGION) -> None:
    """Unregisters a region, as soon as the server no longer counts it as in use by an answer that it has just sent."""
    while (answer := t.post(f"/v2/systemsharedmemory/region/{region}/unregister")).status != 200:
        time.sleep(0.05)
        if time.monotonic() > t.deadline - 1:
            ok(answer)


def _register(t: Target, name: str, size: int = SIZE, offset: int = 0, region: str = REGION) -> Answer:
    body = {"key": f"/{name.lstrip('/')}", "offset": offset, "byte_size": size}
    return t.post(f"/v2/systemsharedmemory/region/{region}/register", body)


def _place(offset: int, size: int = 16, region: str = REGION) -> dict[str, Any]:
    return {"shared_memory_region": region, "shared_memory_offset": offset, "shared_memory_byte_size": size}


def _body(t: Target, *places: dict[str, Any]) -> dict[str, Any]:
    """A request of `sum` whose inputs are in these places, and whose outputs are in the next two, if there are four."""
    inputs = [
        {**tensor.entry(), "parameters": place}
        for tensor, place in zip(t.tensors("sum", LEFT, RIGHT), places[:2], strict=True)
    ]
    names = zip(t.output_names("sum"), places[2:], strict=False)
    outputs = [{"name": name, "parameters": place} for name, place in names]
    return {"inputs": inputs, **({"outputs": outputs} if outputs else {})}


def _infer(t: Target, *places: dict[str, Any]) -> Answer:
    return t.post(t.path("sum", "infer"), _body(t, *places))


def _sum(answer: Answer, t: Target) -> list[float]:
    entries = key(ok(answer).json(), "outputs", list)
    return next(list(map(float, e["data"])) for e in entries if e["name"] == t.output_names("sum")[0])


@area.row("register", MUST, spec.SHM_REGISTER)
def register(t: Target) -> None:
    """Memory that exists can be registered, and its region is then in the status, with key, offset and size."""
    with _memory(t) as memory:
        entries = ok(t.get(f"/v2/systemsharedmemory/region/{REGION}/status")).json()
        check(isinstance(entries, list) and len(entries) == 1, "a list with one region", entries)
        got = entries[0].get("name"), entries[0].get("key", "").strip("/"), entries[0].get("offset")
        equal((*got, entries[0].get("byte_size")), (REGION, memory.name.strip("/"), 0, SIZE), "the region")


@area.row("status-all", MUST, spec.SHM_STATUS)
def status_all(t: Target) -> None:
    """The status without a region's name has all regions."""
    with _memory(t), _memory(t, region="oip_conformance_2"):
        names = {entry.get("name") for entry in ok(t.get("/v2/systemsharedmemory/status")).json()}
        check({REGION, "oip_conformance_2"} <= names, "both regions", sorted(map(str, names)))


@area.row("input", MUST, spec.SHM_PARAMETERS, "sum")
def input_tensor(t: Target) -> None:
    """Inputs are read from a region, each at its offset."""
    with _memory(t):
        equal(_sum(_infer(t, _place(0), _place(16)), t), SUM.data, "the sum")


@area.row("input-offset-default", MUST, spec.SHM_OFFSET, "sum")
def offset_default(t: Target) -> None:
    """An offset that is not given is 0."""
    with _memory(t):
        place = {name: value for name, value in _place(0).items() if name != "shared_memory_offset"}
        equal(_sum(_infer(t, place, _place(16)), t), SUM.data, "the sum")


@area.row("output", MUST, spec.SHM_NO_OUTPUT_DATA, "sum")
def output_tensor(t: Target) -> None:
    """Outputs are written to a region, and the answer has no `data` for them."""
    with _memory(t) as memory:
        answer = ok(_infer(t, _place(0), _place(16), _place(32), _place(48))).json()
        check(all("data" not in entry for entry in key(answer, "outputs", list)), "no 'data'", answer)
        equal(list(struct.unpack("<4f", _bytes(memory)[32:48])), SUM.data, "the sum in the region")


@area.row("output-too-small", MUST, spec.SHM_PARAMETERS, "sum")
def output_too_small(t: Target) -> None:
    """An output that needs more than the given bytes is an error."""
    with _memory(t):
        refused(_infer(t, _place(0), _place(16), _place(32, 8)))


@area.row("unknown-region", MUST, spec.SHM_REGISTERED, "sum")
def unknown_region(t: Target) -> None:
    """A region that was not registered is an error."""
    refused(_infer(t, _place(0, region="no_such_region"), _place(16, region="no_such_region")))


@area.row("beyond", MUST, spec.SHM_PARAMETERS, "sum")
def beyond(t: Target) -> None:
    """A place that reaches beyond its region is an error, also if offset and size add up beyond 64 bits."""
    with _memory(t):
        refused(_infer(t, _place(SIZE - 8), _place(16)))
        refused(_infer(t, _place(2**63 - 8), _place(16)))


@area.row("wrong-size", MUST, spec.SHM_PARAMETERS, "sum")
def wrong_size(t: Target) -> None:
    """A size that contradicts the input's shape is an error."""
    with _memory(t):
        refused(_infer(t, _place(0, 12), _place(16)))


@area.row("no-size", MUST, spec.SHM_BOTH, "sum")
def no_size(t: Target) -> None:
    """A region without a size is an error."""
    with _memory(t):
        refused(_infer(t, {"shared_memory_region": REGION}, _place(16)))


@area.row("data-too", MUST, spec.SHM_NO_DATA, "sum")
def data_too(t: Target) -> None:
    """An input with a region and `data` is an error."""
    with _memory(t):
        body = _body(t, _place(0), _place(16))
        body["inputs"][0]["data"] = LEFT.data
        refused(t.post(t.path("sum", "infer"), body))


@area.row("register-missing", MUST, spec.SHM_REGISTER_FAILED)
def register_missing(t: Target) -> None:
    """Memory that does not exist, and a region larger than its memory, cannot be registered."""
    refused(_register(t, "no_such_memory_of_the_suite"))
    with _memory(t, register=False) as memory:
        refused(_register(t, memory.name, size=2**40))


@area.row("unregister", MUST, spec.SHM_UNREGISTER, "sum")
def unregister(t: Target) -> None:
    """A region that was unregistered can no longer be used."""
    with _memory(t):
        _unregister(t)
        refused(_infer(t, _place(0), _place(16)))


def _unregister_over_grpc(t: Target) -> None:
    while True:
        try:
            t.call("SystemSharedMemoryUnregister", rpc.message("SharedMemoryStatusRequest", name=REGION))
            return
        except RpcError:
            if time.monotonic() > t.deadline - 1:
                raise
            time.sleep(0.05)


@area.row("grpc", MUST, spec.SHM_PARAMETERS, "sum")
def grpc_regions(t: Target) -> None:
    """Registering, using and unregistering a region mean the same over gRPC."""
    with _memory(t, register=False) as memory:
        region = {"name": REGION, "key": f"/{memory.name.lstrip('/')}", "byte_size": SIZE}
        t.call("SystemSharedMemoryRegister", rpc.message("SharedMemoryRegion", **region))
        status = t.call("SystemSharedMemoryStatus", rpc.message("SharedMemoryStatusRequest"))
        check(REGION in status.regions, f"a region '{REGION}'", sorted(status.regions))
        request = rpc.infer_request(t.name("sum"), [])
        for index, tensor in enumerate(t.tensors("sum", LEFT, RIGHT)):
            request.inputs.append(rpc.input_entry(tensor, False, **_place(16 * index)))
        response = t.call("ModelInfer", request)
        equal(list(struct.unpack("<4f", response.raw_output_contents[0])), SUM.data, "the sum")
        _unregister_over_grpc(t)
        rpc_refused(lambda: t.call("ModelInfer", request))
