"""One version of one model as the engine sees it: its state, how it runs, and where its requests go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from backline.engine.config.model_config import ModelConfig
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.engine.values.device import NOWHERE, Places
from backline.engine.values.messages import InferRequest
from backline.engine.values.signature import Signature

#: The version shown for a model that has no version to serve.
NO_VERSION: Final = "-"


class ModelState(Enum):
    """The state of a model version, under the names that clients know.

    The names are Triton's, except ON_DEMAND, for a version that is not loaded until its first request.
    """

    UNKNOWN = "UNKNOWN"
    ON_DEMAND = "ON_DEMAND"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class RequestQueue(Protocol):
    """Accepts requests that have been checked, and has them run."""

    def submit(self, ticket: Ticket) -> None:
        """Accepts the request. Raises Unavailable when the queue is full."""

    @property
    def pending(self) -> int:
        """The number of requests that wait, not counting those that run."""


class Recording(Protocol):
    """Records the requests that a version accepts."""

    def accepted(self, ticket: Ticket) -> None:
        """Called with a ticket whose request fits the model, just before it is queued."""


class OpenSequences(Protocol):
    """The open sequences of a version."""

    @property
    def open_sequences(self) -> int:
        """The number of open sequences."""

    def holds(self, request: InferRequest) -> bool:
        """Returns whether a request belongs to an open sequence."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How the server runs a model version, as texts for people to read."""

    lane: str
    instances: int
    max_batch_size: int
    #: Why the version is batched or not, and why it runs where it does.
    reason: str = ""
    #: The devices that its instances run on.
    places: Places = NOWHERE


@dataclass(slots=True)
class LoadProgress:
    """The progress of a load. `began` is when it started, in seconds of time.monotonic().

    `phase` is fetch, environment, load, probe or warm-up. In the phase "environment", the bytes are those of
    downloaded packages.
    """

    phase: str
    began: float
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(slots=True, eq=False)
class Model:
    """One version of one model.

    `signature` has full shapes; `max_batch_size` is 0 if there is no batch dimension. An `on_demand` model is
    not loaded, but its queue accepts requests, which wait for the load.
    """

    name: str
    version: str
    config: ModelConfig
    state: ModelState = ModelState.UNKNOWN
    #: Why the version is in its state; may be empty.
    reason: str = ""
    #: Why the model declares itself not ready although it could respond; otherwise empty.
    unready: str = ""
    backend: str = ""
    platform: str = ""
    #: Whether a request may get any number of responses; unary calls are then refused.
    decoupled: bool = False
    signature: Signature = field(default_factory=lambda: Signature((), ()))
    max_batch_size: int = 0
    placement: Placement | None = None
    #: How requests are queued and joined, in words for people; empty if the version was never loaded.
    scheduling: str = ""
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    #: Checks a request. Raises InvalidArgument if it does not fit the model.
    check: Callable[[Ticket], None] | None = None
    queue: RequestQueue | None = None
    #: Receives the accepted requests while they are recorded.
    recording: Recording | None = None
    #: The open sequences of a loaded model that has sequences; otherwise None.
    sequences: OpenSequences | None = None
    on_demand: bool = False
    #: Loads an on-demand version without a request. Raises BacklineError with the reason if that fails.
    wake: Callable[[], Awaitable[None]] | None = None
    #: Whether the server needs this version to be ready. It does not if the version was unloaded, or if the
    #: version's previous files still serve.
    required: bool = True
    progress: LoadProgress | None = None
    #: The files with example inputs from the model's folder; empty before the first load.
    examples: tuple[Path, ...] = ()
    #: Resident memory of the model, measured at load; 0 if it is not loaded.
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        self.backend = self.config.backend
        self.platform = self.config.platform
        self.decoupled = self.config.decoupled

    @property
    def answers(self) -> bool:
        """Whether requests get responses: the version is ready, or the first request loads it."""
        return self.state is ModelState.READY or self.on_demand

    @property
    def ready(self) -> bool:
        """Whether requests get responses and the model does not declare itself not ready."""
        return not self.unready and self.answers
