"""Requests to models and their responses, independent of any protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import TypeAlias

from msgspec import Struct, field

from backline.engine.values.tensor import Tensor

Parameter: TypeAlias = str | int | float | bool


@dataclass(slots=True, eq=False)
class InferResponse:
    """The response of one model version to one request."""

    model_name: str
    model_version: str
    id: str
    outputs: list[Tensor]
    parameters: dict[str, Parameter] | None = None


class Rescheduled(InferResponse):
    """Not a response: the model of an iterative sequence asks for the request to run again."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """A request's place in a sequence.

    `id` is a positive number or a string; `start` and `end` mark the first and last request.
    """

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(slots=True, eq=False)
class ResponseFlow:
    """Tells a model whether its caller is ready for more responses.

    The caller pauses and resumes on the event loop; a decoupled model checks before each response.
    """

    paused: bool = False
    #: Called at each `resume`.
    on_resume: Callable[[], None] | None = None

    def pause(self) -> None:
        """Asks the model to wait before its next response."""
        self.paused = True

    def resume(self) -> None:
        """Asks for more responses, or lets the model finish because none are wanted."""
        self.paused = False
        if self.on_resume is not None:
            self.on_resume()


class InferRequest(Struct, frozen=True, eq=False):
    """A request to a model. It never changes; the Ticket holds its state.

    `model_version` is a version or a label, empty for the default. `outputs` names the outputs wanted, None
    for all. `priority` 0 is the model's default, 1 the highest. `deadline` is in seconds of time.monotonic():
    a request that has not started by then is refused. `timeout` is how many seconds it may wait in a queue,
    if the model's queue policy lets callers choose. `arrived_ns` is of time.monotonic_ns().

    A msgspec struct, because one is created for every request, and a frozen dataclass takes several times as
    long.
    """

    model_name: str
    inputs: dict[str, Tensor]
    model_version: str = ""
    id: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: dict[str, Parameter] | None = None
    priority: int = 0
    deadline: float | None = None
    timeout: float | None = None
    sequence: SequenceStep | None = None
    arrived_ns: int = field(default_factory=monotonic_ns)
