"""The instances of one load of a version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from backline.backends.backend import StreamingModel
from backline.engine.device import Device, Place
from backline.engine.errors import BacklineError
from backline.engine.model import Model, Placement
from backline.engine.response_statistics import ResponseStatistics
from backline.lifecycle.loading.loaded import LoadedVersion
from backline.workers.here.execution import BudgetedExecution, CoreBudget, Execution
from backline.workers.here.instances import InlineInstance, RunLimit, ThreadInstance, TimedInstance
from backline.workers.here.streaming import StreamPool
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers

if TYPE_CHECKING:
    from backline.schedule.rate_limit.permits import Permits


class InstanceMaker:
    """Makes the instances of one load, again when their number or lane changes. Lives on the event loop.

    `on_slow`: the model blocks the loop for longer than was measured. `on_available`: nothing can run it, for
    a reason, or something can again (""). `on_ready`: the model declares itself not ready, or ready again
    (""). `on_given_up`: an instance was abandoned and replaced, for a reason.
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
        self.model = model
        self._permits = permits
        self._cores = cores
        self._on_slow = on_slow
        self._on_available = on_available
        self._on_ready = on_ready
        self._on_given_up = on_given_up
        self._loop = asyncio.get_running_loop()
        #: What runs batches on a device, shared by its instances.
        self._runs: dict[Device, Execution | BudgetedExecution] = {}
        self._limit: RunLimit | None = None
        #: Whether the model was moved to threads because it blocked the loop.
        self.moved = False
        #: The streams of a decoupled model of this process.
        self.streams: StreamPool | None = None

    def make(self, loaded: LoadedVersion) -> list[Instance]:
        """The instances of a loaded model. Raises InvalidArgument when the server lacks resources for one."""
        instances = loaded.make_instances(self)
        try:
            return self._permitted(instances, loaded.places)
        except BacklineError:
            for instance in instances:
                instance.close()
            raise

    def move_to_threads(self, loaded: LoadedVersion) -> list[Instance]:
        """Moves the model off the event loop; returns its new instances."""
        self.moved = True
        return self.make(loaded)

    @property
    def stuck(self) -> int:
        """Runs on abandoned threads that have not ended."""
        return 0 if self._limit is None else self._limit.stuck

    def placement(self, loaded: LoadedVersion, instances: list[Instance]) -> Placement:
        """How it runs, for people."""
        count = len(instances) if self.moved else loaded.instances
        return Placement(
            "thread" if self.moved else loaded.lane,
            count,
            loaded.max_batch_size,
            loaded.reason,
            loaded.placed,
        )

    # for the kinds of models, see LoadedVersion.make_instances

    def inline(self, execute: Execution) -> Instance:
        """An instance on the event loop."""
        return InlineInstance(execute, self._on_slow if self.model.config.lane is None else None)

    def run_on(
        self, device: Device, make: Callable[[], Execution], *, threads: int | None
    ) -> Execution | BudgetedExecution:
        """What runs batches on a device, made by `make` the first time. A run occupies `threads` threads (0:
        all cores, None: it mostly waits).
        """
        run = self._runs.get(device)
        if run is None:
            run = make()
            if self._cores is not None and threads is not None:
                run = BudgetedExecution(run, self._cores, threads)
            self._runs[device] = run
        return run

    def thread(self, run: Execution | BudgetedExecution, number: int) -> Instance:
        """An instance on a thread, which is abandoned when a run exceeds the model's time limit."""
        make = partial(ThreadInstance, run, self._loop, f"{self.model.name}-{number}", self.model.config.cpus)
        config = self.model.config
        if config.execution_timeout_seconds is None:
            return make()
        if self._limit is None:
            self._limit = RunLimit(
                f"model '{self.model.name}' version {self.model.version}",
                config.execution_timeout_seconds,
                self.model.statistics,
                idempotent=config.idempotent is not False,
                on_given_up=self._on_given_up,
                on_available=self._on_available,
            )
        if isinstance(run, BudgetedExecution):
            return TimedInstance(make, self._loop, self._limit, run.release)
        return TimedInstance(make, self._loop, self._limit)

    def places_for_streams(self, model: StreamingModel, threads: int) -> list[Instance]:
        """Instances for the streams that may be open at once, computed on `threads` threads."""
        statistics = self.model.statistics
        if statistics.responses is None:
            statistics.responses = ResponseStatistics()
        self.streams = StreamPool(
            self.model.name,
            self.model.version,
            model,
            self._loop,
            threads=threads,
            statistics=statistics.responses,
        )
        return list(self.streams.instances)

    def places_in_workers(self, model: ModelInWorkers) -> list[Instance]:
        """Instances for the batches that the worker processes take at once."""
        model.on_available = self._on_available
        model.on_ready = self._on_ready
        self._on_ready(model.unready)
        self.model.statistics.responses = model.responses
        return list(model.instances())

    def _permitted(self, instances: list[Instance], places: Sequence[Place]) -> list[Instance]:
        if self._permits is None:
            return instances
        from backline.schedule.rate_limit.limits import claim_of
        from backline.schedule.rate_limit.permitted_instance import PermittedInstance

        # A worker process or stream pool runs several batches at once, each with the claim of its group.
        claims = [claim_of(place.group, str(place.device.index)) for place in places]
        model = self.model
        permits = self._permits.register(
            [claims[index % len(claims)] for index in range(len(instances))], (model.name, model.version)
        )
        return [
            PermittedInstance(instance, permit, self._loop)
            for instance, permit in zip(instances, permits, strict=True)
        ]
