"""Inputs and outputs of a request that lie in shared memory regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backline.dialects.input_plan import InputPlan
from backline.dialects.off_loop import LARGE, LargeRequest
from backline.dialects.open_inference.plan import size_mismatch
from backline.engine.errors import InvalidArgument, Unsupported
from backline.engine.messages import InferResponse
from backline.engine.shared_memory import Region, SharedMemory
from backline.engine.tensor import Buffer, Shape, Tensor, decode_tensor, encode_tensor

DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
REGION = "shared_memory_region"
#: Bytes of a request, or of its response, above which they are not copied on the event loop: others would wait for a millisecond and more.
LARGE_COPY = 4 << 20
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `size` bytes of a region, from `offset` on."""

    region: str
    offset: int
    size: int


def read_place(
    kind: str, name: str, parameters: Mapping[str, Any], memory: SharedMemory | None
) -> Place | None:
    """The place that the parameters of an input or output name, None for none.

    Raises Unsupported where clients may not share memory, InvalidArgument.
    """
    if REGION not in parameters:
        return None
    if memory is None:
        raise Unsupported(DISABLED)
    region = parameters[REGION]
    if not isinstance(region, str):
        raise InvalidArgument(f"parameter '{REGION}' of {kind} '{name}' must be a string, got {region!r}")
    numbers = []
    for key in ("shared_memory_offset", "shared_memory_byte_size"):
        value = parameters.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise InvalidArgument(
                f"parameter '{key}' of {kind} '{name}' must be a number of bytes, got {value!r}"
            )
        numbers.append(value)
    return Place(region, *numbers)


class SharedInput(InputPlan):
    """An input in shared memory."""

    __slots__ = ("memory", "model", "place")

    def __init__(
        self, name: str, datatype_name: str, shape: Shape, place: Place, memory: SharedMemory, model: str
    ) -> None:
        """`model` is for messages."""
        super().__init__(name, datatype_name, shape)
        self.model = model
        self.place = place
        self.memory = memory

    def read(self, buffer: Buffer, start: int, end: int) -> Tensor:
        """The tensor, read from the region that has the name now; nothing of the message belongs to it. Raises BacklineError."""
        region = self.memory.region(self.place.region)
        region.check(self.place.offset, self.place.size)
        if self.place.size != self.size >= 0:
            raise size_mismatch(self, self.place.size, self.model, "")
        raw = self.memory.read(region, self.place.offset, self.place.size)
        return decode_tensor(self.name, self.datatype, self.shape, raw.data)


class StoredTensor(Tensor):
    """An output that went into shared memory: its `data` is empty."""

    __slots__ = ()


class SharedTensors:
    """What a request has in shared memory. Remembered with its plan; `held` are the regions of one request, which stay while it lives."""

    __slots__ = ("_memory", "_outputs", "_regions", "held", "large")

    def __init__(self, memory: SharedMemory, inputs: list[SharedInput], outputs: dict[str, Place]) -> None:
        """Raises PayloadTooLarge when the inputs are more than a request may bring."""
        size = sum(spec.place.size for spec in inputs)
        memory.check_size(size)
        #: Whether the inputs are more than is to be read on the event loop.
        self.large = size > LARGE_COPY or sum(spec.place.size for spec in inputs if spec.size < 0) > LARGE
        self._memory = memory
        self._regions = {spec.place.region for spec in inputs} | {place.region for place in outputs.values()}
        self._outputs = outputs
        self.held: dict[str, Region] = {}

    def hold(self, *, on_loop: bool) -> SharedTensors:
        """The same for one request.

        Raises NotFound for a region that there is not, InvalidArgument for an output outside of its own, LargeRequest.
        """
        if on_loop and self.large:
            raise LargeRequest
        held = SharedTensors(self._memory, [], self._outputs)
        held.held = {name: self._memory.region(name) for name in sorted(self._regions)}
        for place in self._outputs.values():
            held.held[place.region].check(place.offset, place.size)
        return held

    def is_large(self, response: InferResponse) -> bool:
        """Whether the outputs are more than is to be written on the event loop."""
        return (
            sum(tensor.data.nbytes for tensor in response.outputs if tensor.name in self._outputs)
            > LARGE_COPY
        )

    def store(self, outputs: list[Tensor]) -> list[Tensor]:
        """Writes outputs to where they belong. Raises InvalidArgument when one is too large for its place."""
        return [
            self._store(tensor, self._outputs[tensor.name]) if tensor.name in self._outputs else tensor
            for tensor in outputs
        ]

    def _store(self, tensor: Tensor, place: Place) -> StoredTensor:
        data = encode_tensor(tensor)
        if len(data) > place.size:
            raise InvalidArgument(
                f"shared memory size specified with the request for output '{tensor.name}' ({place.size} bytes) should be at least"
                f" {len(data)} bytes to hold the results"
            )
        self.held[place.region].write(place.offset, data)
        return StoredTensor(tensor.name, tensor.datatype, tensor.shape, _NOTHING)
