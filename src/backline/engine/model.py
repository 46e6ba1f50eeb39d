"""One version of one model, as everybody sees it: what it is, its state, how it runs, and where its requests go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from backline.engine.device import NOWHERE, Places
from backline.engine.messages import InferRequest
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket


class ModelState(Enum):
    """The life of a model version, with the names that clients know."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class RequestQueue(Protocol):
    """What takes a checked request and sees to it that it is run."""

    def submit(self, ticket: Ticket) -> None:
        """Accepts the request, or raises Unavailable when the queue is full."""

    @property
    def pending(self) -> int:
        """Requests that wait, without those that run."""


class Recording(Protocol):
    """Notes the requests that a version accepts."""

    def accepted(self, ticket: Ticket) -> None:
        """A request fits the model and is about to be queued."""


class OpenSequences(Protocol):
    """The sequences that a version is in the middle of."""

    @property
    def open_sequences(self) -> int:
        """How many there are."""

    def holds(self, request: InferRequest) -> bool:
        """Whether the sequence of a request is one of them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How the server chose to run a model version, for people to read."""

    lane: str
    instances: int
    max_batch_size: int
    #: Why the model is or is not batched, and why it runs where it runs.
    reason: str = ""
    #: The devices of its instances.
    places: Places = NOWHERE


@dataclass(slots=True)
class LoadProgress:
    """How far a load is: its `phase` (fetch, environment, load, probe, warm-up), bytes fetched and in all, and when it began, of
    time.monotonic(). The bytes of "environment" are those of its packages.
    """

    phase: str
    began: float
    bytes_done: int = 0
    bytes_total: int = 0


class Model:
    """One version of one model. `signature` has full shapes; `max_batch_size` 0 means that no dimension of it is a batch.

    A model that is `on_demand` is not loaded, but its queue takes requests, which wait until it is.
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
        #: Why the model is in its state, empty when there is nothing to say.
        self.reason = ""
        #: Why the model says of itself that it is not ready, although it answers; empty when it says nothing.
        self.unready = ""
        self.backend = config.backend
        self.platform = config.platform
        #: Whether a request gets any number of responses; callers that take one are refused then.
        self.decoupled = config.decoupled
        self.signature = Signature((), ())
        self.max_batch_size = 0
        self.placement: Placement | None = None
        #: How its requests are queued and joined, for people to read; empty of one that was never loaded.
        self.scheduling = ""
        self.statistics = ModelStatistics()
        #: Raises InvalidArgument for a request that does not fit; a recording, and the sleep of a version, put one of their own there.
        self.check: Callable[[Ticket], None] | None = None
        self.queue: RequestQueue | None = None
        #: Notes the requests that it accepts, while they are recorded.
        self.recording: Recording | None = None
        #: Of a loaded version whose requests belong to sequences.
        self.sequences: OpenSequences | None = None
        self.on_demand = False
        #: Of a version that is on demand: loads it without a request. Raises BacklineError with the reason when it cannot be loaded.
        self.wake: Callable[[], Awaitable[None]] | None = None
        #: Whether the server is only ready when this version answers; not so for one that was unloaded, or whose old files still serve.
        self.required = True
        self.progress: LoadProgress | None = None
        #: Resident memory that the model takes, measured when it was loaded; 0 when it is not loaded.
        self.memory_bytes = 0

    @property
    def answers(self) -> bool:
        """Whether a request to it will be answered: it is ready, or will be loaded for it."""
        return self.state is ModelState.READY or self.on_demand

    @property
    def ready(self) -> bool:
        """Whether it answers, and says nothing else of itself."""
        return not self.unready and self.answers
