"""The instances of one load of a version: how many there are, and where they run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from backline.backends.backend import LoadedModel, StreamingModel
from backline.backends.replicas import replica_on
from backline.engine.device import Device, Place
from backline.engine.errors import BacklineError
from backline.engine.model import Model, Placement
from backline.engine.response_statistics import ResponseStatistics
from backline.lifecycle.loading.loader import Loaded
from backline.lifecycle.loading.run_time import spare_instances
from backline.system.cores import usable_cores
from backline.workers.here.core_budget import BudgetedExecution, CoreBudget
from backline.workers.here.execution import Execution, JoinedExecution
from backline.workers.here.instances import InlineInstance, ThreadInstance
from backline.workers.here.streaming import StreamPool
from backline.workers.here.timed import RunLimit, TimedInstance
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers

if TYPE_CHECKING:
    from backline.schedule.rate_limit.permits import Permits


class InstanceMaker:
    """Makes the instances of one load, again when their number or their lane changes. Lives on the event loop.

    `on_slow` is called when a model keeps the loop longer than was measured; `on_available` when nothing can run it for a reason, or can
    again (""); `on_ready` when the model says of itself that it is not ready, or is again (""); `on_given_up` when an instance was given up
    and replaced, with the reason.
    """

    def __init__(
        self,
        model: Model,
        permits: Permits | None,
        cores: CoreBudget | None,
        *,
        on_slow: Callable[[], None],
        on_available: Callable[[str], None],
        on_ready: Callable[[str], None],
        on_given_up: Callable[[str], None],
    ) -> None:
        self._model = model
        self._permits = permits
        self._cores = cores
        self._on_slow = on_slow
        self._on_available = on_available
        self._on_ready = on_ready
        self._on_given_up = on_given_up
        self._loop = asyncio.get_running_loop()
        #: What runs the batches of the instances on a device.
        self._runs: dict[Device, Execution | BudgetedExecution] = {}
        self._limit: RunLimit | None = None
        self._moved = False
        #: Of a model that gives any number of responses.
        self.streams: StreamPool | None = None

    def make(self, loaded: Loaded) -> list[Instance]:
        """The instances of a model that was loaded. Raises InvalidArgument when one of them asks for more than the server has."""
        instances = self._make(loaded)
        try:
            return self._permitted(instances, loaded.places)
        except BacklineError:
            for instance in instances:
                instance.close()
            raise

    def move_to_threads(self, loaded: Loaded) -> list[Instance]:
        """The instances of a model that is not run on the event loop any more."""
        self._moved = True
        return self.make(loaded)

    @property
    def stuck(self) -> int:
        """Runs that do not end, on threads that were left alone."""
        return 0 if self._limit is None else self._limit.stuck

    def placement(self, loaded: Loaded, instances: list[Instance]) -> Placement:
        """What is told of them."""
        count = (
            len(instances)
            if self.streams is None and not isinstance(loaded.model, ModelInWorkers)
            else loaded.instances
        )
        return Placement(
            "thread" if self._moved else loaded.lane,
            count,
            loaded.max_batch_size,
            loaded.reason,
            loaded.placed,
        )

    def _make(self, loaded: Loaded) -> list[Instance]:
        model = loaded.model
        if isinstance(model, StreamingModel):
            return self._places_for_streams(model, loaded.instances)
        if isinstance(model, ModelInWorkers):
            model.on_available = self._on_available
            model.on_ready = self._on_ready
            self._on_ready(model.unready)
            self._model.statistics.responses = model.responses
            return list(model.instances())
        if loaded.lane == "inline" and not self._moved:
            execute = _execution(self._model, model, loaded)
            return [InlineInstance(execute, self._on_slow if self._model.config.lane is None else None)]
        places = loaded.places
        if loaded.lane != "thread":
            places = loaded.placed.spread(spare_instances(usable_cores(), model.threads_per_run))
        return [
            self._thread(self._run_on(place.device, model, loaded), number)
            for number, place in enumerate(places)
        ]

    def _run_on(self, device: Device, model: LoadedModel, loaded: Loaded) -> Execution | BudgetedExecution:
        run = self._runs.get(device)
        if run is None:
            run = _execution(self._model, replica_on(model, device), loaded)
            # A model that mostly waits, for a device or for somebody else, takes no core from others. It was measured on its first device.
            waits = device.kind == "gpu" or (
                loaded.measured.times.waits and device == loaded.placed.devices[0]
            )
            if self._cores is not None and not waits:
                run = BudgetedExecution(run, self._cores, model.threads_per_run)
            self._runs[device] = run
        return run

    def _thread(self, run: Execution | BudgetedExecution, number: int) -> Instance:
        make = partial(
            ThreadInstance, run, self._loop, f"{self._model.name}-{number}", self._model.config.cpus
        )
        config = self._model.config
        if config.execution_timeout_seconds is None:
            return make()
        if self._limit is None:
            self._limit = RunLimit(
                f"model '{self._model.name}' version {self._model.version}",
                config.execution_timeout_seconds,
                self._model.statistics,
                idempotent=config.idempotent is not False,
                on_given_up=self._on_given_up,
                on_available=self._on_available,
            )
        if isinstance(run, BudgetedExecution):
            return TimedInstance(make, self._loop, self._limit, run.release)
        return TimedInstance(make, self._loop, self._limit)

    def _places_for_streams(self, model: StreamingModel, threads: int) -> list[Instance]:
        statistics = self._model.statistics
        if statistics.responses is None:
            statistics.responses = ResponseStatistics()
        self.streams = StreamPool(
            self._model.name,
            self._model.version,
            model,
            self._loop,
            threads=threads,
            statistics=statistics.responses,
        )
        return list(self.streams.instances)

    def _permitted(self, instances: list[Instance], places: Sequence[Place]) -> list[Instance]:
        if self._permits is None:
            return instances
        from backline.schedule.rate_limit.limits import claim_of
        from backline.schedule.rate_limit.permits import PermittedInstance

        # A worker process, or a model of streams, takes several batches at once: each of these takes what its group says.
        claims = [claim_of(place.group, str(place.device.index)) for place in places]
        model = self._model
        permits = self._permits.register(
            [claims[index % len(claims)] for index in range(len(instances))], (model.name, model.version)
        )
        return [
            PermittedInstance(instance, permit, self._loop)
            for instance, permit in zip(instances, permits, strict=True)
        ]


def _execution(model: Model, loaded: LoadedModel, how: Loaded) -> Execution:
    if how.joiner is None:
        return Execution(model.name, model.version, loaded, batched=how.max_batch_size > 0)
    return JoinedExecution(model.name, model.version, loaded, how.joiner, how.signature)
