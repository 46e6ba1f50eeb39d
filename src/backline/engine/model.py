"""One version of one model as the engine sees it: its state, how it runs, and where its requests go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from backline.engine.config.model_config import ModelConfig
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.engine.values.device import NOWHERE, Places
from backline.engine.values.messages import InferRequest
from backline.engine.values.signature import Signature


class ModelState(Enum):
    """The state of a model version, under the names that clients know.

    They are Triton's, and ON_DEMAND for a version that is not loaded and whose first request loads it.
    """

    UNKNOWN = "UNKNOWN"
    ON_DEMAND = "ON_DEMAND"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class RequestQueue(Protocol):
    """Takes checked requests and has them run."""

    def submit(self, ticket: Ticket) -> None:
        """Accepts the request. Raises Unavailable when the queue is full."""

    @property
    def pending(self) -> int:
        """The number of requests that wait, not counting those that run."""


class Recording(Protocol):
    """Notes the requests that a version accepts."""

    def accepted(self, ticket: Ticket) -> None:
        """Called for a request that fits the model and is about to be queued."""


class OpenSequences(Protocol):
    """The open sequences of a version."""

    @property
    def open_sequences(self) -> int:
        """The number of open sequences."""

    def holds(self, request: InferRequest) -> bool:
        """Whether a request belongs to an open sequence."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How the server runs a model version, for people to read."""

    lane: str
    instances: int
    max_batch_size: int
    #: Why it is batched or not, and why it runs where it does.
    reason: str = ""
    #: The devices of its instances.
    places: Places = NOWHERE


@dataclass(slots=True)
class LoadProgress:
    """The progress of a load, which `began` at a time.monotonic().

    `phase` is fetch, environment, load, probe or warm-up. In "environment" bytes are those of packages.
    """

    phase: str
    began: float
    bytes_done: int = 0
    bytes_total: int = 0


class Model:
    """One version of one model.

    `signature` has full shapes; `max_batch_size` is 0 if no dimension is a batch. An `on_demand` model is not
    loaded, but its queue accepts requests, which wait for the load.
    """

    __slots__ = (
        "backend",
        "check",
        "config",
        "decoupled",
        "max_batch_size",
        "memory_bytes",
        "name",
        "on_demand",
        "placement",
        "platform",
        "progress",
        "queue",
        "reason",
        "recording",
        "required",
        "scheduling",
        "sequences",
        "signature",
        "state",
        "statistics",
        "unready",
        "version",
        "wake",
    )

    def __init__(self, name: str, version: str, config: ModelConfig) -> None:
        self.name = name
        self.version = version
        self.config = config
        self.state = ModelState.UNKNOWN
        #: Why the version is in its state; may be empty.
        self.reason = ""
        #: Why the model declares itself not ready although it could respond; otherwise empty.
        self.unready = ""
        self.backend = config.backend
        self.platform = config.platform
        #: Whether a request may get any number of responses; unary calls are then refused.
        self.decoupled = config.decoupled
        self.signature = Signature((), ())
        self.max_batch_size = 0
        self.placement: Placement | None = None
        #: How its requests are queued and joined, for people; empty if it was never loaded.
        self.scheduling = ""
        self.statistics = ModelStatistics()
        #: Checks a request. Raises InvalidArgument if it does not fit the model.
        self.check: Callable[[Ticket], None] | None = None
        self.queue: RequestQueue | None = None
        #: Receives the accepted requests while they are recorded.
        self.recording: Recording | None = None
        #: The open sequences of a loaded model that has sequences; otherwise None.
        self.sequences: OpenSequences | None = None
        self.on_demand = False
        #: Loads an on-demand version without a request. Raises BacklineError with the reason.
        self.wake: Callable[[], Awaitable[None]] | None = None
        #: Whether the server needs this version to be ready; not if it was unloaded, or its previous files
        #: still serve.
        self.required = True
        self.progress: LoadProgress | None = None
        #: Resident memory of the model, measured at load; 0 if it is not loaded.
        self.memory_bytes = 0

    @property
    def answers(self) -> bool:
        """Whether requests get responses: the version is ready, or their arrival loads it."""
        return self.state is ModelState.READY or self.on_demand

    @property
    def ready(self) -> bool:
        """Whether requests get responses and the model does not declare itself not ready."""
        return not self.unready and self.answers
