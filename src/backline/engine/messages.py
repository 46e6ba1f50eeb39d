"""What is asked of a model and what it answers, in the words of no protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, TypeAlias

from backline.engine.errors import BacklineError
from backline.engine.tensor import Tensor

if TYPE_CHECKING:
    from backline.engine.deadline import Watch
    from backline.engine.statistics import ComputeTimes
    from backline.engine.tracing import Trace

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


class Rescheduled(InferResponse):
    """No answer: the model of an iterative sequence wants to have the request once more."""

    __slots__ = ()


#: Called once, on the event loop: with a response, or with an error; with neither when all responses were given before, one by one.
Completion: TypeAlias = Callable[["InferRequest", InferResponse | None, BacklineError | None], None]
#: Called on the event loop with each response of a model that gives any number of them, before the completion.
OnResponse: TypeAlias = Callable[["InferRequest", InferResponse], None]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """A request's place in a sequence: `id` is a number above 0 or a text; `start` and `end` mark its first and last request."""

    id: int | str
    start: bool = False
    end: bool = False


class ResponseFlow:
    """Whether the one who asked takes more responses. The caller pauses and resumes, on the event loop; a model that gives many looks."""

    __slots__ = ("on_resume", "paused")

    def __init__(self) -> None:
        self.paused = False
        #: Called at every `resume`.
        self.on_resume: Callable[[], None] | None = None

    def pause(self) -> None:
        """From now on the model should wait before its next response."""
        self.paused = True

    def resume(self) -> None:
        """More responses are welcome, or nobody waits for any more."""
        self.paused = False
        if self.on_resume is not None:
            self.on_resume()


class InferRequest:
    """One inference. The engine calls `on_complete` exactly once after it accepted the request, unless `cancelled` was set before.

    `model_version` is a version or a label, empty for the version that the server chooses. A caller that takes any number of responses
    sets `on_response` and `flow`; of others a model that gives many refuses the request. `outputs` names the outputs wanted, None for
    all. `deadline` is in seconds of time.monotonic(); a request that has not started by then is refused. `timeout` is the seconds that it
    wants to wait in a queue at most, as far as the model's queue policy lets it choose. `priority` 0 is the model's default, 1 the highest.
    `waits_until` is the deadline of the one who asked: a queue with a timeout may set an earlier `deadline`.
    `batch_size`, `batch_key` and `on_cancel` are the scheduler's notes.
    """

    __slots__ = (
        "arrived_ns",
        "batch_key",
        "batch_size",
        "cancelled",
        "compute",
        "context",
        "deadline",
        "flow",
        "id",
        "inputs",
        "model_name",
        "model_version",
        "on_cancel",
        "on_complete",
        "on_response",
        "outputs",
        "parameters",
        "priority",
        "sequence",
        "timeout",
        "trace",
        "waits_until",
        "watch",
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
        timeout: float | None = None,
        context: object = None,
        sequence: SequenceStep | None = None,
        on_response: OnResponse | None = None,
        flow: ResponseFlow | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.priority = priority
        self.deadline = self.waits_until = deadline
        self.timeout = timeout
        self.on_complete = on_complete
        self.sequence = sequence
        self.on_response = on_response
        self.flow = flow
        #: Whatever the caller needs to answer; the engine does not look at it.
        self.context = context
        #: Nobody waits for the answer any more; see `cancel`.
        self.cancelled = False
        #: Called once by `cancel`: set by whoever holds the request while it is not done.
        self.on_cancel: Callable[[InferRequest], None] | None = None
        #: What ends the request at its deadline, if anything does.
        self.watch: Watch | None = None
        #: Where the times of its run are added, if somebody wants to know them.
        self.compute: ComputeTimes | None = None
        #: What follows the request, if anything does.
        self.trace: Trace | None = None
        self.arrived_ns = monotonic_ns()
        self.batch_size = 1
        self.batch_key: object = None

    def stand_in(self, inputs: dict[str, Tensor], on_complete: Completion) -> InferRequest:
        """Another request that is run in place of this one: as old, as patient and as important."""
        other = InferRequest(self.model_name, inputs, on_complete, deadline=self.deadline)
        other.stand_for(self)
        return other

    def stand_for(self, request: InferRequest) -> None:
        """Takes over all that a request says besides its inputs and its deadline, and what is known of it."""
        self.model_version, self.id = request.model_version, request.id
        self.outputs, self.parameters = request.outputs, request.parameters
        self.priority, self.timeout, self.waits_until = request.priority, request.timeout, request.waits_until
        self.compute, self.trace = request.compute, request.trace
        self.arrived_ns, self.batch_size, self.batch_key = (
            request.arrived_ns,
            request.batch_size,
            request.batch_key,
        )

    def cancel(self) -> None:
        """Nobody waits for the answer any more: `on_complete` is not called, and the request is not run if it has not started yet.

        Called on the event loop; of no effect on a request that is done.
        """
        self.cancelled = True
        if self.watch is not None:
            self.watch.stop()
        if self.trace is not None:
            self.trace.cancelled(self)
        on_cancel = self.on_cancel
        if on_cancel is not None:
            self.on_cancel = None
            on_cancel(self)
