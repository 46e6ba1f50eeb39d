"""Requests to models and their responses, independent of any protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import TypeAlias

from msgspec import Struct, field

from backline_client.values.tensor import Tensor

Parameter: TypeAlias = str | int | float | bool


class InferResponse(Struct, eq=False):
    """A response of a model version to a request. It is a msgspec struct for the same reason as Tensor."""

    model_name: str
    model_version: str
    id: str
    outputs: list[Tensor]
    parameters: dict[str, Parameter] | None = None


class Rescheduled(InferResponse):
    """Returned in place of a response if the model of an iterative sequence asks for the request to be run
    again.
    """


class SequenceStep(Struct, frozen=True):
    """A request's place in a sequence.

    `id`, a positive number or a string, identifies the sequence; `start` and `end` mark its first and last
    request.
    """

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(slots=True, eq=False)
class ResponseFlow:
    """The signal by which a caller pauses a model that sends responses faster than the caller takes them.

    The caller calls `pause` and `resume` on the event loop; a decoupled model checks the signal before each
    response.
    """

    paused: bool = False
    #: Called at each `resume`.
    on_resume: Callable[[], None] | None = None

    def pause(self) -> None:
        """Asks the model to wait before its next response."""
        self.paused = True

    def resume(self) -> None:
        """Asks the model to continue. Called when the caller is ready for more responses, or when it wants
        no more, so that the model can end.
        """
        self.paused = False
        if self.on_resume is not None:
            self.on_resume()


class InferRequest(Struct, frozen=True, eq=False):
    """A request to a model. It is immutable; the Ticket has the state of the request.

    `model_version` is a version or a label; empty means the default version. `outputs` names the requested
    outputs; None means all. `priority` 0 means the model's default priority, and 1 the highest. `deadline` is
    a time in seconds of time.monotonic(); a request that has not started by then expires. `timeout` is the
    number of seconds for which the request may wait in a queue, if the model's queue policy lets callers set
    it. `arrived_ns` is a time of time.monotonic_ns(). `via` has the ids of the remote models on other servers
    that have sent the request here; see `engine/route.py`.

    This is a msgspec struct because an instance is created for every request, and creating an instance of a
    frozen dataclass takes several times as long.
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
    via: bytes = b""
