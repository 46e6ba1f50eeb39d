"""A version in memory, of any kind of model, and how to serve it."""

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
from backline.system.cores import format_cores
from backline.workers.instance import Instance

if TYPE_CHECKING:
    from backline.lifecycle.loading.instances import InstanceMaker


@dataclass(frozen=True, slots=True)
class Measured:
    """What running a model has shown, valid for all loads of its files. `probe` is None if unwanted."""

    probe: BatchProbe | None = None
    times: RunTimes = field(default_factory=lambda: RunTimes({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion(ABC):
    """One subclass for each kind of model says how to run it; no other code asks for the kind.

    `max_batch_size` limits requests (0: no dimension is a batch), `batch_limit` what the scheduler joins.
    `places` has one entry for each instance, `placed` the devices that hold the model.
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
    #: Whether a request may get any number of responses.
    decoupled: bool
    measured: Measured = Measured()
    warnings: tuple[str, ...] = ()
    #: Which requests may share a batch, unless it is those of equal shapes.
    joining: Joining | None = None
    #: Microseconds that a batch may wait for more, if the configuration sets none.
    max_queue_delay_us: int = 0

    #: Whether `placed_again` can change the number of instances.
    resizable: ClassVar[bool] = True

    @property
    def instances(self) -> int:
        """The number of instances."""
        return len(self.places)

    @property
    def states(self) -> HideStates:
        """The stage that hides the tensors of sequences."""
        return self.view.stage(HideStates)

    @abstractmethod
    def placed_again(self, config: ModelConfig) -> LoadedVersion:
        """The same model under a configuration that needs no new load."""

    @abstractmethod
    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        """Makes its instances."""

    @abstractmethod
    def lone_runs(self) -> Iterable[Run]:
        """Functions that run one request, one for each copy, for warm-up after `states.prepare`."""

    def resident_bytes(self, measured: int) -> int:
        """Its memory; this process grew by `measured` bytes during the load."""
        return measured

    @abstractmethod
    def close(self) -> None:
        """Frees the model. No run may be in progress."""


def missing_gpu(config: ModelConfig, placed: Places) -> tuple[str, ...]:
    """A warning if the model runs on the CPU although its configuration asks for a GPU."""
    return (
        (f"{config.source or config.name}: {placed.missing}: it runs on the CPU",) if placed.missing else ()
    )


def why_there(config: ModelConfig, placed: Places) -> str:
    """The cores and devices of a model, to end a sentence with."""
    cores = (
        f"; kept to core{'s' if len(config.cpus) > 1 else ''} {format_cores(config.cpus)}"
        if config.cpus
        else ""
    )
    if placed.missing:
        return f"{cores}; on the CPU: {placed.missing}"
    return cores if placed.devices == (CPU,) else f"{cores}; on {name_devices(placed)}"
