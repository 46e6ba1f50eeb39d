"""Plans of inference requests. A plan has everything except the data and the id of a request, so requests
that differ only in these two can share a cached plan.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Self

from backline.dialects.input_plan import InputPlan
from backline.dialects.off_loop import PIECE, is_long
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse, Parameter, SequenceStep
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.dialects.open_inference.shared_memory import SharedTensors


class InferPlan:
    """A request without its data and id.

    `outputs` are the requested outputs, or None for all. `classes` maps each output that is requested as
    classes to the number of classes. `binary` and `binary_default` choose the outputs sent in binary form
    over REST. `timeout` is in seconds; None means no timeout. `declared` lists the sizes of binary data that
    a REST request declares; the size is None for an input whose data is in the JSON. `shared` lists the
    tensors in shared memory.
    """

    __slots__ = (
        "binary",
        "binary_default",
        "classes",
        "declared",
        "empty_final",
        "inputs",
        "json_outputs",
        "keeps_outputs",
        "large",
        "outputs",
        "parameters",
        "priority",
        "sequence",
        "shared",
        "single",
        "timeout",
    )

    def __init__(self, inputs: tuple[InputPlan, ...]) -> None:
        self.inputs = inputs
        self.shared: SharedTensors | None = None
        #: The outputs whose elements are JSON texts, which the generate extension sends as JSON values.
        self.json_outputs: frozenset[str] = frozenset()
        #: The only input, if its shape determines its size and nothing is in shared memory; otherwise None.
        self.single = inputs[0] if len(inputs) == 1 and inputs[0].size >= 0 else None
        self.declared: tuple[int | None, ...] = ()
        #: Whether the binary data of the BYTES inputs is too large to decode on the event loop.
        self.large = False
        self.outputs: tuple[str, ...] | None = None
        self.binary: dict[str, bool] = {}
        self.binary_default = False
        self.classes: dict[str, int] = {}
        #: Whether outputs are sent as the model returns them.
        self.keeps_outputs = True
        self.parameters: dict[str, Parameter] | None = None
        self.priority = 0
        self.sequence: SequenceStep | None = None
        self.timeout: float | None = None
        #: Whether an empty response is sent to mark the end of a stream.
        self.empty_final = False

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        return InferRequest(
            model,
            inputs,
            version,
            id,
            self.outputs,
            self.parameters,
            self.priority,
            deadline,
            self.timeout,
            self.sequence,
        )

    def is_binary(self, output: str) -> bool:
        """Returns whether an output is sent in binary form."""
        return self.binary.get(output, self.binary_default)

    def classify(self, output: str, count: int) -> None:
        """Requests an output as its `count` best classes."""
        self.classes[output] = count
        self.keeps_outputs = False

    def share(self, shared: SharedTensors) -> None:
        self.shared = shared
        self.keeps_outputs = False
        self.single = None

    def holding(self, *, on_loop: bool) -> Self:
        """Returns a copy of the plan for one request with tensors in shared memory. The copy keeps the
        regions alive.

        Raises BacklineError if a region cannot be used, and LargeRequest if `on_loop` is true and there is
        too much to read on the event loop.
        """
        plan = copy(self)
        if self.shared is not None:
            plan.shared = self.shared.hold(on_loop=on_loop)
        return plan

    def is_large(self, response: InferResponse) -> bool:
        """Returns whether a response is too large to encode on the event loop."""
        shared = self.shared
        for tensor in response.outputs:
            if tensor.data.size <= PIECE and tensor.datatype is not DataType.BYTES:
                continue  # the usual case, without a call
            if self.is_binary(tensor.name) or (shared is not None and shared.takes(tensor.name)):
                if tensor.data.size > PIECE and tensor.datatype is DataType.BYTES:
                    return True
            elif is_long(tensor):
                return True
        return shared is not None and shared.is_large(response)

    def release(self) -> None:
        """Releases the regions of a failed request, since a traceback may keep the plan alive."""
        if self.shared is not None:
            self.shared.held.clear()


def prefix(id: str) -> str:
    """Returns the prefix of Triton's error texts about a request."""
    return f"[request id: {id or '<id_unknown>'}] "


def size_mismatch(spec: InputPlan, got: int, model: str, id: str, name: str = "") -> InvalidArgument:
    """Returns the error for an input whose data has the wrong size, `got` bytes.

    `name` is the name of the input in Triton's text, if this differs from the input's real name.
    """
    return InvalidArgument(
        f"{prefix(id)}input byte size mismatch for input '{name or spec.name}' for model '{model}'."
        f" Expected {spec.size}, got {got}"
        f" ({f'input {spec.name!r}, ' if name else ''}shape {list(spec.shape)} of {spec.datatype.name})"
    )
