"""What is asked of a model and what it answers, in the words of no protocol."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import TypeAlias

from backline.engine.errors import BacklineError
from backline.engine.tensor import Tensor

Parameter: TypeAlias = str | int | float | bool


class InferResponse:
    """The answer of one model version to one request."""

    __slots__ = ("id", "model_name", "model_version", "outputs", "parameters")

    def __init__(
        self,
        model_name: str,
        model_version: str,
        id: str,
        outputs: list[Tensor],
        parameters: dict[str, Parameter] | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.outputs = outputs
        self.parameters = parameters


#: Called once, on the event loop: with a response, or with an error.
Completion: TypeAlias = Callable[["InferRequest", InferResponse | None, BacklineError | None], None]


class InferRequest:
    """One inference. The engine calls `on_complete` exactly once after it accepted the request, unless `cancelled` was set before.

    `model_version` is empty for the version that the server chooses. `outputs` names the outputs wanted, None for all. `deadline` is in
    seconds of time.monotonic(); a request that has not started by then is refused. `batch_size` and `rows` are the scheduler's notes.
    """

    __slots__ = (
        "arrived_ns",
        "batch_key",
        "batch_size",
        "cancelled",
        "context",
        "deadline",
        "id",
        "inputs",
        "model_name",
        "model_version",
        "on_complete",
        "outputs",
        "parameters",
        "priority",
    )

    def __init__(
        self,
        model_name: str,
        inputs: dict[str, Tensor],
        on_complete: Completion,
        *,
        model_version: str = "",
        id: str = "",
        outputs: tuple[str, ...] | None = None,
        parameters: dict[str, Parameter] | None = None,
        priority: int = 0,
        deadline: float | None = None,
        context: object = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.priority = priority
        self.deadline = deadline
        self.on_complete = on_complete
        #: Whatever the caller needs to answer; the engine does not look at it.
        self.context = context
        #: Set by the caller when nobody waits for the answer any more: the request is never run if it has not started yet.
        self.cancelled = False
        self.arrived_ns = monotonic_ns()
        self.batch_size = 1
        self.batch_key: object = None
