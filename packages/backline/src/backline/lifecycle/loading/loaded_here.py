"""Tests, measures and places models that this process calls directly and that return one response per
request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from msgspec import structs

from backline.backends.backend import LoadedModel, Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Places
from backline.lifecycle.loading.batch_probe import (
    BatchProbe,
    check_batching,
    first_dimensions,
    probe_batching,
    probe_joining,
)
from backline.lifecycle.loading.instances import InstanceMaker, place_again
from backline.lifecycle.loading.loaded import LoadedVersion, Measured, missing_gpu, why_there
from backline.lifecycle.loading.run_time import (
    LARGEST_BATCH,
    MOST_SPREAD,
    SLOW_FIRST_RUN,
    SPREAD_RUN,
    RunPlan,
    first_run,
    format_seconds,
    measure,
    plan,
    repeat,
    spare_instances,
    time_spread,
)
from backline.lifecycle.loading.trial_runs import Samples, Trial, TrialRuns, find_trial, fitting
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.view import View
from backline.system.cores import usable_cores
from backline.workers.here.execution import Execution
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers
from backline_client.values.errors import BacklineError

log = logging.getLogger("backline.lifecycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedHere(LoadedVersion):
    """A model that this process calls. `replicas` has the copy on each device.

    The copies are in this process or, if there are `pools`, in worker processes; threads of this process then
    wait for the workers. `spread` is another copy on the CPU that uses several cores per run, for runs that
    start while no other run is in progress. It is None if such runs use one core too.
    """

    replicas: Mapping[Device, LoadedModel]
    pools: tuple[ModelInWorkers, ...] = ()
    spread: LoadedModel | None = None

    reads_parameters: ClassVar[bool] = False

    @property
    def model(self) -> LoadedModel:
        """The replica on the first device. This replica was measured."""
        return next(iter(self.replicas.values()))

    @property
    def lone_threads(self) -> int:
        return 1 if self.spread is None else self.spread.threads_per_run

    @property
    def _copies(self) -> Sequence[LoadedModel]:
        return [*self.replicas.values(), *([] if self.spread is None else [self.spread])]

    def placed_again(self, config: ModelConfig) -> LoadedHere:
        if self.pools:
            config = structs.replace(config, lane="thread")
        config = structs.replace(config, usual_instances=self.view.config.usual_instances)
        placed = place_again(config, self.placed)
        chosen = _plan(config, self.model, self.measured, self.max_batch_size, placed)
        return replace(
            self,
            batch_limit=_batch_limit(config, self.max_batch_size, chosen),
            lane="process" if self.pools else chosen.lane,
            placed=placed,
            places=placed.spread(chosen.instances)[: chosen.instances],
            reason=_reason(config, self.measured, chosen, placed, self.pools, self.spread),
        )

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        if self.lane == "inline" and not maker.moved:
            return [maker.inline(self._execution(maker, self.model))]
        threads = self.model.threads_per_run
        places = self.places
        for pool in self.pools:
            maker.watch(pool)
        if self.lane == "inline":  # it is being moved to threads because it blocked the event loop
            places = self.placed.spread(spare_instances(usable_cores(), threads))
        instances = []
        for number, place in enumerate(places):
            device = place.device
            # A model that mostly waits for a device or a service needs no core. Whether it waits was measured
            # only on the first device, and not for models in worker processes.
            waits = device.kind == "gpu" or (
                self.measured.times.waits and not self.pools and device == self.placed.devices[0]
            )
            spread = self.spread if device == CPU else None
            run = maker.run_on(
                device,
                partial(self._execution, maker, self.replicas[device]),
                threads=None if waits else threads,
                make_spread=None if spread is None else partial(self._execution, maker, spread),
            )
            # Runs in a pool have no time limit here, because the pool itself kills a worker that takes too
            # long.
            instances.append(maker.thread(run, number, timed=not self.pools))
        return instances

    def _execution(self, maker: InstanceMaker, model: LoadedModel) -> Execution:
        join = self.view.stage(JoinRequests)
        config = self.view.config
        return Execution(
            maker.model.name,
            maker.model.version,
            model,
            joiner=join.joiner,
            outputs=tuple(spec.name for spec in self.states.model.outputs),
            declared_batch=config.max_batch_size or 0,
            idempotent=config.idempotent is not False,
        )

    def make_first_runs(self, samples: Samples) -> LoadedHere:
        """Makes the first runs of a model in the inline lane on this thread, because they could block the
        event loop.

        Some runtimes optimise the graph in the first runs, which can then take a hundred times as long as a
        later run. A model whose first runs were measured to be fast is not run, because a server may have
        thousands of such models. `samples` are the user's inputs.

        Returns this model. If its first runs were fast this time, its measurements now say so, and later
        loads make no runs: they had looked slow only because other loads kept the interpreter busy. Raises
        Internal if the model can never run.
        """
        times = self.measured.times
        if self.lane != "inline" or (times.seconds and times.first <= SLOW_FIRST_RUN):
            return self
        slowest = 0.0
        for replica in self.replicas.values():
            runs = TrialRuns(self.view.alone(replica))
            batched = self.max_batch_size > 0
            trial = find_trial(
                runs, batched=batched, samples=fitting(runs.signature, samples, batched=batched)
            )
            runs.check_failures()
            if trial is None:
                slowest = math.inf
                continue
            repeat(runs, trial, self.batch_limit if batched else 1)
            slowest = max(slowest, first_run(runs, trial, times.seconds.get(1, 0.0)))
        if not times.seconds or slowest > SLOW_FIRST_RUN:
            return self
        return replace(
            self, measured=structs.replace(self.measured, times=structs.replace(times, first=slowest))
        )

    def lone_runs(self) -> Iterable[Run]:
        return [self.view.alone(copy).run for copy in self._copies]

    @property
    def pids(self) -> Sequence[int]:
        return [pid for pool in self.pools for pid in pool.pids]

    def close(self) -> None:
        for copy in self._copies:
            copy.close()


def measure_model(
    config: ModelConfig,
    view: View,
    model: LoadedModel,
    samples: Samples = (),
    run_cores: int | None = None,
) -> Measured:
    """Tests whether requests can be batched, unless the configuration rules batches out, and times runs.

    A configured batch is trusted, and only checked by a run that has to be timed anyway; configured rules for
    joining requests are proved. The user's `samples` are tried before generated inputs. `run_cores` is as in
    LoadOptions. Raises Internal if the model can never run.
    """
    join = view.stage(JoinRequests)
    runs = TrialRuns(view.alone(model))
    batched = config.max_batch_size != 0 and not first_dimensions(runs.signature)
    items = fitting(runs.signature, samples, batched=batched)
    trial = find_trial(runs, batched=batched, samples=items)
    probe: BatchProbe | None = None
    if config.max_batch_size is None:
        probe = probe_batching(runs, trial, items)
    elif join.joiner is not None and config.max_batch_size:
        probe = probe_joining(runs, model, join, items)
    elif config.max_batch_size > 1 and batched and trial is not None:
        probe = check_batching(runs, trial, items)
    max_batch_size = _max_batch_size(config, probe)
    if batched and not max_batch_size:
        if trial is None:
            whole = fitting(runs.signature, samples, batched=False)
            trial = find_trial(runs, batched=False, samples=whole)
        else:
            trial = trial.unbatched(runs.signature)
    runs.check_failures()
    if trial is None:
        return Measured(probe)
    times = measure(runs, max_batch_size, trial)
    return measure_spread(config, view, model, Measured(probe, times), trial, run_cores=run_cores)


def measure_spread(
    config: ModelConfig,
    view: View,
    model: LoadedModel,
    measured: Measured,
    trial: Trial | None = None,
    *,
    samples: Samples = (),
    run_cores: int | None = None,
) -> Measured:
    """Times a lone run on several cores too, and adds the time to `measured`. Returns `measured` unchanged if
    runs are too short for several cores to help, if such a run has been timed before, or if the model, its
    configuration or the number of cores does not allow it.

    `trial` has inputs that the model accepts; if `trial` is None, such inputs are searched for, first among
    the user's `samples`.
    """
    times = measured.times
    cores = min(len(config.cpus) or usable_cores(), MOST_SPREAD, run_cores or MOST_SPREAD)
    short = times.waits or times.seconds.get(1, 0.0) < SPREAD_RUN
    if short or times.spread_threads or cores < 2 or config.lone_run_threads or config.lane == "inline":
        return measured
    try:
        copy = _copy(view, model, cores)
    except BacklineError as error:
        # The model works without the copy, and its configuration does not ask for one.
        log.warning(
            "model '%s' uses one core even while no other run is in progress: %s", config.name, error.message
        )
        return measured
    if copy is None:
        return measured
    try:
        batched = measured.probe.batched if measured.probe is not None else bool(config.max_batch_size)
        alone = view.alone(model)
        items = fitting(alone.signature, samples, batched=batched)
        trial = trial or find_trial(alone, batched=batched, samples=items)
        seconds = None if trial is None else time_spread(view.alone(copy), trial, times.seconds[1])
    finally:
        copy.close()
    if seconds is None:
        return measured
    return structs.replace(
        measured, times=structs.replace(times, spread_threads=cores, spread_seconds=seconds)
    )


def _copy(view: View, model: LoadedModel, threads: int) -> LoadedModel | None:
    """Loads a copy of a model whose runs use `threads` threads; returns None if the model has no such copy.
    See SpreadableModel.
    """
    # isinstance cannot be used, because a stage forwards the attributes of the model that it wraps.
    spread: Callable[[int], LoadedModel | None] | None = getattr(model, "spread", None)
    copy = None if spread is None else spread(threads)
    return None if copy is None else view.wrap(copy)


def _load_spread(
    config: ModelConfig,
    view: View,
    replicas: Mapping[Device, LoadedModel],
    measured: Measured,
    run_cores: int | None,
) -> LoadedModel | None:
    """Loads the copy of a model for lone runs; returns None if lone runs should use one core. If the copy
    cannot be loaded, raises the errors of Backend.load if the configuration asks for the copy, and otherwise
    returns None.
    """
    threads = config.lone_run_threads or measured.times.lone_threads
    if CPU not in replicas or threads == 1 or (run_cores is not None and threads > run_cores):
        return None
    try:
        return _copy(view, replicas[CPU], threads)
    except BacklineError as error:
        if config.lone_run_threads:
            raise
        log.warning(
            "model '%s' uses one core even while no other run is in progress: %s", config.name, error.message
        )
        return None


def loaded_here(
    config: ModelConfig,
    view: View,
    replicas: Mapping[Device, LoadedModel],
    *,
    backend: str,
    platform: str,
    placed: Places,
    measured: Measured,
    warnings: tuple[str, ...],
    pools: tuple[ModelInWorkers, ...] = (),
    run_cores: int | None = None,
) -> LoadedHere:
    """Decides how to run a model that is loaded on all devices of `placed`, in this process or in the workers
    of `pools`.

    Loads another copy of the model if lone runs should use several cores, but no more than `run_cores`.
    Raises the errors of Backend.load.
    """
    model = next(iter(replicas.values()))
    probe = measured.probe
    warnings = tuple(dict.fromkeys(w for replica in replicas.values() for w in replica.warnings)) + warnings
    warnings += missing_gpu(config, placed)
    if config.max_batch_size and probe is not None and not probe.batched:
        warnings += (_batched_against_proof(config, probe),)
    if config.lane == "inline" and (why := _unbounded(model)):
        where = config.source or config.name
        warnings += (f"{where}: lane inline has no effect, and the model runs on threads: {why}",)
    max_batch_size = _max_batch_size(config, probe)
    chosen = _plan(config, model, measured, max_batch_size, placed)
    spread = None
    if chosen.lane == "thread":
        spread = _load_spread(config, view, replicas, measured, run_cores)
    if spread is None and (config.lone_run_threads or 1) > 1:
        warnings += (_why_not_spread(config, chosen),)
    return LoadedHere(
        view=view,
        replicas=replicas,
        backend=backend,
        platform=platform,
        signature=view.fit(model.signature),
        max_batch_size=max_batch_size,
        batch_limit=_batch_limit(config, max_batch_size, chosen),
        lane="process" if pools else chosen.lane,
        pools=pools,
        spread=spread,
        placed=placed,
        places=placed.spread(chosen.instances)[: chosen.instances],
        reason=_reason(config, measured, chosen, placed, pools, spread),
        decoupled=config.decoupled,
        measured=measured,
        warnings=warnings,
        joining=view.stage(JoinRequests).joining,
    )


def _unbounded(model: LoadedModel) -> str:
    """Returns why a run of the model may take any length of time; "" if no run may. See UnboundedModel."""
    return getattr(model, "unbounded", "")


def _plan(
    config: ModelConfig, model: LoadedModel, measured: Measured, max_batch_size: int, placed: Places
) -> RunPlan:
    on_gpus = any(device.kind == "gpu" for device in placed.devices)
    assert config.lane != "process", "it is loaded here"
    # These models run on threads, because the event loop cannot abandon a run that takes too long, cannot be
    # pinned to cores, and must not wait for a device.
    threads = config.execution_timeout_seconds is not None or config.cpus or on_gpus
    # Security: a request that makes the model iterate a billion times would stop the whole server.
    lane = "thread" if _unbounded(model) else config.lane or ("thread" if threads else None)
    return plan(
        measured.times,
        cores=len(config.cpus) or usable_cores(),
        threads_per_run=model.threads_per_run,
        lane=lane,
        instances=len(placed.spread()) if placed.counted or on_gpus else None,
        max_batch=max_batch_size,
    )


def _batch_limit(config: ModelConfig, max_batch_size: int, chosen: RunPlan) -> int:
    if config.dynamic_batching is False:
        return min(1, max_batch_size)
    return max_batch_size if config.dynamic_batching or config.sequence else chosen.batch_limit


def _reason(
    config: ModelConfig,
    measured: Measured,
    chosen: RunPlan,
    placed: Places,
    pools: Sequence[ModelInWorkers],
    spread: LoadedModel | None,
) -> str:
    probe = measured.probe
    why_batched = (
        f"max_batch_size of the configuration is {config.max_batch_size}"
        if probe is None or (config.max_batch_size and config.joining is None)
        else probe.reason
    )
    where = (
        "; in a worker process for each device" if len(pools) > 1 else "; in a worker process" * len(pools)
    )
    alone = ""
    if spread is not None and chosen.lane == "thread":
        alone = f"; while no other run is in progress, a run uses {spread.threads_per_run} cores"
        if config.lone_run_threads is None:
            alone += f" and takes {format_seconds(measured.times.spread_seconds)}"
    return f"{why_batched}; {chosen.reason}{alone}{where}{why_there(config, placed)}"


def _why_not_spread(config: ModelConfig, chosen: RunPlan) -> str:
    why = (
        "the model runs on the event loop"
        if chosen.lane == "inline"
        else "the number of threads is fixed by a parameter, the runtime, the device or --compute-threads"
    )
    return f"{config.source or config.name}: lone_run_threads has no effect: {why}"


def _max_batch_size(config: ModelConfig, probe: BatchProbe | None) -> int:
    if config.max_batch_size is not None:
        return config.max_batch_size
    return (config.proved_batch or LARGEST_BATCH) if probe is not None and probe.batched else 0


def _batched_against_proof(config: ModelConfig, probe: BatchProbe) -> str:
    """Returns a warning that requests in a configured batch change, or may change, each other's outputs."""
    says = f"{config.source or config.name}: max_batch_size is {config.max_batch_size}"
    if not probe.known:
        return f"{says}, but it is not known whether joining requests changes outputs: {probe.reason}"
    advice = (
        "Set max_batch_size to 0"
        if config.joining is None
        else "Correct how requests are joined (padding, cut, batch_input)"
    )
    return f"{says}, but joining requests changes outputs: {probe.reason}. {advice} unless this is intended"
