"""A version in memory, whichever kind of model it is, and how it is to be served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from backline.backends.backend import Run
from backline.engine.device import CPU, Place, Places, name_devices
from backline.engine.joining import Joining
from backline.engine.model_config import Lane, ModelConfig
from backline.engine.signature import Signature
from backline.lifecycle.loading.batch_probe import BatchProbe
from backline.lifecycle.loading.run_time import RunTimes
from backline.lifecycle.view.states import HideStates
from backline.lifecycle.view.view import View
from backline.workers.affinity import format_cores
from backline.workers.instance import Instance

if TYPE_CHECKING:
    from backline.lifecycle.loading.instances import InstanceMaker


@dataclass(frozen=True, slots=True)
class Measured:
    """What running a model has shown; it holds for another load of the same files. `probe` is None where batches were not wanted."""

    probe: BatchProbe | None = None
    times: RunTimes = field(default_factory=lambda: RunTimes({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion(ABC):
    """A subclass for each kind of model says how it is run; no other code asks what kind it is.

    `max_batch_size` is what requests may ask for (0: no dimension is a batch), `batch_limit` how many items the scheduler
    joins. `places` has one entry for each instance, `placed` the devices that the model was loaded on.
    """

    view: View
    backend: str
    platform: str
    #: What clients see.
    signature: Signature
    max_batch_size: int
    batch_limit: int
    lane: Lane | Literal["process", "debug"]
    placed: Places
    places: tuple[Place, ...]
    reason: str
    #: Whether a request gets any number of responses.
    decoupled: bool
    measured: Measured = Measured()
    warnings: tuple[str, ...] = ()
    #: Which requests may share a batch, where they need not have the same shapes.
    joining: Joining | None = None
    #: How long a batch may wait for more, in microseconds, where the configuration does not say.
    max_queue_delay_us: int = 0

    #: Whether `placed_again` changes the number of instances.
    resizable: ClassVar[bool] = True

    @property
    def instances(self) -> int:
        """How many there are."""
        return len(self.places)

    @property
    def states(self) -> HideStates:
        """The stage that hides what belongs to sequences."""
        return self.view.stage(HideStates)

    @abstractmethod
    def placed_again(self, config: ModelConfig) -> LoadedVersion:
        """The same model under a configuration that differs only in what needs no load, such as its instances."""

    @abstractmethod
    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        """Its instances, made with what the maker knows of the server."""

    @abstractmethod
    def lone_runs(self) -> Iterable[Run]:
        """What runs one request, of each copy of the model. For warm-up; to be called after `states.prepare`."""

    def resident_bytes(self, measured: int) -> int:
        """The memory that it takes; this process has grown by `measured` bytes during the load."""
        return measured

    @abstractmethod
    def close(self) -> None:
        """Gives the memory back. No run is under way."""


def missing_gpu(config: ModelConfig, placed: Places) -> tuple[str, ...]:
    """A warning for a model that runs on the CPU although its configuration asks for a GPU."""
    return (
        (f"{config.source or config.name}: {placed.missing}: it runs on the CPU",) if placed.missing else ()
    )


def why_there(config: ModelConfig, placed: Places) -> str:
    """The cores and devices of a model, as the end of a sentence."""
    cores = (
        f"; kept to core{'s' if len(config.cpus) > 1 else ''} {format_cores(config.cpus)}"
        if config.cpus
        else ""
    )
    if placed.missing:
        return f"{cores}; on the CPU: {placed.missing}"
    return cores if placed.devices == (CPU,) else f"{cores}; on {name_devices(placed)}"
