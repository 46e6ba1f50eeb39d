"""What an inference request asks, apart from its data and its id: the part of it that repeats from request to request."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Self

from backline.dialects.input_plan import InputPlan
from backline.dialects.off_loop import PIECE
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.messages import InferRequest, InferResponse, Parameter, SequenceStep
from backline.engine.tensor import Tensor

if TYPE_CHECKING:
    from backline.dialects.open_inference.shared_memory import SharedTensors


class InferPlan:
    """A request without its data and its id.

    `outputs` are the requested outputs, None for all; `classes` says for which of them the best classes are wanted instead of values, and
    how many; `binary` and `binary_default` say which outputs go out in binary form over REST. `timeout` is in seconds, None for none.
    `declared` are the binary sizes that a REST request declares, None for an input whose data is in the JSON. `shared`
    is what lies in shared memory, None for nothing.
    """

    __slots__ = (
        "binary",
        "binary_default",
        "classes",
        "declared",
        "empty_final",
        "inputs",
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
        #: The only input, if there is only one, its size is fixed by its shape, and nothing is in shared memory.
        self.single = inputs[0] if len(inputs) == 1 and inputs[0].size >= 0 else None
        self.declared: tuple[int | None, ...] = ()
        #: Whether it declares more BYTES than are decoded on the event loop.
        self.large = False
        self.outputs: tuple[str, ...] | None = None
        self.binary: dict[str, bool] = {}
        self.binary_default = False
        self.classes: dict[str, int] = {}
        #: Whether the outputs go out as the model gives them.
        self.keeps_outputs = True
        self.parameters: dict[str, Parameter] | None = None
        self.priority = 0
        self.sequence: SequenceStep | None = None
        self.timeout: float | None = None
        #: Whether the end of a stream of responses is told by one without outputs.
        self.empty_final = False

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        """The request with this plan, this id and these inputs."""
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
        """Whether an output goes out in binary form over REST."""
        return self.binary.get(output, self.binary_default)

    def classify(self, output: str, count: int) -> None:
        """Notes that the best classes of an output are wanted, at most `count`."""
        self.classes[output] = count
        self.keeps_outputs = False

    def share(self, shared: SharedTensors) -> None:
        """Notes what lies in shared memory."""
        self.shared = shared
        self.keeps_outputs = False
        self.single = None

    def holding(self, *, on_loop: bool) -> Self:
        """The plan for one request that has tensors in shared memory: their regions stay until it goes.

        Raises BacklineError; LargeRequest when there is more to read than may be read `on_loop`.
        """
        plan = copy(self)
        if self.shared is not None:
            plan.shared = self.shared.hold(on_loop=on_loop)
        return plan

    def is_large(self, response: InferResponse) -> bool:
        """Whether a response is too large to be written on the event loop."""
        shared = self.shared
        for tensor in response.outputs:
            if tensor.data.size > PIECE and (
                tensor.datatype is DataType.BYTES
                or not (self.is_binary(tensor.name) or (shared is not None and shared.takes(tensor.name)))
            ):
                return True
        return shared is not None and shared.is_large(response)

    def release(self) -> None:
        """The request has failed: lets go of regions at once, as the traceback may keep the plan for a while."""
        if self.shared is not None:
            self.shared.held.clear()


def prefix(id: str) -> str:
    """What Triton puts before the texts of faulty requests."""
    return f"[request id: {id or '<id_unknown>'}] "


def size_mismatch(spec: InputPlan, got: int, model: str, id: str) -> InvalidArgument:
    return InvalidArgument(
        f"{prefix(id)}input byte size mismatch for input '{spec.name}' for model '{model}'. Expected {spec.size}, got {got}"
        f" (shape {list(spec.shape)} of {spec.datatype.name})"
    )
