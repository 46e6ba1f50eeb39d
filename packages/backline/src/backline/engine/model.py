"""A version of a model as the engine sees it: its state, how it runs, and the queue for its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from backline.engine.config.model_config import ModelConfig
from backline.engine.device import NOWHERE, Places
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline_client.values.errors import Unavailable
from backline_client.values.messages import InferRequest
from backline_client.values.signature import Signature

#: The text that is shown instead of a version if no version of a model can be served.
NO_VERSION: Final = "-"


class ModelState(Enum):
    """The state of a model version, with the names that clients see.

    The names are Triton's, except ON_DEMAND, which means that the version is not loaded until its first
    request.
    """

    UNKNOWN = "UNKNOWN"
    ON_DEMAND = "ON_DEMAND"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class RequestQueue(Protocol):
    """A queue that accepts requests that have been checked, and passes them to the instances of the model."""

    def submit(self, ticket: Ticket) -> None:
        """Accepts a request. Raises BacklineError if the request is refused, such as Unavailable if the queue
        is full.
        """

    @property
    def pending(self) -> int:
        """The number of requests that wait, not counting requests that are running."""


class Recording(Protocol):
    """Records the requests that a version accepts."""

    def accepted(self, ticket: Ticket) -> None:
        """Called with a ticket whose request fits the model, just before the ticket is queued."""


class OpenSequences(Protocol):
    """The open sequences of a version."""

    @property
    def open_sequences(self) -> int:
        """The number of open sequences."""

    def holds(self, request: InferRequest) -> bool:
        """Returns whether a request belongs to an open sequence."""


class _NoSequences:
    open_sequences = 0

    def holds(self, request: InferRequest) -> bool:
        return False


#: The open sequences of a version that has none.
NO_SEQUENCES: Final[OpenSequences] = _NoSequences()


async def _awake() -> None:
    """Does nothing: the version is loaded."""


class Serving(Struct, frozen=True, eq=False):
    """What serves the requests of a version. A change to it replaces it as a whole."""

    #: Checks a request. Raises InvalidArgument if the request does not fit the model.
    check: Callable[[Ticket], None]
    queue: RequestQueue
    #: The open sequences of a loaded model that has sequences, otherwise NO_SEQUENCES.
    sequences: OpenSequences = NO_SEQUENCES
    #: Loads an on-demand version without a request. Raises BacklineError, with the reason, if that fails.
    wake: Callable[[], Awaitable[None]] = _awake


def _refuse(ticket: Ticket) -> None:
    request = ticket.request
    raise Unavailable(f"Request for unknown model: '{request.model_name}' is not loaded", retry_after=1)


class _NoQueue:
    pending = 0

    def submit(self, ticket: Ticket) -> None:
        _refuse(ticket)


#: Serves a version that is neither loaded nor on demand: refuses all requests.
NOT_SERVED: Final = Serving(_refuse, _NoQueue())


class Placement(Struct, frozen=True):
    """A description, for people, of how the server runs a model version."""

    lane: str
    instances: int
    max_batch_size: int
    #: The reason why requests to the version are batched or not, and why it runs where it does.
    reason: str = ""
    #: The devices that the version's instances run on.
    places: Places = NOWHERE


@dataclass(slots=True)
class LoadProgress:
    """The progress of a load. `began` is the time when the load started, in seconds of time.monotonic().

    `phase` is fetch, environment, load, probe or warm-up. In the phase "environment", the bytes counted are
    those of downloaded packages.
    """

    phase: str
    began: float
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(slots=True, eq=False)
class Model:
    """What is known of a version of a model, and in `serving` what serves its requests.

    The shapes in `signature` include the batch dimension; `max_batch_size` is 0 if there is no batch
    dimension. An `on_demand` version is not loaded, but its queue accepts requests, which wait until it is
    loaded.
    """

    name: str
    version: str
    config: ModelConfig
    state: ModelState = ModelState.UNKNOWN
    #: The reason why the version is in its state; may be empty.
    reason: str = ""
    #: The reason why the model declares itself not ready although it could respond; empty if it is ready.
    unready: str = ""
    backend: str = ""
    platform: str = ""
    #: The name of the model's file or folder; empty if unknown, or if there is none.
    filename: str = ""
    #: Whether a request may get any number of responses. If so, calls that accept a single response are
    #: refused.
    decoupled: bool = False
    #: Whether the model may read parameters of requests that the server does not interpret itself.
    reads_parameters: bool = True
    signature: Signature = field(default_factory=lambda: Signature((), ()))
    max_batch_size: int = 0
    placement: Placement | None = None
    #: A description, for people, of how requests are queued and batched; empty if the version was never
    #: loaded.
    scheduling: str = ""
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    serving: Serving = NOT_SERVED
    #: The recording that receives the accepted requests; None if requests are not being recorded.
    recording: Recording | None = None
    on_demand: bool = False
    #: Whether the server counts as ready only if this version is ready. The lifecycle decides this; see
    #: ServedModel.publish.
    required: bool = True
    progress: LoadProgress | None = None
    #: The files with example inputs from the model's folder; empty before the first load.
    examples: tuple[Path, ...] = ()
    #: Returns the ids of the worker processes that hold the version; none for a version in this process.
    worker_pids: Callable[[], Sequence[int]] = tuple
    #: The memory of the model in bytes, measured or else estimated when it was loaded; 0 if it is not loaded.
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        self.backend = self.config.backend
        self.platform = self.config.platform
        self.decoupled = self.config.decoupled

    @property
    def answers(self) -> bool:
        """Whether requests get responses: either the version is ready, or the first request will load it."""
        return self.state is ModelState.READY or self.on_demand

    @property
    def ready(self) -> bool:
        """Whether requests get responses, and the model does not declare itself not ready."""
        return not self.unready and self.answers
