"""Places a model on devices, and makes the instances of a load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backline.backends.backend import StreamingModel
from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Gpus, Place, PlacedGroup, Places
from backline.engine.model import Model, Placement
from backline.engine.statistics import ResponseStatistics
from backline.workers.here.execution import BudgetedExecution, CoreBudget, Execution
from backline.workers.here.instances import InlineInstance, RunLimit, ThreadInstance, TimedInstance
from backline.workers.here.streaming import StreamPool
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError, InvalidArgument

if TYPE_CHECKING:
    from backline.lifecycle.loading.loaded import LoadedVersion
    from backline.schedule.rate_limit.permits import Permits


def asks_for_devices(config: ModelConfig) -> bool:
    """Returns whether the placement depends on which GPUs are available."""
    return config.lane != "inline" and any(
        group.kind in ("auto", "gpu") for group in config.instance_groups or (InstanceGroup(0),)
    )


def place(config: ModelConfig, gpus: Gpus, *, strict: bool = False) -> Places:
    """Returns the devices for each active instance group. If the configuration has no groups, returns the
    default devices of the runtime.

    If there are no GPUs, a group that asks for a GPU runs on the CPU, unless `strict`.

    Raises InvalidArgument if all groups are passive, if a group asks for a GPU that is not among `gpus` or,
    with `strict`, for any GPU when there are none, or if a group asks for a GPU in the inline lane, because
    the event loop must not wait for a device.
    """
    if not config.instance_groups:
        devices = _automatic(config, gpus)
        only = _only_group(config, devices)
        return Places((PlacedGroup(0, _name(config, 0, only), only, devices),))
    active = [(index, group) for index, group in enumerate(config.instance_groups) if not group.passive]
    if not active:
        raise InvalidArgument(
            f"all instance groups of model '{config.name}' are passive, so nothing would run it: make one of"
            " them active"
        )
    placed, missing = [], ""
    for index, group in active:
        name = _name(config, index, group)
        devices = _devices(config, name, group, gpus, strict=strict)
        if not devices:
            devices, missing = (CPU,), missing or f"{_where(config, name)} asks for a GPU, but {gpus.reason}"
        placed.append(_placed(config, index, group, devices))
    return Places(tuple(placed), missing)


def place_again(config: ModelConfig, placed: Places) -> Places:
    """Returns the placement on the same devices, with the instance counts of a changed configuration."""
    devices = {(one.group.kind, one.group.gpus): one.devices for one in placed.groups}
    groups = config.instance_groups or (_only_group(config, placed.devices),)
    return Places(
        tuple(
            _placed(config, index, group, devices[group.kind, group.gpus])
            for index, group in enumerate(groups)
            if not group.passive
        ),
        placed.missing,
    )


def _placed(
    config: ModelConfig, index: int, group: InstanceGroup, devices: tuple[Device, ...]
) -> PlacedGroup:
    """Returns a placed group, with the runtime's usual number of instances on the CPU if the configuration
    sets no number.
    """
    name = _name(config, index, group)
    if not group.counted and config.usual_instances and devices == (CPU,):
        group = replace(group, count=config.usual_instances)
    return PlacedGroup(index, name, group, devices)


def _only_group(config: ModelConfig, devices: tuple[Device, ...]) -> InstanceGroup:
    """Returns the instance group of a model whose configuration has none."""
    usual = config.usual_instances if devices == (CPU,) else 0
    return InstanceGroup(config.instance_count or usual)


def _devices(
    config: ModelConfig, name: str, group: InstanceGroup, gpus: Gpus, *, strict: bool
) -> tuple[Device, ...]:
    """Returns the devices of a group; empty if the group asks for a GPU and none can be used."""
    if group.kind == "model":
        return (Device("model"),)
    if group.kind == "cpu":
        return (CPU,)
    if group.kind == "auto" and not group.gpus:
        return _automatic(config, gpus)
    if config.lane == "inline":
        asked = "KIND_GPU" if group.kind == "gpu" else "gpus"
        raise InvalidArgument(
            f"model '{config.name}': lane inline and {asked} contradict each other, because the event"
            " loop must not wait for a GPU: remove one"
        )
    wrong = [index for index in group.gpus if index not in gpus.indexes]
    if gpus.indexes and wrong:
        there = ", ".join(map(str, gpus.indexes))
        raise InvalidArgument(
            f"{_where(config, name)} specifies invalid or unsupported gpu id {wrong[0]}. GPUs that this model"
            f" can run on are: {there}"
        )
    if wrong or not gpus.indexes:
        if strict:
            raise InvalidArgument(
                f"{_where(config, name)} has kind KIND_GPU but no GPUs are available: {gpus.reason}"
            )
        return ()
    return tuple(Device("gpu", index) for index in group.gpus or gpus.indexes)


def _automatic(config: ModelConfig, gpus: Gpus) -> tuple[Device, ...]:
    if not gpus.indexes or not gpus.by_default or config.lane == "inline":
        return (CPU,)
    return tuple(Device("gpu", index) for index in gpus.indexes)


def _name(config: ModelConfig, index: int, group: InstanceGroup) -> str:
    """Returns the group's name as in Triton; without groups, the model's name."""
    return group.name or (f"{config.name}_{index}" if config.instance_groups else config.name)


def _where(config: ModelConfig, group: str) -> str:
    return f"instance group {group} of model {config.name}"


class InstanceMaker:
    """Makes the instances of one load, and makes new ones when the number of instances or the lane changes.

    Use this class only on the event loop. `on_slow` is called when runs block the loop for too long.
    `on_available` is called with a reason when no instance can run the model, and with "" when an instance
    can run it again. `on_ready` is called with a reason when the model declares itself not ready, and with ""
    when it is ready again. `on_given_up` is called when a stuck instance has been replaced. `on_redescribed`
    is called when the servers of a remote model describe the model differently than when it was loaded.
    """

    def __init__(
        self,
        model: Model,
        permits: Permits | None,
        cores: CoreBudget | None,
        poll: BusyPoll,
        *,
        on_slow: Callable[[], None],
        on_available: Callable[[str], None],
        on_ready: Callable[[str], None],
        on_given_up: Callable[[str], None],
        on_redescribed: Callable[[], None],
    ) -> None:
        self.model = model
        self._permits = permits
        self._cores = cores
        #: The busy poll of the event loop.
        self.poll = poll
        self._on_slow = on_slow
        self._on_available = on_available
        self._on_ready = on_ready
        self._on_given_up = on_given_up
        self.on_redescribed = on_redescribed
        self._loop = asyncio.get_running_loop()
        #: The execution on each device, shared by the instances on that device.
        self._runs: dict[Device, Execution | BudgetedExecution] = {}
        self._limit: RunLimit | None = None
        #: Whether the model was moved to threads because it blocked the loop.
        self.moved = False

    def make(self, loaded: LoadedVersion) -> list[Instance]:
        """Makes the instances of a loaded model.

        Raises InvalidArgument if an instance needs more of a resource than the rate limiter has.
        """
        instances = loaded.make_instances(self)
        try:
            return self._permitted(instances, loaded.places)
        except BacklineError:
            for instance in instances:
                instance.close()
            raise

    def move_to_threads(self, loaded: LoadedVersion) -> list[Instance]:
        """Returns new instances on threads, for a model that has run on the event loop."""
        self.moved = True
        return self.make(loaded)

    @property
    def stuck(self) -> int:
        """The number of runs that still occupy a thread that was abandoned because the run took too long."""
        return 0 if self._limit is None else self._limit.stuck

    def placement(self, loaded: LoadedVersion, instances: list[Instance]) -> Placement:
        """Returns where and how the model runs, as shown to users."""
        count = len(instances) if self.moved else loaded.instances
        lane = "thread" if self.moved else loaded.lane
        return Placement(lane, count, loaded.max_batch_size, loaded.reason, loaded.placed)

    # called by the implementations of LoadedVersion.make_instances

    def inline(self, execute: Execution) -> Instance:
        """Returns an instance that runs `execute` on the event loop."""
        config = self.model.config
        if config.lane is not None:
            return InlineInstance(execute)
        name = f"{self.model.name}-large"
        return InlineInstance(
            execute, self._on_slow, lambda run: ThreadInstance(run, self._loop, name, config.cpus, self.poll)
        )

    def run_on(
        self,
        device: Device,
        make: Callable[[], Execution],
        *,
        threads: int | None,
        make_spread: Callable[[], Execution] | None = None,
    ) -> Execution | BudgetedExecution:
        """Returns the execution on a device, made by `make` on the first call.

        A run on `threads` threads (0: one per core) takes cores from the core budget, as described in
        BudgetedExecution; None means that it takes none, because it mostly waits. While no other run is in
        progress, a run uses the execution that `make_spread` makes, if that is not None.
        """
        run = self._runs.get(device)
        if run is None:
            run = make()
            if self._cores is not None and threads is not None:
                spread = None if make_spread is None else make_spread()
                run = BudgetedExecution(run, self._cores, threads, spread)
            self._runs[device] = run
        return run

    def thread(self, run: Execution | BudgetedExecution, number: int, *, timed: bool = True) -> Instance:
        """Returns an instance that runs batches on a thread. If `timed`, the thread is abandoned when a run
        exceeds the execution timeout of the configuration, if there is one.
        """
        config = self.model.config
        make = partial(ThreadInstance, run, self._loop, f"{self.model.name}-{number}", config.cpus, self.poll)
        if config.execution_timeout_seconds is None or not timed:
            return make()
        if self._limit is None:
            self._limit = RunLimit(
                f"model '{self.model.name}' version {self.model.version}",
                config.execution_timeout_seconds,
                self.model.statistics,
                idempotent=config.idempotent,
                on_given_up=self._on_given_up,
                on_available=self._on_available,
            )
        if isinstance(run, BudgetedExecution):
            return TimedInstance(make, self._loop, self._limit, run.release)
        return TimedInstance(make, self._loop, self._limit)

    def places_for_streams(self, model: StreamingModel, threads: int) -> list[Instance]:
        """Returns one instance for each stream that may be open at the same time. All streams are computed on
        `threads` threads.
        """
        statistics = self.model.statistics
        if statistics.responses is None:
            statistics.responses = ResponseStatistics()
        name, version, responses = self.model.name, self.model.version, statistics.responses
        pool = StreamPool(
            name, version, model, self._loop, threads=threads, statistics=responses, poll=self.poll
        )
        return list(pool.instances)

    def places_in_workers(self, model: ModelInWorkers) -> list[Instance]:
        """Returns an instance for each batch that the worker processes can run at the same time."""
        self.watch(model)
        model.on_ready = self._on_ready
        self._on_ready(model.unready)
        self.model.statistics.responses = model.responses
        return list(model.instances())

    def watch(self, model: ModelInWorkers) -> None:
        """Shows the model as unavailable while none of its worker processes is running."""
        model.on_available = self._on_available

    def _permitted(self, instances: list[Instance], places: Sequence[Place]) -> list[Instance]:
        if self._permits is None:
            return instances
        from backline.schedule.rate_limit.limits import claim_of
        from backline.schedule.rate_limit.permits import PermittedInstance

        # There may be fewer places than instances, because a worker process or stream pool may have several
        # instances. Each instance makes the claim of its instance group.
        claims = [claim_of(place.group, str(place.device.index)) for place in places]
        model = self.model
        wanted = [claims[index % len(claims)] for index in range(len(instances))]
        permits = self._permits.register(wanted, (model.name, model.version))
        pairs = zip(instances, permits, strict=True)
        return [PermittedInstance(instance, permit, self._loop) for instance, permit in pairs]
