"""Loaded versions: the base class, models that stream their responses, and models in worker processes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from backline.backends.backend import Run, StreamingModel
from backline.engine.config.joining import Joining, JoiningCheck
from backline.engine.config.model_config import Lane, ModelConfig
from backline.engine.device import CPU, Place, Places, name_devices
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline.lifecycle.loading.batch_probe import BatchProbe
from backline.lifecycle.loading.instances import InstanceMaker, place_again
from backline.lifecycle.loading.run_time import LARGEST_BATCH, RunTimes
from backline.lifecycle.view.join import JoinInWorker
from backline.lifecycle.view.states import HideStates
from backline.lifecycle.view.view import STAGES_OF_WORKERS, View
from backline.repository.configuration.effects import ignored_settings
from backline.system.cores import format_cores
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError
from backline_client.values.signature import Signature


@decodable
class Measured(msgspec.Struct, frozen=True):
    """Results of trial runs, valid for all loads of the same files and configuration. `probe` is None if no
    proof was attempted.
    """

    probe: BatchProbe | None = None
    times: RunTimes = msgspec.field(default_factory=lambda: RunTimes({}))


#: The maximum length of a proof's reason that is accepted from another process, in characters.
_LONGEST_REASON = 4000


def check_measured(measured: Measured) -> None:
    """Raises ValueError for values that no measurement can give, because an untrusted process may have sent
    them.
    """
    times = measured.times
    sizes = times.seconds.keys()
    if sizes and not min(sizes) == 1 <= max(sizes) <= LARGEST_BATCH:
        raise ValueError(f"it has run times for impossible batch sizes: {sorted(sizes)}")
    taken = (*times.seconds.values(), times.grown, times.first)
    if not math.isfinite(sum(taken)) or min(taken) < 0:
        raise ValueError("a run time is negative or not finite")
    if not (0 <= times.spread_threads <= 1024 and math.isfinite(times.spread_seconds)):
        raise ValueError("its run time on several threads is out of range")
    if not 0 <= times.elements < 1 << 40:
        raise ValueError(f"its number of elements, {times.elements}, is out of range")
    if measured.probe is not None and len(measured.probe.reason) > _LONGEST_REASON:
        raise ValueError("the reason given for the result of the proof is too long")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVersion(ABC):
    """A version whose model is in memory. Each kind of model has a subclass; other code treats all kinds
    alike.

    `max_batch_size` is the maximum number of items of a request, or 0 if the model has no batch dimension;
    `batch_limit` is the maximum number of items of a batch that the scheduler forms. `places` has one entry
    for each instance, or for each worker process or thread that serves several instances; `placed` has the
    devices that hold the model.
    """

    view: View
    backend: str
    platform: str
    #: The signature that clients see.
    signature: Signature
    max_batch_size: int
    batch_limit: int
    lane: Lane | Literal["process", "debug", "remote"]
    placed: Places
    places: tuple[Place, ...]
    reason: str
    #: Whether a request may get any number of responses.
    decoupled: bool
    measured: Measured = field(default_factory=Measured)
    warnings: tuple[str, ...] = ()
    #: The rules for which requests may share a batch; None if only requests of equal shapes may.
    joining: Joining | None = None
    #: Microseconds that a batch may wait for more requests, if the configuration sets no delay.
    max_queue_delay_us: int = 0

    @property
    def lone_threads(self) -> int:
        """The number of threads that a run uses while no other run is in progress; 1 unless such a run is
        spread over more cores than other runs.
        """
        return 1

    #: Whether runs get the parameters of their requests.
    reads_parameters: ClassVar[bool] = True
    #: Whether new instances need `resize`, because they take time to start.
    resizes: ClassVar[bool] = False

    @property
    def instances(self) -> int:
        """The number of instances. The instances of one worker process or thread count as one."""
        return len(self.places)

    @property
    def states(self) -> HideStates:
        """The stage that hides the tensors of sequences."""
        return self.view.stage(HideStates)

    @abstractmethod
    def placed_again(self, config: ModelConfig) -> LoadedVersion:
        """Returns the same model with a changed configuration that needs no new load."""

    def follows(self, config: ModelConfig) -> bool:
        """Returns whether `placed_again` changes the number of instances to the number that a configuration
        sets.
        """
        return True

    async def resize(self) -> None:
        """Starts or ends processes as the instances at `places` require; afterwards call `resized`.

        If that fails, raises BacklineError and changes nothing.
        """
        raise NotImplementedError

    def resized(self, config: ModelConfig) -> LoadedVersion:
        """Returns the same model with the instances that exist after `resize`."""
        raise NotImplementedError

    def continue_sequences(self, version: str, opened: MutableMapping[tuple[str, str], Any]) -> LoadedVersion:
        """Returns the same model with the open sequences of an earlier load of this version, if other servers
        run them. `opened` has what such models keep, by model and version.
        """
        return self

    def extend(self, check: RequestCheck) -> Callable[[Ticket], None]:
        """Extends a check of requests, so that it also decides which requests may share a batch."""
        if self.joining is None:
            return check
        return JoiningCheck(check, self.joining, tuple(spec.name for spec in self.signature.inputs))

    @abstractmethod
    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        """Makes the instances that run the model."""

    @abstractmethod
    def lone_runs(self) -> Iterable[Run]:
        """Returns one function for each copy of the model. The function runs a single request on that copy.
        Warm-up uses these functions.

        Call `states.prepare` first.
        """

    @property
    def pids(self) -> Sequence[int]:
        """The ids of the worker processes that hold the model; none for a model in this process."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Frees the model. No run may be in progress."""


