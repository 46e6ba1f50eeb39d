"""Proves, measures and places models that a runtime runs, and that give one response per request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from backline.backends.backend import LoadedModel, Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.values.device import Device, Places
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
    RunPlan,
    RunTimes,
    measure,
    plan,
    spare_instances,
)
from backline.lifecycle.loading.trial_runs import Samples, TrialRuns, find_trial, fitting
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.view import View
from backline.system.cores import usable_cores
from backline.workers.here.execution import Execution
from backline.workers.instance import Instance
from backline.workers.model_in_workers import ModelInWorkers


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedHere(LoadedVersion):
    """A model that is called from this process; `replicas` are its copies by device.

    The copies are in this process or, with `pools`, each in a worker process, for which threads of this
    process wait.
    """

    replicas: Mapping[Device, LoadedModel]
    pools: tuple[ModelInWorkers, ...] = ()

    @property
    def model(self) -> LoadedModel:
        """The replica on the first device, which was measured."""
        return next(iter(self.replicas.values()))

    def placed_again(self, config: ModelConfig) -> LoadedHere:
        if self.pools:
            config = replace(config, lane="thread")
        config = replace(config, usual_instances=self.view.config.usual_instances)
        placed = place_again(config, self.placed)
        chosen = _plan(config, self.model, self.measured, self.max_batch_size, placed)
        return replace(
            self,
            batch_limit=_batch_limit(config, self.max_batch_size, chosen),
            lane="process" if self.pools else chosen.lane,
            placed=placed,
            places=placed.spread(chosen.instances)[: chosen.instances],
            reason=_reason(config, self.measured, chosen, placed, self.pools),
        )

    def make_instances(self, maker: InstanceMaker) -> list[Instance]:
        if self.lane == "inline" and not maker.moved:
            return [maker.inline(self._execution(maker, self.placed.devices[0]))]
        threads = self.model.threads_per_run
        places = self.places
        for pool in self.pools:
            maker.watch(pool)
        if self.lane == "inline":  # the model was planned for the event loop, but blocked it
            places = self.placed.spread(spare_instances(usable_cores(), threads))
        instances = []
        for number, place in enumerate(places):
            device = place.device
            # A model that mostly waits for a device or a service needs no core. Whether it waits was measured
            # only on the first device, and not for models in worker processes.
            waits = device.kind == "gpu" or (
                self.measured.times.waits and not self.pools and device == self.placed.devices[0]
            )
            run = maker.run_on(
                device, partial(self._execution, maker, device), threads=None if waits else threads
            )
            # A pool limits the time of its runs itself, by killing a worker that takes too long.
            instances.append(maker.thread(run, number, timed=not self.pools))
        return instances

    def _execution(self, maker: InstanceMaker, device: Device) -> Execution:
        join = self.view.stage(JoinRequests)
        config = self.view.config
        return Execution(
            maker.model.name,
            maker.model.version,
            self.replicas[device],
            joiner=join.joiner,
            outputs=tuple(spec.name for spec in self.states.model.outputs),
            declared_batch=config.max_batch_size or 0,
        )

    def lone_runs(self) -> Iterable[Run]:
        return [self.view.alone(replica).run for replica in self.replicas.values()]

    @property
    def pids(self) -> Sequence[int]:
        return [pid for pool in self.pools for pid in pool.pids]

    def close(self) -> None:
        for replica in self.replicas.values():
            replica.close()


def measure_model(config: ModelConfig, view: View, model: LoadedModel, samples: Samples = ()) -> Measured:
    """Tests whether requests can be batched, unless the configuration rules it out, and times runs.

    A configured batch is trusted, and only checked by a run that has to be timed anyway. The user's `samples`
    are tried before made-up inputs.
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
    return Measured(probe, RunTimes({}) if trial is None else measure(runs, max_batch_size, trial))


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
) -> LoadedHere:
    """Decides how to run a model that is loaded on all devices of `placed`, here or in workers of `pools`."""
    model = next(iter(replicas.values()))
    probe = measured.probe
    warnings = tuple(dict.fromkeys(w for replica in replicas.values() for w in replica.warnings)) + warnings
    warnings += missing_gpu(config, placed)
    if config.max_batch_size and probe is not None and not probe.batched:
        warnings += (_batched_against_proof(config, probe),)
    if config.lane == "inline" and _may_not_end(model):
        told = "the model has a loop, so a request may decide how long a run takes, and it runs on threads"
        warnings += (f"{config.source or config.name}: lane inline has no effect: {told}",)
    max_batch_size = _max_batch_size(config, probe)
    chosen = _plan(config, model, measured, max_batch_size, placed)
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
        placed=placed,
        places=placed.spread(chosen.instances)[: chosen.instances],
        reason=_reason(config, measured, chosen, placed, pools),
        decoupled=config.decoupled,
        measured=measured,
        warnings=warnings,
        joining=view.stage(JoinRequests).joining,
    )


def _may_not_end(model: LoadedModel) -> bool:
    """Whether a request may decide how long a run takes. Backends that can tell set this attribute."""
    return getattr(model, "may_not_end", False)


def _plan(
    config: ModelConfig, model: LoadedModel, measured: Measured, max_batch_size: int, placed: Places
) -> RunPlan:
    on_gpus = any(device.kind == "gpu" for device in placed.devices)
    assert config.lane != "process", "it is loaded here"
    # The event loop cannot abandon a long run, be pinned to cores, or wait for a device or a compiler.
    long = config.execution_timeout_seconds is not None or getattr(model, "compiles", False)
    threads = long or config.cpus or on_gpus
    # Security: a request for a billion turns of a loop would stop the whole server.
    lane = "thread" if _may_not_end(model) else config.lane or ("thread" if threads else None)
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
    return f"{why_batched}; {chosen.reason}{where}{why_there(config, placed)}"


def _max_batch_size(config: ModelConfig, probe: BatchProbe | None) -> int:
    if config.max_batch_size is not None:
        return config.max_batch_size
    return (config.proved_batch or LARGEST_BATCH) if probe is not None and probe.batched else 0


def _batched_against_proof(config: ModelConfig, probe: BatchProbe) -> str:
    """Returns a warning that requests in a configured batch change, or may change, each other's outputs."""
    says = f"{config.source or config.name}: max_batch_size is {config.max_batch_size}"
    if not probe.known:
        return f"{says}, and whether joining requests changes outputs could not be checked: {probe.reason}"
    advice = (
        "Set max_batch_size to 0"
        if config.joining is None
        else "Correct how requests are joined (padding, cut, batch_input)"
    )
    return f"{says}, but joining requests changes outputs: {probe.reason}. {advice} unless this is intended"