def missing_gpu(config: ModelConfig, placed: Places) -> tuple[str, ...]:
    """Returns a warning if the model runs on the CPU although its configuration asks for a GPU."""
    where = config.source or config.name
    return (f"{where}: {placed.missing}. The model runs on the CPU",) if placed.missing else ()


def why_there(config: ModelConfig, placed: Places) -> str:
    """Returns the cores and devices on which a model runs, worded to end a sentence; "" if the model runs on
    any core of the CPU.
    """
    kept = f"; pinned to core{'s' if len(config.cpus) > 1 else ''} {format_cores(config.cpus)}"
    cores = kept if config.cpus else ""
    if placed.missing:
        return f"{cores}; on the CPU: {placed.missing}"
    return cores if placed.devices == (CPU,) else f"{cores}; on {name_devices(placed)}"


#: The maximum number of responses that warm-up reads from a stream. There must be a limit because a stream
#: may be endless.
STREAMED_RESPONSES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStreams(LoadedVersion):
    """A model in this process that streams its responses. It has no batches, and its runs are not timed."""

    model: StreamingModel

    def placed_again(self, config: ModelConfig) -> LoadedStreams:
        placed = place_again(config, self.placed)
        return replace(self, placed=placed, places=placed.spread(self.model.streams_at_once))

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        return maker.places_for_streams(self.model, self.instances)

    def lone_runs(self) -> Iterable[Run]:
        return (self._run_first_responses,)

    def _run_first_responses(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        with closing(self.model.stream(inputs, outputs, {})) as responses:
            for _ in islice(responses, STREAMED_RESPONSES):
                pass
        return []

    def close(self) -> None:
        self.model.close()


def loaded_streams(
    config: ModelConfig, view: View, model: StreamingModel, *, backend: str, platform: str, placed: Places
) -> LoadedStreams:
    """Decides how to run a streaming model."""
    return LoadedStreams(
        view=view,
        model=model,
        backend=backend,
        platform=platform,
        signature=view.fit(model.signature),
        max_batch_size=0,
        batch_limit=0,
        lane="thread",
        placed=placed,
        places=placed.spread(model.streams_at_once),
        reason="a request may get any number of responses, which are computed on a thread",
        decoupled=True,
        warnings=model.warnings + ignored_settings(config, "stream") + missing_gpu(config, placed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWorkers(LoadedVersion):
    """A model in worker processes. After `placed_again`, `resize` changes the number of processes, unless the
    model is being debugged.
    """

    model: ModelInWorkers

    resizes: ClassVar[bool] = True

    def placed_again(self, config: ModelConfig) -> LoadedWorkers:
        changed = replace(self, batch_limit=_joined(config, self.model))
        if not self.model.resizable:
            return changed
        placed = place_again(config, self.placed)
        return replace(changed, placed=placed, places=placed.spread(self.model.loaded.instances))

    def follows(self, config: ModelConfig) -> bool:
        return self.model.resizable

    async def resize(self) -> None:
        await self.model.resize(self.placed, self.places)

    def resized(self, config: ModelConfig) -> LoadedWorkers:
        model = self.model
        reason = model.where + why_there(config, model.placed)
        return replace(self, placed=model.placed, places=model.places, reason=reason)

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        return maker.places_in_workers(self.model)

    def lone_runs(self) -> Iterable[Run]:
        return (self.view.alone(self.model).run,)

    @property
    def pids(self) -> Sequence[int]:
        return () if self.model.debugged else self.model.pids

    def close(self) -> None:
        self.model.close()


def loaded_workers(
    config: ModelConfig, path: Path, model: ModelInWorkers, *, backend: str, warnings: tuple[str, ...]
) -> LoadedWorkers:
    """Decides how to run a model in workers.

    If the model cannot run, closes `model` and raises BacklineError.
    """
    said = model.loaded
    view = View(config, path, STAGES_OF_WORKERS)
    join = view.stage(JoinInWorker)
    try:
        join.check(joins=said.joins)
        signature = view.fit(model.signature)
    except BacklineError:
        model.close()
        raise
    return LoadedWorkers(
        view=view,
        model=model,
        backend=backend,
        platform=said.platform,
        signature=signature,
        max_batch_size=said.max_batch_size,
        batch_limit=_joined(config, model),
        lane="debug" if model.debugged else "process",
        placed=model.placed,
        places=model.places,
        reason=model.where + why_there(config, model.placed),
        decoupled=said.decoupled,
        warnings=model.warnings + warnings + missing_gpu(config, model.placed),
        joining=join.joining,
        max_queue_delay_us=said.max_queue_delay_us or 0,
    )


def _joined(config: ModelConfig, model: ModelInWorkers) -> int:
    """Returns the maximum batch size: 0 for a model without batches, and 1 if the configuration or the model
    asks for one request per run.
    """
    said = model.loaded
    only_if_asked = said.joined_if_asked and not config.dynamic_batching and config.sequence is None
    alone = only_if_asked or config.dynamic_batching is False
    return min(1, said.max_batch_size) if alone else said.max_batch_size
